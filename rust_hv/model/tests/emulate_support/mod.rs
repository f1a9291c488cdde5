// SPDX-License-Identifier: GPL-2.0

//! A virtual CPU with a few pages of memory and devices, that checks how the executor treats it.
#![allow(dead_code)] // Each test binary uses its own part.

use rusthv_model::arch::addr::{Gpa, Gva, PAGE_SIZE};
use rusthv_model::arch::exception::PageFaultError;
use rusthv_model::arch::regs::Rflags;
use rusthv_model::arch::segment::{AccessRights, Segment};
use rusthv_model::emulate::*;
use std::collections::BTreeMap;

/// Flat, writable, 4 GiB data segment.
pub const FLAT: Segment = Segment {
    base: 0,
    limit: u32::MAX,
    selector: 8,
    rights: AccessRights::from_raw(0xc093),
};

/// Where a page of the guest leads.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub gpa: u64,
    pub backing: Backing,
    pub writable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostError {
    Injected,
}

#[derive(Clone)]
pub struct Machine {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: Rflags,
    pub segments: [Segment; 6],
    pub protected: bool,
    pub linear_bits: u32,
    pub alignment_checked: bool,
    /// By guest-virtual page.
    pub pages: BTreeMap<u64, Page>,
    /// Pages by guest-physical address; what is missing reads as 0.
    pub ram: BTreeMap<u64, Vec<u8>>,
    /// Device loads, answered by `device`, and stores, in order.
    pub mmio_reads: Vec<MmioRead>,
    pub mmio_writes: Vec<(u64, Vec<u8>)>,
    /// Every atomic exchange tried: address, width, old, new.
    pub exchanges: Vec<(u64, Width, u64, u64)>,
    /// So many exchanges fail first, with another CPU's value left behind.
    pub races: u32,
    /// Host failure on loads and stores of this page.
    pub broken: Option<u64>,
    /// Translations of this guest-virtual page are refused for now.
    pub contended: Option<u64>,
    /// Translations of the last execution.
    pub translated: Vec<(u64, Access)>,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            gprs: [0; 16],
            rip: 0x10_0000,
            rflags: Rflags::FIXED,
            segments: [FLAT; 6],
            protected: true,
            linear_bits: 48,
            alignment_checked: false,
            pages: BTreeMap::new(),
            ram: BTreeMap::new(),
            mmio_reads: Vec::new(),
            mmio_writes: Vec::new(),
            exchanges: Vec::new(),
            races: 0,
            broken: None,
            contended: None,
            translated: Vec::new(),
        }
    }

    /// Maps the page of `gva`.
    pub fn map(&mut self, gva: u64, gpa: u64, backing: Backing, writable: bool) {
        let page = Page {
            gpa: gpa & !(PAGE_SIZE - 1),
            backing,
            writable,
        };
        self.pages.insert(gva & !(PAGE_SIZE - 1), page);
    }

    pub fn ram(&mut self, gva: u64, gpa: u64) {
        self.map(gva, gpa, Backing::Ram, true);
    }

    pub fn mmio(&mut self, gva: u64, gpa: u64) {
        self.map(gva, gpa, Backing::Mmio, true);
    }

    pub fn poke(&mut self, gpa: u64, bytes: &[u8]) {
        let (mut gpa, mut rest) = (Gpa::new(gpa), bytes);
        while !rest.is_empty() {
            let page = self.ram.entry(gpa.page_base().raw());
            let page = page.or_insert_with(|| vec![0; PAGE_SIZE as usize]);
            let room = &mut page[gpa.page_offset() as usize..];
            let (now, later) = rest.split_at(rest.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            (gpa, rest) = (gpa.wrapping_add(now.len() as u64), later);
        }
    }

    pub fn peek(&self, gpa: u64, len: u64) -> Vec<u8> {
        let (mut gpa, mut found) = (Gpa::new(gpa), Vec::new());
        while (found.len() as u64) < len {
            let now = (len - found.len() as u64).min(PAGE_SIZE - gpa.page_offset()) as usize;
            match self.ram.get(&gpa.page_base().raw()) {
                Some(page) => found.extend(&page[gpa.page_offset() as usize..][..now]),
                None => found.resize(found.len() + now, 0),
            }
            gpa = gpa.wrapping_add(now as u64);
        }
        found
    }

    pub fn reg(&self, register: Gpr) -> u64 {
        self.gprs[usize::from(register.number())]
    }

    pub fn set(&mut self, register: Gpr, value: u64) {
        self.gprs[usize::from(register.number())] = value;
    }

    /// The byte that a device has at an address: never the same in two neighbours.
    pub fn device(gpa: u64) -> u8 {
        (gpa ^ (gpa >> 8)).wrapping_mul(0x9d).wrapping_add(0x35) as u8
    }

    pub fn device_value(gpa: u64, len: u64) -> u64 {
        (0..len).fold(0, |value, i| {
            value | u64::from(Self::device(gpa + i)) << (8 * i)
        })
    }

    /// One call of the executor.
    pub fn step(&mut self, insn: &Insn, log: &mut MmioLog, limit: u32) -> Outcome<HostError> {
        self.translated.clear();
        execute(self, insn, log, limit)
    }

    /// Decodes and executes to the end as a virtual CPU's loop would, serving devices. Returns
    /// the fault or failure, if there was one.
    pub fn run(&mut self, bytes: &[u8], mode: Mode) -> Outcome<HostError> {
        let insn = decode(bytes, mode).expect("known instruction");
        self.run_insn(&insn)
    }

    pub fn run_insn(&mut self, insn: &Insn) -> Outcome<HostError> {
        let mut log = MmioLog::new();
        loop {
            let before = self.registers();
            match self.step(insn, &mut log, 3) {
                Outcome::MmioRead(read) => {
                    self.mmio_reads.push(read);
                    // What is beyond the answer's length is left dirty on purpose.
                    let mut data = [0xeeu8; 8];
                    for i in 0..u64::from(read.len) {
                        data[i as usize] = Self::device(read.gpa.raw() + i);
                    }
                    log.record(read, data).expect("room for every answer");
                }
                Outcome::MmioWrite {
                    mut writes,
                    finished,
                    trap,
                } => {
                    assert!(log.is_empty());
                    while let Some(write) = writes.pop() {
                        let bytes = write.bytes().to_vec();
                        self.mmio_writes.push((write.gpa.raw(), bytes));
                    }
                    if finished {
                        return Outcome::Done { trap };
                    }
                    if trap {
                        return Outcome::Again { trap };
                    }
                    assert_ne!(before, self.registers(), "no progress");
                }
                Outcome::Again { trap: false } => {
                    assert!(
                        before != self.registers() || !self.exchanges.is_empty(),
                        "no progress"
                    );
                }
                outcome => {
                    assert!(log.is_empty());
                    return outcome;
                }
            }
        }
    }

    pub fn registers(&self) -> ([u64; 16], u64, Rflags) {
        (self.gprs, self.rip, self.rflags)
    }

    fn check_range(&self, gpa: Gpa, len: usize) {
        assert!((1..=8).contains(&len));
        assert!(gpa.page_offset() + len as u64 <= PAGE_SIZE);
        let known = self
            .pages
            .values()
            .any(|page| page.gpa == gpa.page_base().raw() && page.backing != Backing::Mmio);
        assert!(known, "access to memory that was not translated");
    }
}

impl Cpu for Machine {
    fn gpr(&self, register: Gpr) -> u64 {
        self.reg(register)
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.set(register, value);
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> Rflags {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: Rflags) {
        self.rflags = rflags;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }
    fn is_protected(&self) -> bool {
        self.protected
    }
    fn linear_bits(&self) -> u32 {
        self.linear_bits
    }
    fn is_alignment_checked(&self) -> bool {
        self.alignment_checked
    }
}

impl Memory for Machine {
    type Error = HostError;

    fn translate(&mut self, gva: Gva, access: Access) -> Result<Place, Stop<HostError>> {
        self.translated.push((gva.raw(), access));
        if self.contended == Some(gva.page_base().raw()) {
            return Err(Stop::Retry);
        }
        let write = access == Access::Write;
        let code = |present| {
            PageFaultError::NONE
                .with(PageFaultError::PRESENT, present)
                .with(PageFaultError::WRITE, write)
        };
        match self.pages.get(&gva.page_base().raw()) {
            None => Err(Stop::Fault(Exception::page_fault(gva, code(false)))),
            Some(page) if write && !page.writable => {
                Err(Stop::Fault(Exception::page_fault(gva, code(true))))
            }
            Some(page) => Ok(Place {
                gpa: Gpa::new(page.gpa + gva.page_offset()),
                backing: page.backing,
            }),
        }
    }

    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), HostError> {
        self.check_range(gpa, bytes.len());
        if self.broken == Some(gpa.page_base().raw()) {
            return Err(HostError::Injected);
        }
        let found = self.peek(gpa.raw(), bytes.len() as u64);
        bytes.copy_from_slice(&found);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), HostError> {
        self.check_range(gpa, bytes.len());
        let page = gpa.page_base().raw();
        if self.broken == Some(page) {
            return Err(HostError::Injected);
        }
        let allowed = self
            .translated
            .iter()
            .filter(|(_, access)| *access == Access::Write)
            .filter_map(|(gva, _)| self.pages.get(&(gva & !(PAGE_SIZE - 1))))
            .any(|found| found.gpa == page && found.backing == Backing::Ram);
        assert!(allowed, "store without a right to it");
        self.poke(gpa.raw(), bytes);
        Ok(())
    }

    fn compare_exchange(
        &mut self,
        gpa: Gpa,
        width: Width,
        old: u64,
        new: u64,
    ) -> Result<bool, HostError> {
        let len = usize::from(width.bytes());
        self.check_range(gpa, len);
        assert_eq!(gpa.raw() % len as u64, 0);
        assert_eq!((old | new) & !width.mask(), 0);
        self.exchanges.push((gpa.raw(), width, old, new));
        if self.races > 0 {
            self.races -= 1;
            let other = old.wrapping_add(1).to_le_bytes();
            self.poke(gpa.raw(), &other[..len]);
            return Ok(false);
        }
        if self.peek(gpa.raw(), len as u64) != old.to_le_bytes()[..len] {
            return Ok(false);
        }
        self.poke(gpa.raw(), &new.to_le_bytes()[..len]);
        Ok(true)
    }
}

pub const DONE: Outcome<HostError> = Outcome::Done { trap: false };
pub const GP: Outcome<HostError> = Outcome::Fault(Exception::general_protection());
pub const SS: Outcome<HostError> = Outcome::Fault(Exception::stack_fault());
pub const READ: PageFaultError = PageFaultError::NONE;
pub const WRITE: PageFaultError = PageFaultError::WRITE;
pub const PRESENT: PageFaultError = PageFaultError::PRESENT;

pub fn page_fault(gva: u64, code: PageFaultError) -> Outcome<HostError> {
    Outcome::Fault(Exception::page_fault(Gva::new(gva), code))
}

/// RAM at 0x1000 and 0x2000 (far apart in guest-physical memory), devices at 0x4000 and 0x5000,
/// nothing at 0x3000 and 0x6000.
pub fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.ram(0x1000, 0x9_1000);
    machine.ram(0x2000, 0x5_2000);
    machine.mmio(0x4000, 0xfee0_4000);
    machine.mmio(0x5000, 0xfed0_5000);
    machine
}

/// Runs and checks that nothing changed but what the outcome says.
pub fn refused(mut machine: Machine, bytes: &[u8], mode: Mode) -> Outcome<HostError> {
    let registers = machine.registers();
    let ram = machine.ram.clone();
    let outcome = machine.run(bytes, mode);
    assert_eq!(machine.registers(), registers);
    assert!(machine.ram == ram);
    assert!(machine.mmio_reads.is_empty() && machine.mmio_writes.is_empty());
    outcome
}

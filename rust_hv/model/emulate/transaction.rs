// SPDX-License-Identifier: GPL-2.0

//! One instruction, or one iteration of a repeated one, as all or nothing.

use super::address::{linear, linear_add};
use super::cpu::Cpu;
use super::insn::{Insn, Mem, Operand, Reg};
use super::memory::{Backing, Memory, MmioLog, MmioRead, MmioWrite, MmioWrites, Place, Stop};
use super::types::{Access, Exception, Gpr, Mode, SegmentName, Width};
use crate::model::arch::addr::{Gpa, PAGE_SIZE};
use crate::model::arch::regs::Rflags;

/// Why a transaction cannot go on.
pub(super) enum Halt<E> {
    Stop(Stop<E>),
    /// A device has to answer first.
    MmioRead(MmioRead),
}

impl<E> From<Exception> for Halt<E> {
    fn from(exception: Exception) -> Self {
        Self::Stop(Stop::Fault(exception))
    }
}

impl<E> From<Stop<E>> for Halt<E> {
    fn from(stop: Stop<E>) -> Self {
        Self::Stop(stop)
    }
}

/// The part of a memory operand that lies in one page.
#[derive(Clone, Copy)]
struct Part {
    place: Place,
    len: u8,
}

/// A memory operand, translated.
#[derive(Clone, Copy)]
pub(super) struct Span {
    first: Part,
    /// The rest, where the operand crosses into another page.
    second: Option<Part>,
    width: Width,
}

impl Span {
    /// Each part with the position of its first byte in the operand, in bits.
    fn parts(self) -> impl Iterator<Item = (Part, u32)> {
        let shift = u32::from(self.first.len).wrapping_mul(8);
        core::iter::once((self.first, 0)).chain(self.second.map(|part| (part, shift)))
    }

    /// The address, if the operand is memory that one atomic access can reach.
    fn atomic(self) -> Option<Gpa> {
        let Place { gpa, backing } = self.first.place;
        let misaligned = gpa.raw() & u64::from(self.width.bytes()).wrapping_sub(1);
        (backing == Backing::Ram && self.second.is_none() && misaligned == 0).then_some(gpa)
    }
}

/// An operand, found.
#[derive(Clone, Copy)]
pub(super) enum Location {
    Reg(Reg, Width),
    Memory(Span),
    Value(u64),
}

/// A register's bit in a set of registers.
fn bit(register: Gpr) -> u16 {
    1u16.wrapping_shl(u32::from(register.number()))
}

struct Store {
    span: Span,
    value: u64,
    /// What must still be there, for locked instructions.
    expected: Option<u64>,
}

/// Reads go to the machine, writes stay here until [`commit`](Self::commit).
pub(super) struct Transaction<'a, M> {
    machine: &'a mut M,
    log: &'a mut MmioLog,
    /// Device loads so far.
    loads: usize,
    mode: Mode,
    gprs: [u64; 16],
    /// Bit n is set where `gprs[n]` is a new value.
    changed: u16,
    rflags: Rflags,
    store: Option<Store>,
}

impl<'a, M: Cpu + Memory> Transaction<'a, M> {
    pub(super) fn new(machine: &'a mut M, log: &'a mut MmioLog, mode: Mode) -> Self {
        let rflags = machine.rflags();
        Self {
            machine,
            log,
            loads: 0,
            mode,
            gprs: [0; 16],
            changed: 0,
            rflags,
            store: None,
        }
    }

    /// All 64 bits of a register, as this transaction has changed it.
    pub(super) fn gpr(&self, register: Gpr) -> u64 {
        match self.gprs.get(usize::from(register.number())) {
            Some(value) if self.changed & bit(register) != 0 => *value,
            _ => self.machine.gpr(register),
        }
    }

    /// Writes the low part of a register; 32 bits clear the upper half.
    pub(super) fn set_gpr(&mut self, register: Gpr, width: Width, value: u64) {
        let value = width.merge(self.gpr(register), value);
        if let Some(slot) = self.gprs.get_mut(usize::from(register.number())) {
            *slot = value;
            self.changed |= bit(register);
        }
    }

    /// Width of the stack pointer.
    pub(super) fn stack_width(&self) -> Width {
        if self.mode == Mode::Bits64 {
            Width::Qword
        } else if self.machine.segment(SegmentName::Ss).rights.default_big() {
            Width::Dword
        } else {
            Width::Word
        }
    }

    pub(super) fn rflags(&self) -> Rflags {
        self.rflags
    }

    pub(super) fn set_rflags(&mut self, rflags: Rflags) {
        self.rflags = rflags;
    }

    fn reg(&self, reg: Reg, width: Width) -> u64 {
        match reg {
            Reg::Low(register) => self.gpr(register) & width.mask(),
            Reg::High(register) => (self.gpr(register) >> 8) & Width::Byte.mask(),
        }
    }

    fn set_reg(&mut self, reg: Reg, width: Width, value: u64) {
        match reg {
            Reg::Low(register) => self.set_gpr(register, width, value),
            Reg::High(register) => {
                let word = (self.gpr(register) & 0xff) | (value & 0xff) << 8;
                self.set_gpr(register, Width::Word, word);
            }
        }
    }

    /// Offset of a memory operand in its segment, `displacement` bytes further on than it says.
    fn offset(&self, insn: &Insn, mem: &Mem, displacement: i64) -> u64 {
        let next = self.machine.rip().wrapping_add(u64::from(insn.len));
        mem.offset(|register| self.gpr(register), next, insn.address_width)
            .wrapping_add(displacement as u64)
            & insn.address_width.mask()
    }

    /// Finds an operand of the instruction; memory is translated with the right to `access` it.
    /// `displacement` moves memory operands.
    pub(super) fn locate(
        &mut self,
        insn: &Insn,
        operand: Operand,
        width: Width,
        access: Access,
        displacement: i64,
    ) -> Result<Location, Halt<M::Error>> {
        Ok(match operand {
            Operand::None => Location::Value(0),
            Operand::Imm(value) => Location::Value(value as u64 & width.mask()),
            Operand::Reg(reg) => Location::Reg(reg, width),
            Operand::Mem(mem) => {
                let offset = self.offset(insn, &mem, displacement);
                Location::Memory(self.span(mem.segment, offset, width, access)?)
            }
        })
    }

    /// Translates `width` bytes at an offset in a segment.
    pub(super) fn span(
        &mut self,
        segment: SegmentName,
        offset: u64,
        width: Width,
        access: Access,
    ) -> Result<Span, Halt<M::Error>> {
        let gva = linear(self.machine, self.mode, segment, offset, width, access)?;
        let len = width.bytes();
        // At most a page, and at least 1: the difference cannot wrap.
        let room = PAGE_SIZE.wrapping_sub(gva.page_offset());
        let first_len = u64::from(len).min(room) as u8;
        let mut part = |gva, len| {
            let place = self.machine.translate(gva, access)?;
            Ok::<_, Halt<M::Error>>(Part { place, len })
        };
        let first = part(gva, first_len)?;
        let second = match len.wrapping_sub(first_len) {
            0 => None,
            rest => Some(part(linear_add(self.mode, gva, room), rest)?),
        };
        let misaligned = gva.raw() & u64::from(len).wrapping_sub(1) != 0;
        if misaligned && self.machine.is_alignment_checked() {
            return Err(Exception::alignment_check().into());
        }
        Ok(Span {
            first,
            second,
            width,
        })
    }

    /// Value of an operand, zero-extended.
    pub(super) fn load(&mut self, location: Location) -> Result<u64, Halt<M::Error>> {
        let span = match location {
            Location::Value(value) => return Ok(value),
            Location::Reg(reg, width) => return Ok(self.reg(reg, width)),
            Location::Memory(span) => span,
        };
        let mut value = 0u64;
        for (part, shift) in span.parts() {
            value |= self.load_part(part)?.wrapping_shl(shift);
        }
        Ok(value & span.width.mask())
    }

    fn load_part(&mut self, part: Part) -> Result<u64, Halt<M::Error>> {
        let Part { place, len } = part;
        if place.backing == Backing::Mmio {
            let read = MmioRead {
                gpa: place.gpa,
                len,
            };
            let index = self.loads;
            self.loads = index.wrapping_add(1);
            let value = self.log.replay(index, read).ok_or(Halt::MmioRead(read))?;
            // What user space left behind the answer is not part of it.
            let unused = 64u32.wrapping_sub(u32::from(len).wrapping_mul(8));
            return Ok(value & u64::MAX.wrapping_shr(unused));
        }
        let mut bytes = [0u8; 8];
        let used = bytes.get_mut(..usize::from(len)).unwrap_or_default();
        self.machine.read(place.gpa, used).map_err(Stop::Failed)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes an operand. For a locked instruction, `expected` is what was loaded from there.
    pub(super) fn store(&mut self, location: Location, value: u64, expected: Option<u64>) {
        match location {
            Location::Value(_) => {}
            Location::Reg(reg, width) => self.set_reg(reg, width, value),
            Location::Memory(span) => {
                self.store = Some(Store {
                    span,
                    value,
                    expected,
                });
            }
        }
    }

    /// Makes everything happen and returns what devices are still to be told. After an error
    /// nothing has happened, except that a host failure on the second page of a store leaves the
    /// first page written.
    pub(super) fn commit(mut self, rip: u64) -> Result<MmioWrites, Halt<M::Error>> {
        let writes = match self.store.take() {
            Some(store) => self.store_now(&store)?,
            None => MmioWrites::default(),
        };
        let mut changed = self.changed;
        while changed != 0 {
            let register = Gpr::new(changed.trailing_zeros() as u8);
            changed &= changed.wrapping_sub(1);
            self.machine.set_gpr(register, self.gpr(register));
        }
        if self.rflags != self.machine.rflags() {
            self.machine.set_rflags(self.rflags);
        }
        if rip != self.machine.rip() {
            self.machine.set_rip(rip);
        }
        self.log.clear();
        Ok(writes)
    }

    fn store_now(&mut self, store: &Store) -> Result<MmioWrites, Halt<M::Error>> {
        let mut writes = MmioWrites::default();
        let width = store.span.width;
        if let Some((expected, gpa)) = store.expected.zip(store.span.atomic()) {
            let new = store.value & width.mask();
            return match self.machine.compare_exchange(gpa, width, expected, new) {
                Ok(true) => Ok(writes),
                // Another virtual CPU was faster.
                Ok(false) => Err(Stop::Retry.into()),
                Err(error) => Err(Stop::Failed(error).into()),
            };
        }
        for (part, shift) in store.span.parts() {
            let Part { place, len } = part;
            let write = MmioWrite::new(place.gpa, len, store.value.wrapping_shr(shift));
            match place.backing {
                Backing::Ram => self
                    .machine
                    .write(place.gpa, write.bytes())
                    .map_err(Stop::Failed)?,
                Backing::Rom | Backing::Mmio => writes.push(write),
            }
        }
        Ok(writes)
    }
}

impl From<Span> for Location {
    fn from(span: Span) -> Self {
        Self::Memory(span)
    }
}

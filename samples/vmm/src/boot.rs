// SPDX-License-Identifier: GPL-2.0
//! The state in which a guest starts: where its image lies, segments, page tables.

use clap::ValueEnum;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always one.
const RFLAGS_FIXED: u64 = 1 << 1;

const PRESENT_WRITE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

const GDT: u64 = 0x500;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
/// Four page directories, one for each of the first 4 GiB.
const DIRECTORIES: u64 = 0x3000;

/// A real-mode image gets this segment to itself.
const REAL_MODE_SEGMENT: u16 = 0x1000;
const REAL_MODE_STACK: u64 = 0xfff0;
const IMAGE_32_64: u64 = MIB;
const STACK_32_64: u64 = 0x9_0000;

const SELECTOR_CODE32: u16 = 0x08;
const SELECTOR_DATA: u16 = 0x10;
const SELECTOR_CODE64: u16 = 0x18;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Real mode: CS=DS=ES=SS=0x1000, IP=0, SP=0xfff0
    #[value(name = "16")]
    Real,
    /// Protected mode, flat 4 GiB segments, no paging: EIP=0x100000, ESP=0x90000
    #[value(name = "32")]
    Protected,
    /// Long mode: RIP=0x100000, RSP=0x90000; 0-4 GiB mapped to itself, 4-5 GiB to 0-1 GiB
    #[value(name = "64")]
    Long,
}

impl Mode {
    pub fn load_address(self) -> u64 {
        match self {
            Self::Real => u64::from(REAL_MODE_SEGMENT) << 4,
            Self::Protected | Self::Long => IMAGE_32_64,
        }
    }

    /// Room for the image, in a guest with `memory` bytes of RAM.
    pub fn image_limit(self, memory: u64) -> u64 {
        match self {
            // The stack grows down from the end of the same segment: leave it 4 KiB.
            Self::Real => 60 * KIB,
            Self::Protected | Self::Long => memory.saturating_sub(IMAGE_32_64),
        }
    }

    /// Writes the tables that the mode needs and sets the registers to start the image.
    pub fn prepare(
        self,
        mem: &GuestMemoryMmap,
        regs: &mut kvm_regs,
        sregs: &mut kvm_sregs,
    ) -> Result<()> {
        *regs = kvm_regs {
            rflags: RFLAGS_FIXED,
            ..Default::default()
        };
        match self {
            Self::Real => {
                let segment = kvm_segment {
                    base: u64::from(REAL_MODE_SEGMENT) << 4,
                    limit: 0xffff,
                    selector: REAL_MODE_SEGMENT,
                    type_: 3,
                    present: 1,
                    s: 1,
                    ..Default::default()
                };
                set_data_segments(sregs, segment);
                sregs.cs = kvm_segment {
                    type_: 11,
                    ..segment
                };
                regs.rsp = REAL_MODE_STACK;
            }
            Self::Protected => {
                self.set_flat_segments(mem, sregs)?;
                sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
                regs.rip = IMAGE_32_64;
                regs.rsp = STACK_32_64;
            }
            Self::Long => {
                self.set_flat_segments(mem, sregs)?;
                for (address, entry) in page_table_entries() {
                    write(mem, address, entry)?;
                }
                sregs.cr3 = PML4;
                sregs.cr4 = CR4_PAE;
                sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
                sregs.efer = EFER_LME | EFER_LMA;
                regs.rip = IMAGE_32_64;
                regs.rsp = STACK_32_64;
            }
        }
        Ok(())
    }

    fn set_flat_segments(self, mem: &GuestMemoryMmap, sregs: &mut kvm_sregs) -> Result<()> {
        let data = kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: SELECTOR_DATA,
            type_: 3,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let code32 = kvm_segment {
            selector: SELECTOR_CODE32,
            type_: 11,
            ..data
        };
        let code64 = kvm_segment {
            selector: SELECTOR_CODE64,
            db: 0,
            l: 1,
            ..code32
        };
        set_data_segments(sregs, data);
        sregs.cs = if self == Self::Long { code64 } else { code32 };

        // The same segments where the guest can load them from.
        let table = [
            0,
            descriptor(&code32),
            descriptor(&data),
            descriptor(&code64),
        ];
        for (address, entry) in (GDT..).step_by(8).zip(table) {
            write(mem, address, entry)?;
        }
        sregs.gdt.base = GDT;
        sregs.gdt.limit = (8 * table.len() - 1) as u16;
        // No handlers: an exception ends in a triple fault, which the VMM reports.
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        Ok(())
    }
}

fn set_data_segments(sregs: &mut kvm_sregs, segment: kvm_segment) {
    sregs.ds = segment;
    sregs.es = segment;
    sregs.fs = segment;
    sregs.gs = segment;
    sregs.ss = segment;
}

/// The segment as a descriptor-table entry.
fn descriptor(s: &kvm_segment) -> u64 {
    let limit = u64::from(if s.g != 0 { s.limit >> 12 } else { s.limit });
    let access = u64::from(s.type_)
        | u64::from(s.s) << 4
        | u64::from(s.dpl) << 5
        | u64::from(s.present) << 7
        | u64::from(s.avl) << 12
        | u64::from(s.l) << 13
        | u64::from(s.db) << 14
        | u64::from(s.g) << 15;
    (limit & 0xffff)
        | (s.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | (s.base >> 24 & 0xff) << 56
}

/// Every entry of the page tables in long mode, with the address where it goes.
fn page_table_entries() -> impl Iterator<Item = (u64, u64)> {
    let pdpt = (0..4)
        .map(|i| (PDPT + 8 * i, (DIRECTORIES + 4 * KIB * i) | PRESENT_WRITE))
        // The second view of the first GiB.
        .chain([(PDPT + 8 * 4, DIRECTORIES | PRESENT_WRITE)]);
    let pages = (0..4 * GIB / (2 * MIB)).map(|i| {
        (
            DIRECTORIES + 8 * i,
            (2 * MIB * i) | PRESENT_WRITE | LARGE_PAGE,
        )
    });
    [(PML4, PDPT | PRESENT_WRITE)]
        .into_iter()
        .chain(pdpt)
        .chain(pages)
}

fn write(mem: &GuestMemoryMmap, address: u64, value: u64) -> Result<()> {
    mem.write_obj(value.to_le(), GuestAddress(address))
        .map_err(Error::memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xa_0000)]).unwrap()
    }

    fn prepare(mode: Mode) -> (GuestMemoryMmap, kvm_regs, kvm_sregs) {
        let (mem, mut regs, mut sregs) = (memory(), kvm_regs::default(), kvm_sregs::default());
        mode.prepare(&mem, &mut regs, &mut sregs).unwrap();
        (mem, regs, sregs)
    }

    /// What the CPU does with an address.
    fn walk(mem: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
        let entry = |table: u64, shift: u32| {
            let at = (table & !0xfff) + 8 * (address >> shift & 0x1ff);
            let entry: u64 = mem.read_obj(GuestAddress(at)).unwrap();
            (entry & 1 != 0).then_some(entry)
        };
        let page = entry(entry(entry(cr3, 39)?, 30)?, 21)?;
        assert_ne!(page & LARGE_PAGE, 0);
        Some((page & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    #[test]
    fn long_mode_maps_4_gib_and_the_first_once_more() {
        let (mem, _, sregs) = prepare(Mode::Long);
        for address in [0, 0x10_0000, 0x8000_1234, 4 * GIB - 1] {
            assert_eq!(walk(&mem, sregs.cr3, address), Some(address));
        }
        assert_eq!(walk(&mem, sregs.cr3, 4 * GIB + 0x20_0042), Some(0x20_0042));
        assert_eq!(walk(&mem, sregs.cr3, 5 * GIB - 1), Some(GIB - 1));
        assert_eq!(walk(&mem, sregs.cr3, 5 * GIB), None);
        assert_eq!(walk(&mem, sregs.cr3, 1 << 39), None);
    }

    #[test]
    fn descriptors_say_what_the_registers_say() {
        let (mem, _, sregs) = prepare(Mode::Protected);
        let at = |selector: u16| -> u64 {
            mem.read_obj(GuestAddress(sregs.gdt.base + u64::from(selector)))
                .unwrap()
        };
        assert_eq!(at(0), 0);
        assert_eq!(at(SELECTOR_CODE32), 0x00cf_9b00_0000_ffff);
        assert_eq!(at(SELECTOR_DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(at(SELECTOR_CODE64), 0x00af_9b00_0000_ffff);
        assert_eq!(u64::from(sregs.gdt.limit), 8 * 4 - 1);
    }

    #[test]
    fn real_mode_segment_starts_at_the_image() {
        let (_, regs, sregs) = prepare(Mode::Real);
        assert_eq!(sregs.cs.base + regs.rip, Mode::Real.load_address());
        assert_eq!(sregs.cs.base, u64::from(sregs.cs.selector) * 16);
        assert_eq!(sregs.cr0 & CR0_PE, 0);
        assert!(Mode::Real.image_limit(MIB) < regs.rsp);
    }
}

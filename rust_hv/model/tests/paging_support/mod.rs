// SPDX-License-Identifier: GPL-2.0

//! What the tests of the table editor share: frames in plain memory, and a CPU that walks them.
//!
//! Entries are read here the way that the SDM and the APM describe them, not by the code under
//! test.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use rusthv_model::arch::addr::{Gfn, GfnRange, Hpa};
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::{Leaf, Notice};
use rusthv_model::paging::frames::{Gather, TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::nested::Nested;
use rusthv_model::paging::npt::Npt;
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::Table;
use rusthv_model::paging::{Level, PageSize, Permissions};

pub const EPT: Ept = Ept {
    accessed_dirty: true,
    notice: Notice::Fault,
    execute_only: true,
    largest: PageSize::Size1G,
    five_level: false,
};

pub const NPT: Npt = Npt {
    largest: PageSize::Size1G,
    five_level: false,
    notice: Notice::Fault,
};

/// Makes two tests of each function: with EPT entries and with NPT entries.
macro_rules! with_both_formats {
    ($($test:ident),* $(,)?) => {
        mod ept {
            $(
                #[test]
                fn $test() {
                    super::$test(rusthv_model::paging::nested::Nested::Ept(super::EPT));
                }
            )*
        }

        mod npt {
            $(
                #[test]
                fn $test() {
                    super::$test(rusthv_model::paging::nested::Nested::Npt(super::NPT));
                }
            )*
        }
    };
}

/// Frames as plain memory; every misuse of one fails the test.
pub struct Arena {
    frames: Vec<Option<Box<[AtomicU64; ENTRIES]>>>,
    pub live: usize,
    /// Allocations that still succeed.
    pub left: usize,
}

impl Arena {
    const BASE: u64 = 0x1_2345_6000;

    pub fn new() -> Self {
        Self {
            frames: Vec::new(),
            live: 0,
            left: usize::MAX,
        }
    }

    pub fn at(&self, hpa: u64) -> &[AtomicU64; ENTRIES] {
        assert_eq!(hpa & 0xfff, 0);
        let index = ((hpa - Self::BASE) >> 12) as usize;
        self.frames[index].as_deref().expect("a frame in use")
    }
}

impl TableMemory for Arena {
    fn alloc(&mut self) -> Option<TableFrame> {
        self.left = self.left.checked_sub(1)?;
        self.live += 1;
        let hpa = Self::BASE + ((self.frames.len() as u64) << 12);
        self.frames
            .push(Some(Box::new([const { AtomicU64::new(0) }; ENTRIES])));
        Some(TableFrame::new(Hpa::new(hpa)))
    }

    fn free(&mut self, frame: TableFrame) {
        let index = ((frame.hpa().raw() - Self::BASE) >> 12) as usize;
        assert!(self.frames[index].take().is_some(), "freed twice");
        self.live -= 1;
    }

    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        self.at(table.hpa().raw())
    }
}

#[derive(Default)]
pub struct Gathered {
    pub leaves: Vec<(u64, Leaf)>,
    pub tables: Vec<TableFrame>,
}

impl Gather for Gathered {
    fn leaf(&mut self, gfn: Gfn, leaf: Leaf) {
        self.leaves.push((gfn.raw(), leaf));
    }

    fn table(&mut self, frame: TableFrame) {
        self.tables.push(frame);
    }
}

impl Gathered {
    /// What the kernel does after the TLB flush.
    pub fn flush(&mut self, arena: &mut Arena) {
        for frame in self.tables.drain(..) {
            let entries = arena.at(frame.hpa().raw());
            assert!(entries.iter().all(|e| e.load(Ordering::Relaxed) == 0));
            arena.free(frame);
        }
        self.leaves.clear();
    }
}

/// What a CPU sees in an entry, whatever the level.
pub struct Seen {
    /// `R`, `W` and `X` from bit 0; 0 when nothing is there.
    pub rights: u64,
    /// Set by the CPU on a use.
    pub accessed: u64,
    /// Set by the CPU on a write, in the entry that maps the page.
    pub dirty: u64,
}

/// Reads an entry as a CPU does; fails on what the CPU would call a misconfiguration. `leaf` says
/// whether it maps a page of 1 << `shift` bytes.
pub fn see(format: Nested, raw: u64, leaf: bool, shift: u32) -> Seen {
    match format {
        Nested::Ept(_) => {
            let rights = raw & 0b111;
            if rights == 0 {
                // Nothing else counts in such an entry.
            } else if leaf {
                assert!(![2, 3, 7].contains(&(raw >> 3 & 7)), "memory type");
            } else {
                assert_eq!(raw & 0b1111_1000, 0, "reserved bits of a table entry");
            }
            assert_ne!(
                rights & 0b011,
                0b010,
                "misconfigured: writable, not readable"
            );
            Seen {
                rights,
                accessed: 1 << 8,
                dirty: 1 << 9,
            }
        }
        Nested::Npt(_) => {
            // A guest's accesses are by user mode: without U/S there is nothing for it.
            let present = raw & 0b101 == 0b101;
            let write = raw >> 1 & 1;
            let execute = !raw >> 63;
            if !leaf && raw & 1 != 0 {
                // PWT and PCD are for the table's own type; PS tells a table from a page.
                assert_eq!(raw & 0b1001_1000, 0, "the type of a table");
                assert_eq!(raw & 1 << 8, 0, "reserved in the fourth level");
            }
            if leaf && raw & 1 != 0 {
                let pat = if shift == 12 { 7 } else { 12 };
                assert_eq!(raw & 1 << pat, 0, "PAT");
            }
            Seen {
                rights: u64::from(present) * (1 | write << 1 | execute << 2),
                accessed: 1 << 5,
                dirty: 1 << 6,
            }
        }
    }
}

/// The CPU: its format, and the tables that it was given.
#[derive(Clone, Copy)]
pub struct Cpu {
    pub format: Nested,
    pub root: u64,
    pub top: Level,
}

impl Cpu {
    pub fn new(table: &Table<Nested>) -> Self {
        Self {
            format: *table.format(),
            root: table.root().raw(),
            top: table.format().levels(),
        }
    }

    /// An access: translates, and sets flags, as the manuals say. `Err` is an EPT violation or a
    /// nested page fault.
    pub fn access(self, arena: &Arena, gpa: u64, write: bool, fetch: bool) -> Result<u64, ()> {
        let mut table = self.root;
        let mut rights = 0b111;
        let mut path = Vec::new();
        for shift in (0..self.top as u32).rev().map(|level| 12 + 9 * level) {
            let entry = &arena.at(table)[(gpa >> shift & 0x1ff) as usize];
            let raw = entry.load(Ordering::Relaxed);
            let leaf = shift == 12 || (shift <= 30 && raw & 1 << 7 != 0);
            let seen = see(self.format, raw, leaf, shift);
            if seen.rights == 0 {
                return Err(());
            }
            rights &= seen.rights;
            path.push(entry);
            if !leaf {
                table = raw & 0x000f_ffff_ffff_f000;
                continue;
            }
            let offset = (1 << shift) - 1;
            assert_eq!(
                raw & offset & 0x000f_ffff_ffff_f000,
                0,
                "reserved address bits"
            );
            let needed = if fetch { 4 } else { 1 | u64::from(write) << 1 };
            if rights & needed != needed {
                return Err(());
            }
            for entry in &path {
                entry.fetch_or(seen.accessed, Ordering::Relaxed);
            }
            if write {
                entry.fetch_or(seen.dirty, Ordering::Relaxed);
            }
            return Ok((raw & 0x000f_ffff_ffff_f000) | (gpa & offset));
        }
        unreachable!()
    }
}

pub fn finish(table: Table<Nested>, mut arena: Arena) {
    table.destroy(&mut arena, |_, _| {});
    assert_eq!(arena.live, 0, "leaked table frames");
}

pub fn zap_all(table: &mut Table<Nested>, arena: &mut Arena, gather: &mut Gathered) {
    let mut sweep = Sweep::new(GfnRange::ALL);
    assert_eq!(
        table.zap(arena, &mut sweep, usize::MAX, gather),
        Progress::Done
    );
}

pub fn range(start: u64, end: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Gfn::new(end))
}

pub fn leaf(hpa: u64, size: PageSize, perms: Permissions) -> Leaf {
    Leaf::new(Hpa::new(hpa), size, perms)
}

pub fn setup(format: Nested) -> (Arena, Table<Nested>, Gathered) {
    let mut arena = Arena::new();
    let table = Table::new(&mut arena, format, format.levels()).unwrap();
    (arena, table, Gathered::default())
}

// SPDX-License-Identifier: GPL-2.0

//! What the tests of the table editor share: frames in plain memory, and a CPU that walks them.
//!
//! Entries are read here the way that the SDM describes them, not by the code under test.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use rusthv_model::arch::addr::{Gfn, GfnRange, Hpa};
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::Leaf;
use rusthv_model::paging::frames::{Gather, TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::Table;
use rusthv_model::paging::{Level, PageSize, Permissions};

pub const EPT: Ept = Ept {
    accessed_dirty: true,
    execute_only: true,
    largest: PageSize::Size1G,
};

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

/// An access by the CPU: translates, and sets flags, as the SDM says. `Err` is an EPT violation.
pub fn access(arena: &Arena, root: u64, gpa: u64, write: bool, fetch: bool) -> Result<u64, ()> {
    let mut table = root;
    let mut rights = 0b111;
    let mut path = Vec::new();
    for shift in [39, 30, 21, 12] {
        let entry = &arena.at(table)[(gpa >> shift & 0x1ff) as usize];
        let raw = entry.load(Ordering::Relaxed);
        if raw & 0b111 == 0 {
            return Err(());
        }
        rights &= raw & 0b111;
        assert_ne!(raw & 0b011, 0b010, "misconfigured: writable, not readable");
        path.push(entry);
        let leaf = shift == 12 || (shift <= 30 && raw & 1 << 7 != 0);
        if !leaf {
            assert_eq!(raw & 0b1111_1000, 0, "reserved bits of a table entry");
            table = raw & 0x000f_ffff_ffff_f000;
            continue;
        }
        assert!(![2, 3, 7].contains(&(raw >> 3 & 7)), "memory type");
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
            entry.fetch_or(1 << 8, Ordering::Relaxed);
        }
        if write {
            entry.fetch_or(1 << 9, Ordering::Relaxed);
        }
        return Ok((raw & 0x000f_ffff_ffff_f000) | (gpa & offset));
    }
    unreachable!()
}

pub fn finish(table: Table<Ept>, mut arena: Arena) {
    table.destroy(&mut arena, |_, _| {});
    assert_eq!(arena.live, 0, "leaked table frames");
}

pub fn zap_all(table: &mut Table<Ept>, arena: &mut Arena, gather: &mut Gathered) {
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

pub fn setup() -> (Arena, Table<Ept>, Gathered) {
    let mut arena = Arena::new();
    let table = Table::new(&mut arena, EPT, Level::Pml4).unwrap();
    (arena, table, Gathered::default())
}

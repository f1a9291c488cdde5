// SPDX-License-Identifier: GPL-2.0

//! What the tests of the inverted page table share: its locks, and frames that threads share.
#![allow(dead_code)]

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, OnceLock};

use rusthv_model::arch::addr::{Gfn, Hpa};
use rusthv_model::memory::inverted::{Alias, Group, Inverted, Locks, Owner, Run, Spare, GROUPS};
use rusthv_model::paging::frames::{TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::PageSize;

pub struct TestLocks {
    groups: [Mutex<Group>; GROUPS],
    spare: Mutex<Spare>,
}

impl TestLocks {
    pub fn new() -> Self {
        Self {
            groups: std::array::from_fn(|_| Mutex::new(Group::default())),
            spare: Mutex::default(),
        }
    }
}

impl Locks for TestLocks {
    fn group<R>(&self, index: usize, f: impl FnOnce(&mut Group) -> R) -> R {
        f(&mut self.groups[index].lock().unwrap())
    }

    fn spare<R>(&self, f: impl FnOnce(&mut Spare) -> R) -> R {
        f(&mut self.spare.lock().unwrap())
    }
}

const MOST: usize = 1 << 13;

/// Frames that any number of threads take and give back; one that is not in use, or does not come
/// back as it should, fails the test.
pub struct Shared {
    frames: Box<[OnceLock<Box<[AtomicU64; ENTRIES]>>]>,
    free: Mutex<Vec<usize>>,
}

impl Shared {
    const BASE: u64 = 0x7_6540_0000;

    pub fn new() -> Self {
        Self {
            frames: (0..MOST).map(|_| OnceLock::new()).collect(),
            free: Mutex::new((0..MOST).rev().collect()),
        }
    }

    pub fn live(&self) -> usize {
        MOST - self.free.lock().unwrap().len()
    }
}

impl TableMemory for &Shared {
    fn alloc(&mut self) -> Option<TableFrame> {
        let index = self.free.lock().unwrap().pop()?;
        let words =
            self.frames[index].get_or_init(|| Box::new([const { AtomicU64::new(0) }; ENTRIES]));
        for word in words.iter() {
            word.store(0, std::sync::atomic::Ordering::Relaxed);
        }
        Some(TableFrame::new(Hpa::new(
            Shared::BASE + ((index as u64) << 12),
        )))
    }

    fn free(&mut self, frame: TableFrame) {
        let index = ((frame.hpa().raw() - Shared::BASE) >> 12) as usize;
        let mut free = self.free.lock().unwrap();
        assert!(!free.contains(&index), "freed twice");
        free.push(index);
    }

    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        let index = ((table.hpa().raw() - Shared::BASE) >> 12) as usize;
        self.frames[index].get().expect("a frame in use")
    }
}

pub fn run(gfn: u64, frame: u64, size: PageSize, count: u64) -> Run {
    Run {
        gfn: Gfn::new(gfn),
        hpa: Hpa::new(frame << 12),
        size,
        count,
        down: false,
    }
}

pub fn alias(owner: u16, gfn: u64, frame: u64, size: PageSize) -> Alias {
    Alias {
        owner: Owner::new(owner),
        gfn: Gfn::new(gfn),
        hpa: Hpa::new(frame << 12),
        size,
    }
}

/// All there is, sorted.
pub fn everything<M: TableMemory>(table: &Inverted, memory: &M, locks: &TestLocks) -> Vec<Alias> {
    let mut all = Vec::new();
    for group in 0..GROUPS {
        let mut chain = 0;
        while table.for_each_in(memory, locks, group, chain, |alias| all.push(alias)) {
            chain += 1;
        }
    }
    all.sort();
    all
}

// SPDX-License-Identifier: GPL-2.0

//! The table editor with the entries of either vendor: any sequence of operations against a map of
//! what should be there, with every table frame accounted for.

#[macro_use]
pub(crate) mod paging_support;

use std::collections::BTreeMap;

use paging_support::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gpa, Hpa};
use rusthv_model::paging::format::{Leaf, Notice};
use rusthv_model::paging::grow::Grown;
use rusthv_model::paging::nested::Nested;
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::{MapError, Mapped, Table};
use rusthv_model::paging::track::Allowed;
use rusthv_model::paging::{PageSize, Permissions};

/// The mappings as they should be, by first frame; and how writes are noticed.
struct Reference(BTreeMap<u64, Leaf>, Notice);

impl Reference {
    fn covering(&self, gfn: u64) -> Option<(u64, Leaf)> {
        let (&start, &leaf) = self.0.range(..=gfn).next_back()?;
        (gfn < start + leaf.size.pages()).then_some((start, leaf))
    }

    fn touching(&self, start: u64, end: u64) -> Vec<(u64, Leaf)> {
        let mut found: Vec<_> = self
            .0
            .range(start..end.max(start))
            .map(|(&g, &l)| (g, l))
            .collect();
        if let Some(first) = self
            .covering(start)
            .filter(|&(gfn, _)| gfn < start && start < end)
        {
            found.insert(0, first);
        }
        found
    }
}

impl Reference {
    /// How a mapping is kept. Where the CPU logs writes, the dirty flag of a page says whether it
    /// still has to: only the small ones that are tracked are clean. Where it sets flags alone, small
    /// ones that are tracked are clean, and that is all.
    fn kept(&self, leaf: Leaf) -> Leaf {
        let dirty = match (leaf.tracked, leaf.size) {
            (true, PageSize::Size4K) => false,
            (true, _) => leaf.dirty,
            (false, _) => leaf.dirty || leaf.perms.contains(Permissions::W),
        };
        match (self.1, leaf.tracked, leaf.size) {
            (Notice::Log, ..) | (Notice::Flag, true, PageSize::Size4K) => {
                let leaf = Leaf { dirty, ..leaf };
                match self.1 {
                    Notice::Log => leaf,
                    _ => untracked(leaf),
                }
            }
            _ => leaf,
        }
    }

    fn insert(&mut self, gfn: u64, leaf: Leaf) {
        self.0.insert(gfn, self.kept(leaf));
    }

    /// A mapping as the CPU has it when it writes: with what it is to be told of on its own.
    fn written(&self, leaf: Leaf) -> Leaf {
        match leaf.size {
            PageSize::Size4K if self.1 == Notice::Log => untracked(leaf),
            _ => leaf,
        }
    }

    /// Tells whether one of the pages could be written.
    fn track(&mut self, pages: Vec<(u64, Leaf)>) -> bool {
        let mut changed = false;
        for (gfn, leaf) in pages {
            let flag = self.1 == Notice::Flag && leaf.size == PageSize::Size4K;
            changed |= leaf.perms.contains(Permissions::W) && (leaf.dirty || !flag);
            self.insert(gfn, leaf.to_be_noticed());
        }
        changed
    }
}

fn untracked(leaf: Leaf) -> Leaf {
    match leaf.tracked {
        true => Leaf {
            perms: leaf.perms.union(Permissions::W),
            tracked: false,
            ..leaf
        },
        false => leaf,
    }
}

/// What an operation maps.
fn wanted(hpa: u64, size: PageSize, perms: Permissions, noticed: bool) -> Leaf {
    let plain = leaf((hpa + 1) << 30, size, perms);
    match noticed {
        true => plain.to_be_noticed(),
        false => plain,
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Map {
        gfn: u64,
        hpa: u64,
        size: PageSize,
        perms: Permissions,
        noticed: bool,
    },
    /// As somebody who shares the tree.
    Add {
        gfn: u64,
        hpa: u64,
        size: PageSize,
        perms: Permissions,
        noticed: bool,
    },
    Run {
        gfn: u64,
        pages: u64,
    },
    Zap {
        start: u64,
        len: u64,
        budget: usize,
    },
    Track {
        start: u64,
        len: u64,
        budget: usize,
    },
    Untrack {
        start: u64,
        len: u64,
        budget: usize,
    },
    TrackPages {
        first: u64,
        bits: u64,
    },
    AllowWrite {
        gfn: u64,
    },
    TakeWritten {
        start: u64,
        len: u64,
        budget: usize,
    },
    Unmark {
        start: u64,
        len: u64,
    },
    Split {
        gfn: u64,
    },
    Access {
        gfn: u64,
        write: bool,
    },
    Starve {
        left: usize,
    },
}

/// Frames in a few neighbourhoods, so that operations meet.
fn gfn() -> impl Strategy<Value = u64> {
    let region = prop_oneof![
        Just(0u64),
        Just(1 << 18),
        Just((1 << 27) - (1 << 18)),
        Just((1 << 36) - (1 << 18))
    ];
    let block = prop_oneof![Just(0u64), Just(1), Just(511)];
    let page = prop_oneof![Just(0u64), Just(1), Just(2), Just(511), 0..512u64];
    (region, block, page).prop_map(|(region, block, page)| region + (block << 9) + page)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4u64,
        Just(512),
        0..2048u64,
        Just(1 << 18),
        Just(1 << 28),
        Just(u64::MAX / 2)
    ]
}

/// What the fuzzer has from here, too (`fuzz/`).
pub fn op() -> impl Strategy<Value = Op> {
    let size = || prop_oneof![4 => Just(PageSize::Size4K), 2 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)];
    let perms = || {
        prop_oneof![
            Just(Permissions::R),
            Just(Permissions::RW),
            Just(Permissions::RX),
            Just(Permissions::RWX),
            Just(Permissions::X)
        ]
    };
    let budget = || prop_oneof![1..50usize, Just(1 << 30)];
    prop_oneof![
        8 => (gfn(), 0..3u64, size(), perms(), any::<bool>()).prop_map(|(gfn, hpa, size, perms, noticed)| Op::Map { gfn, hpa, size, perms, noticed }),
        8 => (gfn(), 0..3u64, size(), perms(), any::<bool>()).prop_map(|(gfn, hpa, size, perms, noticed)| Op::Add { gfn, hpa, size, perms, noticed }),
        2 => (gfn(), 0..20u64).prop_map(|(gfn, pages)| Op::Run { gfn, pages }),
        3 => (gfn(), length(), budget()).prop_map(|(start, len, budget)| Op::Zap { start, len, budget }),
        3 => (gfn(), length(), budget()).prop_map(|(start, len, budget)| Op::Track { start, len, budget }),
        1 => (gfn(), length(), budget()).prop_map(|(start, len, budget)| Op::Untrack { start, len, budget }),
        2 => (gfn(), prop_oneof![any::<u64>(), Just(1), Just(u64::MAX)]).prop_map(|(first, bits)| Op::TrackPages { first, bits }),
        3 => gfn().prop_map(|gfn| Op::AllowWrite { gfn }),
        2 => (gfn(), length(), budget()).prop_map(|(start, len, budget)| Op::TakeWritten { start, len, budget }),
        1 => (gfn(), length()).prop_map(|(start, len)| Op::Unmark { start, len }),
        2 => gfn().prop_map(|gfn| Op::Split { gfn }),
        4 => (gfn(), any::<bool>()).prop_map(|(gfn, write)| Op::Access { gfn, write }),
        1 => prop_oneof![Just(usize::MAX), 0..4usize].prop_map(|left| Op::Starve { left }),
    ]
}

struct Machine {
    arena: Arena,
    table: Table<Nested>,
    reference: Reference,
}

impl Machine {
    fn map(&mut self, gfn: u64, new: Leaf, gather: &mut Gathered) {
        let pages = new.size.pages();
        let result = self
            .table
            .map(&mut self.arena, Gpa::new(gfn << 12), new, gather);
        // NPT has no rights without reading.
        let can_say =
            new.perms.contains(Permissions::R) || matches!(self.table.format(), Nested::Ept(_));
        assert_eq!(result == Err(MapError::Unsupported), !can_say);
        if !can_say {
            return;
        }
        let old = self.reference.covering(gfn);
        if let Some((_, big)) = old.filter(|(_, leaf)| leaf.size > new.size) {
            assert_eq!(result, Err(MapError::LargePage), "over {big:?}");
            return;
        }
        if result == Err(MapError::NoTable) {
            assert_eq!(self.arena.left, 0);
            return;
        }
        let inside = self.reference.touching(gfn, gfn + pages);
        let same = old.filter(|(_, leaf)| {
            let kept = new.tracked && leaf.perms.contains(new.perms);
            leaf.hpa == new.hpa && leaf.size == new.size && (new.perms.contains(leaf.perms) || kept)
        });
        let (expected, now) = match same {
            // A right to write that was given for a noticed write is not taken back.
            Some((_, leaf)) if new.tracked && leaf.perms.contains(new.perms) => {
                (Mapped::Unchanged, leaf)
            }
            Some((_, leaf)) => {
                let relaxed = self.reference.kept(Leaf {
                    perms: new.perms,
                    tracked: new.tracked,
                    ..leaf
                });
                (
                    if leaf == relaxed {
                        Mapped::Unchanged
                    } else {
                        Mapped::Relaxed
                    },
                    relaxed,
                )
            }
            None => {
                assert_eq!(gather.leaves, inside);
                (Mapped::Replaced, new)
            }
        };
        // An empty table left behind by a zap also counts as something that was there.
        if !(inside.is_empty() && result == Ok(Mapped::Fresh)) {
            assert_eq!(result, Ok(expected));
        }
        for (gfn, _) in inside {
            self.reference.0.remove(&gfn);
        }
        self.reference.insert(gfn, now);
    }

    /// Adds a page: nothing that is there may change but to get more rights.
    fn add(&mut self, gfn: u64, new: Leaf) {
        let mut grow = self.table.grow();
        let result = grow.map(&mut self.arena, Gpa::new(gfn << 12), new);
        let counts = grow.finish();
        self.table.count(&counts);
        let can_say =
            new.perms.contains(Permissions::R) || matches!(self.table.format(), Nested::Ept(_));
        assert_eq!(result == Err(MapError::Unsupported), !can_say);
        if !can_say {
            return;
        }
        if result == Err(MapError::NoTable) {
            assert_eq!(self.arena.left, 0);
            return;
        }
        let inside = self.reference.touching(gfn, gfn + new.size.pages());
        let old = self.reference.covering(gfn);
        let same = old.filter(|(_, leaf)| leaf.hpa == new.hpa && leaf.size == new.size);
        let now = match (result, same) {
            (Ok(Grown::Fresh), _) => {
                assert!(inside.is_empty());
                new
            }
            (Ok(Grown::Present), Some((_, leaf))) => {
                assert!(leaf.perms.contains(new.perms));
                leaf
            }
            (Ok(Grown::Relaxed), Some((_, leaf))) => {
                assert!(new.perms.contains(leaf.perms) && new.perms != leaf.perms);
                Leaf {
                    perms: new.perms,
                    tracked: new.tracked,
                    ..leaf
                }
            }
            (Err(MapError::LargePage), None) => {
                assert!(old.is_some_and(|(_, leaf)| leaf.size > new.size));
                return;
            }
            (Err(MapError::Occupied), same) => {
                // An empty table is in the way of a large page, too.
                assert!(new.size > PageSize::Size4K || !inside.is_empty());
                if let Some((_, leaf)) = same {
                    let (old, new) = (leaf.perms, new.perms);
                    assert!(!old.contains(new) && !new.contains(old));
                }
                return;
            }
            other => panic!("{other:?}"),
        };
        self.reference.insert(gfn, now);
    }

    fn apply(&mut self, op: &Op) {
        let mut gather = Gathered::default();
        match *op {
            Op::Map {
                gfn,
                hpa,
                size,
                perms,
                noticed,
            } => {
                let new = wanted(hpa, size, perms, noticed);
                self.map(gfn & !(size.pages() - 1), new, &mut gather);
            }
            Op::Add {
                gfn,
                hpa,
                size,
                perms,
                noticed,
            } => {
                let new = wanted(hpa, size, perms, noticed);
                self.add(gfn & !(size.pages() - 1), new);
            }
            Op::Run { gfn, pages } => {
                let like = leaf(0, PageSize::Size4K, Permissions::RW);
                let frame = |i: u64| Hpa::new(0x7_0000_0000 + ((gfn + i) << 12));
                let run = (0..pages).map(frame);
                let mut grow = self.table.grow();
                let gpa = Gpa::new(gfn << 12);
                let result = match grow.region(&mut self.arena, gpa) {
                    Ok(mut region) => region.fill(gpa, like, run, |_| ()),
                    Err(error) => Err(error),
                };
                let counts = grow.finish();
                self.table.count(&counts);
                let Ok(added) = result else {
                    let large = self.reference.covering(gfn);
                    let large = large.is_some_and(|(_, leaf)| leaf.size > PageSize::Size4K);
                    match result {
                        Err(MapError::LargePage) => assert!(large),
                        _ => assert_eq!((result, self.arena.left), (Err(MapError::NoTable), 0)),
                    }
                    return;
                };
                let mut expected = 0;
                for i in 0..pages.min(512 - gfn % 512) {
                    if self.reference.covering(gfn + i).is_none() {
                        let page = Leaf {
                            hpa: frame(i),
                            ..like
                        };
                        self.reference.insert(gfn + i, page);
                        expected += 1;
                    }
                }
                assert_eq!(added, expected);
            }
            Op::Zap { start, len, budget } => {
                let end = start.saturating_add(len);
                let mut sweep = Sweep::new(range(start, end));
                loop {
                    match self.table.zap(&self.arena, &mut sweep, budget, &mut gather) {
                        Progress::Done => break,
                        Progress::More(next) => assert_eq!(next, sweep.next()),
                    }
                }
                let expected = self.reference.touching(start, end);
                assert_eq!(gather.leaves, expected);
                for (gfn, _) in expected {
                    self.reference.0.remove(&gfn);
                }
            }
            Op::Track { start, len, budget } => {
                let end = start.saturating_add(len);
                let mut sweep = Sweep::new(range(start, end));
                let (table, arena) = (&mut self.table, &self.arena);
                let mut changed = false;
                while table.track(arena, &mut sweep, budget, &mut changed) != Progress::Done {}
                let touched = self.reference.touching(start, end);
                assert_eq!(changed, self.reference.track(touched));
            }
            Op::Untrack { start, len, budget } => {
                let end = start.saturating_add(len);
                let mut sweep = Sweep::new(range(start, end));
                let (table, arena) = (&mut self.table, &self.arena);
                while table.untrack(arena, &mut sweep, budget) != Progress::Done {}
                for (gfn, leaf) in self.reference.touching(start, end) {
                    self.reference.insert(gfn, untracked(leaf));
                }
            }
            Op::TrackPages { first, bits } => {
                let changed = self.table.track_pages(&self.arena, Gfn::new(first), bits);
                let pages = (0..64).filter(|bit| bits >> bit & 1 != 0);
                let touched = pages
                    .filter_map(|bit| self.reference.covering(first + bit))
                    .collect();
                assert_eq!(changed, self.reference.track(touched));
            }
            Op::AllowWrite { gfn } => {
                let allowed = self.table.allow_write(&self.arena, Gpa::new(gfn << 12));
                let small = self
                    .reference
                    .covering(gfn)
                    .filter(|(_, leaf)| leaf.size == PageSize::Size4K);
                let now = small.map(|(_, leaf)| Leaf {
                    // The write is about to come.
                    accessed: leaf.accessed || leaf.tracked,
                    dirty: leaf.dirty || leaf.tracked,
                    ..untracked(leaf)
                });
                let writable = now.is_some_and(|leaf| leaf.perms.contains(Permissions::W));
                assert_eq!(allowed == Allowed::Yes, writable);
                if let Some(now) = now {
                    self.reference.insert(gfn, now);
                }
            }
            Op::TakeWritten { start, len, budget } => {
                if self.reference.1 != Notice::Flag {
                    // Flags are something else there, or set by others than the CPU, too.
                    return;
                }
                let end = start.saturating_add(len);
                let mut sweep = Sweep::new(range(start, end));
                let mut seen = Vec::new();
                let on_pages = &mut |first: Gfn, bits: u64| {
                    let there = (0..64).filter(|bit| bits >> bit & 1 != 0);
                    seen.extend(there.map(|bit| first.raw() + bit));
                };
                loop {
                    let (table, arena) = (&self.table, &self.arena);
                    match table.take_written(arena, &mut sweep, budget, &mut false, &mut *on_pages)
                    {
                        Progress::Done => break,
                        Progress::More(next) => assert_eq!(next, sweep.next()),
                    }
                }
                let mut expected = self.reference.touching(start, end);
                expected.retain(|(_, leaf)| leaf.dirty && leaf.size == PageSize::Size4K);
                let frames: Vec<u64> = expected.iter().map(|(gfn, _)| *gfn).collect();
                assert_eq!(seen, frames);
                for (gfn, leaf) in expected {
                    let dirty = false;
                    self.reference.insert(gfn, Leaf { dirty, ..leaf });
                }
            }
            Op::Unmark { start, len } => {
                let end = start.saturating_add(len);
                let mut sweep = Sweep::new(range(start, end));
                let mut seen = Vec::new();
                let on_leaf = |gfn: Gfn, leaf| seen.push((gfn.raw(), leaf));
                let (table, arena) = (&mut self.table, &self.arena);
                let done = table.test_and_clear_accessed(arena, &mut sweep, usize::MAX, on_leaf);
                assert_eq!(done, Progress::Done);
                let mut expected = self.reference.touching(start, end);
                expected.retain(|(_, leaf)| leaf.accessed);
                assert_eq!(seen, expected);
                for (gfn, leaf) in expected {
                    let accessed = false;
                    self.reference.insert(gfn, Leaf { accessed, ..leaf });
                }
            }
            Op::Split { gfn } => {
                let result = self.table.split(&mut self.arena, Gpa::new(gfn << 12));
                let large = self
                    .reference
                    .covering(gfn)
                    .filter(|(_, leaf)| leaf.size > PageSize::Size4K);
                let Some((start, whole)) = large else {
                    assert_eq!(result, Ok(false));
                    return;
                };
                if result == Err(MapError::NoTable) {
                    assert_eq!(self.arena.left, 0);
                    return;
                }
                assert_eq!(result, Ok(true));
                let size = whole.size.smaller().unwrap();
                for i in 0..512 {
                    let hpa = whole.hpa.wrapping_add(i * size.bytes());
                    self.reference
                        .insert(start + i * size.pages(), Leaf { hpa, size, ..whole });
                }
            }
            Op::Access { gfn, write } => {
                let cpu = Cpu::new(&self.table);
                let result = cpu.access(&self.arena, gfn << 12, write, false);
                let needed = if write {
                    Permissions::RW
                } else {
                    Permissions::R
                };
                let page = self
                    .reference
                    .covering(gfn)
                    .map(|(start, leaf)| match write {
                        true => (start, self.reference.written(leaf)),
                        false => (start, leaf),
                    });
                let page = page.filter(|(_, leaf)| leaf.perms.contains(needed));
                match page {
                    None => assert_eq!(result, Err(())),
                    Some((start, mut leaf)) => {
                        assert_eq!(result, Ok(leaf.hpa.raw() + ((gfn - start) << 12)));
                        leaf.accessed = true;
                        leaf.dirty |= write;
                        self.reference.insert(start, leaf);
                    }
                }
            }
            Op::Starve { left } => self.arena.left = left,
        }
        // Every frame is in the tree or in the gather, and the counters know it.
        let tables = self.table.counts().tables as usize;
        assert_eq!(self.arena.live, tables + gather.tables.len());
        gather.flush(&mut self.arena);
    }

    fn check(&self) {
        let mut found = BTreeMap::new();
        let mut sweep = Sweep::new(GfnRange::ALL);
        let mut step = |sweep: &mut Sweep| {
            let on_leaf = |gfn: Gfn, leaf| assert!(found.insert(gfn.raw(), leaf).is_none());
            self.table.for_each_leaf(&self.arena, sweep, 1000, on_leaf)
        };
        while step(&mut sweep) != Progress::Done {}
        assert_eq!(found, self.reference.0);
        let mut counts = [0; 3];
        for leaf in found.values() {
            counts[leaf.size as usize] += 1;
        }
        assert_eq!(counts, self.table.counts().leaves);
        for (&gfn, &leaf) in &found {
            if self.reference.1 == Notice::Log {
                // The CPU logs a write to those whose flag it has yet to set.
                let mut entry = 0;
                self.table
                    .path(&self.arena, Gpa::new(gfn << 12), |_, _, raw| entry = raw);
                let logged = entry & (1 << 1 | 1 << 9) == 1 << 1;
                assert_eq!(logged, leaf.tracked && leaf.size == PageSize::Size4K);
            }
            let last = Gpa::new((gfn + leaf.size.pages() - 1) << 12);
            assert_eq!(self.table.lookup(&self.arena, last), Some(leaf));
        }
    }
}

pub fn run(format: Nested, ops: &[Op]) {
    let (arena, table, _) = setup(format);
    let mut machine = Machine {
        arena,
        table,
        reference: Reference(BTreeMap::new(), format.notice()),
    };
    for op in ops {
        machine.apply(op);
        machine.check();
    }
    let Machine {
        mut arena,
        table,
        mut reference,
    } = machine;
    table.destroy(&mut arena, |gfn, leaf| {
        assert_eq!(reference.0.remove(&gfn.raw()), Some(leaf));
    });
    assert!(reference.0.is_empty());
    assert_eq!(arena.live, 0);
}

fn any_sequence_agrees_with_the_reference(format: Nested) {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&prop::collection::vec(op(), 1..40), |ops| {
        run(format, &ops);
        Ok(())
    });
    result.unwrap();
}

with_both_formats! {
    any_sequence_agrees_with_the_reference,
    any_sequence_agrees_where_the_cpu_sets_flags,
}

#[test]
fn any_sequence_agrees_where_the_cpu_logs_writes() {
    any_sequence_agrees_with_the_reference(Nested::Ept(EPT).with_notice(Notice::Log));
}

fn any_sequence_agrees_where_the_cpu_sets_flags(format: Nested) {
    any_sequence_agrees_with_the_reference(format.with_notice(Notice::Flag));
}

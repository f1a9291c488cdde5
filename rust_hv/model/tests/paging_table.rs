// SPDX-License-Identifier: GPL-2.0

//! The table editor with the entries of either vendor, rule by rule.

#[macro_use]
mod paging_support;

use std::sync::atomic::Ordering;

use paging_support::*;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gpa, Hpa};
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::{Leaf, Notice};
use rusthv_model::paging::grow::Grown;
use rusthv_model::paging::nested::Nested;
use rusthv_model::paging::npt::Npt;
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::{MapError, Mapped, Table};
use rusthv_model::paging::track::Allowed;
use rusthv_model::paging::{Level, MemoryType, PageSize, Permissions};

#[test]
fn entry_bits_are_those_of_the_sdm() {
    let (mut arena, mut table, mut gather) = setup(Nested::Ept(EPT));
    let page = leaf(0xabc_d000, PageSize::Size4K, Permissions::RX)
        .with_memory_type(MemoryType::WriteBack, true);
    table
        .map(&mut arena, Gpa::new(0x5000), page, &mut gather)
        .unwrap();
    let huge = leaf(0x4020_0000, PageSize::Size2M, Permissions::RW)
        .with_memory_type(MemoryType::Uncacheable, false);
    table
        .map(&mut arena, Gpa::new(0x20_0000), huge, &mut gather)
        .unwrap();

    let next = |raw: u64| raw & 0x000f_ffff_ffff_f000;
    let root = arena.at(table.root().raw())[0].load(Ordering::Relaxed);
    assert_eq!(root & 0xfff, 0b111);
    let pdpte = arena.at(next(root))[0].load(Ordering::Relaxed);
    let pd = arena.at(next(pdpte));
    let pde = pd[0].load(Ordering::Relaxed);
    // R, X, WB (6 << 3), ignore PAT.
    assert_eq!(
        arena.at(next(pde))[5].load(Ordering::Relaxed),
        0xabc_d000 | 0x75
    );
    // R, W, UC, large.
    assert_eq!(pd[1].load(Ordering::Relaxed), 0x4020_0000 | 0x83);
    finish(table, arena);
}

#[test]
fn ept_pointer() {
    let root = Hpa::new(0x7_0000_1000);
    // WB, walk length 4, accessed/dirty.
    assert_eq!(EPT.pointer(root), 0x7_0000_105e);
    let plain = Ept {
        accessed_dirty: false,
        five_level: true,
        ..EPT
    };
    // Walk length 5, less one as for 4.
    assert_eq!(plain.pointer(root), 0x7_0000_1026);
}

fn bad_mappings_are_refused(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let mut map = |gpa: u64, leaf: Leaf| table.map(&mut arena, Gpa::new(gpa), leaf, &mut gather);
    let rw = Permissions::RW;
    let (k4, m2, g1) = (PageSize::Size4K, PageSize::Size2M, PageSize::Size1G);

    assert_eq!(map(0x800, leaf(0x1000, k4, rw)), Err(MapError::Misaligned));
    assert_eq!(map(0x1000, leaf(0x800, k4, rw)), Err(MapError::Misaligned));
    assert_eq!(
        map(0x1000, leaf(0x20_0000, m2, rw)),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        map(0x20_0000, leaf(0x4000_0000, g1, rw)),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        map(1 << 48, leaf(0x1000, k4, rw)),
        Err(MapError::OutOfRange)
    );
    assert_eq!(map(!0xfff, leaf(0x1000, k4, rw)), Err(MapError::OutOfRange));
    assert_eq!(map(0, leaf(1 << 52, k4, rw)), Err(MapError::OutOfRange));
    for perms in [
        Permissions::NONE,
        Permissions::W,
        Permissions::W.union(Permissions::X),
    ] {
        assert_eq!(map(0, leaf(0x1000, k4, perms)), Err(MapError::Unsupported));
    }
    let execute_only = match format {
        Nested::Ept(_) => Ok(Mapped::Fresh),
        Nested::Npt(_) => Err(MapError::Unsupported),
    };
    assert_eq!(map(0, leaf(0x1000, k4, Permissions::X)), execute_only);
    finish(table, arena);
}

#[test]
fn what_the_cpu_lacks_is_not_used() {
    let mut arena = Arena::new();
    let mut gather = Gathered::default();
    let poor = Ept {
        accessed_dirty: false,
        notice: Notice::Fault,
        execute_only: false,
        largest: PageSize::Size2M,
        five_level: false,
    };
    let mut table = Table::new(&mut arena, Nested::Ept(poor), Level::Pml4).unwrap();
    let cpu = Cpu::new(&table);
    let mut map = |leaf| table.map(&mut arena, Gpa::new(0), leaf, &mut gather);
    let x = leaf(0, PageSize::Size4K, Permissions::X);
    assert_eq!(map(x), Err(MapError::Unsupported));
    let giant = leaf(0, PageSize::Size1G, Permissions::RWX);
    assert_eq!(map(giant), Err(MapError::Unsupported));
    let mut page = leaf(0x1000, PageSize::Size4K, Permissions::RX);
    page.accessed = true;
    page.dirty = true;
    assert_eq!(map(page), Ok(Mapped::Fresh));

    // No flags are written, and none are trusted.
    assert_eq!(cpu.access(&arena, 0, true, false), Err(()));
    let found = table.lookup(&arena, Gpa::new(0)).unwrap();
    assert!(found.accessed && !found.dirty);
    let mut seen = 0;
    let mut sweep = Sweep::new(GfnRange::ALL);
    let done = table.test_and_clear_accessed(&arena, &mut sweep, 1 << 20, |_, _| seen += 1);
    assert_eq!((done, seen), (Progress::Done, 1));
    table.destroy(&mut arena, |_, _| {});
    assert_eq!(arena.live, 0);
}

fn mapping_again_says_what_it_did(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let cpu = Cpu::new(&table);
    let gpa = Gpa::new(0x7000);
    let read = leaf(0x1000, PageSize::Size4K, Permissions::R);
    let write = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let other = leaf(0x2000, PageSize::Size4K, Permissions::RW);
    let mut map = |arena: &mut Arena, leaf| table.map(arena, gpa, leaf, &mut gather);

    assert_eq!(map(&mut arena, read), Ok(Mapped::Fresh));
    assert_eq!(cpu.access(&arena, 0x7abc, false, false), Ok(0x1abc));
    assert_eq!(cpu.access(&arena, 0x7abc, true, false), Err(()));
    assert_eq!(map(&mut arena, read), Ok(Mapped::Unchanged));
    assert_eq!(map(&mut arena, write), Ok(Mapped::Relaxed));
    assert_eq!(cpu.access(&arena, 0x7abc, true, false), Ok(0x1abc));
    assert_eq!(map(&mut arena, write), Ok(Mapped::Unchanged));
    assert_eq!(map(&mut arena, other), Ok(Mapped::Replaced));
    assert_eq!(map(&mut arena, read), Ok(Mapped::Replaced));

    // The first page goes with the flags that the CPU set; the second was never used.
    let used = Leaf {
        accessed: true,
        dirty: true,
        ..write
    };
    assert_eq!(gather.leaves, [(7, used), (7, other)]);
    assert_eq!(table.counts().leaves, [1, 0, 0]);
    finish(table, arena);
}

fn fewer_rights_need_a_flush(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let gpa = Gpa::new(0);
    let rw = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let rx = leaf(0x1000, PageSize::Size4K, Permissions::RX);
    table.map(&mut arena, gpa, rw, &mut gather).unwrap();
    assert_eq!(
        table.map(&mut arena, gpa, rx, &mut gather),
        Ok(Mapped::Replaced)
    );
    assert_eq!(gather.leaves, [(0, rw)]);
    finish(table, arena);
}

fn a_large_page_takes_the_place_of_tables(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let cpu = Cpu::new(&table);
    for i in 0..4u64 {
        let page = leaf(0x10_0000 + (i << 12), PageSize::Size4K, Permissions::RWX);
        table
            .map(&mut arena, Gpa::new(i << 20), page, &mut gather)
            .unwrap();
    }
    cpu.access(&arena, 0x10_0000, true, false).unwrap();
    // Root, PDPT, PD, two PTs.
    assert_eq!(table.counts().tables, 5);
    let giant = leaf(0x4000_0000, PageSize::Size1G, Permissions::RW);
    assert_eq!(
        table.map(&mut arena, Gpa::new(0), giant, &mut gather),
        Ok(Mapped::Replaced)
    );
    assert_eq!(table.counts().tables, 2);
    assert_eq!(table.counts().leaves, [0, 0, 1]);
    assert_eq!(gather.tables.len(), 3);
    let dirty: Vec<_> = gather
        .leaves
        .iter()
        .map(|(gfn, leaf)| (*gfn, leaf.dirty))
        .collect();
    assert_eq!(
        dirty,
        [(0, false), (0x100, true), (0x200, false), (0x300, false)]
    );
    assert_eq!(
        cpu.access(&arena, 0x1234_5678, true, false),
        Ok(0x5234_5678)
    );

    let small = leaf(0, PageSize::Size4K, Permissions::RW);
    assert_eq!(
        table.map(&mut arena, Gpa::new(0x3000), small, &mut gather),
        Err(MapError::LargePage)
    );
    gather.flush(&mut arena);
    finish(table, arena);
}

fn split_keeps_memory_rights_and_flags(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let cpu = Cpu::new(&table);
    let memory_type = match format {
        Nested::Ept(_) => MemoryType::WriteThrough,
        Nested::Npt(_) => MemoryType::Uncacheable,
    };
    let giant = leaf(0x8000_0000, PageSize::Size1G, Permissions::RW)
        .with_memory_type(memory_type, format.overrules_pat());
    table
        .map(&mut arena, Gpa::new(0x4000_0000), giant, &mut gather)
        .unwrap();
    cpu.access(&arena, 0x4000_0000, true, false).unwrap();

    let inside = Gpa::new(0x4567_8000);
    assert_eq!(table.split(&mut arena, inside), Ok(true));
    assert_eq!(table.counts().leaves, [0, 512, 0]);
    assert_eq!(table.split(&mut arena, inside), Ok(true));
    assert_eq!(table.counts().leaves, [512, 511, 0]);
    assert_eq!(table.split(&mut arena, inside), Ok(false));
    assert_eq!(table.split(&mut arena, Gpa::new(0)), Ok(false));

    let part = table.lookup(&arena, inside).unwrap();
    let expected = Leaf {
        hpa: Hpa::new(0x8567_8000),
        size: PageSize::Size4K,
        accessed: true,
        dirty: true,
        ..giant
    };
    assert_eq!(part, expected);
    for gpa in (0x4000_0000u64..0x8000_0000).step_by(0x1f_f000) {
        assert_eq!(cpu.access(&arena, gpa, false, false), Ok(gpa + 0x4000_0000));
    }

    arena.left = 0;
    let whole = Gpa::new(0x7fe0_0000);
    assert_eq!(table.split(&mut arena, whole), Err(MapError::NoTable));
    assert_eq!(table.lookup(&arena, whole).unwrap().size, PageSize::Size2M);
    finish(table, arena);
}

fn no_table_leaves_the_mappings_alone(format: Nested) {
    for left in 0..3 {
        let (mut arena, mut table, mut gather) = setup(format);
        arena.left = left;
        let page = leaf(0x1000, PageSize::Size4K, Permissions::RW);
        let gpa = Gpa::new(0x1234_5000);
        assert_eq!(
            table.map(&mut arena, gpa, page, &mut gather),
            Err(MapError::NoTable)
        );
        assert_eq!(table.lookup(&arena, gpa), None);
        arena.left = usize::MAX;
        assert_eq!(
            table.map(&mut arena, gpa, page, &mut gather),
            Ok(Mapped::Fresh)
        );
        // What the failed attempt had built is used, not built again.
        assert_eq!(arena.live, 4);
        finish(table, arena);
    }
}

/// Adds a run of pages. Tells how many, and which of them.
fn fill(
    table: &mut Table<Nested>,
    arena: &mut Arena,
    gpa: u64,
    like: Leaf,
    run: impl IntoIterator<Item = Hpa>,
) -> (Result<u64, MapError>, u64) {
    let (mut grow, gpa, mut set) = (table.grow(), Gpa::new(gpa), 0);
    let result = match grow.region(arena, gpa) {
        Ok(mut region) => region.fill(gpa, like, run, |number| set |= 1 << number),
        Err(error) => Err(error),
    };
    let added = grow.finish();
    table.count(&added);
    (result, set)
}

fn a_run_fills_what_is_empty(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let like =
        leaf(0, PageSize::Size4K, Permissions::RW).with_memory_type(MemoryType::WriteBack, true);
    let old = leaf(0xdead_b000, PageSize::Size4K, Permissions::R);
    table
        .map(&mut arena, Gpa::new(0x1f_e000), old, &mut gather)
        .unwrap();
    // From page 0x1fc: two mapped, one already there, one mapped, and the end of the region.
    let run = (0..8u64).map(|i| Hpa::new(0x1000 * (i + 1)));
    assert_eq!(
        fill(&mut table, &mut arena, 0x1f_c000, like, run),
        (Ok(3), 0b1011)
    );
    let at = |gpa| {
        table
            .lookup(&arena, Gpa::new(gpa))
            .map(|leaf| leaf.hpa.raw())
    };
    assert_eq!(at(0x1f_c000), Some(0x1000));
    assert_eq!(at(0x1f_d000), Some(0x2000));
    assert_eq!(at(0x1f_e000), Some(0xdead_b000));
    assert_eq!(at(0x1f_f000), Some(0x4000));
    assert_eq!(at(0x20_0000), None);
    assert_eq!(table.counts().leaves, [4, 0, 0]);

    for (gpa, bad, error) in [
        (0, 7, MapError::Misaligned),
        (0x1000, 1 << 52, MapError::OutOfRange),
        (0x2000, 1 << 52 | 7, MapError::Misaligned),
    ] {
        let bad = [Hpa::new(0x1000), Hpa::new(bad)];
        assert_eq!(
            fill(&mut table, &mut arena, gpa, like, bad),
            (Err(error), 1)
        );
    }
    assert_eq!(table.counts().leaves, [7, 0, 0]);
    // Each is the entry that it would have been alone.
    let alone = Leaf {
        hpa: Hpa::new(0x4000),
        ..like
    };
    let elsewhere = Gpa::new(0x5000);
    table
        .map(&mut arena, elsewhere, alone, &mut gather)
        .unwrap();
    assert_eq!(
        table.lookup(&arena, Gpa::new(0x1f_f000)),
        table.lookup(&arena, elsewhere)
    );

    let huge = leaf(0, PageSize::Size2M, Permissions::RW);
    table
        .map(&mut arena, Gpa::new(0x40_0000), huge, &mut gather)
        .unwrap();
    let run = [Hpa::new(0x1000)];
    assert_eq!(
        fill(&mut table, &mut arena, 0x40_3000, like, run),
        (Err(MapError::LargePage), 0)
    );
    finish(table, arena);
}

fn a_region_takes_its_own_pages_only(format: Nested) {
    let (mut arena, mut table, _) = setup(format);
    let page = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let mut grow = table.grow();
    let mut region = grow.region(&mut arena, Gpa::new(0x40_1000)).unwrap();
    assert_eq!(region.map(Gpa::new(0x40_2000), page), Ok(Grown::Fresh));
    for outside in [0x60_0000, 0x3f_f000] {
        let result = region.map(Gpa::new(outside), page);
        assert_eq!(result, Err(MapError::OutOfRange));
    }
    let huge = leaf(0, PageSize::Size2M, Permissions::RW);
    assert_eq!(
        region.map(Gpa::new(0x40_0000), huge),
        Err(MapError::Unsupported)
    );
    assert_eq!(
        region.fill(Gpa::new(0x60_0000), page, [], |_| ()),
        Err(MapError::OutOfRange)
    );
    let added = grow.finish();
    assert_eq!((added.tables, added.leaves), (3, [1, 0, 0]));
    table.count(&added);
    assert_eq!(table.counts().leaves, [1, 0, 0]);
    assert!(table.lookup(&arena, Gpa::new(0x40_2fff)).is_some());
    finish(table, arena);
}

fn what_is_there_is_not_replaced_by_adding(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let large = leaf(0x4000_0000, PageSize::Size2M, Permissions::RX);
    let small = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let at = Gpa::new(0x20_0000);
    let other = Gpa::new(0x40_0000);
    table.map(&mut arena, at, large, &mut gather).unwrap();
    table.map(&mut arena, other, small, &mut gather).unwrap();
    let before = (
        table.counts(),
        table.lookup(&arena, at),
        table.lookup(&arena, other),
    );
    let mut grow = table.grow();
    let moved = Leaf {
        hpa: Hpa::new(0x8000_0000),
        ..large
    };
    // Other memory, other sizes, and rights of which neither has all.
    assert_eq!(grow.map(&mut arena, at, small), Err(MapError::LargePage));
    assert_eq!(grow.map(&mut arena, at, moved), Err(MapError::Occupied));
    assert_eq!(grow.map(&mut arena, other, large), Err(MapError::Occupied));
    let crossed = Leaf {
        perms: Permissions::RX,
        ..small
    };
    assert_eq!(
        grow.map(&mut arena, other, crossed),
        Err(MapError::Occupied)
    );
    // Fewer rights than there are change nothing.
    let less = Leaf {
        perms: Permissions::R,
        ..small
    };
    assert_eq!(grow.map(&mut arena, other, less), Ok(Grown::Present));
    let added = grow.finish();
    table.count(&added);
    let after = (
        table.counts(),
        table.lookup(&arena, at),
        table.lookup(&arena, other),
    );
    assert_eq!(before, after);
    finish(table, arena);
}

fn zap_frees_only_tables_that_lie_in_the_range(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    for gfn in 0..1024u64 {
        let page = leaf(gfn << 12, PageSize::Size4K, Permissions::RW);
        table
            .map(&mut arena, Gpa::new(gfn << 12), page, &mut gather)
            .unwrap();
    }
    let mut sweep = Sweep::new(range(1, 1024));
    assert_eq!(
        table.zap(&arena, &mut sweep, usize::MAX, &mut gather),
        Progress::Done
    );
    assert_eq!(gather.leaves.len(), 1023);
    // The first table keeps a page; the PD and the PDPT are larger than the range.
    assert_eq!(gather.tables.len(), 1);
    gather.flush(&mut arena);
    zap_all(&mut table, &mut arena, &mut gather);
    assert_eq!(gather.tables.len(), 3);
    assert_eq!(table.counts().tables, 1);
    gather.flush(&mut arena);
    finish(table, arena);
}

fn zap_stops_at_its_budget_and_goes_on(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    for gfn in 0..1024u64 {
        let page = leaf(gfn << 12, PageSize::Size4K, Permissions::RW);
        table
            .map(&mut arena, Gpa::new(gfn << 12), page, &mut gather)
            .unwrap();
    }
    let mut sweep = Sweep::new(range(0, 1 << 18));
    let mut steps = 0;
    let mut last = 0;
    loop {
        let before = gather.leaves.len();
        let progress = table.zap(&arena, &mut sweep, 100, &mut gather);
        assert!(gather.leaves.len() - before <= 100);
        let Progress::More(next) = progress else {
            break;
        };
        assert!(next.raw() > last);
        last = next.raw();
        steps += 1;
        if steps == 3 {
            // A fault comes between two steps.
            let page = leaf(0x9000, PageSize::Size4K, Permissions::RW);
            table
                .map(&mut arena, Gpa::new(0), page, &mut gather)
                .unwrap();
        }
    }
    assert!((10..=20).contains(&steps), "{steps} steps");
    assert_eq!(gather.leaves.len(), 1024);
    // The newcomer is still there, and so is its table; the other one went.
    assert_eq!(table.lookup(&arena, Gpa::new(0)).unwrap().hpa.raw(), 0x9000);
    assert_eq!(gather.tables.len(), 1);
    gather.flush(&mut arena);
    finish(table, arena);
}

fn an_empty_terabyte_costs_little(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let page = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let last = (1 << 48) - 0x1000;
    table
        .map(&mut arena, Gpa::new(last), page, &mut gather)
        .unwrap();
    let mut sweep = Sweep::new(GfnRange::ALL);
    // Four tables of 512 entries are all there is to look at.
    let mut seen = Vec::new();
    let done = table.for_each_leaf(&arena, &mut sweep, 4 * 512, |gfn, _| seen.push(gfn.raw()));
    assert_eq!(done, Progress::Done);
    assert_eq!(seen, [last >> 12]);
    finish(table, arena);
}

fn a_large_page_partly_in_the_range_goes_as_a_whole(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let huge = leaf(0x20_0000, PageSize::Size2M, Permissions::RW);
    table
        .map(&mut arena, Gpa::new(0x20_0000), huge, &mut gather)
        .unwrap();
    for part in [
        range(0, 0x200),
        range(0x400, 0x401),
        range(0x300, 0x300),
        range(9, 2),
    ] {
        let mut sweep = Sweep::new(part);
        assert_eq!(
            table.zap(&arena, &mut sweep, 1 << 20, &mut gather),
            Progress::Done
        );
        assert!(gather.leaves.is_empty());
    }
    let mut sweep = Sweep::new(range(0x2ff, 0x300));
    assert_eq!(
        table.zap(&arena, &mut sweep, 1 << 20, &mut gather),
        Progress::Done
    );
    assert_eq!(gather.leaves, [(0x200, huge)]);
    finish(table, arena);
}

const GIB: u64 = 1 << 30;
const HUGE_PAGES: u64 = 1 << 18;

/// A table with one page of 1 GiB, which the guest may write, at 1 GiB.
fn with_huge_page(format: Nested) -> (Arena, Table<Nested>, Gathered, Leaf) {
    let (mut arena, mut table, mut gather) = setup(format);
    let huge = leaf(4 * GIB, PageSize::Size1G, Permissions::RWX);
    let mapped = table.map(&mut arena, Gpa::new(GIB), huge, &mut gather);
    assert_eq!(mapped, Ok(Mapped::Fresh));
    (arena, table, gather, huge)
}

fn the_end_of_a_walk_is_known(format: Nested) {
    let (mut arena, mut table, mut gather, _) = with_huge_page(format);
    let small = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let large = leaf(0x20_0000, PageSize::Size2M, Permissions::RW);
    for (gpa, leaf) in [(0, small), (0x20_0000, large)] {
        table
            .map(&mut arena, Gpa::new(gpa), leaf, &mut gather)
            .unwrap();
    }
    for (gpa, level) in [
        (0, Level::Pt),
        // Nothing is mapped, but a table is there.
        (0x1000, Level::Pt),
        (0x20_0000, Level::Pd),
        (0x40_0000, Level::Pd),
        (GIB, Level::Pdpt),
        (2 * GIB - 1, Level::Pdpt),
        (2 * GIB, Level::Pdpt),
        (1 << 39, Level::Pml4),
        (1 << 48, Level::Pml4),
    ] {
        let end = table.end_of_walk(&arena, Gpa::new(gpa).gfn());
        assert_eq!(end, level, "{gpa:#x}");
    }
    finish(table, arena);
}

fn a_huge_page_is_tracked_as_a_whole_and_cut_by_the_first_write(format: Nested) {
    let (mut arena, mut table, mut gather, huge) = with_huge_page(format);
    let cpu = Cpu::new(&table);
    let first = GIB >> 12;
    let mut changed = false;
    let mut sweep = Sweep::new(range(first + 5, first + 6));
    let done = table.track(&arena, &mut sweep, 1, &mut changed);
    assert_eq!((done, changed), (Progress::Done, true));
    let at = Gpa::new(GIB + 0x1234_5000);
    assert_eq!(cpu.access(&arena, at.raw(), true, false), Err(()));
    assert_eq!(
        cpu.access(&arena, at.raw(), false, true),
        Ok(4 * GIB + 0x1234_5000)
    );
    assert!(!table.track_pages(&arena, Gfn::new(first), u64::MAX));

    // 1 GiB to 2 MiB to 4 KiB, each waiting for a write as the whole did.
    for size in [PageSize::Size2M, PageSize::Size4K] {
        assert_eq!(table.allow_write(&arena, at), Allowed::No);
        assert_eq!(table.split(&mut arena, at), Ok(true));
        let part = table.lookup(&arena, at).unwrap();
        assert_eq!((part.size, part.tracked), (size, true));
        assert_eq!(part.perms, Permissions::RX);
    }
    assert_eq!(table.allow_write(&arena, at), Allowed::Yes);
    assert_eq!(
        cpu.access(&arena, at.raw(), true, false),
        Ok(4 * GIB + 0x1234_5000)
    );
    assert_eq!(cpu.access(&arena, at.raw() + 0x1000, true, false), Err(()));
    assert_eq!(table.counts().leaves, [512, 511, 0]);

    // The log ends: in steps all may be written again, and in steps all is out of the way.
    let all = range(first, first + HUGE_PAGES);
    let mut sweep = Sweep::new(all);
    while table.untrack(&arena, &mut sweep, 100) != Progress::Done {}
    assert!(cpu.access(&arena, 2 * GIB - 1, true, false).is_ok());
    let (mut sweep, mut steps) = (Sweep::new(all), 0);
    while table.zap(&arena, &mut sweep, 100, &mut gather) != Progress::Done {
        steps += 1;
    }
    assert_eq!(steps, (512 + 511) / 100);
    assert_eq!(gather.leaves.len(), 512 + 511);
    // The page directory and the one page table.
    assert_eq!(gather.tables.len(), 2);
    assert_eq!(table.end_of_walk(&arena, Gfn::new(first)), Level::Pdpt);
    gather.flush(&mut arena);
    let mapped = table.map(&mut arena, Gpa::new(GIB), huge, &mut gather);
    assert_eq!(mapped, Ok(Mapped::Fresh));
    assert!(cpu.access(&arena, at.raw(), true, false).is_ok());
    finish(table, arena);
}

fn a_huge_page_goes_with_any_part_of_it(format: Nested) {
    for part in [0, 77, HUGE_PAGES - 1] {
        let (arena, mut table, mut gather, huge) = with_huge_page(format);
        let first = GIB >> 12;
        for beside in [range(0, first), range(first + HUGE_PAGES, u64::MAX >> 12)] {
            let mut sweep = Sweep::new(beside);
            let done = table.zap(&arena, &mut sweep, 1 << 20, &mut gather);
            assert_eq!((done, gather.leaves.len()), (Progress::Done, 0));
        }
        let mut sweep = Sweep::new(range(first + part, first + part + 1));
        let done = table.zap(&arena, &mut sweep, 1, &mut gather);
        assert_eq!(done, Progress::Done);
        assert_eq!(gather.leaves, [(first, huge)]);
        finish(table, arena);
    }
}

fn nothing_smaller_is_mapped_in_a_huge_page(format: Nested) {
    let (mut arena, mut table, mut gather, huge) = with_huge_page(format);
    let inside = GIB + 0x20_0000;
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let part = leaf(0x4020_0000, size, Permissions::RW);
        let mapped = table.map(&mut arena, Gpa::new(inside), part, &mut gather);
        assert_eq!(mapped, Err(MapError::LargePage));
    }
    let mut grow = table.grow();
    let region = grow.region(&mut arena, Gpa::new(inside)).map(|_| ());
    assert_eq!(region, Err(MapError::LargePage));
    let _ = grow.finish();
    assert_eq!(table.lookup(&arena, Gpa::new(inside)), Some(huge));
    finish(table, arena);
}

#[test]
fn what_is_executed_only_cannot_be_read() {
    for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        let (mut arena, mut table, mut gather) = setup(Nested::Ept(EPT));
        let cpu = Cpu::new(&table);
        let hidden = leaf(GIB, size, Permissions::X);
        table
            .map(&mut arena, Gpa::new(0), hidden, &mut gather)
            .unwrap();
        assert_eq!(cpu.access(&arena, 0x10, false, true), Ok(GIB + 0x10));
        assert_eq!(cpu.access(&arena, 0x10, false, false), Err(()));
        assert_eq!(cpu.access(&arena, 0x10, true, false), Err(()));
        // Its parts are what it was, and a right to read is one more.
        if table.split(&mut arena, Gpa::new(0)).unwrap() {
            assert_eq!(cpu.access(&arena, 0x10, false, true), Ok(GIB + 0x10));
            assert_eq!(cpu.access(&arena, 0x10, false, false), Err(()));
        }
        let smaller = size.smaller().unwrap_or(size);
        let mapped = table.map(
            &mut arena,
            Gpa::new(0),
            leaf(GIB, smaller, Permissions::RX),
            &mut gather,
        );
        assert_eq!(mapped, Ok(Mapped::Relaxed));
        assert_eq!(cpu.access(&arena, 0x10, false, false), Ok(GIB + 0x10));
        finish(table, arena);
    }
}

fn flags_are_tested_and_cleared(format: Nested) {
    let (mut arena, mut table, mut gather) = setup(format);
    let cpu = Cpu::new(&table);
    for gfn in 0..4u64 {
        let page = leaf(gfn << 12, PageSize::Size4K, Permissions::RW);
        table
            .map(&mut arena, Gpa::new(gfn << 12), page, &mut gather)
            .unwrap();
    }
    cpu.access(&arena, 0x1000, false, false).unwrap();
    cpu.access(&arena, 0x2000, true, false).unwrap();
    for (accessed, writable) in [(vec![1, 2], true), (vec![], false)] {
        let (mut found, mut changed) = (Vec::new(), false);
        let whole = Sweep::new(range(0, 3));
        let steps = [
            table.test_and_clear_accessed(&arena, &mut whole.clone(), 1 << 20, |gfn, _| {
                found.push(gfn.raw());
            }),
            table.track(&arena, &mut whole.clone(), 1 << 20, &mut changed),
        ];
        assert_eq!(steps, [Progress::Done; 2]);
        assert_eq!((found, changed), (accessed, writable));
    }
    assert_eq!(cpu.access(&arena, 0x2000, true, false), Err(()));
    assert_eq!(cpu.access(&arena, 0x3000, true, false), Ok(0x3000));
    finish(table, arena);
}

fn five_levels_reach_57_bits(format: Nested) {
    let mut arena = Arena::new();
    let format = match format {
        Nested::Npt(npt) => Nested::Npt(Npt {
            five_level: true,
            ..npt
        }),
        Nested::Ept(ept) => Nested::Ept(Ept {
            five_level: true,
            ..ept
        }),
    };
    assert_eq!(format.address_bits(), 57);
    let mut table = Table::new(&mut arena, format, format.levels()).unwrap();
    let cpu = Cpu {
        top: Level::Pml5,
        ..Cpu::new(&table)
    };
    let mut gather = Gathered::default();
    let page = leaf(0x1000, PageSize::Size4K, Permissions::RW);
    let top = Gpa::new((1 << 57) - 0x1000);
    assert_eq!(
        table.map(&mut arena, top, page, &mut gather),
        Ok(Mapped::Fresh)
    );
    assert_eq!(table.lookup(&arena, top), Some(page));
    assert_eq!(
        cpu.access(&arena, top.raw() | 0xabc, false, false),
        Ok(0x1abc)
    );
    assert_eq!(cpu.access(&arena, 0, false, false), Err(()));
    let beyond = Gpa::new(1 << 57);
    assert_eq!(
        table.map(&mut arena, beyond, page, &mut gather),
        Err(MapError::OutOfRange)
    );
    assert_eq!(table.lookup(&arena, beyond), None);
    assert_eq!(table.split(&mut arena, beyond), Err(MapError::OutOfRange));
    let mut sweep = Sweep::new(range((1 << 45) - 1, u64::MAX));
    assert_eq!(
        table.zap(&arena, &mut sweep, 1 << 20, &mut gather),
        Progress::Done
    );
    assert_eq!(gather.leaves.len(), 1);
    gather.flush(&mut arena);
    finish(table, arena);
}

with_both_formats! {
    bad_mappings_are_refused,
    mapping_again_says_what_it_did,
    fewer_rights_need_a_flush,
    a_large_page_takes_the_place_of_tables,
    split_keeps_memory_rights_and_flags,
    no_table_leaves_the_mappings_alone,
    a_run_fills_what_is_empty,
    a_region_takes_its_own_pages_only,
    what_is_there_is_not_replaced_by_adding,
    zap_frees_only_tables_that_lie_in_the_range,
    zap_stops_at_its_budget_and_goes_on,
    an_empty_terabyte_costs_little,
    a_large_page_partly_in_the_range_goes_as_a_whole,
    flags_are_tested_and_cleared,
    the_end_of_a_walk_is_known,
    a_huge_page_is_tracked_as_a_whole_and_cut_by_the_first_write,
    a_huge_page_goes_with_any_part_of_it,
    nothing_smaller_is_mapped_in_a_huge_page,
    five_levels_reach_57_bits,
}

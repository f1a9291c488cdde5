// SPDX-License-Identifier: GPL-2.0

//! The inverted page table: single behaviours, and long random histories against a plain set.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rusthv_model::arch::addr::Hpa;
use rusthv_model::memory::inverted::{
    Added, Alias, Inverted, NoFrame, Owner, Run, CLUSTER, GROUPS, LINES,
};
use rusthv_model::paging::PageSize::{self, Size1G, Size2M, Size4K};

mod inverted_support;
#[allow(unused_macros)]
mod paging_support;
use inverted_support::{alias, everything, run, TestLocks};
use paging_support::Arena;

struct World {
    table: Inverted,
    locks: TestLocks,
    arena: Arena,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            table: Inverted::new(0x9e37_79b9_7f4a_7c15),
            locks: TestLocks::new(),
            arena: Arena::new(),
        };
        assert_eq!(world.table.grow(&mut world.arena, &world.locks), Ok(()));
        world
    }

    fn add(&mut self, owner: u16, what: Run) -> Added {
        let added = self
            .table
            .add(&mut self.arena, &self.locks, Owner::new(owner), &what)
            .expect("frames are plenty");
        if self.table.is_short() {
            assert_eq!(self.table.grow(&mut self.arena, &self.locks), Ok(()));
        }
        added
    }

    fn remove(&self, owner: u16, what: Run) -> u64 {
        self.table
            .remove(&self.arena, &self.locks, Owner::new(owner), &what)
    }

    fn owners(&self, frame: u64) -> Vec<Alias> {
        let mut found = Vec::new();
        let hpa = Hpa::new(frame << 12 | 0x123);
        self.table
            .for_each_alias(&self.arena, &self.locks, hpa, |alias| found.push(alias));
        found.sort();
        found
    }

    fn end(mut self) {
        self.table.destroy(&mut self.arena, &self.locks);
        assert_eq!(self.arena.live, 0, "frames lost");
    }
}

#[test]
fn a_page_is_found_until_it_goes() {
    let mut world = World::new();
    let page = run(0x100, 0x8_4321, Size4K, 1);
    assert_eq!(world.owners(0x8_4321), []);
    let added = world.add(3, page);
    assert_eq!((added.fresh, added.shared), (1, false));
    // Again: it is there.
    assert_eq!(world.add(3, page).fresh, 0);
    assert_eq!(world.owners(0x8_4321), [alias(3, 0x100, 0x8_4321, Size4K)]);
    assert_eq!(world.owners(0x8_4320), []);
    assert_eq!(world.owners(0x8_4322), []);
    assert_eq!(world.remove(4, page), 0, "another owner's");
    assert_eq!(
        world.remove(3, run(0x101, 0x8_4321, Size4K, 1)),
        0,
        "elsewhere"
    );
    assert_eq!(world.remove(3, page), 1);
    assert_eq!(world.remove(3, page), 0);
    assert_eq!(world.owners(0x8_4321), []);
    assert_eq!(world.table.usage(&world.locks).entries, 0);
    world.end();
}

/// Runs that wait are told of all at once, where no frame can be had: one of each vCPU, of pages that are
/// as far apart as can be.
#[test]
fn lines_are_kept_for_what_is_expected() {
    const ENTRIES: u64 = 65;
    for runs in [1, 7, 64] {
        let mut world = World::new();
        let lines = (ENTRIES * runs) as i64;
        world.table.expect(lines);
        while world.table.lacks_lines(&world.locks) {
            let grown = world.table.grow(&mut world.arena, &world.locks);
            assert_eq!(grown, Ok(()));
        }
        world.arena.left = 0;
        for number in 0..runs {
            let first = number * (1 << 20) + CLUSTER / 2;
            let pages = run(first, first, Size4K, (ENTRIES - 1) * CLUSTER);
            let (arena, locks) = (&mut world.arena, &world.locks);
            let added = world.table.add(arena, locks, Owner::new(1), &pages);
            assert_eq!(added.map(|added| added.fresh), Ok(pages.count));
        }
        world.arena.left = usize::MAX;
        world.table.expect(-lines);
        world.end();
    }
}

/// Physical addresses that no CPU has are those of nothing.
#[test]
fn impossible_addresses_are_not_found() {
    let mut world = World::new();
    world.add(3, run(0x100, 0x8_4321, Size4K, 1));
    world.add(3, run(0x200, 0x8_4200, Size2M, 1));
    for bit in 52..64 {
        assert_eq!(world.owners(0x8_4321 | 1 << (bit - 12)), [], "bit {bit}");
    }
    world.end();
}

#[test]
fn guest_frames_below_the_host_frame_and_at_the_edges() {
    let mut world = World::new();
    let top = (1 << 40) - 1;
    for (gfn, frame) in [(0, top), (top, 0), (top, top), (0, 0)] {
        world.add(1, run(gfn, frame, Size4K, 1));
        let found = world.owners(frame);
        assert!(found.contains(&alias(1, gfn, frame, Size4K)), "{found:?}");
    }
    world.add(u16::MAX, run(5, 77, Size4K, 1));
    assert_eq!(world.owners(77), [alias(u16::MAX, 5, 77, Size4K)]);
    world.end();
}

#[test]
fn neighbours_share_an_entry() {
    let mut world = World::new();
    // Not aligned: parts of two clusters more.
    let pages = run(0x2005, 0x4_0005, Size4K, 4 * CLUSTER);
    assert_eq!(world.add(1, pages).fresh, 4 * CLUSTER);
    assert_eq!(world.table.usage(&world.locks).entries, 5);
    for page in 0..4 * CLUSTER {
        let found = world.owners(0x4_0005 + page);
        assert_eq!(found, [alias(1, 0x2005 + page, 0x4_0005 + page, Size4K)]);
    }
    // One in the middle goes.
    assert_eq!(world.remove(1, run(0x2025, 0x4_0025, Size4K, 1)), 1);
    assert_eq!(world.owners(0x4_0025), []);
    assert_eq!(world.owners(0x4_0026).len(), 1);
    assert_eq!(world.remove(1, pages), 4 * CLUSTER - 1);
    assert_eq!(world.table.usage(&world.locks).entries, 0);
    world.end();
}

/// As the host hands out what was freed in order: the last first.
#[test]
fn neighbours_the_other_way_round_share_an_entry() {
    let mut world = World::new();
    let pages = Run {
        down: true,
        ..run(0x2000, 0x4_002f, Size4K, 3 * CLUSTER)
    };
    assert_eq!(world.add(1, pages).fresh, 3 * CLUSTER);
    assert_eq!(world.table.usage(&world.locks).entries, 3);
    for page in 0..3 * CLUSTER {
        let found = world.owners(0x4_002f - page);
        assert_eq!(found, [alias(1, 0x2000 + page, 0x4_002f - page, Size4K)]);
    }
    // The other direction meets it in one page: the middle one.
    let across = run(0x2018 - 3, 0x4_0017 - 3, Size4K, 7);
    assert_eq!(world.remove(1, across), 1);
    assert_eq!(world.owners(0x4_0017), []);
    assert_eq!(world.remove(1, pages), 3 * CLUSTER - 1);
    assert_eq!(world.table.usage(&world.locks).entries, 0);
    // One by one, they find each other.
    for page in 0..CLUSTER {
        let gfn = 0x2000 + page;
        assert_eq!(world.add(1, run(gfn, 0x4_002f - page, Size4K, 1)).fresh, 1);
        assert_eq!(
            world
                .add(1, run(0x9000 + page, 0x8_0000 + page, Size4K, 1))
                .fresh,
            1
        );
    }
    assert_eq!(world.table.usage(&world.locks).entries, 2);
    world.end();
}

#[test]
fn inner_frames_of_large_pages_are_found() {
    let mut world = World::new();
    world.add(1, run(0x600, 0x1_0200, Size2M, 1));
    world.add(1, run(0x4_0000, 0x8_0000, Size1G, 1));
    assert_eq!(world.table.usage(&world.locks).entries, 2);
    for inner in [0, 1, 0x7f, 0x1ff] {
        assert_eq!(
            world.owners(0x1_0200 + inner),
            [alias(1, 0x600, 0x1_0200, Size2M)]
        );
    }
    assert_eq!(world.owners(0x1_01ff), []);
    assert_eq!(world.owners(0x1_0400), []);
    assert_eq!(
        world.owners(0xb_ffff),
        [alias(1, 0x4_0000, 0x8_0000, Size1G)]
    );
    assert_eq!(world.owners(0xc_0000), []);
    // A small page of another guest in it.
    assert!(
        !world.add(2, run(9, 0x1_0233, Size4K, 1)).shared,
        "of another size"
    );
    assert_eq!(world.owners(0x1_0233).len(), 2);
    world.end();
}

#[test]
fn aliases_are_chained_and_sharing_is_told() {
    let mut world = World::new();
    for gfn in 0..1000 {
        let added = world.add(1, run(gfn * 3, 0x555, Size4K, 1));
        assert!(!added.shared, "the same owner");
    }
    assert!(world.add(2, run(7, 0x555, Size4K, 1)).shared);
    assert!(world.add(2, run(7, 0x555, Size4K, 1)).shared, "as it is");
    assert!(
        !world.add(2, run(8, 0x556, Size4K, 1)).shared,
        "a neighbour"
    );
    assert_eq!(world.owners(0x555).len(), 1001);
    for gfn in (0..1000).rev() {
        assert_eq!(world.remove(1, run(gfn * 3, 0x555, Size4K, 1)), 1);
    }
    assert_eq!(world.owners(0x555), [alias(2, 7, 0x555, Size4K)]);
    assert_eq!(world.table.usage(&world.locks).links, 0);
    world.end();
}

#[test]
fn nothing_is_lost_without_frames() {
    let mut world = World::new();
    world.arena.left = 0;
    let mut there = Vec::new();
    // Scattered, so that each page has an entry of its own.
    for number in 0..4000u64 {
        let what = run(number, number * 37, Size4K, 1);
        match world
            .table
            .add(&mut world.arena, &world.locks, Owner::new(1), &what)
        {
            Ok(added) => {
                assert_eq!(added.fresh, 1);
                there.push(number);
            }
            Err(NoFrame) => assert_eq!(world.owners(number * 37), []),
        }
    }
    // A page, and the lines for chains that came with it.
    assert!(
        !there.is_empty() && there.len() <= 4 * GROUPS + 3 * LINES,
        "{}",
        there.len()
    );
    assert_eq!(
        everything(&world.table, &world.arena, &world.locks).len(),
        there.len()
    );
    assert!(world.table.is_short());
    assert_eq!(
        world.table.grow(&mut world.arena, &world.locks),
        Err(NoFrame)
    );
    world.end();
}

/// What the fault path relies on: so many frames for so many entries, even where no page is added.
#[test]
fn a_frame_is_enough_for_its_lines() {
    let mut world = World::new();
    // All of them in one chain: each needs as many lines as can be.
    for number in 0..1000u64 {
        let before = world.arena.live;
        world.arena.left = 1;
        for alias in 0..LINES as u64 {
            let what = run(number * 64 + alias, 0x777, Size4K, 1);
            let owner = Owner::new(1);
            let added = world
                .table
                .add(&mut world.arena, &world.locks, owner, &what);
            assert_eq!(added.map(|added| added.fresh), Ok(1));
        }
        assert!(world.arena.live <= before + 1);
        if number == 20 {
            break;
        }
    }
    world.end();
}

#[test]
fn it_grows_and_shrinks_with_what_is_in_it() {
    let mut world = World::new();
    let count = 20_000u64;
    // Bits of a multiplication: no two are neighbours.
    let frame = |number: u64| number.wrapping_mul(0x9e37_79b1) & 0xf_ffff_fff0;
    for number in 0..count {
        world.add(1, run(number, frame(number), Size4K, 1));
    }
    let usage = world.table.usage(&world.locks);
    assert_eq!((usage.entries, usage.mapped[0]), (count, count));
    let bytes = usage.frames as f64 * 4096.0 / count as f64;
    assert!((16.0..40.0).contains(&bytes), "{bytes} bytes for an entry");
    assert_eq!(usage.frames as usize, world.arena.live);
    for number in 0..count {
        assert_eq!(
            world.owners(frame(number)),
            [alias(1, number, frame(number), Size4K)]
        );
    }
    for number in 0..count - 10 {
        assert_eq!(world.remove(1, run(number, frame(number), Size4K, 1)), 1);
    }
    world.table.trim(&mut world.arena, &world.locks);
    let usage = world.table.usage(&world.locks);
    assert_eq!(usage.entries, 10);
    assert!(usage.frames <= 6, "{usage:?}");
    assert_eq!(usage.frames as usize, world.arena.live);
    for number in count - 10..count {
        assert_eq!(world.owners(frame(number)).len(), 1);
    }
    // And again.
    for number in 0..count {
        world.add(1, run(number, frame(number), Size4K, 1));
    }
    assert_eq!(
        everything(&world.table, &world.arena, &world.locks).len() as u64,
        count
    );
    world.end();
}

#[test]
fn runs_take_in_what_continues_them() {
    let mut small = run(10, 100, Size4K, 1);
    let at = |frame: u64| Hpa::new(frame << 12);
    let gfn = rusthv_model::arch::addr::Gfn::new;
    assert!(!small.extend(gfn(11), at(102), Size4K));
    assert!(!small.extend(gfn(12), at(101), Size4K));
    assert!(!small.extend(gfn(11), at(101), Size2M));
    assert_eq!(small, run(10, 100, Size4K, 1));
    assert!(small.extend(gfn(11), at(101), Size4K));
    assert_eq!(small, run(10, 100, Size4K, 2));
    assert!(!small.extend(gfn(12), at(99), Size4K));
    let mut down = run(10, 100, Size4K, 1);
    assert!(down.extend(gfn(11), at(99), Size4K));
    assert!(!down.extend(gfn(12), at(101), Size4K));
    assert!(down.extend(gfn(12), at(98), Size4K));
    assert_eq!((down.count, down.down), (3, true));
    // Runs of runs.
    let mut joined = run(10, 100, Size4K, 1);
    assert!(!joined.append(&run(11, 102, Size4K, 3)));
    assert!(joined.append(&run(11, 101, Size4K, 3)));
    assert!(joined.append(&run(14, 104, Size4K, 1)));
    assert!(!joined.append(&run(15, 106, Size4K, 2)));
    let down = |gfn, frame, count| Run {
        down: true,
        ..run(gfn, frame, Size4K, count)
    };
    assert!(!joined.append(&down(15, 105, 2)));
    assert_eq!(joined, run(10, 100, Size4K, 5));
    let mut back = down(10, 100, 2);
    assert!(!back.append(&run(12, 98, Size4K, 2)));
    assert!(back.append(&down(12, 98, 2)));
    // Up or down, the guest's frames go up.
    for (gfn, inside) in [(9, false), (10, true), (13, true), (14, false)] {
        assert_eq!(back.is_about(alias(1, gfn, 0, Size4K).gfn), inside, "{gfn}");
    }
    let large = run(0x200, 0x400, Size2M, 2);
    assert!(
        large.is_about(alias(1, 0x5ff, 0, Size4K).gfn)
            && !large.is_about(alias(1, 0x600, 0, Size4K).gfn)
    );
    assert_eq!(back, down(10, 100, 4));
    let mut large = run(0, 512, Size2M, 1);
    assert!(!large.extend(gfn(1), at(513), Size2M));
    assert!(large.extend(gfn(512), at(1024), Size2M));
    assert_eq!(large, run(0, 512, Size2M, 2));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u16, Run),
    Remove(u16, Run),
    Trim,
}

fn size() -> impl Strategy<Value = PageSize> + Clone {
    prop_oneof![8 => Just(Size4K), 2 => Just(Size2M), 1 => Just(Size1G)]
}

/// Few frames and few places, so that steps meet.
fn step() -> impl Strategy<Value = Step> {
    let what = (0..4u16, size(), 0..6u64, 0..48u64, 1..40u64);
    let what = what.prop_map(|(owner, size, shift, frame, count)| {
        let pages = size.pages();
        (
            owner,
            run((frame + shift * 7) * pages, frame * pages, size, count),
        )
    });
    prop_oneof![
        6 => what.clone().prop_map(|(owner, run)| Step::Add(owner, run)),
        5 => what.prop_map(|(owner, run)| Step::Remove(owner, run)),
        1 => Just(Step::Trim),
    ]
}

/// Scattered ones, so that the table grows.
fn scattered() -> impl Strategy<Value = Step> {
    let what = (0..3u16, 0..3000u64, 1..4u64);
    let what = what.prop_map(|(owner, number, count)| {
        (owner, run(number * 5, number * 41 % 65_536, Size4K, count))
    });
    prop_oneof![
        5 => what.clone().prop_map(|(owner, run)| Step::Add(owner, run)),
        4 => what.prop_map(|(owner, run)| Step::Remove(owner, run)),
    ]
}

fn pages_of(owner: u16, run: &Run) -> impl Iterator<Item = Alias> {
    let (owner, size, pages) = (owner, run.size, run.size.pages());
    let (gfn, frame) = (run.gfn.raw(), run.hpa.raw() >> 12);
    let down = run.down;
    (0..run.count).map(move |page| {
        let frame = match down {
            true => frame - page * pages,
            false => frame + page * pages,
        };
        alias(owner, gfn + page * pages, frame, size)
    })
}

fn same_frames(a: &Alias, b: &Alias) -> bool {
    a.hpa == b.hpa && a.size == b.size
}

fn replay(steps: &[Step]) {
    let mut world = World::new();
    let mut reference = BTreeSet::new();
    for step in steps {
        match step {
            Step::Add(owner, run) => {
                let new = pages_of(*owner, run).filter(|page| !reference.contains(page));
                let fresh = new.count() as u64;
                let shared = pages_of(*owner, run).any(|page| {
                    let other =
                        |seen: &&Alias| same_frames(seen, &page) && seen.owner != page.owner;
                    reference.iter().any(|seen| other(&seen))
                });
                assert_eq!(world.add(*owner, *run), Added { fresh, shared });
                reference.extend(pages_of(*owner, run));
            }
            Step::Remove(owner, run) => {
                let gone = pages_of(*owner, run).filter(|page| reference.remove(page));
                let gone = gone.count() as u64;
                assert_eq!(world.remove(*owner, *run), gone);
            }
            Step::Trim => world.table.trim(&mut world.arena, &world.locks),
        }
    }
    let all: Vec<Alias> = reference.iter().copied().collect();
    assert_eq!(everything(&world.table, &world.arena, &world.locks), all);
    let usage = world.table.usage(&world.locks);
    assert_eq!(usage.mapped.iter().sum::<u64>() as usize, all.len());
    assert_eq!(usage.frames as usize, world.arena.live);
    for page in &all {
        let inner = (page.hpa.raw() >> 12) + page.size.pages() / 2;
        let covers = |other: &&Alias| {
            let first = other.hpa.raw() >> 12;
            (first..first + other.size.pages()).contains(&inner)
        };
        let expected: Vec<Alias> = all.iter().filter(covers).copied().collect();
        assert_eq!(world.owners(inner), expected);
        assert!(world.table.contains(&world.arena, &world.locks, page));
    }
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_set(steps in prop::collection::vec(step(), 1..120)) {
        replay(&steps);
    }

    #[test]
    fn agrees_with_a_set_when_it_grows(steps in prop::collection::vec(scattered(), 1..900)) {
        replay(&steps);
    }
}

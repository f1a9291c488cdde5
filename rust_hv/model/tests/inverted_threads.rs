// SPDX-License-Identifier: GPL-2.0

//! The inverted page table used by several threads at once: each has its own mappings, of frames
//! that all of them use, and finds all of them, and nothing that it has taken away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusthv_model::arch::addr::Hpa;
use rusthv_model::memory::inverted::{Inverted, Owner};
use rusthv_model::paging::PageSize::Size4K;

mod inverted_support;
use inverted_support::{alias, everything, run, Shared, TestLocks};

const THREADS: u16 = 4;
const ROUNDS: u64 = 12;
const PAGES: u64 = 1500;

fn frame(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b1) & 0xf_ffff
}

fn churn(table: &Inverted, locks: &TestLocks, shared: &Shared, owner: u16) {
    let mut memory = shared;
    let mine = |number: u64, round: u64| run(number + round, frame(number), Size4K, 1);
    for round in 0..ROUNDS {
        for number in 0..PAGES {
            let what = mine(number, round);
            let added = table.add(&mut memory, locks, Owner::new(owner), &what);
            assert_eq!(added.expect("frames are plenty").fresh, 1);
            if table.is_short() {
                table.grow(&mut memory, locks).expect("frames are plenty");
            }
        }
        for number in 0..PAGES {
            let want = alias(owner, number + round, frame(number), Size4K);
            let mut found = 0;
            table.for_each_alias(&memory, locks, Hpa::new(frame(number) << 12), |alias| {
                found += u64::from(alias.owner == want.owner);
            });
            assert_eq!(found, 1);
            assert!(table.contains(&memory, locks, &want));
            let what = mine(number, round);
            assert_eq!(table.remove(&memory, locks, Owner::new(owner), &what), 1);
            assert!(!table.contains(&memory, locks, &want));
        }
        table.trim(&mut memory, locks);
    }
    // Something stays.
    for number in 0..PAGES {
        let what = mine(number, ROUNDS);
        let added = table.add(&mut memory, locks, Owner::new(owner), &what);
        assert!(added.is_ok());
        if table.is_short() {
            table.grow(&mut memory, locks).expect("frames are plenty");
        }
    }
}

#[test]
fn threads_do_not_disturb_each_other() {
    let (mut table, locks, shared) = (
        Inverted::new(0x1234_5678_9abc_def1),
        TestLocks::new(),
        Shared::new(),
    );
    let done = AtomicBool::new(false);
    table.grow(&mut &shared, &locks).expect("the first page");
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|owner| {
                scope.spawn({
                    let (t, l, s) = (&table, &locks, &shared);
                    move || churn(t, l, s, owner)
                })
            })
            .collect();
        // One that looks on.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let seen = everything(&table, &&shared, &locks);
                assert!(seen.iter().all(|alias| alias.owner.number() < THREADS));
                let usage = table.usage(&locks);
                assert!(usage.entries <= u64::from(THREADS) * PAGES);
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    let mut expected: Vec<_> = (0..THREADS)
        .flat_map(|owner| {
            (0..PAGES).map(move |number| alias(owner, number + ROUNDS, frame(number), Size4K))
        })
        .collect();
    expected.sort();
    assert_eq!(everything(&table, &&shared, &locks), expected);
    assert_eq!(table.usage(&locks).frames as usize, shared.live());
    table.destroy(&mut &shared, &locks);
    assert_eq!(shared.live(), 0);
}

// SPDX-License-Identifier: GPL-2.0

//! Dirty bitmaps: against a set of pages, and with writers beside the reader.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;
use rusthv_model::memory::dirty::{valid_bits, words_for, DirtyBitmap, WORD_PAGES};

fn bitmap(pages: u64) -> DirtyBitmap<Vec<AtomicU64>> {
    let words = (0..words_for(pages)).map(|_| AtomicU64::new(0)).collect();
    DirtyBitmap::new(words, pages).unwrap()
}

#[test]
fn as_many_words_as_kvm_copies() {
    for (pages, words) in [
        (1, 1),
        (63, 1),
        (64, 1),
        (65, 2),
        (128, 2),
        ((1 << 31) - 1, 1 << 25),
    ] {
        assert_eq!(words_for(pages), words, "{pages} pages");
    }
    assert!(DirtyBitmap::new(Vec::<AtomicU64>::new(), 1).is_none());
    assert!(DirtyBitmap::new(vec![AtomicU64::new(0)], 65).is_none());
    assert!(DirtyBitmap::new(vec![AtomicU64::new(0)], 0).is_none());
}

#[test]
fn as_many_bits_as_pages() {
    for (pages, word, bits) in [
        (0, 0, 0),
        (1, 0, 1),
        (63, 0, u64::MAX >> 1),
        (64, 0, u64::MAX),
        (64, 1, 0),
        (65, 0, u64::MAX),
        (65, 1, 1),
        (65, 2, 0),
        (u64::MAX, usize::MAX, 0),
    ] {
        assert_eq!(valid_bits(pages, word), bits, "{pages} pages, word {word}");
    }
}

#[test]
fn pages_outside_have_no_bit() {
    let bitmap = bitmap(65);
    for page in [65, 66, 127, 128, 1 << 40, u64::MAX] {
        bitmap.mark(page);
    }
    bitmap.put_back(1, !1);
    bitmap.put_back(2, u64::MAX);
    bitmap.mark_run(65, u64::MAX);
    bitmap.mark_run(u64::MAX, u64::MAX);
    assert_eq!((bitmap.take(0), bitmap.take(1), bitmap.take(2)), (0, 0, 0));
    bitmap.mark(64);
    assert_eq!((bitmap.take(0), bitmap.take(1)), (0, 1));
}

#[derive(Clone, Debug)]
enum Op {
    Mark(u64),
    MarkRun(u64, u64),
    Take(usize),
    TakeSome(usize, u64),
    PutBack(usize, u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..220u64).prop_map(Op::Mark),
        2 => (0..220u64, any::<u64>()).prop_map(|(first, bits)| Op::MarkRun(first, bits)),
        1 => (0..5usize).prop_map(Op::Take),
        1 => (0..5usize, any::<u64>()).prop_map(|(word, mask)| Op::TakeSome(word, mask)),
        1 => (0..5usize, any::<u64>()).prop_map(|(word, bits)| Op::PutBack(word, bits)),
    ]
}

proptest! {
    #[test]
    fn any_sequence_is_as_with_a_set(
        pages in prop_oneof![1..200u64, Just(64), Just(128), Just(192)],
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let bitmap = bitmap(pages);
        let mut set = BTreeSet::new();
        let word_of = |set: &BTreeSet<u64>, word: usize| {
            (0..WORD_PAGES)
                .filter(|bit| set.contains(&(word as u64 * WORD_PAGES + bit)))
                .fold(0, |bits, bit| bits | 1 << bit)
        };
        let remove = |set: &mut BTreeSet<u64>, word: usize, mask: u64| {
            set.retain(|page| {
                page / WORD_PAGES != word as u64 || mask >> (page % WORD_PAGES) & 1 == 0
            });
        };
        for op in ops {
            match op {
                Op::Mark(page) => {
                    bitmap.mark(page);
                    if page < pages {
                        set.insert(page);
                    }
                }
                Op::MarkRun(first, bits) => {
                    bitmap.mark_run(first, bits);
                    let run = (0..64).filter(|bit| bits >> bit & 1 != 0);
                    set.extend(run.map(|bit| first + bit).filter(|&page| page < pages));
                }
                Op::Take(word) => {
                    prop_assert_eq!(bitmap.take(word), word_of(&set, word));
                    remove(&mut set, word, u64::MAX);
                }
                Op::TakeSome(word, mask) => {
                    prop_assert_eq!(bitmap.take_some(word, mask), word_of(&set, word) & mask);
                    remove(&mut set, word, mask);
                }
                Op::PutBack(word, bits) => {
                    bitmap.put_back(word, bits);
                    for bit in (0..WORD_PAGES).filter(|bit| bits >> bit & 1 != 0) {
                        let page = word as u64 * WORD_PAGES + bit;
                        if page < pages {
                            set.insert(page);
                        }
                    }
                }
            }
            for word in 0..bitmap.len() {
                prop_assert_eq!(bitmap.look(word), word_of(&set, word));
                let next = (word..bitmap.len()).find(|&word| word_of(&set, word) != 0);
                prop_assert_eq!(bitmap.next_dirty(word, usize::MAX), next);
                prop_assert_eq!(bitmap.next_dirty(word, word), None);
            }
        }
    }
}

/// Writers count up cells and mark them; the reader copies what it takes. When the writers are
/// done, one more reading makes the copy whole.
#[test]
fn no_mark_is_lost() {
    const PAGES: usize = 130;
    const ROUNDS: u64 = 20_000;
    let bitmap = bitmap(PAGES as u64);
    let cells: Vec<_> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let mut copy = vec![0; PAGES];
    let read = |copy: &mut Vec<u64>| {
        for word in 0..bitmap.len() {
            let bits = bitmap.take(word);
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                let page = word * 64 + bit;
                copy[page] = cells[page].load(Ordering::Relaxed);
            }
        }
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let (bitmap, cells) = (&bitmap, &cells);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let page = (round * (7 + 2 * writer)) % PAGES as u64;
                        cells[page as usize].fetch_add(1, Ordering::Relaxed);
                        bitmap.mark(page);
                    }
                })
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            read(&mut copy);
        }
    });
    read(&mut copy);
    let last: Vec<_> = cells
        .iter()
        .map(|cell| cell.load(Ordering::Relaxed))
        .collect();
    assert_eq!(copy, last);
    assert_eq!(last.iter().sum::<u64>(), 2 * ROUNDS);
}

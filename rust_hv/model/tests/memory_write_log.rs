// SPDX-License-Identifier: GPL-2.0

//! The log that a CPU fills: every page comes out once, in order, whenever somebody looks.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use rusthv_model::memory::write_log::Reader;

/// A CPU that logs as the SDM says.
struct Cpu {
    index: u16,
}

impl Cpu {
    /// False when it would exit for want of room.
    fn log(&mut self, words: &[AtomicU64], gpa: u64) -> bool {
        let Some(word) = words.get(usize::from(self.index)) else {
            return false;
        };
        word.store(gpa & !0xfff, Ordering::Relaxed);
        self.index = self.index.wrapping_sub(1);
        true
    }
}

fn words(count: usize) -> Vec<AtomicU64> {
    // Not what an empty log holds.
    (0..count).map(|_| AtomicU64::new(0x5000)).collect()
}

#[test]
fn a_log_that_nobody_reads_is_full_after_its_last_word() {
    for count in [1, 2, 512] {
        let words = words(count);
        let mut reader = Reader::new(&words);
        let mut cpu = Cpu {
            index: Reader::first(count),
        };
        assert_eq!(reader.take(&words, |_| panic!("nothing was logged")), 0);
        for turn in 0..3 {
            let logged = (0..).take_while(|n| cpu.log(&words, n << 12)).count();
            assert_eq!(logged, count, "turn {turn}");
            let mut seen = Vec::new();
            assert_eq!(reader.take(&words, |gfn| seen.push(gfn.raw())), count);
            assert_eq!(seen, (0..count as u64).collect::<Vec<_>>());
            assert_eq!(reader.take(&words, |_| panic!("once")), 0);
            reader.restart(&words);
            cpu.index = Reader::first(count);
        }
    }
}

proptest! {
    /// `Some` is a page that is written, `None` a look.
    #[test]
    fn every_page_comes_out_once(ops in prop::collection::vec(prop::option::weighted(0.8, any::<u64>()), 0..100)) {
        let words = words(8);
        let mut reader = Reader::new(&words);
        let mut cpu = Cpu { index: 7 };
        let (mut written, mut seen) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Some(gpa) => {
                    if !cpu.log(&words, gpa) {
                        reader.take(&words, |gfn| seen.push(gfn.raw()));
                        reader.restart(&words);
                        cpu.index = 7;
                        prop_assert!(cpu.log(&words, gpa));
                    }
                    written.push(gpa >> 12);
                }
                None => {
                    let before = seen.len();
                    let count = reader.take(&words, |gfn| seen.push(gfn.raw()));
                    prop_assert_eq!(count, seen.len() - before);
                    prop_assert_eq!(&seen, &written);
                }
            }
        }
        reader.take(&words, |gfn| seen.push(gfn.raw()));
        prop_assert_eq!(seen, written);
    }
}

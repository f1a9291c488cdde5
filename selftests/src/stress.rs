// SPDX-License-Identifier: GPL-2.0

//! What the threads of a stress test share: when it is over, and what was done how often.

use crate::harness::{Failure, Outcome};
use crate::random::Random;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The kinds of work, and how often each was done.
pub struct Work {
    kinds: &'static [&'static str],
    done: Vec<AtomicU64>,
    over: AtomicBool,
}

impl Work {
    pub fn new(kinds: &'static [&'static str]) -> Self {
        Self { kinds, done: kinds.iter().map(|_| AtomicU64::new(0)).collect(), over: false.into() }
    }

    pub fn did(&self, kind: &str) {
        if let Some(index) = self.kinds.iter().position(|name| *name == kind) {
            self.done[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each kind, and how often it was done.
    pub fn done(&self) -> Vec<(&'static str, u64)> {
        let counts = self.done.iter().map(|count| count.load(Ordering::Relaxed));
        self.kinds.iter().copied().zip(counts).collect()
    }

    pub fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Waits until it is time to end.
    pub fn end_at(&self, end: Instant) {
        while Instant::now() < end && self.goes_on() {
            thread::sleep(Duration::from_millis(10));
        }
        self.end();
    }

    /// All at the same time; when one fails, the others are to end, too.
    pub fn all(&self, jobs: Vec<Box<dyn FnOnce() -> Outcome + Send + '_>>) -> Outcome {
        thread::scope(|scope| {
            let threads: Vec<_> = jobs
                .into_iter()
                .map(|job| {
                    scope.spawn(move || {
                        let outcome = job();
                        if outcome.is_err() {
                            self.end();
                        }
                        outcome
                    })
                })
                .collect();
            let outcomes: Vec<Outcome> = threads
                .into_iter()
                .map(|job| job.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked"))))
                .collect();
            outcomes.into_iter().collect()
        })
    }

    /// Which of so many kinds is next: each at first, then any; and now and then one more, which is
    /// to wait. None when it is over, and each has been done once.
    pub fn next(&self, turn: u64, kinds: u64, random: &mut Random) -> Option<u64> {
        if turn < kinds {
            return Some(turn);
        }
        if !self.goes_on() {
            return None;
        }
        if turn % 16 == 0 {
            return Some(kinds);
        }
        pause(random, 300);
        Some(random.below(kinds))
    }
}

/// Sleeps for so many microseconds at most.
pub fn pause(random: &mut Random, most: u64) {
    thread::sleep(Duration::from_micros(random.below(most)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_comes_first_and_then_any() {
        let work = Work::new(&["one", "other"]);
        let mut random = Random::new(1);
        assert_eq!([0, 1].map(|turn| work.next(turn, 2, &mut random)), [Some(0), Some(1)]);
        assert!(work.next(2, 2, &mut random).is_some_and(|kind| kind < 2));
        assert_eq!(work.next(16, 2, &mut random), Some(2));
        work.end();
        assert_eq!(work.next(1, 2, &mut random), Some(1));
        assert_eq!(work.next(2, 2, &mut random), None);
    }

    #[test]
    fn a_failure_ends_the_others() {
        let work = Work::new(&["one"]);
        let forever = || {
            while work.goes_on() {
                work.did("one");
                thread::yield_now();
            }
            Ok(())
        };
        let outcome = work.all(vec![Box::new(forever), Box::new(|| Err(Failure::failed("so")))]);
        assert!(outcome.is_err());
        assert_eq!(work.done()[0].0, "one");
    }
}

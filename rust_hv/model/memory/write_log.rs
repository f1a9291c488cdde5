// SPDX-License-Identifier: GPL-2.0

//! The log in which a CPU puts the pages that a guest writes to (SDM Vol. 3C, "Page-Modification
//! Logging").
//!
//! It is a page of words. The CPU fills it from the last word to the first, an address each, and
//! exits when it is full. Whoever reads goes the same way, at any time, and stops at the first word
//! that holds no address: what was read is made so again. There is no need to know how far the CPU
//! has come, which only the CPU can tell.

use crate::model::arch::addr::{Gfn, Gpa};
use crate::model::sync::{AtomicU64, Ordering};

/// No address in the log: those of pages are even.
const NOTHING: u64 = 1;

/// How far a log was read. Its owner sees to it that there is one reader at a time.
#[derive(Debug)]
pub struct Reader {
    /// Words that are still to be read before the CPU has to begin again.
    left: usize,
}

impl Reader {
    /// Makes words a log without an address in it.
    pub fn new(words: &[AtomicU64]) -> Self {
        for word in words {
            word.store(NOTHING, Ordering::Relaxed);
        }
        Self { left: words.len() }
    }

    /// The index with which the CPU begins.
    pub const fn first(words: usize) -> u16 {
        words.saturating_sub(1) as u16
    }

    /// Tells of each page that the CPU has logged since the last time, and how many there were.
    ///
    /// The CPU may be about to set a page's dirty flag that it has logged already. Who relies on the
    /// flag waits until it has left the guest.
    pub fn take(&mut self, words: &[AtomicU64], mut page: impl FnMut(Gfn)) -> usize {
        let before = self.left;
        for word in words.iter().take(before).rev() {
            let entry = word.load(Ordering::Acquire);
            if entry == NOTHING {
                break;
            }
            // The CPU does not come here again before `restart`.
            word.store(NOTHING, Ordering::Relaxed);
            self.left = self.left.saturating_sub(1);
            page(Gpa::new(entry).gfn());
        }
        before.saturating_sub(self.left)
    }

    /// The CPU has filled the log, all of that was taken, and it begins again.
    pub fn restart(&mut self, words: &[AtomicU64]) {
        self.left = words.len();
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Dirty bitmaps: which pages of a slot were written since somebody asked.
//!
//! One bit per page, in words of 64, in the layout of `KVM_GET_DIRTY_LOG`. Bits are set by whoever
//! writes, and taken by whoever reads the log; both happen at once, and no bit gets lost: every
//! change of a word is one atomic operation.
//!
//! What a bit promises is up to the order in which its user does things:
//!
//! * Who writes to a page itself does so first and sets the bit afterwards. If the bit is taken
//!   before, the write is in memory for whoever took it or its own bit is still to come.
//! * Who lets somebody else write (the guest, through a mapping) sets the bit no later than that.
//! * Who takes a bit takes the right to write from the mapping, and waits until no CPU has it any
//!   more, before it says that the page is clean.

use core::ops::Deref;

use crate::model::sync::{AtomicU64, Ordering};

/// Pages in a word.
pub const WORD_PAGES: u64 = 64;

/// Words in a bitmap of so many pages.
#[inline]
pub const fn words_for(pages: u64) -> u64 {
    pages.div_ceil(WORD_PAGES)
}

/// The bits of a word that belong to pages, in a bitmap of so many of them.
#[inline]
pub const fn valid_bits(pages: u64, word: usize) -> u64 {
    let pages = pages.saturating_sub((word as u64).saturating_mul(WORD_PAGES));
    if pages < WORD_PAGES {
        (1 << pages) - 1
    } else {
        u64::MAX
    }
}

/// The bitmap of one slot, in whatever memory the words are.
#[derive(Debug)]
pub struct DirtyBitmap<W> {
    words: W,
    pages: u64,
}

impl<W: Deref<Target = [AtomicU64]>> DirtyBitmap<W> {
    /// A bitmap of so many pages; `None` when there are not as many words as it takes.
    pub fn new(words: W, pages: u64) -> Option<Self> {
        (words.len() as u64 == words_for(pages)).then_some(Self { words, pages })
    }

    /// Number of words.
    #[inline]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// True without any page.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Sets the bit of a page. What is outside of the bitmap has none.
    #[inline]
    pub fn mark(&self, page: u64) {
        if page >= self.pages {
            return;
        }
        if let Some(word) = self.words.get((page / WORD_PAGES) as usize) {
            // Not skipped when it is set already: it may be about to be taken.
            word.fetch_or(1 << (page % WORD_PAGES), Ordering::AcqRel);
        }
    }

    /// Sets the bits of those of 64 pages from `first` on whose bit is set here.
    #[inline]
    pub fn mark_run(&self, first: u64, bits: u64) {
        let (word, shift) = ((first / WORD_PAGES) as usize, (first % WORD_PAGES) as u32);
        self.put_back(word, bits << shift);
        if shift != 0 {
            // The others are in the word behind.
            self.put_back(word.wrapping_add(1), bits >> (64 - shift));
        }
    }

    /// Takes all bits of a word: they are clear afterwards.
    #[inline]
    pub fn take(&self, word: usize) -> u64 {
        match self.words.get(word) {
            // Nothing is lost by a look that finds no bit: one that is set later stays.
            Some(word) if word.load(Ordering::Relaxed) != 0 => word.swap(0, Ordering::AcqRel),
            _ => 0,
        }
    }

    /// The next word with a bit in it, from `word` up to, not including, `end`.
    #[inline]
    pub fn next_dirty(&self, word: usize, end: usize) -> Option<usize> {
        let words = self.words.get(word..end.min(self.words.len()))?;
        let dirty = |word: &AtomicU64| word.load(Ordering::Relaxed) != 0;
        words.iter().position(dirty).map(|index| word + index)
    }

    /// Takes some bits of a word; tells which of them were set.
    #[inline]
    pub fn take_some(&self, word: usize, mask: u64) -> u64 {
        match self.words.get(word) {
            Some(word) if word.load(Ordering::Relaxed) & mask != 0 => {
                word.fetch_and(!mask, Ordering::AcqRel) & mask
            }
            _ => 0,
        }
    }

    /// The bits of a word, which stay.
    #[inline]
    pub fn look(&self, word: usize) -> u64 {
        self.words
            .get(word)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Gives back bits that were taken and have not reached whom they were for.
    #[inline]
    pub fn put_back(&self, word: usize, bits: u64) {
        let bits = bits & valid_bits(self.pages, word);
        if let (Some(word), true) = (self.words.get(word), bits != 0) {
            word.fetch_or(bits, Ordering::AcqRel);
        }
    }
}

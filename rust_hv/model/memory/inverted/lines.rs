// SPDX-License-Identifier: GPL-2.0

//! Lines and chains of them: cache lines with four entries, or three and a link.

use core::sync::atomic::{AtomicU64, Ordering};

use super::entry::{Key, MASK};
use super::{Locks, NoFrame, GROUPS};
use crate::model::arch::addr::Hpa;
use crate::model::paging::frames::{TableFrame, TableMemory, TableRef, ENTRIES};

/// Words in a line.
pub(super) const WORDS: usize = ENTRIES / GROUPS;
/// Entries in a line.
pub(super) const SLOTS: usize = WORDS / 2;
/// The slot that may hold a link.
pub(super) const LAST: usize = SLOTS - 1;
/// Lines for chains that a frame gives; one more leads to other frames.
pub const LINES: usize = GROUPS - 1;
/// First word of a link: of a page size that is none.
const LINK: u64 = 3 << 62 | 1;

/// The lines that no chain uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spare {
    /// They.
    pub(super) free: Lines,
    /// The last frame that lines were made of; the first word of each has the one before.
    pub(super) last: u64,
    /// So many frames.
    pub(super) frames: u64,
}

/// Lines in a list: each has the address of the next in its first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Lines {
    first: u64,
    pub(super) count: u64,
}

/// True for the first word of an entry.
#[inline]
pub(super) const fn is_entry(first: u64) -> bool {
    !matches!(first, 0 | LINK)
}

/// A line in memory.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    words: &'a [AtomicU64; WORDS],
    /// Where the line is.
    pub(super) address: u64,
}

/// A line that is nowhere, for an index that cannot be.
static NOWHERE: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

impl<'a> Line<'a> {
    /// The line at an address that a directory or a link has.
    #[inline(always)]
    pub(super) fn at<M: TableMemory>(memory: &'a M, address: u64) -> Self {
        let page = Hpa::new(address).page_base();
        let number = (address / 8) as usize & (ENTRIES - WORDS);
        let words = memory.entries(TableRef::linked(page)).get(number..);
        Self {
            // Never `None`, and the compiler knows it.
            words: words
                .and_then(|rest| rest.first_chunk())
                .unwrap_or(&NOWHERE),
            address,
        }
    }

    #[inline(always)]
    pub(super) fn word(&self, number: usize) -> &'a AtomicU64 {
        &self.words[number % WORDS]
    }

    #[inline(always)]
    pub(super) fn get(&self, slot: usize) -> (u64, u64) {
        // The group's lock orders them.
        (
            self.word(2 * slot).load(Ordering::Relaxed),
            self.word(2 * slot + 1).load(Ordering::Relaxed),
        )
    }

    #[inline(always)]
    pub(super) fn set(&self, slot: usize, (first, second): (u64, u64)) {
        self.word(2 * slot).store(first, Ordering::Relaxed);
        self.word(2 * slot + 1).store(second, Ordering::Relaxed);
    }

    /// Address of the next line of the chain.
    #[inline(always)]
    pub(super) fn link(&self) -> Option<u64> {
        match self.get(LAST) {
            (LINK, address) => Some(address),
            _ => None,
        }
    }

    pub(super) fn wipe(&self) {
        (0..SLOTS).for_each(|slot| self.set(slot, (0, 0)));
    }

    /// A slot without an entry.
    #[inline]
    pub(super) fn free_slot(&self) -> Option<usize> {
        (0..SLOTS).find(|&slot| self.get(slot).0 == 0)
    }

    /// The last slot with an entry.
    pub(super) fn used_slot(&self) -> Option<usize> {
        (0..SLOTS).rev().find(|&slot| is_entry(self.get(slot).0))
    }
}

impl Lines {
    pub(super) fn push(&mut self, line: Line<'_>) {
        line.wipe();
        line.word(0).store(self.first, Ordering::Relaxed);
        self.first = line.address;
        self.count += 1;
    }

    /// A line of zeroes.
    pub(super) fn pop<'a, M: TableMemory>(&mut self, memory: &'a M) -> Option<Line<'a>> {
        if self.first == 0 {
            return None;
        }
        let line = Line::at(memory, self.first);
        self.first = line.word(0).swap(0, Ordering::Relaxed);
        self.count = self.count.saturating_sub(1);
        Some(line)
    }
}

/// The end of a chain that is being built.
pub(super) struct Tail<'a>(pub(super) Line<'a>);

impl<'a> Tail<'a> {
    /// Adds an entry. `more` gives a line of zeroes.
    pub(super) fn put(
        &mut self,
        entry: (u64, u64),
        more: impl FnOnce() -> Option<Line<'a>>,
    ) -> bool {
        if let Some(slot) = self.0.free_slot() {
            self.0.set(slot, entry);
            return true;
        }
        let Some(line) = more() else { return false };
        line.set(0, self.0.get(LAST));
        line.set(1, entry);
        self.0.set(LAST, (LINK, line.address));
        self.0 = line;
        true
    }
}

pub(super) fn each_entry<M: TableMemory>(memory: &M, start: Line<'_>, mut f: impl FnMut(u64, u64)) {
    let mut next = Some(start);
    while let Some(line) = next {
        for (first, second) in (0..SLOTS).map(|slot| line.get(slot)) {
            if is_entry(first) {
                f(first, second);
            }
        }
        next = line.link().map(|address| Line::at(memory, address));
    }
}

/// The cluster that all entries of a chain are of, if it is one.
pub(super) fn only_key<M: TableMemory>(memory: &M, start: Line<'_>) -> Option<Key> {
    let key = start.get(0).0 & !MASK;
    let mut line = start;
    loop {
        let other = |slot: usize| {
            let first = line.get(slot).0;
            is_entry(first) && first & !MASK != key
        };
        if (0..SLOTS).any(other) {
            return None;
        }
        match line.link() {
            Some(next) => line = Line::at(memory, next),
            None => return Some(Key(key)),
        }
    }
}

/// Fills the hole that an entry has left with one from the end of the chain. True when the last
/// line is not used any more; it goes to `own` then.
pub(super) fn close<'a, M: TableMemory>(
    memory: &'a M,
    before: Option<Line<'a>>,
    line: Line<'a>,
    slot: usize,
    own: &mut Lines,
) -> bool {
    let (mut before, mut last) = (before, line);
    while let Some(address) = last.link() {
        before = Some(last);
        last = Line::at(memory, address);
    }
    if last.address != line.address {
        if let Some(used) = last.used_slot() {
            line.set(slot, last.get(used));
            last.set(used, (0, 0));
        }
    }
    match before {
        Some(before) if last.used_slot().is_none() => {
            before.set(LAST, (0, 0));
            own.push(last);
            true
        }
        _ => false,
    }
}

/// A line of zeroes for a chain; tells how many are left for all.
pub(super) fn take_line<M: TableMemory, L: Locks>(
    memory: &mut M,
    locks: &L,
    own: &mut Lines,
) -> Result<(u64, u64), NoFrame> {
    let (line, left) = locks.spare(|spare| (spare.free.pop(memory), spare.free.count));
    if let Some(line) = line {
        return Ok((line.address, left));
    }
    if own.count == 0 {
        // The rest is the caller's until the end of the call: nobody else can use it up.
        add_lines(memory, locks, own)?;
    }
    own.pop(memory).map(|line| (line.address, 0)).ok_or(NoFrame)
}

/// Makes lines of a frame.
pub(super) fn add_lines<M: TableMemory, L: Locks>(
    memory: &mut M,
    locks: &L,
    own: &mut Lines,
) -> Result<(), NoFrame> {
    let frame = memory.alloc().ok_or(NoFrame)?.hpa().raw();
    (1..GROUPS).for_each(|index| own.push(Line::at(memory, frame + (index * WORDS * 8) as u64)));
    locks.spare(|spare| {
        let header = Line::at(memory, frame);
        header.word(0).store(spare.last, Ordering::Relaxed);
        spare.last = frame;
        spare.frames += 1;
    });
    Ok(())
}

/// Lines that are left go to all.
pub(super) fn give_lines<M: TableMemory, L: Locks>(memory: &M, locks: &L, mut own: Lines) {
    if own.count == 0 {
        return;
    }
    locks.spare(|spare| {
        while let Some(line) = own.pop(memory) {
            spare.free.push(line);
        }
    });
}

/// Takes all frames of lines but one, when no chain uses any line; the first of them, or 0.
pub(super) fn release_lines<M: TableMemory>(memory: &M, spare: &mut Spare) -> u64 {
    if spare.frames < 2 || spare.free.count != spare.frames * LINES as u64 {
        return 0;
    }
    let kept = spare.last;
    let others = Line::at(memory, kept).word(0).swap(0, Ordering::Relaxed);
    let mut free = Lines::default();
    (1..GROUPS).for_each(|index| free.push(Line::at(memory, kept + (index * WORDS * 8) as u64)));
    *spare = Spare {
        free,
        last: kept,
        frames: 1,
    };
    others
}

/// Frees the frames of a list.
pub(super) fn free_chain_frames<M: TableMemory>(memory: &mut M, first: u64) {
    let mut next = first;
    while next != 0 {
        let frame = next;
        next = Line::at(memory, frame).word(0).load(Ordering::Relaxed);
        memory.free(TableFrame::unlinked(TableRef::linked(Hpa::new(frame))));
    }
}

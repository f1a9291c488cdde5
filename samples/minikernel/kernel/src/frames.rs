// SPDX-License-Identifier: GPL-2.0
//! Physical memory: which 4 KiB frames are free, and how many mappings each of the others has.
//!
//! Frames are taken from two pools. Ordinary ones come from a list that runs through the free
//! frames themselves, so that a freed frame is overwritten at once: whoever still reads it through
//! a stale translation reads something else. Large ones, aligned, are kept at the end of memory;
//! each of their 4 KiB pieces has a count of its own, because a large page may be split.

use crate::paging::{LARGE_PAGES, LARGE_SIZE, PAGE_SIZE};

const MAX_FRAMES: usize = minikernel_abi::MAX_MEMORY as usize / PAGE_SIZE;
const MAX_LARGE: usize = 16;

pub struct Frames {
    /// Mappings, or other uses, of each frame.
    uses: [u16; MAX_FRAMES],
    /// Number of the first free frame; 0 is none.
    free: usize,
    /// From here on nothing was ever taken.
    untouched: usize,
    /// First of the frames that are kept for large pages, and how many of those are in use of each.
    large: usize,
    large_used: [u16; MAX_LARGE],
    large_count: usize,
    taken: usize,
    tables: usize,
    pub most_tables: usize,
}

impl Frames {
    pub const fn new() -> Self {
        Self {
            uses: [0; MAX_FRAMES],
            free: 0,
            untouched: 0,
            large: 0,
            large_used: [0; MAX_LARGE],
            large_count: 0,
            taken: 0,
            tables: 0,
            most_tables: 0,
        }
    }

    /// Memory from `start` to `end` is free.
    pub fn init(&mut self, start: usize, end: usize) {
        self.untouched = start.div_ceil(PAGE_SIZE);
        self.large_count = MAX_LARGE.min((end - start) / 2 / LARGE_SIZE);
        self.large = (end & !(LARGE_SIZE - 1)) / PAGE_SIZE - self.large_count * LARGE_PAGES;
    }

    /// How many frames are in use.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// An ordinary frame, zeroed, with one use.
    pub fn take(&mut self) -> Option<usize> {
        let frame = match self.free {
            0 if self.untouched == self.large => return None,
            0 => {
                self.untouched += 1;
                self.untouched - 1
            }
            frame => {
                // SAFETY: a free frame is nobody's, and begins with the number of the next.
                self.free = unsafe { *((frame * PAGE_SIZE) as *const usize) };
                frame
            }
        };
        let address = frame * PAGE_SIZE;
        // SAFETY: as above; it lies in RAM, which is mapped to itself.
        unsafe { core::ptr::write_bytes(address as *mut u8, 0, PAGE_SIZE) };
        assert!(self.uses[frame] == 0, "a free frame is in use");
        self.uses[frame] = 1;
        self.taken += 1;
        Some(address)
    }

    /// A frame for a page table.
    pub fn table(&mut self) -> Option<usize> {
        let table = self.take()?;
        self.tables += 1;
        self.most_tables = self.most_tables.max(self.tables);
        Some(table)
    }

    pub fn drop_table(&mut self, table: usize) {
        self.tables -= 1;
        self.drop(table);
    }

    /// A large page, zeroed, with one use of each of its pieces.
    pub fn take_large(&mut self) -> Option<usize> {
        let which = self.large_used[..self.large_count].iter().position(|used| *used == 0)?;
        let first = self.large + which * LARGE_PAGES;
        // SAFETY: no piece of it is in use.
        unsafe { core::ptr::write_bytes((first * PAGE_SIZE) as *mut u8, 0, LARGE_SIZE) };
        self.uses[first..][..LARGE_PAGES].fill(1);
        self.large_used[which] = LARGE_PAGES as u16;
        self.taken += LARGE_PAGES;
        Some(first * PAGE_SIZE)
    }

    pub fn uses(&self, address: usize) -> u16 {
        self.uses[address / PAGE_SIZE]
    }

    /// One more use of a frame.
    pub fn share(&mut self, address: usize) {
        let uses = &mut self.uses[address / PAGE_SIZE];
        assert!(*uses != 0, "a free frame is shared");
        *uses += 1;
    }

    /// One use less; after the last, the frame is free.
    pub fn drop(&mut self, address: usize) {
        let frame = address / PAGE_SIZE;
        let uses = &mut self.uses[frame];
        assert!(*uses != 0, "a free frame is freed");
        *uses -= 1;
        if *uses != 0 {
            return;
        }
        self.taken -= 1;
        // Its old content is gone, whoever may still look.
        // SAFETY: nobody uses the frame any more.
        unsafe { *(address as *mut usize) = self.free };
        if frame >= self.large {
            self.large_used[(frame - self.large) / LARGE_PAGES] -= 1;
        } else {
            self.free = frame;
        }
    }
}

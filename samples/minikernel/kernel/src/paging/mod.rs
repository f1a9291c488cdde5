// SPDX-License-Identifier: GPL-2.0
//! Page tables: one code for the three formats, over what differs between them.
//!
//! All of RAM is mapped to itself for the kernel, so a table is reached at its physical address.
//! Entries are atomic: processors set accessed and dirty bits in them at any time, and other
//! vCPUs may be walking the table.

use core::sync::atomic::Ordering;

#[cfg(target_pointer_width = "64")]
#[path = "long.rs"]
mod format;
#[cfg(all(target_pointer_width = "32", feature = "pae"))]
#[path = "pae.rs"]
mod format;
#[cfg(all(target_pointer_width = "32", not(feature = "pae")))]
#[path = "legacy.rs"]
mod format;

pub use format::{Cell, Entry, ADDRESS, HAS_NX, LARGE_SIZE, LEVELS, MAPPINGS, NX};

use crate::frames::Frames;

pub const PAGE_SIZE: usize = 4096;
/// 4 KiB pages in a large page, and entries in a table of the lowest level.
pub const LARGE_PAGES: usize = LARGE_SIZE / PAGE_SIZE;
pub const TOP: usize = LEVELS.len() - 1;

pub const PRESENT: Entry = 1 << 0;
pub const WRITE: Entry = 1 << 1;
pub const USER: Entry = 1 << 2;
pub const ACCESSED: Entry = 1 << 5;
pub const DIRTY: Entry = 1 << 6;
pub const LARGE: Entry = 1 << 7;
pub const GLOBAL: Entry = 1 << 8;
/// Free for software: writable but shared since a fork, so to be copied before a write.
pub const COPY: Entry = 1 << 9;

/// The page that an entry maps, or the table that it points to. (Bit 12 of a large page would be
/// its memory type; the kernel leaves that alone.)
pub fn target(entry: Entry) -> usize {
    (entry & ADDRESS) as usize
}

/// An entry for the page or table at this address.
pub fn entry(address: usize, bits: Entry) -> Entry {
    address as Entry | bits
}

/// How much one entry of a level covers.
pub const fn span(level: usize) -> usize {
    1 << LEVELS[level].0
}

/// How many entries a table of a level has.
pub const fn count(level: usize) -> usize {
    1 << LEVELS[level].1
}

fn index(level: usize, address: usize) -> usize {
    address >> LEVELS[level].0 & (count(level) - 1)
}

/// The entry with this index in the table at a physical address.
pub fn cell(table: usize, index: usize) -> &'static Cell {
    debug_assert!(table % PAGE_SIZE == 0);
    // SAFETY: tables lie in RAM, which is mapped to itself and never unmapped; the index is that
    // of an entry inside the page. Processors change it only atomically, as others here do.
    unsafe { &*(table as *const Cell).add(index) }
}

/// An entry, found.
#[derive(Clone, Copy)]
pub struct Place {
    pub level: usize,
    /// The table that it is in.
    pub table: usize,
    pub cell: &'static Cell,
}

impl Place {
    pub fn get(&self) -> Entry {
        self.cell.load(Ordering::Acquire)
    }

    pub fn set(&self, entry: Entry) {
        self.cell.store(entry, Ordering::Release);
    }

    /// Exchanges it; what was there has the accessed and dirty bits of the last moment.
    pub fn replace(&self, entry: Entry) -> Entry {
        self.cell.swap(entry, Ordering::AcqRel)
    }

    pub fn clear_bits(&self, bits: Entry) -> Entry {
        self.cell.fetch_and(!bits, Ordering::AcqRel)
    }

    pub fn set_bits(&self, bits: Entry) -> Entry {
        self.cell.fetch_or(bits, Ordering::AcqRel)
    }

    /// Whether the walk ends here, if it is present.
    pub fn is_leaf(&self) -> bool {
        self.level == 0 || self.get() & LARGE != 0 && self.level != TOP_WITHOUT_LARGE
    }
}

/// In PAE's root the bit for large pages is reserved; nobody looks at it there.
const TOP_WITHOUT_LARGE: usize = if TOP == 1 { usize::MAX } else { TOP };

/// The entry for an address as far down as there are tables, but not below `lowest`.
pub fn find(root: usize, address: usize, lowest: usize) -> Place {
    let mut table = root;
    let mut level = TOP;
    loop {
        let place = Place { level, table, cell: cell(table, index(level, address)) };
        if level == lowest || place.is_leaf() || place.get() & PRESENT == 0 {
            return place;
        }
        table = target(place.get());
        level -= 1;
    }
}

/// The entry for an address on a level, with tables made on the way. `None` when there is no memory.
pub fn make(root: usize, address: usize, level: usize, frames: &mut Frames) -> Option<Place> {
    loop {
        let place = find(root, address, level);
        if place.level == level || place.get() & PRESENT != 0 {
            return Some(place);
        }
        let table = frames.table()?;
        // What a process may do is for the leaf to say.
        let bits = if place.level == 2 && TOP == 2 {
            // Reserved in PAE's root.
            PRESENT
        } else {
            PRESENT | WRITE | USER
        };
        place.set(entry(table, bits));
    }
}

/// Present leaf entries of a range, one after the other.
pub struct Leaves {
    root: usize,
    next: usize,
    end: usize,
}

pub fn leaves(root: usize, start: usize, end: usize) -> Leaves {
    Leaves { root, next: start, end }
}

impl Iterator for Leaves {
    type Item = (usize, Place);

    fn next(&mut self) -> Option<(usize, Place)> {
        while self.next < self.end {
            let address = self.next;
            let place = find(self.root, address, 0);
            let span = span(place.level);
            self.next = (address & !(span - 1)).checked_add(span).unwrap_or(self.end);
            if place.get() & PRESENT != 0 {
                return Some((address & !(span - 1), place));
            }
        }
        None
    }
}

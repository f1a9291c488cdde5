// SPDX-License-Identifier: GPL-2.0
//! Address spaces: what a process may touch, and the tables that the processor goes by.
//!
//! The regions say what ought to be; tables follow when the memory is used. The order of each
//! change is the architecture's: write the entry, flush every TLB that may have the old one, and
//! only then let go of the frame.

mod change;
mod fault;
mod fork;

pub use fault::not_there;

use minikernel_abi::call::prot;

use crate::frames::Frames;
use crate::kernel_map::{self, nx};
use crate::paging::{self, Entry, LARGE, LARGE_PAGES, LARGE_SIZE, MAPPINGS, PAGE_SIZE, PRESENT, USER, WRITE};
use crate::tlb;

pub const MAX_SPACES: usize = 64;
pub const MAX_REGIONS: usize = 48;
/// Where a process's addresses end.
#[cfg(target_pointer_width = "64")]
const USER_END: usize = 1 << 47;
#[cfg(target_pointer_width = "32")]
const USER_END: usize = 0xc000_0000;

#[derive(Clone, Copy, Default)]
pub struct Region {
    pub start: usize,
    pub end: usize,
    /// [`prot`] bits.
    pub prot: usize,
}

impl Region {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn has(&self, bit: usize) -> bool {
        self.prot & bit != 0
    }

    /// The bits of an entry for one of its pages.
    fn bits(&self) -> Entry {
        let mut bits = PRESENT;
        if self.has(prot::WRITE) {
            bits |= WRITE;
        }
        if !self.has(prot::SUPERVISOR) {
            bits |= USER;
        }
        if !self.has(prot::EXECUTE) {
            bits |= nx();
        }
        bits
    }
}

pub struct Space {
    /// Its number, for the TLB.
    number: usize,
    pub root: usize,
    regions: [Region; MAX_REGIONS],
    /// Processes that run in it; 0 when there is no such space.
    pub processes: usize,
}

/// Something cannot be done: memory, or room in a table, is used up, or it makes no sense.
#[derive(Debug)]
pub struct Refused;

impl Space {
    pub const NONE: Self = Self {
        number: 0,
        root: 0,
        regions: [Region { start: 0, end: 0, prot: 0 }; MAX_REGIONS],
        processes: 0,
    };

    /// A space with nothing in it but the kernel.
    pub fn create(&mut self, number: usize, kernel_root: usize, frames: &mut Frames) -> Result<(), Refused> {
        self.number = number;
        self.root = kernel_map::share(kernel_root, frames).ok_or(Refused)?;
        self.processes = 1;
        tlb::reused(number);
        Ok(())
    }

    /// Gives everything back. No vCPU runs it any more.
    pub fn destroy(&mut self, frames: &mut Frames) {
        for region in core::mem::replace(&mut self.regions, Self::NONE.regions) {
            self.drop_pages(region.start, region.end, frames);
        }
        kernel_map::free(self.root, frames);
        self.root = 0;
        self.processes = 0;
    }

    fn region(&self, address: usize) -> Option<&Region> {
        self.regions.iter().find(|r| (r.start..r.end).contains(&address))
    }

    fn add(&mut self, region: Region) -> Result<(), Refused> {
        let free = self.regions.iter_mut().find(|r| r.is_empty()).ok_or(Refused)?;
        *free = region;
        Ok(())
    }

    /// Makes a region, at the lowest address where it fits.
    pub fn map(&mut self, size: usize, prot: usize, frames: &mut Frames) -> Result<usize, Refused> {
        let align = if prot & prot::LARGE != 0 { LARGE_SIZE } else { PAGE_SIZE };
        let size = size.checked_next_multiple_of(align).filter(|s| *s != 0).ok_or(Refused)?;
        let mut start = MAPPINGS;
        // Each region in the way moves the start up behind it, until none is.
        while let Some(other) = self.regions.iter().find(|r| start < r.end && r.start < start + size) {
            start = other.end.next_multiple_of(align);
            if start > USER_END - size {
                return Err(Refused);
            }
        }
        self.map_at(start, size, prot, frames)?;
        Ok(start)
    }

    pub fn map_at(
        &mut self,
        start: usize,
        size: usize,
        prot: usize,
        frames: &mut Frames,
    ) -> Result<(), Refused> {
        let region = Region { start, end: start + size, prot };
        self.add(region)?;
        if prot & prot::LARGE != 0 {
            for address in (start..region.end).step_by(LARGE_SIZE) {
                let page = frames.take_large().ok_or(Refused)?;
                self.set_leaf(address, 1, page, region.bits() | LARGE, frames)?;
            }
        } else if prot & prot::SHARED != 0 {
            // Pages that come later would not be the same ones in all processes.
            for address in (start..region.end).step_by(PAGE_SIZE) {
                let page = frames.take().ok_or(Refused)?;
                self.set_leaf(address, 0, page, region.bits(), frames)?;
            }
        }
        Ok(())
    }

    /// Fills in an entry that is not present. Nothing is to be flushed: TLBs hold no such entries.
    fn set_leaf(
        &mut self,
        address: usize,
        level: usize,
        page: usize,
        bits: Entry,
        frames: &mut Frames,
    ) -> Result<(), Refused> {
        let place = paging::make(self.root, address, level, frames).ok_or(Refused)?;
        assert!(place.level == level && place.get() & PRESENT == 0, "the entry is in use");
        place.set(paging::entry(page, bits));
        crate::counters::count(minikernel_abi::report::Value::Entries);
        Ok(())
    }

    /// The address of the physical memory behind a user address, for the kernel's own use.
    pub fn physical(&self, address: usize) -> Option<usize> {
        let place = paging::find(self.root, address, 0);
        let entry = place.get();
        (place.is_leaf() && entry & PRESENT != 0)
            .then(|| paging::target(entry) + address % paging::span(place.level))
    }

    /// Frames behind the pages of a leaf entry.
    fn frames_of(level: usize, entry: Entry) -> impl Iterator<Item = usize> {
        let count = if level == 0 { 1 } else { LARGE_PAGES };
        let first = paging::target(entry);
        (0..count).map(move |i| first + i * PAGE_SIZE)
    }
}

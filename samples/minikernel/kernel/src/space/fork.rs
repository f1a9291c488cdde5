// SPDX-License-Identifier: GPL-2.0
//! Fork: two address spaces with the same frames, and no write without a copy.

use minikernel_abi::call::prot;
use minikernel_abi::report::Value;

use super::{Refused, Space};
use crate::counters::count;
use crate::frames::Frames;
use crate::paging::{self, ACCESSED, COPY, DIRTY, WRITE};
use crate::tlb;

impl Space {
    /// Makes `child`, which has just been created, a copy of this.
    pub fn fork(&mut self, child: &mut Space, frames: &mut Frames) -> Result<(), Refused> {
        child.regions = self.regions;
        let mut protected = false;
        for region in self.regions.iter().filter(|r| !r.is_empty()) {
            for (address, place) in paging::leaves(self.root, region.start, region.end) {
                let mut entry = place.get();
                if entry & WRITE != 0 && !region.has(prot::SHARED) {
                    // Set one before clearing the other: a write in between goes through, and one
                    // after finds why it must not.
                    place.set_bits(COPY);
                    entry = place.clear_bits(WRITE) & !WRITE;
                    protected = true;
                    count(Value::Entries);
                }
                Self::frames_of(place.level, entry).for_each(|frame| frames.share(frame));
                let bits = entry & !paging::ADDRESS & !(ACCESSED | DIRTY);
                child.set_leaf(address, place.level, paging::target(entry), bits, frames)?;
            }
        }
        if protected {
            tlb::changed(self.number, 0, usize::MAX);
        }
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0
//! Page faults: memory appears when it is first used, and is copied when it is first written.

use minikernel_abi::call::prot;
use minikernel_abi::report::Value;

use super::{Refused, Space};
use crate::counters::count;
use crate::frames::Frames;
use crate::paging::{self, Entry, COPY, NX, PAGE_SIZE, PRESENT, USER, WRITE};
use crate::{params, tlb};

/// The bits of a page fault's error code.
pub const ERROR_PRESENT: usize = 1 << 0;
pub const ERROR_WRITE: usize = 1 << 1;
pub const ERROR_USER: usize = 1 << 2;
pub const ERROR_RESERVED: usize = 1 << 3;
pub const ERROR_FETCH: usize = 1 << 4;

impl Space {
    /// Does what makes the access possible, if it is allowed.
    pub fn fault(&mut self, address: usize, error: usize, frames: &mut Frames) -> Result<(), Refused> {
        assert!(error & ERROR_RESERVED == 0, "no entry has a reserved bit: {address:#x}");
        let region = *self.region(address).ok_or(Refused)?;
        let refused = error & ERROR_WRITE != 0 && !region.has(prot::WRITE)
            || error & ERROR_FETCH != 0 && !region.has(prot::EXECUTE)
            || region.has(prot::SUPERVISOR);
        if refused {
            return Err(Refused);
        }
        let page = address & !(PAGE_SIZE - 1);
        let place = paging::find(self.root, page, 0);
        let entry = place.get();
        // Another vCPU may have been here since; there has to be another one for that.
        let raced = entry & PRESENT != 0 && permits(entry, error);
        if params::vcpus() == 1 {
            let present = error & ERROR_PRESENT != 0;
            assert!(!raced, "the entry {entry:#x} for {address:#x} permits access {error:#x}");
            assert!(present == (entry & PRESENT != 0), "error code {error:#x} for entry {entry:#x}");
        }
        if raced {
            count(Value::PageFlushes);
            crate::cpu::invlpg(page);
            Ok(())
        } else if entry & PRESENT == 0 {
            let frame = frames.take().ok_or(Refused)?;
            self.set_leaf(page, 0, frame, region.bits(), frames)
        } else if error & ERROR_WRITE == 0 || entry & COPY == 0 {
            // The region allows it and the entry does not: the process has been at its own tables.
            Err(Refused)
        } else {
            if place.level != 0 {
                self.split(page, frames)?;
            }
            self.copy(page, frames)
        }
    }

    /// A page that is written for the first time since a fork. If nobody else has it any more, it
    /// becomes writable as it is.
    pub(super) fn copy(&mut self, page: usize, frames: &mut Frames) -> Result<(), Refused> {
        let place = paging::find(self.root, page, 0);
        let old = paging::target(place.get());
        count(Value::Entries);
        if frames.uses(old) == 1 {
            place.set_bits(WRITE);
            place.clear_bits(COPY);
            // Another vCPU that still has the page without WRITE will fault, and find it changed.
            tlb::changed(self.number, page, 1);
            return Ok(());
        }
        count(Value::Copies);
        let new = frames.take().ok_or(Refused)?;
        // SAFETY: the new frame is nobody else's, and nobody can write to the old one.
        unsafe { core::ptr::copy_nonoverlapping(old as *const u8, new as *mut u8, PAGE_SIZE) };
        let bits = place.get() & !paging::ADDRESS & !COPY | WRITE;
        place.set(paging::entry(new, bits));
        // Whoever still reads the old page would not see what is now written to the new one.
        tlb::changed(self.number, page, 1);
        frames.drop(old);
        Ok(())
    }
}

fn permits(entry: Entry, error: usize) -> bool {
    entry & USER != 0
        && (error & ERROR_WRITE == 0 || entry & WRITE != 0)
        && (error & ERROR_FETCH == 0 || NX == 0 || entry & NX == 0)
}

/// The error code that a process gets for memory that has not been used yet.
pub fn not_there(write: bool) -> usize {
    ERROR_USER | if write { ERROR_WRITE } else { 0 }
}

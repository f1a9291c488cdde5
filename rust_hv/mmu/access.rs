// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of guest memory by the hypervisor: through the VMM's mapping of it.
//!
//! Only the VMM's own tasks come here (`KVM_RUN` checks), so that the current address space is the
//! right one.

use super::Mmu;
use crate::host::errno::no_such_device;
use crate::host::user::{self, to_page_end};
use crate::model::arch::addr::{Gpa, Hva};
use crate::model::memory::slots::SlotFlags;
use kernel::prelude::*;

/// What is behind a guest-physical page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Memory at this user address.
    Ram(Hva),
    /// Memory that the guest may only read.
    Rom(Hva),
    /// No memory.
    Mmio,
}

impl Mmu {
    /// What is at a guest-physical address, up to the end of its page.
    pub fn backing(&self, gpa: Gpa) -> Backing {
        let Some(slot) = self.slot(gpa) else {
            return Backing::Mmio;
        };
        match slot.hva_of_gpa(gpa) {
            None => Backing::Mmio,
            Some(hva) if slot.flags.contains(SlotFlags::READ_ONLY) => Backing::Rom(hva),
            Some(hva) => Backing::Ram(hva),
        }
    }

    /// Reads guest memory; the range may cross pages and slots.
    ///
    /// # Errors
    ///
    /// `ENXIO` where the guest has no memory, `EFAULT` where the VMM has none behind it.
    pub fn read(&self, gpa: Gpa, mut buf: &mut [u8]) -> Result {
        let mut gpa = gpa;
        while !buf.is_empty() {
            let len = to_page_end(gpa.page_offset()).min(buf.len());
            let (now, rest) = buf.split_at_mut_checked(len).ok_or(EFAULT)?;
            match self.backing(gpa) {
                Backing::Ram(hva) | Backing::Rom(hva) => user::copy_from(hva, now)?,
                Backing::Mmio => return Err(no_such_device()),
            }
            buf = rest;
            gpa = gpa.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Writes guest memory; the range may cross pages and slots.
    ///
    /// # Errors
    ///
    /// `ENXIO` where the guest has no memory to be written, `EFAULT` where the VMM has none behind
    /// it.
    pub fn write(&self, gpa: Gpa, mut buf: &[u8]) -> Result {
        let mut gpa = gpa;
        while !buf.is_empty() {
            let len = to_page_end(gpa.page_offset()).min(buf.len());
            let (now, rest) = buf.split_at_checked(len).ok_or(EFAULT)?;
            match self.backing(gpa) {
                Backing::Ram(hva) => user::copy_to(hva, now)?,
                Backing::Rom(_) | Backing::Mmio => return Err(no_such_device()),
            }
            buf = rest;
            gpa = gpa.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Replaces a naturally aligned word of guest memory if it still holds `old`; tells what was
    /// there.
    ///
    /// # Errors
    ///
    /// `ENXIO` where the guest has no memory to be written, `EFAULT` where the VMM has none behind
    /// it.
    pub fn compare_exchange(&self, gpa: Gpa, size: u8, old: u64, new: u64) -> Result<u64> {
        match self.backing(gpa) {
            Backing::Ram(hva) => user::compare_exchange(hva, size, old, new),
            Backing::Rom(_) | Backing::Mmio => Err(no_such_device()),
        }
    }
}

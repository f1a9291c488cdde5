// SPDX-License-Identifier: GPL-2.0

//! Nested page tables of AMD-V: APM Vol. 2, "Nested Paging", in the entry format of long mode,
//! "Long-Mode Page Translation".
//!
//! The format is the host's own, and the CPU walks the tables in the host's paging mode, with the
//! host's EFER.NXE (Linux always sets it) and the host's PAT.

use super::format::{exchange, Entry, Format, Leaf, Notice};
use super::{Level, MemoryType, PageSize, Permissions};
use crate::model::arch::addr::Hpa;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// Every access of a guest counts as one by user mode, whatever the guest's CPL is: without this
/// bit the page is not there for it.
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Maps a page, in levels that could also refer to a table; the PAT bit of 4 KiB entries.
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12. CPUs with a smaller physical-address width reserve the upper ones.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// [`Leaf::tracked`]; bits 58:52 are left to software.
const TRACKED: u64 = 1 << 52;

/// PWT and PCD: bits 0 and 1 of the index into the host's PAT. Bit 2 is nowhere set.
///
/// Only two of the eight places hold the same type on every Linux host, with and without `nopat`,
/// and also after a reset: 0 is write-back and 3 is uncacheable. No other is used.
const PAT_INDEX: u64 = 0b11 << 3;
const PAT_UNCACHEABLE: u64 = 0b11 << 3;
/// Bit 2 of the index in entries that map large pages, where its usual place says [`LARGE`].
const LARGE_PAT: u64 = 1 << 12;

/// The NPT entry format, as far as the CPU and its host have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Npt {
    /// Largest page that an entry may map: 2 MiB, or 1 GiB on CPUs that have it (CPUID
    /// 0x8000_0001 EDX bit 26).
    pub largest: PageSize,
    /// The host runs with CR4.LA57, and so the CPU walks five levels.
    pub five_level: bool,
    /// How writes to tracked pages are noticed: CPUs have no log for that.
    pub notice: Notice,
}

impl Npt {
    /// Level of the root table.
    #[inline]
    pub const fn levels(&self) -> Level {
        match self.five_level {
            true => Level::Pml5,
            false => Level::Pml4,
        }
    }
}

/// The memory type of a leaf. What [`Npt::leaf`] does not write is nothing to be cached.
const fn memory_type(raw: u64, pat: u64) -> MemoryType {
    if raw & (PAT_INDEX | pat) == 0 {
        MemoryType::WriteBack
    } else {
        MemoryType::Uncacheable
    }
}

impl Format for Npt {
    #[inline(always)]
    fn decode(&self, raw: u64, level: Level) -> Entry {
        if raw & PRESENT == 0 {
            return Entry::Absent;
        }
        let (size, pat) = match level.page_size() {
            Some(PageSize::Size4K) => (PageSize::Size4K, LARGE),
            Some(size) if raw & LARGE != 0 => (size, LARGE_PAT),
            _ => return Entry::Table(Hpa::new(raw & ADDRESS)),
        };
        let mut perms = Permissions::R;
        if raw & WRITE != 0 {
            perms = perms.union(Permissions::W);
        }
        if raw & NO_EXECUTE == 0 {
            perms = perms.union(Permissions::X);
        }
        Entry::Leaf(Leaf {
            // The lower bits of a large page's address are not its address.
            hpa: Hpa::new(raw & ADDRESS & !(size.bytes() - 1)),
            size,
            perms,
            memory_type: memory_type(raw, pat),
            ignore_pat: false,
            accessed: raw & ACCESSED != 0,
            dirty: raw & DIRTY != 0,
            tracked: raw & TRACKED != 0,
        })
    }

    /// The guest's PAT always has its say here (APM Vol. 2, "Combining Memory Types, MTRRs"): the
    /// wish that it be ignored is dropped, and the entry does not read back as one that has it.
    #[inline(always)]
    fn leaf(&self, leaf: &Leaf) -> Option<u64> {
        // A page that is present can be read.
        if !leaf.perms.contains(Permissions::R) || leaf.size > self.largest {
            return None;
        }
        let mut raw = (leaf.hpa.raw() & ADDRESS) | PRESENT | USER;
        raw |= match leaf.memory_type {
            MemoryType::WriteBack => 0,
            MemoryType::Uncacheable => PAT_UNCACHEABLE,
            _ => return None,
        };
        if leaf.perms.contains(Permissions::W) {
            raw |= WRITE;
        }
        if !leaf.perms.contains(Permissions::X) {
            raw |= NO_EXECUTE;
        }
        if leaf.size != PageSize::Size4K {
            raw |= LARGE;
        }
        raw |= if leaf.accessed { ACCESSED } else { 0 };
        raw |= if leaf.dirty { DIRTY } else { 0 };
        if leaf.tracked {
            raw = match self.notice.is_flag(leaf.size.level()) {
                true => raw & !DIRTY | WRITE,
                false => raw | TRACKED,
            };
        }
        Some(raw)
    }

    #[inline(always)]
    fn table(&self, table: Hpa) -> u64 {
        (table.raw() & ADDRESS) | PRESENT | WRITE | USER
    }

    #[inline(always)]
    fn accessed_mask(&self) -> u64 {
        ACCESSED
    }

    #[inline(always)]
    fn dirty_mask(&self) -> u64 {
        DIRTY
    }

    #[inline(always)]
    fn kept_flags(&self, leaf: &Leaf) -> u64 {
        match leaf.tracked && self.notice.is_flag(leaf.size.level()) {
            true => ACCESSED,
            false => ACCESSED | DIRTY,
        }
    }

    #[inline(always)]
    fn withhold(&self, raw: u64, level: Level) -> Option<u64> {
        if self.notice.is_flag(level) {
            return match raw & WRITE {
                0 => None,
                _ => exchange(raw, DIRTY, 0),
            };
        }
        exchange(raw, WRITE, TRACKED)
    }

    #[inline(always)]
    fn give_back(&self, raw: u64, level: Level) -> Option<u64> {
        if self.notice.is_flag(level) {
            // Nothing was withheld.
            return None;
        }
        exchange(raw, TRACKED, WRITE)
    }

    #[inline(always)]
    fn address_mask(&self) -> u64 {
        ADDRESS
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Extended page tables: SDM Vol. 3C, "The Extended Page Table Mechanism (EPT)" (section 30.3 of
//! recent editions), tables "Format of an EPT ... Entry".

use super::format::{exchange, Entry, Format, Leaf, Notice};
use super::{Level, MemoryType, PageSize, Permissions};
use crate::model::arch::addr::Hpa;

/// Rights are bits 2:0, in the order of [`Permissions`]; an entry without any is not present.
const RIGHTS: u64 = 0b111;
const WRITE: u64 = 1 << 1;
const TYPE_SHIFT: u32 = 3;
const IGNORE_PAT: u64 = 1 << 6;
/// Maps a page, in levels that could also refer to a table.
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// Bits 51:12. Hardware with a smaller physical-address width reserves the upper ones.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// [`Leaf::tracked`], where a fault tells; the CPU ignores bits 56:52 of an entry that maps a page.
const TRACKED: u64 = 1 << 52;

/// The EPT entry format, as far as the CPU at hand has it.
///
/// A leaf without any flag in the CPU's place cannot be said to be untouched: with
/// `accessed_dirty` off every leaf reads as accessed, and every writable one as dirty.
///
/// Where the CPU logs writes, every page that can be written and is not tracked has its dirty flag
/// set from the start, so that nothing else gets into the log. Where it only sets the flag, that is
/// all there is to see: no page of 4 KiB reads as tracked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ept {
    /// The EPT pointer turns accessed and dirty flags on (bit 6; IA32_VMX_EPT_VPID_CAP bit 21).
    pub accessed_dirty: bool,
    /// How writes to tracked pages are noticed. All but faults need `accessed_dirty`; a log needs
    /// page-modification logging (SDM Vol. 3C, "Page-Modification Logging").
    pub notice: Notice,
    /// Execute-only entries are allowed (IA32_VMX_EPT_VPID_CAP bit 0).
    pub execute_only: bool,
    /// Largest page that an entry may map (IA32_VMX_EPT_VPID_CAP bits 16 and 17).
    pub largest: PageSize,
    /// The EPT pointer asks for a walk of five levels (bits 5:3; IA32_VMX_EPT_VPID_CAP bit 7).
    pub five_level: bool,
}

impl Ept {
    /// Level of the root table.
    #[inline]
    pub const fn levels(&self) -> Level {
        match self.five_level {
            true => Level::Pml5,
            false => Level::Pml4,
        }
    }

    /// The value of the EPT pointer for a root table (SDM Vol. 3C, "Extended-Page-Table Pointer
    /// (EPTP)"): write-back tables, walk length and accessed/dirty flags.
    pub const fn pointer(&self, root: Hpa) -> u64 {
        let walk = (self.levels() as u64 - 1) << 3;
        let flags = if self.accessed_dirty { 1 << 6 } else { 0 };
        (root.raw() & ADDRESS) | flags | walk | MemoryType::WriteBack as u64
    }
}

impl Ept {
    #[inline(always)]
    const fn logs_writes(&self) -> bool {
        matches!(self.notice, Notice::Log)
    }

    #[inline(always)]
    fn plain_decode(&self, raw: u64, level: Level) -> Entry {
        if raw & RIGHTS == 0 {
            return Entry::Absent;
        }
        let size = match level.page_size() {
            Some(size) if level == Level::Pt || raw & LARGE != 0 => size,
            _ => return Entry::Table(Hpa::new(raw & ADDRESS)),
        };
        let perms = Permissions::from_bits((raw & RIGHTS) as u8);
        let memory_type = MemoryType::from_raw(((raw >> TYPE_SHIFT) & 0b111) as u8)
            .unwrap_or(MemoryType::Uncacheable);
        Entry::Leaf(Leaf {
            hpa: Hpa::new(raw & ADDRESS),
            size,
            perms,
            memory_type,
            ignore_pat: raw & IGNORE_PAT != 0,
            accessed: !self.accessed_dirty || raw & ACCESSED != 0,
            dirty: if self.accessed_dirty {
                raw & DIRTY != 0
            } else {
                perms.contains(Permissions::W)
            },
            tracked: raw & TRACKED != 0,
        })
    }

    #[inline(always)]
    fn plain_leaf(&self, leaf: &Leaf) -> Option<u64> {
        let perms = leaf.perms;
        // Writable but not readable is a misconfiguration, and so is execute-only on CPUs that
        // lack it (SDM Vol. 3C, "EPT Misconfigurations").
        let expressible =
            perms.contains(Permissions::R) || (perms == Permissions::X && self.execute_only);
        if !expressible || leaf.size > self.largest {
            return None;
        }
        let mut raw = leaf.hpa.raw() & ADDRESS;
        raw |= u64::from(perms.bits()) | (leaf.memory_type as u64) << TYPE_SHIFT;
        if leaf.ignore_pat {
            raw |= IGNORE_PAT;
        }
        if leaf.size != PageSize::Size4K {
            raw |= LARGE;
        }
        if self.accessed_dirty {
            raw |= if leaf.accessed { ACCESSED } else { 0 };
            raw |= if leaf.dirty { DIRTY } else { 0 };
        }
        if leaf.tracked {
            raw = match self.notice.is_flag(leaf.size.level()) {
                true => raw & !DIRTY | WRITE,
                false => raw | TRACKED,
            };
        }
        Some(raw)
    }

    /// Where the CPU logs writes; out of the way of all other CPUs.
    #[inline(never)]
    fn logging_decode(&self, raw: u64, level: Level) -> Entry {
        let mut entry = self.plain_decode(raw, level);
        if let Entry::Leaf(leaf) = &mut entry {
            if level == Level::Pt && raw & (WRITE | DIRTY) == WRITE {
                leaf.perms = leaf.perms.without(Permissions::W);
                leaf.tracked = true;
            }
        }
        entry
    }

    /// As [`Ept::logging_decode`].
    #[inline(never)]
    fn logging_leaf(&self, leaf: &Leaf) -> Option<u64> {
        let raw = self.plain_leaf(leaf)?;
        Some(match leaf.perms.contains(Permissions::W) {
            true => raw | DIRTY,
            false => raw,
        })
    }
}

impl Format for Ept {
    #[inline(always)]
    fn decode(&self, raw: u64, level: Level) -> Entry {
        match self.logs_writes() {
            false => self.plain_decode(raw, level),
            true => self.logging_decode(raw, level),
        }
    }

    #[inline(always)]
    fn leaf(&self, leaf: &Leaf) -> Option<u64> {
        match self.logs_writes() {
            false => self.plain_leaf(leaf),
            true => self.logging_leaf(leaf),
        }
    }

    #[inline(always)]
    fn table(&self, table: Hpa) -> u64 {
        (table.raw() & ADDRESS) | RIGHTS
    }

    #[inline(always)]
    fn accessed_mask(&self) -> u64 {
        if self.accessed_dirty {
            ACCESSED
        } else {
            0
        }
    }

    #[inline(always)]
    fn dirty_mask(&self) -> u64 {
        if self.accessed_dirty {
            DIRTY
        } else {
            0
        }
    }

    #[inline(always)]
    fn kept_flags(&self, leaf: &Leaf) -> u64 {
        match leaf.tracked && self.notice.is_flag(leaf.size.level()) {
            true => self.accessed_mask(),
            false => self.accessed_mask() | self.dirty_mask(),
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
            let waits = self.logs_writes() && raw & (WRITE | DIRTY) == WRITE;
            return waits.then_some(raw | DIRTY);
        }
        let dirty = if self.logs_writes() { DIRTY } else { 0 };
        exchange(raw, TRACKED, WRITE | dirty)
    }

    #[inline(always)]
    fn address_mask(&self) -> u64 {
        ADDRESS
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What the table editor needs to know of an entry format.

use super::{Level, MemoryType, PageSize, Permissions};
use crate::model::arch::addr::Hpa;

/// A mapping of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First byte of the host page.
    pub hpa: Hpa,
    /// Size of the page.
    pub size: PageSize,
    /// What the guest may do with it.
    pub perms: Permissions,
    /// How it is cached.
    pub memory_type: MemoryType,
    /// The guest's PAT does not weaken `memory_type`.
    pub ignore_pat: bool,
    /// The page was used since the flag was last clear.
    pub accessed: bool,
    /// The page was written since the flag was last clear.
    pub dirty: bool,
    /// The page may be written, but somebody wants to know first: the right is withheld. See
    /// [`super::track`].
    pub tracked: bool,
}

impl Leaf {
    /// A write-back mapping, not accessed yet, that leaves the guest its PAT.
    #[inline]
    pub const fn new(hpa: Hpa, size: PageSize, perms: Permissions) -> Self {
        Self {
            hpa,
            size,
            perms,
            memory_type: MemoryType::WriteBack,
            ignore_pat: false,
            accessed: false,
            dirty: false,
            tracked: false,
        }
    }

    /// The same mapping with another memory type.
    #[inline]
    pub const fn with_memory_type(mut self, memory_type: MemoryType, ignore_pat: bool) -> Self {
        self.memory_type = memory_type;
        self.ignore_pat = ignore_pat;
        self
    }

    /// The same mapping, whose first write is to be noticed; see [`super::track`].
    #[inline]
    pub const fn to_be_noticed(mut self) -> Self {
        if self.perms.contains(Permissions::W) {
            self.perms = self.perms.without(Permissions::W);
            self.tracked = true;
        }
        self
    }

    /// True when both map the same memory in the same way, whatever the rights and flags.
    #[inline]
    pub const fn same_memory(&self, other: &Self) -> bool {
        self.hpa.raw() == other.hpa.raw()
            && self.size as u8 == other.size as u8
            && self.memory_type as u8 == other.memory_type as u8
            && self.ignore_pat == other.ignore_pat
    }
}

/// How the first write to a tracked page of 4 KiB is noticed. Larger ones are tracked by a fault,
/// always: a flag would not say which part was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Notice {
    /// The right to write is withheld, and the write faults.
    Fault,
    /// The dirty flag is clear, and the CPU sets it. Whoever wants to know has to look
    /// ([`super::table::Table::take_written`]), and so has whoever unmaps the page.
    Flag,
    /// The CPU sets the flag, and puts the page into a log before that.
    Log,
}

impl Notice {
    /// True where a page is tracked by its dirty flag, and keeps the right to write.
    #[inline(always)]
    pub(super) const fn is_flag(self, level: Level) -> bool {
        !matches!(self, Self::Fault) && matches!(level, Level::Pt)
    }
}

/// A bit of software's in an entry that refers to a table: see [`super::table::Table::take_written`]. Bits
/// 62:52 of one are ignored in every format.
pub(super) const USED: u64 = 1 << 52;

/// One bit of an entry in place of another, if that one is set.
#[inline(always)]
pub(super) const fn exchange(raw: u64, from: u64, to: u64) -> Option<u64> {
    match raw & from {
        0 => None,
        _ => Some(raw & !from | to),
    }
}

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is mapped.
    Absent,
    /// The next table is at this address.
    Table(Hpa),
    /// A page.
    Leaf(Leaf),
}

/// Encoding of 64-bit entries in tables of 512.
///
/// A value of the type holds what the hardware at hand can do. An entry of all zeroes is absent in
/// every format.
pub trait Format: Copy {
    /// Reads an entry of a table at `level`.
    fn decode(&self, raw: u64, level: Level) -> Entry;

    /// The entry for a page; `None` when the format has no way to say it. The address is aligned
    /// and narrow enough: the editor looks at that.
    fn leaf(&self, leaf: &Leaf) -> Option<u64>;

    /// The entry for a table, with every right.
    fn table(&self, table: Hpa) -> u64;

    /// The bits that hardware sets in a leaf when the page is used; 0 when it sets none.
    fn accessed_mask(&self) -> u64;

    /// The bits that hardware sets in a leaf when the page is written; 0 when it sets none.
    fn dirty_mask(&self) -> u64;

    /// The flags of hardware that a page keeps when it gets the rights of `leaf`.
    fn kept_flags(&self, _leaf: &Leaf) -> u64 {
        self.accessed_mask() | self.dirty_mask()
    }

    /// The entry of a page of this level without the right to write, and with the notice in its place
    /// ([`Leaf::tracked`]); `None` when it has no such right. See [`super::track`].
    fn withhold(&self, raw: u64, level: Level) -> Option<u64>;

    /// The entry of a page of this level with the right in place of the notice, `None` when there is no
    /// notice.
    fn give_back(&self, raw: u64, level: Level) -> Option<u64>;

    /// The bits that hold an address in any entry.
    fn address_mask(&self) -> u64;
}

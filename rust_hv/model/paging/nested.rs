// SPDX-License-Identifier: GPL-2.0

//! The format of nested tables, whoever made the CPU.
//!
//! It is settled when the module loads. A value that knows it, and not a type parameter, keeps one
//! copy of the table editor and of all that uses it; the branch always goes the same way.

use super::ept::Ept;
use super::format::{Entry, Format, Leaf, Notice};
use super::npt::Npt;
use super::{Level, PageSize};
use crate::model::arch::addr::Hpa;

/// An entry format that a CPU walks for its guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nested {
    /// VT-x.
    Ept(Ept),
    /// AMD-V.
    Npt(Npt),
}

impl Nested {
    /// Level of the root table.
    #[inline]
    pub const fn levels(&self) -> Level {
        match self {
            Self::Ept(ept) => ept.levels(),
            Self::Npt(npt) => npt.levels(),
        }
    }

    /// Width of the guest-physical addresses that the tables map, in bits.
    #[inline]
    pub const fn address_bits(&self) -> u32 {
        self.levels().shift() + 9
    }

    /// What user space calls the format: in debugfs, and as a `RUSTHV_MODE_*` of `uapi/rusthv.h`.
    pub const fn label(&self) -> (&'static str, u32) {
        match self {
            Self::Ept(_) => ("ept", 0),
            Self::Npt(_) => ("npt", 1),
        }
    }

    /// True when an entry can overrule the guest's PAT; see [`Leaf::ignore_pat`].
    #[inline]
    pub const fn overrules_pat(&self) -> bool {
        matches!(self, Self::Ept(_))
    }

    /// How writes to tracked pages are noticed.
    #[inline]
    pub const fn notice(&self) -> Notice {
        match self {
            Self::Ept(ept) => ept.notice,
            Self::Npt(npt) => npt.notice,
        }
    }

    /// The same format with another notice. A CPU that has one has those before it, too.
    pub const fn with_notice(self, notice: Notice) -> Self {
        match self {
            Self::Ept(ept) => Self::Ept(Ept { notice, ..ept }),
            Self::Npt(npt) => Self::Npt(Npt { notice, ..npt }),
        }
    }

    /// True when an entry can allow fetches and nothing else.
    #[inline]
    pub const fn can_only_execute(&self) -> bool {
        match self {
            Self::Ept(ept) => ept.execute_only,
            Self::Npt(_) => false,
        }
    }

    /// Largest page that an entry may map.
    #[inline]
    pub const fn largest(&self) -> PageSize {
        match self {
            Self::Ept(ept) => ept.largest,
            Self::Npt(npt) => npt.largest,
        }
    }
}

impl Format for Nested {
    #[inline(always)]
    fn decode(&self, raw: u64, level: Level) -> Entry {
        match self {
            Self::Ept(ept) => ept.decode(raw, level),
            Self::Npt(npt) => npt.decode(raw, level),
        }
    }

    #[inline(always)]
    fn leaf(&self, leaf: &Leaf) -> Option<u64> {
        match self {
            Self::Ept(ept) => ept.leaf(leaf),
            Self::Npt(npt) => npt.leaf(leaf),
        }
    }

    #[inline(always)]
    fn table(&self, table: Hpa) -> u64 {
        match self {
            Self::Ept(ept) => ept.table(table),
            Self::Npt(npt) => npt.table(table),
        }
    }

    #[inline(always)]
    fn accessed_mask(&self) -> u64 {
        match self {
            Self::Ept(ept) => ept.accessed_mask(),
            Self::Npt(npt) => npt.accessed_mask(),
        }
    }

    #[inline(always)]
    fn dirty_mask(&self) -> u64 {
        match self {
            Self::Ept(ept) => ept.dirty_mask(),
            Self::Npt(npt) => npt.dirty_mask(),
        }
    }

    #[inline(always)]
    fn kept_flags(&self, leaf: &Leaf) -> u64 {
        match self {
            Self::Ept(ept) => ept.kept_flags(leaf),
            Self::Npt(npt) => npt.kept_flags(leaf),
        }
    }

    #[inline(always)]
    fn withhold(&self, raw: u64, level: Level) -> Option<u64> {
        match self {
            Self::Ept(ept) => ept.withhold(raw, level),
            Self::Npt(npt) => npt.withhold(raw, level),
        }
    }

    #[inline(always)]
    fn give_back(&self, raw: u64, level: Level) -> Option<u64> {
        match self {
            Self::Ept(ept) => ept.give_back(raw, level),
            Self::Npt(npt) => npt.give_back(raw, level),
        }
    }

    #[inline(always)]
    fn address_mask(&self) -> u64 {
        match self {
            Self::Ept(ept) => ept.address_mask(),
            Self::Npt(npt) => npt.address_mask(),
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Page tables: the entry formats, one editor for the tables that hardware walks on our behalf,
//! and a software walk of the guest's own.

pub mod ept;
pub mod format;
pub mod frames;
pub mod grow;
pub mod nested;
pub mod npt;
// One writer, with a lock: nothing for the model checker.
#[cfg(not(loom))]
pub mod shadow;
pub mod state;
pub mod sweep;
pub mod table;
pub mod tlb;
pub mod track;
pub mod walk;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Data reads.
    pub const R: Self = Self(1);
    /// Data writes.
    pub const W: Self = Self(2);
    /// Instruction fetches.
    pub const X: Self = Self(4);
    /// Reads and writes.
    pub const RW: Self = Self(3);
    /// Reads and fetches.
    pub const RX: Self = Self(5);
    /// Everything.
    pub const RWX: Self = Self(7);

    /// The rights in `R`, `W`, `X` order from bit 0; other bits are dropped.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    /// `R`, `W` and `X` from bit 0.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// True when every right of `other` is here.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights of both.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The rights that both have.
    #[inline]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The rights that `other` does not have.
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// How a page is cached, in the numbers of PAT, MTRR and EPT (SDM Vol. 3A, table "Memory Types
/// That Can Be Encoded in MTRRs").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uncacheable = 0,
    /// Write combining.
    WriteCombining = 1,
    /// Write through.
    WriteThrough = 4,
    /// Write protected.
    WriteProtected = 5,
    /// Write back.
    WriteBack = 6,
}

impl MemoryType {
    /// The type with a number; `None` for the reserved ones.
    #[inline]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }
}

/// Size of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// The level whose entries map pages of this size.
    #[inline]
    pub const fn level(self) -> Level {
        match self {
            Self::Size4K => Level::Pt,
            Self::Size2M => Level::Pd,
            Self::Size1G => Level::Pdpt,
        }
    }

    /// Bytes in the page.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.level().shift()
    }

    /// Base pages in the page.
    #[inline]
    pub const fn pages(self) -> u64 {
        self.level().pages()
    }

    /// The next smaller size.
    #[inline]
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Size4K => None,
            Self::Size2M => Some(Self::Size4K),
            Self::Size1G => Some(Self::Size2M),
        }
    }
}

/// Level of a table, counted from the one whose entries map 4 KiB pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// Page table.
    Pt = 1,
    /// Page directory: 2 MiB per entry.
    Pd = 2,
    /// Page-directory-pointer table: 1 GiB per entry.
    Pdpt = 3,
    /// Fourth level: 512 GiB per entry.
    Pml4 = 4,
    /// Fifth level: 256 TiB per entry.
    Pml5 = 5,
}

impl Level {
    /// log2 of the bytes that one entry covers.
    #[inline]
    pub const fn shift(self) -> u32 {
        12 + 9 * (self as u32 - 1)
    }

    /// Base pages that one entry covers.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << (self.shift() - 12)
    }

    /// The level below.
    #[inline]
    pub const fn lower(self) -> Option<Self> {
        match self {
            Self::Pt => None,
            Self::Pd => Some(Self::Pt),
            Self::Pdpt => Some(Self::Pd),
            Self::Pml4 => Some(Self::Pdpt),
            Self::Pml5 => Some(Self::Pml4),
        }
    }

    /// Size of the pages that entries of this level can map.
    #[inline]
    pub const fn page_size(self) -> Option<PageSize> {
        match self {
            Self::Pt => Some(PageSize::Size4K),
            Self::Pd => Some(PageSize::Size2M),
            Self::Pdpt => Some(PageSize::Size1G),
            Self::Pml4 | Self::Pml5 => None,
        }
    }
}

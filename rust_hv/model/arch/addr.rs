// SPDX-License-Identifier: GPL-2.0

//! Address newtypes: a guest-physical address passed as a host-physical one does not compile.

/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Byte offset inside its 4 KiB page.
            #[inline]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// The address rounded down to its 4 KiB page.
            #[inline]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// True at a 4 KiB boundary.
            #[inline]
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }

            /// The address `bytes` further on, or `None` past 2^64.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The address `bytes` further on, modulo 2^64.
            #[inline]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }
    };
}

address! {
    /// Guest-virtual (linear) address.
    Gva
}
address! {
    /// Guest-physical address.
    Gpa
}
address! {
    /// Host-physical address.
    Hpa
}
address! {
    /// Host-virtual address of the VMM's user space.
    Hva
}

/// Guest frame number: a [`Gpa`] divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Gfn(u64);

impl Gfn {
    /// Wraps a raw frame number.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw frame number.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// First byte of the frame; `None` for a frame number that no address has.
    #[inline]
    pub const fn base(self) -> Option<Gpa> {
        if self.0 >> (64 - PAGE_SHIFT) != 0 {
            return None;
        }
        Some(Gpa::new(self.0 << PAGE_SHIFT))
    }
}

impl Gfn {
    /// The frame `pages` further on, or `None` past 2^64.
    #[inline]
    pub const fn checked_add(self, pages: u64) -> Option<Self> {
        match self.0.checked_add(pages) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

/// Guest frames from `start` up to, not including, `end`; empty when `end <= start`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GfnRange {
    /// First frame.
    pub start: Gfn,
    /// First frame after the range.
    pub end: Gfn,
}

impl GfnRange {
    /// Every frame number there is, save the very last one.
    pub const ALL: Self = Self {
        start: Gfn(0),
        end: Gfn(u64::MAX),
    };

    /// The frames from `start` up to, not including, `end`.
    #[inline]
    pub const fn new(start: Gfn, end: Gfn) -> Self {
        Self { start, end }
    }

    /// True without a frame in it.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }

    /// Frames in the range.
    #[inline]
    pub const fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// True when `gfn` lies in the range.
    #[inline]
    pub const fn contains(self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end.0
    }
}

impl Gpa {
    /// The frame that holds this address.
    #[inline]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.raw() >> PAGE_SHIFT)
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What an entry says.

use super::{Alias, Owner, Run, CLUSTER};
use crate::model::arch::addr::{Gfn, Hpa, PAGE_SHIFT};
use crate::model::paging::PageSize;

/// The bits of a first word that say which pages of the cluster are mapped.
pub(super) const MASK: u64 = 0xffff;
const SIZE_SHIFT: u32 = 62;
/// In the first word of every entry: the cluster at 0 is one, too.
const USED: u64 = 1 << 61;
/// Bits of a physical address: MAXPHYADDR at most (SDM Vol. 3A, "Paging").
pub(super) const PHYS_BITS: u32 = 52;
/// Bits of a frame number, the guest's or the host's.
const FRAME_BITS: u32 = PHYS_BITS - PAGE_SHIFT;
const FRAME_MASK: u64 = (1 << FRAME_BITS) - 1;
/// In the second word of an entry: guest frames go down where the host's go up.
const DOWN_SHIFT: u32 = 56;

/// Number of bits in a mask. Most have one bit, or all, and the kernel's baseline CPU counts by hand.
#[inline]
pub(super) const fn ones(mask: u64) -> u64 {
    match mask {
        MASK => CLUSTER,
        mask if mask & mask.wrapping_sub(1) == 0 => (mask != 0) as u64,
        mask => mask.count_ones() as u64,
    }
}

/// log2 of how much larger the pages of a size are than those of the next.
const LEVEL_SHIFT: u32 = 9;

/// log2 of a page's size.
#[inline]
pub(super) const fn shift_of(size: PageSize) -> u32 {
    PAGE_SHIFT + LEVEL_SHIFT * size as u32
}

/// A cluster: page size and number, as the first word of its entries has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(pub(super) u64);

impl Key {
    #[inline]
    pub(super) fn of(hpa: Hpa, size: PageSize) -> Self {
        let cluster = (hpa.raw() >> shift_of(size)) / CLUSTER;
        Self((size as u64) << SIZE_SHIFT | USED | cluster << MASK.count_ones())
    }

    pub(super) fn size(self) -> PageSize {
        match self.0 >> SIZE_SHIFT {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    /// First byte of a page of the cluster.
    pub(super) fn hpa(self, page: u32) -> Hpa {
        let cluster = (self.0 & (USED - 1)) >> MASK.count_ones();
        let number = cluster * CLUSTER + u64::from(page);
        let level = (self.0 >> SIZE_SHIFT) as u32;
        Hpa::new(number << (PAGE_SHIFT + LEVEL_SHIFT * level))
    }
}

/// The second word of an entry: the owner, and on which line in the plane of guest and host frames
/// its pages are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning(pub(super) u64);

impl Meaning {
    #[inline]
    pub(super) const fn new(owner: Owner, gfn: u64, frame: u64, down: bool) -> Self {
        let constant = if down {
            gfn.wrapping_add(frame)
        } else {
            gfn.wrapping_sub(frame)
        };
        Self((down as u64) << DOWN_SHIFT | (owner.0 as u64) << FRAME_BITS | constant & FRAME_MASK)
    }

    #[inline]
    pub(super) const fn owner(self) -> Owner {
        Owner((self.0 >> FRAME_BITS) as u16)
    }

    #[inline]
    pub(super) const fn is_down(self) -> bool {
        self.0 >> DOWN_SHIFT & 1 != 0
    }

    /// The guest frame that is in a host frame.
    #[inline]
    pub(super) const fn gfn(self, frame: u64) -> u64 {
        let gfn = if self.is_down() {
            self.0.wrapping_sub(frame)
        } else {
            self.0.wrapping_add(frame)
        };
        gfn & FRAME_MASK
    }
}

/// The part of a run that is in a cluster; or an entry.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) key: Key,
    pub(super) mask: u64,
    pub(super) meaning: Meaning,
}

impl Piece {
    /// A run that is one page, as one that goes up.
    #[inline(always)]
    pub(super) fn page(owner: Owner, run: &Run) -> Self {
        let page = (run.hpa.raw() >> shift_of(run.size)) % CLUSTER;
        Self {
            key: Key::of(run.hpa, run.size),
            mask: 1 << page,
            meaning: Meaning::new(owner, run.gfn.raw(), run.hpa.raw() >> PAGE_SHIFT, false),
        }
    }

    #[inline]
    pub(super) fn of((first, second): (u64, u64)) -> Self {
        Self {
            key: Key(first & !MASK),
            mask: first & MASK,
            meaning: Meaning(second),
        }
    }

    /// True for pieces of the same cluster and owner.
    #[inline]
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.key == other.key && self.meaning.owner() == other.meaning.owner()
    }

    #[inline]
    pub(super) fn is_single(&self) -> bool {
        self.mask & self.mask.wrapping_sub(1) == 0
    }

    /// The guest frame of a page.
    pub(super) fn gfn(&self, page: u32) -> u64 {
        self.meaning.gfn(self.key.hpa(page).raw() >> PAGE_SHIFT)
    }

    pub(super) fn alias(&self, page: u32) -> Alias {
        Alias {
            owner: self.meaning.owner(),
            gfn: Gfn::new(self.gfn(page)),
            hpa: self.key.hpa(page),
            size: self.key.size(),
        }
    }

    /// Which mappings both have. They are of the same cluster and owner.
    #[inline]
    pub(super) fn common(&self, other: &Self) -> u64 {
        let mask = self.mask & other.mask;
        if self.meaning == other.meaning || mask == 0 {
            return mask;
        }
        if self.meaning.is_down() == other.meaning.is_down() {
            return 0;
        }
        self.crossing(other, mask)
    }

    /// [`Piece::common`] of pieces on different lines: a page at most, where they cross.
    #[cold]
    pub(super) fn crossing(&self, other: &Self, mut mask: u64) -> u64 {
        while mask != 0 {
            let page = mask.trailing_zeros();
            if self.gfn(page) == other.gfn(page) {
                return 1 << page;
            }
            mask &= mask - 1;
        }
        0
    }

    /// The line that both can be on, which lie in the same cluster and have the same owner.
    #[inline]
    pub(super) fn joined(&self, other: &Self) -> Option<Meaning> {
        if self.meaning == other.meaning {
            return Some(self.meaning);
        }
        if other.is_single() {
            let page = other.mask.trailing_zeros();
            if self.gfn(page) == other.gfn(page) {
                return Some(self.meaning);
            }
        }
        if self.is_single() {
            return self.bent(other);
        }
        None
    }

    /// [`Piece::joined`] of a single page, which is on two lines.
    #[cold]
    pub(super) fn bent(&self, other: &Self) -> Option<Meaning> {
        let lines = |piece: &Self| {
            let page = piece.mask.trailing_zeros();
            let (gfn, frame) = (piece.gfn(page), piece.key.hpa(page).raw() >> PAGE_SHIFT);
            let line = |down| Meaning::new(piece.meaning.owner(), gfn, frame, down);
            match piece.is_single() {
                true => [line(false), line(true)],
                false => [piece.meaning; 2],
            }
        };
        let theirs = lines(other);
        lines(self).into_iter().find(|line| theirs.contains(line))
    }
}

/// A piece, and what tells entries that have to do with it from others at a glance.
pub(super) struct Sought {
    pub(super) piece: Piece,
    /// The other line that it is on, if it is a single page; else its only one again.
    other: Meaning,
    /// From here on, second words of single pages that would be neighbours of the piece, or on its
    /// line, the other way round.
    near: u64,
    /// So far.
    span: u64,
}

impl Sought {
    /// A run of one page, which is on two lines.
    #[inline(always)]
    pub(super) fn page(owner: Owner, run: &Run) -> Self {
        let level = shift_of(run.size) - PAGE_SHIFT;
        let (gfn, frame) = (run.gfn.raw(), run.hpa.raw() >> PAGE_SHIFT);
        let last = (frame >> level | (CLUSTER - 1)) << level;
        Self {
            piece: Piece::page(owner, run),
            other: Meaning::new(owner, gfn, frame, true),
            near: Self::near(owner, gfn.wrapping_add(frame), last),
            span: (2 * (CLUSTER - 1)) << level,
        }
    }

    /// Several pages of a run.
    #[inline(always)]
    pub(super) fn part(piece: Piece) -> Self {
        let mut sought = Self {
            piece,
            other: piece.meaning,
            near: 0,
            span: 0,
        };
        if piece.meaning.is_down() {
            let last = piece.key.hpa(CLUSTER as u32 - 1).raw() >> PAGE_SHIFT;
            sought.near = Self::near(piece.meaning.owner(), piece.meaning.0, last);
            sought.span = (2 * (CLUSTER - 1)) << (LEVEL_SHIFT * piece.key.size() as u32);
        }
        sought
    }

    /// A line that goes down has a constant sum of guest and host. Each frame higher in the host, the
    /// difference is less by two: this is the one at the last frame of a cluster.
    #[inline]
    fn near(owner: Owner, sum: u64, last: u64) -> u64 {
        u64::from(owner.0) << FRAME_BITS | sum.wrapping_sub(2 * last) & FRAME_MASK
    }

    /// By its first word: an entry of the same cluster.
    #[inline(always)]
    pub(super) fn is_beside(&self, first: u64) -> bool {
        (first ^ self.piece.key.0) & !MASK == 0
    }

    /// What an entry of the cluster has to do with the piece, by its second word.
    #[inline(always)]
    pub(super) fn compare(&self, second: u64) -> Likeness {
        // Owner and direction are above the difference of guest and host.
        let apart = second ^ self.piece.meaning.0;
        if apart >> FRAME_BITS != 0 {
            Likeness::Other
        } else if apart == 0 {
            Likeness::Same
        } else if self.is_near(second) {
            Likeness::Near
        } else {
            Likeness::Far
        }
    }

    #[inline(always)]
    fn is_near(&self, second: u64) -> bool {
        second.wrapping_sub(self.near) <= self.span
    }

    /// By its second word: on the other line.
    pub(super) fn is_other(&self, second: u64) -> bool {
        second == self.other.0
    }

    /// An entry of another owner or direction may have a page of the piece in common with it, or be a
    /// page that it can be joined with.
    pub(super) fn may_meet(&self, first: u64, second: u64) -> bool {
        first & self.piece.mask != 0 || self.is_near(second)
    }
}

/// What an entry of the same cluster has to do with a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Likeness {
    /// It is on the same line.
    Same,
    /// The same owner has it, on a parallel: no page in common. A single page of it may be on the
    /// line of the piece, or be its neighbour the other way round. That is missed where guest frames
    /// are next to the end of what a second word can say.
    Near,
    /// The same, and it is too far away for that.
    Far,
    /// Anything else.
    Other,
}

/// The parts of a run in each cluster.
#[inline]
pub(super) fn pieces(owner: Owner, run: &Run) -> impl Iterator<Item = Piece> {
    let Run { size, down, .. } = *run;
    let shift = shift_of(size);
    let meaning = Meaning::new(owner, run.gfn.raw(), run.hpa.raw() >> PAGE_SHIFT, down);
    let (mut hpa, mut left) = (run.hpa, run.count);
    core::iter::from_fn(move || {
        let at = (hpa.raw() >> shift) % CLUSTER;
        let room = if down { at + 1 } else { CLUSTER - at };
        let pages = left.min(room);
        if pages == 0 {
            return None;
        }
        let first = if down { at + 1 - pages } else { at };
        let piece = Piece {
            key: Key::of(hpa, size),
            mask: (MASK >> (CLUSTER - pages)) << first,
            meaning,
        };
        let bytes = pages << shift;
        hpa = match down {
            true => Hpa::new(hpa.raw().wrapping_sub(bytes)),
            false => hpa.wrapping_add(bytes),
        };
        left -= pages;
        Some(piece)
    })
}

// SPDX-License-Identifier: GPL-2.0

//! Memory slots: which guest frames exist, and which user memory is behind them.
//!
//! The rules are those of `KVM_SET_USER_MEMORY_REGION` (`virt/kvm/kvm_main.c` and
//! `arch/x86/kvm/x86.c` of Linux 7.2), so that a VMM gets the same errno for the same mistake.
//! Nothing is stored here. The caller keeps the slots of a VM as a slice sorted by guest address,
//! asks [`plan`] what a request would do, and builds the next slice with [`Change::applied`]: an
//! old snapshot stays whole for whoever still reads it.

use crate::model::arch::addr::{Gfn, GfnRange, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE};
use crate::model::paging::Permissions;

/// Slot ids that user space may use: `KVM_CAP_NR_MEMSLOTS`.
///
/// KVM has `SHRT_MAX` ids and keeps three for itself on x86.
pub const USER_SLOTS: u16 = 32767 - 3;

/// Most pages in one slot: a dirty bitmap is indexed with an unsigned int.
pub const MAX_PAGES: u64 = (1 << 31) - 1;

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;

/// `flags` of a memory region, none but the known ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotFlags(u32);

impl SlotFlags {
    /// No flag: plain memory.
    pub const NONE: Self = Self(0);
    /// `KVM_MEM_LOG_DIRTY_PAGES`: writes are recorded page by page.
    pub const LOG_DIRTY: Self = Self(1 << 0);
    /// `KVM_MEM_READONLY`: guest writes go to the VMM as MMIO.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// What KVM on x86 takes through `struct kvm_userspace_memory_region`.
    pub const ALL: Self = Self(Self::LOG_DIRTY.0 | Self::READ_ONLY.0);

    /// The flags of a request; `None` when one of them is not in `allowed`.
    #[inline]
    pub const fn from_raw(raw: u32, allowed: Self) -> Option<Self> {
        if raw & !allowed.0 != 0 {
            return None;
        }
        Some(Self(raw))
    }

    /// The UAPI value.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Both sets together.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True when every flag of `other` is set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when guest writes do not reach the memory.
    #[inline]
    pub const fn read_only(self) -> bool {
        self.contains(Self::READ_ONLY)
    }

    /// True when writes are recorded.
    #[inline]
    pub const fn log_dirty(self) -> bool {
        self.contains(Self::LOG_DIRTY)
    }
}

/// One run of guest frames backed by one run of user memory.
///
/// Slots come from [`plan`], which is why their arithmetic cannot overflow: the end of both runs
/// has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The number by which user space knows the slot.
    pub id: u16,
    /// First guest frame.
    pub base: Gfn,
    /// Pages, never 0.
    pub pages: u64,
    /// User address behind the first frame.
    pub hva: Hva,
    /// What the VMM asked for.
    pub flags: SlotFlags,
    /// What guests may do with it: all, until the VMM says otherwise. They stay with the slot until it
    /// is deleted.
    pub rights: Permissions,
}

impl Slot {
    /// The guest frames of the slot.
    #[inline]
    pub const fn gfns(&self) -> GfnRange {
        GfnRange::new(
            self.base,
            Gfn::new(self.base.raw().saturating_add(self.pages)),
        )
    }

    /// First user address after the slot.
    #[inline]
    pub const fn hva_end(&self) -> Hva {
        let bytes = self.pages.saturating_mul(PAGE_SIZE);
        Hva::new(self.hva.raw().saturating_add(bytes))
    }

    /// True when the guest may write, and nothing has to be known of that.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        !self.flags.read_only() && !self.flags.log_dirty()
    }

    /// True when guests may write to the memory: neither flag nor rights forbid it.
    #[inline]
    pub const fn is_writable(&self) -> bool {
        !self.flags.read_only() && self.rights.contains(Permissions::W)
    }

    /// True when guests may not do all that there is.
    #[inline]
    pub const fn is_restricted(&self) -> bool {
        !self.rights.contains(Permissions::RWX)
    }

    /// True when the guest frame belongs to the slot.
    #[inline]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        self.gfns().contains(gfn)
    }

    /// Index of a guest frame in the slot (and in its dirty bitmap).
    #[inline]
    pub const fn index(&self, gfn: Gfn) -> Option<u64> {
        match gfn.raw().checked_sub(self.base.raw()) {
            Some(index) if index < self.pages => Some(index),
            _ => None,
        }
    }

    /// User address of a guest frame.
    #[inline]
    pub fn hva_of(&self, gfn: Gfn) -> Option<Hva> {
        let index = self.index(gfn)?;
        self.hva.checked_add(index.checked_mul(PAGE_SIZE)?)
    }

    /// User address of a guest-physical address.
    #[inline]
    pub fn hva_of_gpa(&self, gpa: Gpa) -> Option<Hva> {
        self.hva_of(gpa.gfn())?.checked_add(gpa.page_offset())
    }

    /// The guest frames behind the user addresses from `start` up to, not including, `end`.
    ///
    /// A page that is only partly in the range counts; `None` without a common page.
    pub fn gfns_of_hva(&self, start: Hva, end: Hva) -> Option<GfnRange> {
        let low = start.raw().max(self.hva.raw());
        let high = end.raw().min(self.hva_end().raw());
        if low >= high {
            return None;
        }
        let first = low.wrapping_sub(self.hva.raw()) >> PAGE_SHIFT;
        let last = high.wrapping_sub(self.hva.raw()).wrapping_sub(1) >> PAGE_SHIFT;
        Some(GfnRange::new(
            self.base.checked_add(first)?,
            self.base.checked_add(last)?.checked_add(1)?,
        ))
    }

    /// True when a page of the given size (a power of two of base pages) at `gfn` lies whole in
    /// the slot, with the guest and the user address equally aligned.
    #[inline]
    pub const fn fits_large(&self, gfn: Gfn, pages: u64) -> bool {
        let mask = pages.wrapping_sub(1);
        let start = gfn.raw() & !mask;
        let user = self.hva.raw() >> PAGE_SHIFT;
        (self.base.raw() ^ user) & mask == 0
            && start >= self.base.raw()
            && start.saturating_add(pages) <= self.gfns().end.raw()
    }
}

/// The slots of a VM at one moment, sorted by guest address, without overlap.
#[derive(Clone, Copy, Debug)]
pub struct SlotView<'a>(&'a [Slot]);

impl<'a> SlotView<'a> {
    /// Looks at slots that were put in order by [`Change::applied`].
    #[inline]
    pub const fn new(slots: &'a [Slot]) -> Self {
        Self(slots)
    }

    /// The slots, in order of guest address.
    #[inline]
    pub const fn slots(self) -> &'a [Slot] {
        self.0
    }

    /// The slot that holds a guest frame: a binary search.
    #[inline]
    pub fn find(self, gfn: Gfn) -> Option<&'a Slot> {
        let after = self.0.partition_point(|slot| slot.base <= gfn);
        let slot = self.0.get(after.checked_sub(1)?)?;
        slot.contains(gfn).then_some(slot)
    }

    /// The frames around one that no slot holds, up to the next slots; `None` when one holds it.
    pub fn gap(self, gfn: Gfn) -> Option<GfnRange> {
        let after = self.0.partition_point(|slot| slot.base <= gfn);
        let before = after.checked_sub(1).and_then(|last| self.0.get(last));
        let start = before.map_or(Gfn::new(0), |slot| slot.gfns().end);
        let end = self
            .0
            .get(after)
            .map_or(GfnRange::ALL.end, |slot| slot.base);
        (start <= gfn).then_some(GfnRange::new(start, end))
    }

    /// The slot with an id. Linear: only ioctls ask.
    pub fn find_id(self, id: u16) -> Option<&'a Slot> {
        self.0.iter().find(|slot| slot.id == id)
    }

    /// The slots with a frame in a range, in order.
    pub fn find_range(self, range: GfnRange) -> impl Iterator<Item = &'a Slot> {
        let first = self
            .0
            .partition_point(|slot| slot.gfns().end <= range.start);
        self.0
            .get(first..)
            .unwrap_or_default()
            .iter()
            .take_while(move |slot| slot.base < range.end)
    }

    /// Every slot from an index on with memory between two user addresses: its index, and the guest
    /// frames that it shows there. One user page may be in several slots. For MMU notifiers.
    pub fn find_hva_range(
        self,
        start: Hva,
        end: Hva,
        from: usize,
    ) -> impl Iterator<Item = (usize, GfnRange)> + 'a {
        let slots = self.0.iter().enumerate().skip(from);
        slots.filter_map(move |(index, slot)| Some((index, slot.gfns_of_hva(start, end)?)))
    }
}

/// `struct kvm_userspace_memory_region`, as it came from user space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// Slot id in the low half, address space in the high half.
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// Guest-physical address of the first byte.
    pub guest_phys_addr: u64,
    /// Bytes; 0 removes the slot.
    pub memory_size: u64,
    /// User address of the first byte.
    pub userspace_addr: u64,
}

/// What the host can take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Highest guest frame that the host's tables can map.
    pub max_gfn: Gfn,
    /// Highest value that a user address, and the end of user memory, may have: what the host's
    /// `access_ok()` compares with.
    pub max_hva: Hva,
    /// Flags that are implemented.
    pub flags: SlotFlags,
}

impl Limits {
    /// Limits of a host whose nested tables map `phys_bits` bits of guest-physical address.
    pub const fn new(phys_bits: u32, max_hva: Hva) -> Self {
        let frames = match 1u64.checked_shl(phys_bits.saturating_sub(PAGE_SHIFT)) {
            Some(frames) => frames,
            None => 0,
        };
        Self {
            max_gfn: Gfn::new(frames.wrapping_sub(1)),
            max_hva,
            flags: SlotFlags::ALL,
        }
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotError {
    /// A flag that is not known.
    Flags,
    /// An id from [`USER_SLOTS`] on, or an address space other than 0.
    Id,
    /// The size is no multiple of the page size.
    Size,
    /// More than [`MAX_PAGES`] pages.
    TooLarge,
    /// The guest address is no multiple of the page size.
    GuestAlignment,
    /// The guest addresses wrap around.
    GuestWrap,
    /// The end is beyond the physical-address width.
    GuestLimit,
    /// The user address is misaligned, or the memory is not in user space.
    User,
    /// Removal of a slot that does not exist.
    Absent,
    /// The size, the user address or the read-only flag of a living slot would change.
    Immutable,
    /// Another slot has some of the frames.
    Overlap,
}

impl SlotError {
    /// The errno that KVM returns for the mistake, as a positive number.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Overlap => EEXIST,
            Self::Flags
            | Self::Id
            | Self::Size
            | Self::TooLarge
            | Self::GuestAlignment
            | Self::GuestWrap
            | Self::GuestLimit
            | Self::User
            | Self::Absent
            | Self::Immutable => EINVAL,
        }
    }
}

/// What a request does to the slots of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new slot.
    Create(Slot),
    /// The slot goes; whatever maps its frames must go first.
    Delete(Slot),
    /// The same memory appears at another guest address; mappings of the old one must go first.
    Move {
        /// As it is.
        old: Slot,
        /// As it will be; the flags may differ too.
        new: Slot,
    },
    /// Dirty logging starts or stops.
    Flags {
        /// As it is.
        old: Slot,
        /// As it will be.
        new: Slot,
    },
    /// The slot is already so.
    Nothing,
}

impl Change {
    /// The slot that stops to be.
    pub const fn before(&self) -> Option<Slot> {
        match *self {
            Self::Delete(old) | Self::Move { old, .. } | Self::Flags { old, .. } => Some(old),
            Self::Create(_) | Self::Nothing => None,
        }
    }

    /// The slot that comes to be.
    pub const fn after(&self) -> Option<Slot> {
        match *self {
            Self::Create(new) | Self::Move { new, .. } | Self::Flags { new, .. } => Some(new),
            Self::Delete(_) | Self::Nothing => None,
        }
    }

    /// True when frames of the old slot lose their memory.
    pub const fn unmaps(&self) -> bool {
        matches!(self, Self::Delete(_) | Self::Move { .. })
    }

    /// The slots after the change, in order: at most one more than before it.
    pub fn applied<'a>(&self, view: SlotView<'a>) -> impl Iterator<Item = Slot> + 'a {
        let gone = self.before().map(|slot| slot.id);
        let mut pending = self.after();
        let mut kept = view
            .0
            .iter()
            .copied()
            .filter(move |slot| Some(slot.id) != gone)
            .peekable();
        core::iter::from_fn(move || {
            let first = match (pending, kept.peek()) {
                (Some(new), Some(next)) => new.base < next.base,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if first {
                pending.take()
            } else {
                kept.next()
            }
        })
    }
}

/// Checks a request against the slots that exist, and says what it does.
///
/// KVM also refuses slots whose sum of pages overflows; [`USER_SLOTS`] times [`MAX_PAGES`] is less
/// than 2^46, so that cannot be.
pub fn plan(view: SlotView<'_>, request: &Request, limits: &Limits) -> Result<Change, SlotError> {
    // The low half alone is compared with the limit, and only ids of user space get this far.
    let id = request.slot as u16;
    if id >= USER_SLOTS || request.slot >> 16 != 0 {
        return Err(SlotError::Id);
    }
    let flags = SlotFlags::from_raw(request.flags, limits.flags).ok_or(SlotError::Flags)?;
    if request.memory_size % PAGE_SIZE != 0 {
        return Err(SlotError::Size);
    }
    let gpa = Gpa::new(request.guest_phys_addr);
    if !gpa.is_page_aligned() {
        return Err(SlotError::GuestAlignment);
    }
    let hva = Hva::new(request.userspace_addr);
    let user_end = hva.checked_add(request.memory_size);
    if !hva.is_page_aligned() || user_end.is_none_or(|end| end > limits.max_hva) {
        return Err(SlotError::User);
    }
    if gpa.checked_add(request.memory_size).is_none() {
        return Err(SlotError::GuestWrap);
    }
    let pages = request.memory_size >> PAGE_SHIFT;
    if pages > MAX_PAGES {
        return Err(SlotError::TooLarge);
    }

    let old = view.find_id(id).copied();
    if pages == 0 {
        return old.map(Change::Delete).ok_or(SlotError::Absent);
    }

    let new = Slot {
        id,
        base: gpa.gfn(),
        pages,
        hva,
        flags,
        rights: old.map_or(Permissions::RWX, |old| old.rights),
    };
    let change = match old {
        None => Change::Create(new),
        Some(old) => {
            if old.hva != new.hva
                || old.pages != new.pages
                || old.flags.read_only() != new.flags.read_only()
            {
                return Err(SlotError::Immutable);
            }
            if old.base == new.base {
                return Ok(if old.flags == new.flags {
                    Change::Nothing
                } else {
                    Change::Flags { old, new }
                });
            }
            Change::Move { old, new }
        }
    };

    // A slot may move onto frames of its own old place.
    if view.find_range(new.gfns()).any(|other| other.id != id) {
        return Err(SlotError::Overlap);
    }
    // Last, as in KVM: an overlap beyond the limit is still an overlap.
    if new.gfns().end.raw().wrapping_sub(1) > limits.max_gfn.raw() {
        return Err(SlotError::GuestLimit);
    }
    Ok(change)
}

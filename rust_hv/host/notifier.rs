// SPDX-License-Identifier: GPL-2.0

//! MMU notifiers: the host says before it changes a mapping of the VMM's memory.

use super::bindings;
use super::user::UserMm;
use crate::model::arch::addr::{Hva, PAGE_SIZE};
use kernel::container_of;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::types::Opaque;

/// Host-virtual addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvaRange {
    /// First byte.
    pub start: Hva,
    /// One past the last byte.
    pub end: Hva,
}

/// What an address space does when the host changes a mapping.
///
/// Called with host locks held (the page-table lock among them for the young bits): nothing here
/// may allocate or take a sleeping lock.
pub trait MmuEvents: Send + Sync + 'static {
    /// The range is about to change: after the return no guest may reach its pages. The matching
    /// [`MmuEvents::invalidate_end`] follows. May reschedule only when `blockable`.
    fn invalidate_start(&self, range: HvaRange, blockable: bool);
    /// The change is done.
    fn invalidate_end(&self, range: HvaRange);
    /// Whether a guest used the range since the last call with `clear`.
    fn young(&self, range: HvaRange, clear: bool) -> bool;
    /// The address space goes away: as `invalidate_start` of all of it, without an end.
    fn release(&self);
}

/// Keeps `target` informed of changes to one address space, until it is dropped.
///
/// # Invariants
///
/// `raw` is registered with the host.
#[pin_data(PinnedDrop)]
pub struct Notifier<T: MmuEvents> {
    #[pin]
    raw: Opaque<bindings::mmu_notifier>,
    mm: UserMm,
    target: Arc<T>,
}

// SAFETY: Registration is not tied to a thread; `T` is `Send + Sync`.
unsafe impl<T: MmuEvents> Send for Notifier<T> {}
// SAFETY: No method takes `&self` but the callbacks, which reach `T: Sync` only.
unsafe impl<T: MmuEvents> Sync for Notifier<T> {}

impl<T: MmuEvents> Notifier<T> {
    const OPS: &'static bindings::mmu_notifier_ops = &bindings::mmu_notifier_ops {
        release: Some(Self::release),
        clear_flush_young: Some(Self::clear_flush_young),
        clear_young: Some(Self::clear_flush_young),
        test_young: Some(Self::test_young),
        invalidate_range_start: Some(Self::invalidate_range_start),
        invalidate_range_end: Some(Self::invalidate_range_end),
        arch_invalidate_secondary_tlbs: None,
        alloc_notifier: None,
        free_notifier: None,
    };

    /// Registers with the current task's address space.
    pub fn new(mm: UserMm, target: Arc<T>) -> impl PinInit<Self, Error> {
        let raw_mm = mm.as_raw();
        try_pin_init!(Self {
            // These first: callbacks come as soon as `raw` is registered.
            target,
            mm,
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::mmu_notifier| {
                // SAFETY: The slot is pinned memory for the structure; zero is its state before
                // registration. The address space is live: it is the current task's.
                unsafe {
                    core::ptr::write_bytes(slot, 0, 1);
                    (*slot).ops = Self::OPS;
                    kernel::error::to_result(bindings::mmu_notifier_register(slot, raw_mm))
                }
            }),
        })
    }

    /// # Safety
    ///
    /// `raw` is the `raw` field of a live `Self`.
    unsafe fn target<'a>(raw: *mut bindings::mmu_notifier) -> &'a T {
        let raw: *mut Opaque<bindings::mmu_notifier> = raw.cast();
        // SAFETY: By the contract; the object is not freed before unregistering has waited for
        // the callbacks that run.
        unsafe { &(*container_of!(raw, Self, raw)).target }
    }

    /// # Safety
    ///
    /// `raw` is the `raw` field of a live `Self`.
    unsafe extern "C" fn release(
        raw: *mut bindings::mmu_notifier,
        _mm: *mut kernel::bindings::mm_struct,
    ) {
        // SAFETY: The host passes what was registered.
        unsafe { Self::target(raw) }.release();
    }

    /// # Safety
    ///
    /// `raw` is the `raw` field of a live `Self`.
    unsafe extern "C" fn clear_flush_young(
        raw: *mut bindings::mmu_notifier,
        _mm: *mut kernel::bindings::mm_struct,
        start: usize,
        end: usize,
    ) -> bool {
        // SAFETY: The host passes what was registered.
        unsafe { Self::target(raw) }.young(range(start, end), true)
    }

    /// # Safety
    ///
    /// `raw` is the `raw` field of a live `Self`.
    unsafe extern "C" fn test_young(
        raw: *mut bindings::mmu_notifier,
        _mm: *mut kernel::bindings::mm_struct,
        address: usize,
    ) -> bool {
        let page = range(address, address.saturating_add(PAGE_SIZE as usize));
        // SAFETY: The host passes what was registered.
        unsafe { Self::target(raw) }.young(page, false)
    }

    /// # Safety
    ///
    /// `raw` is the `raw` field of a live `Self`, and `change` is valid.
    unsafe extern "C" fn invalidate_range_start(
        raw: *mut bindings::mmu_notifier,
        change: *const bindings::mmu_notifier_range,
    ) -> i32 {
        // SAFETY: The host passes what was registered, and a live range.
        let (target, change) = unsafe { (Self::target(raw), &*change) };
        let blockable = change.flags & bindings::MMU_NOTIFIER_RANGE_BLOCKABLE != 0;
        target.invalidate_start(range(change.start, change.end), blockable);
        0
    }

    /// # Safety
    ///
    /// `raw` is the `raw` field of a live `Self`, and `change` is valid.
    unsafe extern "C" fn invalidate_range_end(
        raw: *mut bindings::mmu_notifier,
        change: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: The host passes what was registered, and a live range.
        let (target, change) = unsafe { (Self::target(raw), &*change) };
        target.invalidate_end(range(change.start, change.end));
    }
}

fn range(start: usize, end: usize) -> HvaRange {
    HvaRange {
        start: Hva::new(start as u64),
        end: Hva::new(end as u64),
    }
}

#[pinned_drop]
impl<T: MmuEvents> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the invariant, with this address space; waits for callbacks.
        unsafe { bindings::mmu_notifier_unregister(self.raw.get(), self.mm.as_raw()) };
    }
}

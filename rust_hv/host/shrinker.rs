// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: the host says when it is short of memory.

use super::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// What can give memory back.
///
/// Called in the middle of somebody's allocation: nothing here may allocate, or take a lock under
/// which anybody allocates.
pub trait Shrink: Sync + 'static {
    /// How many things could be freed on a node.
    fn count(&self, node: i32) -> usize;

    /// Frees up to `max` of them, and tells how many.
    fn free(&self, node: i32, max: usize) -> usize;
}

/// Lets the host shrink `target` until it is dropped.
///
/// # Invariants
///
/// `raw` is registered, with `target` as its private data.
pub struct Shrinker<T: Shrink> {
    raw: NonNull<bindings::shrinker>,
    _target: &'static T,
}

// SAFETY: Registration is not tied to a thread.
unsafe impl<T: Shrink> Send for Shrinker<T> {}
// SAFETY: No method takes `&self`.
unsafe impl<T: Shrink> Sync for Shrinker<T> {}

impl<T: Shrink> Shrinker<T> {
    /// Registers.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(name: &CStr, target: &'static T) -> Result<Self> {
        let private = core::ptr::from_ref(target).cast_mut().cast();
        // SAFETY: The name ends with a zero and is copied. The callbacks want a `T` in the private
        // data; they come until `drop` has waited for them.
        let raw = unsafe {
            bindings::rhv_shrinker(
                name.as_char_ptr(),
                Some(Self::count),
                Some(Self::scan),
                private,
            )
        };
        Ok(Self {
            // INVARIANT: Just registered.
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _target: target,
        })
    }

    /// # Safety
    ///
    /// `raw` is one that `new` has registered.
    unsafe fn target(raw: *mut bindings::shrinker) -> &'static T {
        // SAFETY: By the invariant.
        unsafe { &*(*raw).private_data.cast::<T>() }
    }

    /// # Safety
    ///
    /// As `target`; `control` is for this call.
    unsafe extern "C" fn count(
        raw: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> usize {
        // SAFETY: By the contract.
        unsafe { Self::target(raw).count((*control).nid) }
    }

    /// # Safety
    ///
    /// As `count`.
    unsafe extern "C" fn scan(
        raw: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> usize {
        // SAFETY: By the contract.
        unsafe { Self::target(raw).free((*control).nid, (*control).nr_to_scan) }
    }
}

impl<T: Shrink> Drop for Shrinker<T> {
    fn drop(&mut self) {
        // SAFETY: Registered; waits for callbacks under way.
        unsafe { bindings::shrinker_free(self.raw.as_ptr()) };
    }
}

// SPDX-License-Identifier: GPL-2.0

//! A value that lives from the module's initialisation to its unloading.

use core::ptr;
use kernel::prelude::*;
use kernel::sync::atomic::{
    ordering::{Acquire, Release},
    Atomic,
};

/// A place for one such value.
pub struct Global<T> {
    /// Address of the value, or 0.
    at: Atomic<usize>,
    _value: core::marker::PhantomData<fn() -> T>,
}

impl<T: Send + Sync + 'static> Global<T> {
    /// No value yet.
    pub const fn new() -> Self {
        Self {
            at: Atomic::new(0),
            _value: core::marker::PhantomData,
        }
    }

    /// Sets the value until the guard is dropped.
    ///
    /// The guard belongs into the module's own structure, before everything that uses the value:
    /// the kernel drops it when the module is unloaded, and then no code of ours runs any more.
    pub fn set(&'static self, value: KBox<T>) -> GlobalGuard<T> {
        let raw = KBox::into_raw(value);
        self.at.store(raw as usize, Release);
        GlobalGuard { place: self, raw }
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// `ENODEV` before it is set.
    #[inline]
    pub fn get(&'static self) -> Result<&'static T> {
        let raw: *const T = ptr::with_exposed_provenance(self.at.load(Acquire));
        // SAFETY: Null, or a value that lives until the module is unloaded, and with it the code
        // that could still use the reference.
        unsafe { raw.as_ref() }.ok_or(ENODEV)
    }
}

/// Keeps a [`Global`] set.
pub struct GlobalGuard<T: Send + Sync + 'static> {
    place: &'static Global<T>,
    raw: *mut T,
}

// SAFETY: The guard owns a `T: Send`.
unsafe impl<T: Send + Sync> Send for GlobalGuard<T> {}
// SAFETY: No method takes `&self`.
unsafe impl<T: Send + Sync> Sync for GlobalGuard<T> {}

impl<T: Send + Sync> Drop for GlobalGuard<T> {
    fn drop(&mut self) {
        self.place.at.store(0, Release);
        // SAFETY: From `KBox::into_raw` in `set`; the module is being unloaded, so nobody has a
        // reference any more.
        drop(unsafe { KBox::from_raw(self.raw) });
    }
}

#[kunit_tests(rusthv_global)]
mod tests {
    use super::*;
    use kernel::sync::atomic::ordering::Relaxed;

    static PLACE: Global<Probe> = Global::new();
    static DROPS: Atomic<u32> = Atomic::new(0);

    struct Probe(u32);

    impl Drop for Probe {
        fn drop(&mut self) {
            DROPS.add(1, Relaxed);
        }
    }

    /// There before its guard is dropped, and neither before nor after; more than once.
    #[test]
    fn lives_as_long_as_its_guard() -> Result {
        for turn in 1..4 {
            let drops = DROPS.load(Relaxed);
            assert_eq!(PLACE.get().err(), Some(ENODEV));
            let guard = PLACE.set(KBox::new(Probe(turn), GFP_KERNEL)?);
            assert_eq!(PLACE.get()?.0, turn);
            assert_eq!(DROPS.load(Relaxed), drops);
            drop(guard);
            assert_eq!(PLACE.get().err(), Some(ENODEV));
            assert_eq!(DROPS.load(Relaxed), drops + 1);
        }
        Ok(())
    }
}

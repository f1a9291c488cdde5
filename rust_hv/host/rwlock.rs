// SPDX-License-Identifier: GPL-2.0

//! A spinning lock that many may hold to look, or one to change: the kernel's `rwlock_t`, which the
//! kernel crate lacks.
//!
//! Preemption is off while it is held. Readers that wait for a writer are served in turn with other
//! writers; so nobody who reads may read again.

use super::bindings;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use kernel::prelude::*;
use kernel::sync::LockClassKey;
use kernel::types::{NotThreadSafe, Opaque};

/// A value that many may look at, or one may change.
#[pin_data]
pub struct RwLock<T> {
    #[pin]
    raw: Opaque<kernel::bindings::rwlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: Moving the lock moves the data.
unsafe impl<T: Send> Send for RwLock<T> {}
// SAFETY: The data is reached through the lock only: by several threads at once as `&T`, which
// `Sync` allows, or by one at a time as `&mut T`, which `Send` allows.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    /// A lock around `data`, of a class for lockdep.
    pub fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The slot is pinned memory for a lock; name and key are static.
            raw <- Opaque::ffi_init(|slot| unsafe {
                bindings::rhv_rwlock_init(slot, name.as_char_ptr(), key.as_ptr())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Waits until nobody changes the value.
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: The lock was initialised in `new`.
        unsafe { bindings::rhv_read_lock(self.raw.get()) };
        ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Waits until nobody else looks at the value or changes it.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: The lock was initialised in `new`.
        unsafe { bindings::rhv_write_lock(self.raw.get()) };
        WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// The lock, held together with others who look.
#[must_use = "the lock is given up at once"]
pub struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The lock is held, so nobody has the data as `&mut T`.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: This thread holds the lock, to look.
        unsafe { bindings::rhv_read_unlock(self.lock.raw.get()) };
    }
}

/// The lock, held alone.
#[must_use = "the lock is given up at once"]
pub struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The lock is held.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held by this thread alone, and `self` is borrowed mutably.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: This thread holds the lock, alone.
        unsafe { bindings::rhv_write_unlock(self.lock.raw.get()) };
    }
}

#[kunit_tests(rusthv_rwlock)]
mod tests {
    use super::*;
    use crate::host::task::sleep_a_tick;
    use kernel::sync::atomic::{
        ordering::{Acquire, Release},
        Atomic,
    };
    use kernel::sync::Arc;
    use kernel::workqueue;

    #[pin_data]
    struct Shared {
        #[pin]
        count: RwLock<u32>,
        done: Atomic<u32>,
    }

    fn shared() -> Result<Arc<Shared>> {
        Arc::pin_init(
            pin_init!(Shared {
                count <- RwLock::new(0, c"rusthv kunit", kernel::static_lock_class!()),
                done: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    #[test]
    fn keeps_what_was_written() -> Result {
        let shared = shared()?;
        for turn in 0..3 {
            *shared.count.write() += 1;
            assert_eq!(*shared.count.read(), turn + 1);
        }
        Ok(())
    }

    /// Changes by several threads are all there.
    #[test]
    fn one_changes_at_a_time() -> Result {
        const THREADS: u32 = 4;
        const TURNS: u32 = 2000;
        let shared = shared()?;
        for _ in 0..THREADS {
            let other = shared.clone();
            workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
                for _ in 0..TURNS {
                    *other.count.write() += 1;
                }
                other.done.fetch_add(1, Release);
            })?;
        }
        for _ in 0..5000 {
            if shared.done.load(Acquire) == THREADS {
                break;
            }
            sleep_a_tick();
        }
        assert_eq!(*shared.count.read(), THREADS * TURNS);
        Ok(())
    }
}

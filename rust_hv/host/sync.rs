// SPDX-License-Identifier: GPL-2.0

//! A mutex that a killed task does not wait for.

use super::bindings;
use core::cell::UnsafeCell;
use core::convert::Infallible;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use kernel::prelude::*;
use kernel::sync::LockClassKey;
use kernel::types::{NotThreadSafe, Opaque};
use pin_init::cast_init;

/// A mutex for state that is held as long as a guest runs.
///
/// The kernel crate's `Mutex` waits without end; a second thread that calls an ioctl of a running
/// vCPU must be killable.
#[pin_data(PinnedDrop)]
pub struct KillableMutex<T> {
    #[pin]
    raw: Opaque<kernel::bindings::mutex>,
    /// Dropped by `drop`, which then may have to wipe it.
    data: UnsafeCell<ManuallyDrop<T>>,
    wipe: bool,
}

// SAFETY: Moving the mutex moves the data.
unsafe impl<T: Send> Send for KillableMutex<T> {}
// SAFETY: The data is reached through the lock only, by one thread at a time.
unsafe impl<T: Send> Sync for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// A mutex around `data`, of which nothing stays in memory if it is to be wiped. It is made where it
    /// is to be: what is as large as a vCPU's state has no place on the stack.
    pub fn new<E: From<Infallible>>(
        data: impl Init<T, E>,
        wipe: bool,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self, E> {
        try_pin_init!(Self {
            // SAFETY: The slot is pinned memory for a mutex; name and key are static.
            raw <- Opaque::ffi_init(|slot| unsafe {
                kernel::bindings::__mutex_init(slot, name.as_char_ptr(), key.as_ptr())
            }),
            // SAFETY: Both wrappers have the layout of what is in them, and any value of that will do.
            data <- unsafe { cast_init(data) },
            wipe,
        }? E)
    }

    /// Waits for the lock.
    ///
    /// # Errors
    ///
    /// `EINTR` when the task was killed meanwhile.
    pub fn lock(&self) -> Result<KillableGuard<'_, T>> {
        // SAFETY: The mutex was initialised in `new`.
        kernel::error::to_result(unsafe { bindings::rhv_mutex_lock_killable(self.raw.get()) })?;
        Ok(KillableGuard {
            mutex: self,
            _not_send: NotThreadSafe,
        })
    }
}

#[pinned_drop]
impl<T> PinnedDrop for KillableMutex<T> {
    fn drop(self: Pin<&mut Self>) {
        let data = self.data.get();
        // SAFETY: Dropped here alone, and nobody has the lock any more.
        unsafe { ManuallyDrop::drop(&mut *data) };
        if self.wipe {
            // SAFETY: The memory is ours until `self` is gone, and holds no value any more.
            unsafe { data.write_bytes(0, 1) };
            // Nobody reads it, but it is not to be left out.
            core::hint::black_box(data);
        }
    }
}

/// The lock, held.
pub struct KillableGuard<'a, T> {
    mutex: &'a KillableMutex<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for KillableGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The lock is held.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T> DerefMut for KillableGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held, and `self` is borrowed mutably.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T> Drop for KillableGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: This thread holds the lock.
        unsafe { kernel::bindings::mutex_unlock(self.mutex.raw.get()) };
    }
}

#[kunit_tests(rusthv_sync)]
mod tests {
    use super::*;
    use crate::host::task::sleep_a_tick;
    use kernel::sync::atomic::{
        ordering::{Acquire, Release},
        Atomic,
    };
    use kernel::sync::Arc;
    use kernel::workqueue;

    /// Ticks after which what should have happened has not.
    const PATIENCE: usize = 5000;

    #[pin_data]
    struct Shared {
        #[pin]
        count: KillableMutex<u32>,
        /// 1: the other thread is about to lock; 2: it has.
        stage: Atomic<u32>,
    }

    fn shared() -> Result<Arc<Shared>> {
        Arc::pin_init(
            pin_init!(Shared {
                count <- KillableMutex::new(0, true, c"rusthv kunit", kernel::static_lock_class!()),
                stage: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn wait_for(shared: &Shared, stage: u32) -> Result {
        for _ in 0..PATIENCE {
            if shared.stage.load(Acquire) >= stage {
                return Ok(());
            }
            sleep_a_tick();
        }
        Err(ETIMEDOUT)
    }

    #[test]
    fn keeps_what_was_written() -> Result {
        let shared = shared()?;
        for turn in 0..3 {
            let mut count = shared.count.lock()?;
            let found = *count;
            *count += 1;
            drop(count);
            assert_eq!(found, turn);
        }
        Ok(())
    }

    #[test]
    fn others_wait() -> Result {
        let shared = shared()?;
        let held = shared.count.lock()?;
        let other = shared.clone();
        workqueue::system_long().try_spawn(GFP_KERNEL, move || {
            other.stage.store(1, Release);
            if let Ok(mut count) = other.count.lock() {
                *count += 1;
                other.stage.store(2, Release);
            }
        })?;
        let started = wait_for(&shared, 1);
        for _ in 0..5 {
            sleep_a_tick();
        }
        let (stage, seen) = (shared.stage.load(Acquire), *held);
        drop(held);
        started?;
        wait_for(&shared, 2)?;
        let after = *shared.count.lock()?;
        assert_eq!((stage, seen), (1, 0));
        assert_eq!(after, 1);
        Ok(())
    }
}

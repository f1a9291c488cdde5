// SPDX-License-Identifier: GPL-2.0

//! What KUnit tests need of the host and nobody else does.

use super::bindings;
use super::cpu::{call_on, current_cpu, max_cpus, Cpu, IrqsOff};
use super::frame::Frame;
use crate::model::arch::addr::{Hpa, Hva, PAGE_SIZE};
use kernel::bindings as host;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::types::NotThreadSafe;

/// The thread stays on its CPU, with interrupts on, until the value is dropped.
pub struct Pinned(NotThreadSafe);

impl Pinned {
    /// From here on.
    pub fn new() -> Self {
        // SAFETY: Undone in `drop`, on the same thread.
        unsafe { bindings::rhv_preempt_disable() };
        Self(NotThreadSafe)
    }

    /// The CPU.
    pub fn cpu(&self) -> Cpu {
        current_cpu()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: `new` disabled it, on this thread.
        unsafe { bindings::rhv_preempt_enable() };
    }
}

/// Marks the running test as skipped; it should return then.
pub fn skip(why: &'static CStr) {
    // SAFETY: A string that ends with a zero.
    unsafe { bindings::rhv_kunit_skip(why.as_char_ptr()) };
}

/// What a [`super::global::Global`] holds; a test on a machine where it was never set ends here, as
/// skipped.
macro_rules! get_or_skip {
    ($place:expr, $why:literal) => {
        match $place.get() {
            Ok(value) => value,
            Err(_) => {
                $crate::host::kunit::skip($why);
                return Ok(());
            }
        }
    };
}
pub(crate) use get_or_skip;

/// Calls `f` on each CPU that is online, with interrupts off. True when it was true on all of
/// them.
///
/// # Errors
///
/// `ENODEV` when there was none.
pub fn on_every_cpu(f: impl Fn(&IrqsOff) -> bool + Sync) -> Result<bool> {
    let (mut cpus, mut all) = (0, true);
    for cpu in 0..max_cpus() as Cpu {
        let found = Atomic::new(false);
        if call_on(cpu, |irqs| found.store(f(irqs), Relaxed)).is_ok() {
            cpus += 1;
            all &= found.load(Relaxed);
        }
    }
    match cpus {
        0 => Err(ENODEV),
        _ => Ok(all),
    }
}

/// Anonymous user memory of the test's thread, which gets an address space for it and keeps that
/// until the test ends.
pub struct UserMemory {
    start: Hva,
    pages: u64,
}

impl UserMemory {
    /// So many pages, readable and writable, none of them present.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `ESRCH` outside a test.
    pub fn new(pages: u64) -> Result<Self> {
        let flags = bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS;
        let protection = bindings::PROT_READ | bindings::PROT_WRITE;
        // SAFETY: No preconditions.
        let test = unsafe { host::kunit_get_current_test() };
        if test.is_null() {
            return Err(ESRCH);
        }
        // SAFETY: `test` is the current one.
        let start = unsafe {
            host::kunit_vm_mmap(
                test,
                core::ptr::null_mut(),
                0,
                (pages * PAGE_SIZE) as usize,
                protection as usize,
                flags as usize,
                0,
            )
        };
        // An address, or an error number in its place.
        if start == 0 || start as u64 % PAGE_SIZE != 0 {
            return Err(ENOMEM);
        }
        Ok(Self {
            start: Hva::new(start as u64),
            pages,
        })
    }

    /// Its first byte.
    pub fn start(&self) -> Hva {
        self.start
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    /// Unmaps some pages, as `munmap` does.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINVAL`.
    pub fn unmap(&self, first: u64, pages: u64) -> Result {
        let start = self.start.raw() + first * PAGE_SIZE;
        // SAFETY: User memory of the test's own address space, which nobody in the kernel has a
        // pointer to.
        kernel::error::to_result(unsafe {
            host::vm_munmap(start as usize, (pages * PAGE_SIZE) as usize)
        })
    }
}

/// The words of a physical page, whoever has it now.
pub fn peek(page: Hpa) -> impl Iterator<Item = u64> {
    let start = Frame::direct_map(page).addr();
    // SAFETY: The direct map has every page that was a frame of ours.
    (0..PAGE_SIZE as usize / 8).map(move |index| unsafe { bindings::rhv_peek(start + index * 8) })
}

/// Fills a frame, which others may write at the same time, with a word.
pub fn fill(frame: &Frame, word: u64) {
    for index in 0..PAGE_SIZE as usize / 8 {
        // SAFETY: Inside the frame; volatile, as the frame may be shared.
        unsafe { frame.as_ptr().cast::<u64>().add(index).write_volatile(word) };
    }
}

/// How often a word is in the memory where a value of the heap's was, of this size.
pub fn count_in_heap(start: *const u8, size: usize, word: u64) -> usize {
    let words = (0..size / 8).map(|index| start.addr() + index * 8);
    // SAFETY: The direct map has all of the heap.
    words
        .filter(|&at| unsafe { bindings::rhv_peek(at) } == word)
        .count()
}

/// Ends a test as skipped where the host itself wipes or hides what is freed: then nothing can be
/// found in it.
macro_rules! free_pages_keep_or_skip {
    () => {
        // SAFETY: No preconditions.
        if !unsafe { $crate::host::bindings::rhv_free_pages_keep() } {
            $crate::host::kunit::skip(c"the host wipes or hides what is freed");
            return Ok(());
        }
    };
}
pub(crate) use free_pages_keep_or_skip;

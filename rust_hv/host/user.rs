// SPDX-License-Identifier: GPL-2.0

//! The VMM's memory: ioctl arguments, and the pages behind guest memory.

use super::bindings;
use crate::model::arch::addr::{Hpa, Hva, PAGE_SIZE};
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

/// A structure of the UAPI: plain integers without padding, so that any bytes are a value and
/// nothing of the kernel's leaks through a gap.
pub trait UserData: FromBytes + AsBytes {}

macro_rules! user_data {
    ($($name:ident),* $(,)?) => {$(
        // SAFETY: Integers and arrays of them only: every bit pattern is a value.
        unsafe impl FromBytes for bindings::$name {}
        // SAFETY: The UAPI spells out its padding as fields; there is no other.
        unsafe impl AsBytes for bindings::$name {}
        impl UserData for bindings::$name {}
    )*};
}

user_data!(
    kvm_cpuid_entry2,
    kvm_dirty_log,
    kvm_interrupt,
    kvm_regs,
    kvm_sregs,
    kvm_translation,
    kvm_userspace_memory_region,
    rusthv_host_stats,
    rusthv_info,
    rusthv_node_stats,
    rusthv_vcpu_stats,
    rusthv_vm_stats,
);

impl UserData for u32 {}
impl UserData for u64 {}

/// Copies one structure in, once.
///
/// # Errors
///
/// `EFAULT`.
pub fn read<T: UserData>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), core::mem::size_of::<T>())
        .reader()
        .read()
}

/// Slot number and address of the bitmap in a `struct kvm_dirty_log`.
///
/// # Errors
///
/// `EFAULT`.
pub fn read_dirty_log(arg: usize) -> Result<(u32, Hva)> {
    let log: bindings::kvm_dirty_log = read(arg)?;
    // SAFETY: An integer and a pointer, both of 64 bits, and any bits are a value.
    let address = unsafe { log.__bindgen_anon_1.padding2 };
    Ok((log.slot, Hva::new(address)))
}

/// Copies one structure out.
///
/// # Errors
///
/// `EFAULT`.
pub fn write<T: UserData>(arg: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), core::mem::size_of::<T>())
        .writer()
        .write(value)
}

/// The address space of the task that created a VM; kept allocated, not kept alive.
pub struct UserMm {
    mm: NonNull<kernel::bindings::mm_struct>,
}

// SAFETY: The reference count of an address space is atomic.
unsafe impl Send for UserMm {}
// SAFETY: As above; the type gives its address only.
unsafe impl Sync for UserMm {}

impl UserMm {
    /// That of the current task.
    ///
    /// # Errors
    ///
    /// `EIO` for a kernel thread.
    pub fn current() -> Result<Self> {
        // SAFETY: No preconditions.
        let mm = NonNull::new(unsafe { bindings::rhv_current_mm() }).ok_or(EIO)?;
        // SAFETY: The current task's address space is live.
        unsafe { bindings::rhv_mmgrab(mm.as_ptr()) };
        Ok(Self { mm })
    }

    /// True when the current task runs in it.
    #[inline]
    pub fn is_current(&self) -> bool {
        // SAFETY: No preconditions.
        self.mm.as_ptr() == unsafe { bindings::rhv_current_mm() }
    }

    pub(super) fn as_raw(&self) -> *mut kernel::bindings::mm_struct {
        self.mm.as_ptr()
    }

    /// log2 of the size of the host's mapping at `hva`: 12, 21 or 30.
    ///
    /// A hint, unless no invalidation of the address came between the call and its use.
    pub fn mapping_shift(&self, hva: Hva) -> u32 {
        // SAFETY: The tables of the address space are not freed while interrupts are off, which
        // the callee sees to; `is_current` holds wherever guests run.
        unsafe { bindings::rhv_host_mapping_shift(self.mm.as_ptr(), hva.raw() as usize) }
    }
}

impl Clone for UserMm {
    fn clone(&self) -> Self {
        // SAFETY: `self` holds a reference.
        unsafe { bindings::rhv_mmgrab(self.mm.as_ptr()) };
        Self { mm: self.mm }
    }
}

impl Drop for UserMm {
    fn drop(&mut self) {
        // SAFETY: `self` holds a reference, which ends here.
        unsafe { bindings::rhv_mmdrop(self.mm.as_ptr()) };
    }
}

/// First address above user space.
pub fn max_user_address() -> Hva {
    // SAFETY: No preconditions.
    Hva::new(unsafe { bindings::rhv_max_user_address() })
}

/// Pages that [`UserPages`] holds at most.
pub const BATCH: usize = 16;

/// A run of the current task's pages, held by reference while they are being mapped.
///
/// # Invariants
///
/// The first `count` of `pages` are pages that we hold one reference each of.
pub struct UserPages {
    pages: [*mut kernel::bindings::page; BATCH],
    count: usize,
    writable: bool,
}

impl UserPages {
    /// The page at `hva`, faulted in when it is absent. With `write`, a page that user space may
    /// write and has now dirtied.
    ///
    /// # Errors
    ///
    /// `EFAULT` where nothing is mapped or the access is not allowed, `EHWPOISON`, `ENOMEM`,
    /// `EINTR` when a signal came meanwhile.
    pub fn get(hva: Hva, write: bool) -> Result<Self> {
        let mut held = Self {
            pages: [core::ptr::null_mut(); BATCH],
            count: 0,
            writable: write,
        };
        // What holds the page back (userfaultfd, a file system) may never give it: a signal ends that.
        let access = if write { bindings::FOLL_WRITE } else { 0 };
        let flags = access | bindings::FOLL_INTERRUPTIBLE;
        let address = hva.page_base().raw() as usize;
        // SAFETY: The array has room for one page; we may sleep here.
        let got = unsafe {
            bindings::get_user_pages_unlocked(address, 1, held.pages.as_mut_ptr(), flags)
        };
        match got {
            1 => {
                // INVARIANT: The host took one reference on the page.
                held.count = 1;
                Ok(held)
            }
            0 => Err(EFAULT),
            error => Err(Error::from_errno(error as i32)),
        }
    }

    /// At most `max` pages from `hva` on that are present and writable, without faulting anything
    /// in; `None` when the first is not.
    pub fn get_present_writable(hva: Hva, max: usize) -> Option<Self> {
        let mut held = Self {
            pages: [core::ptr::null_mut(); BATCH],
            count: 0,
            writable: true,
        };
        let address = hva.page_base().raw() as usize;
        // SAFETY: The array has room for `BATCH` pages.
        let fast = unsafe {
            bindings::get_user_pages_fast_only(
                address,
                max.clamp(1, BATCH) as i32,
                bindings::FOLL_WRITE,
                held.pages.as_mut_ptr(),
            )
        };
        // INVARIANT: The host took one reference on each of the `fast` pages.
        held.count = usize::try_from(fast).unwrap_or(0);
        (held.count > 0).then_some(held)
    }

    /// Physical addresses of the pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = Hpa> + '_ {
        self.pages.iter().take(self.count).map(|&page| {
            // SAFETY: A page that we hold, by the invariant.
            Hpa::new(unsafe { bindings::rhv_page_to_phys(page) })
        })
    }

    /// Number of pages, at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the pages may be written through the mapping that is made of them.
    pub fn writable(&self) -> bool {
        self.writable
    }
}

impl Drop for UserPages {
    fn drop(&mut self) {
        for &page in self.pages.iter().take(self.count) {
            // SAFETY: We hold a reference, by the invariant, and give it up. A page that is mapped
            // writable counts as written from now on.
            unsafe { bindings::rhv_put_user_page(page, self.writable) };
        }
    }
}

/// Copies out of the VMM's memory, for guest memory accesses by the hypervisor.
///
/// # Errors
///
/// `EFAULT`; some bytes may have been copied.
pub fn copy_from(hva: Hva, buf: &mut [u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(hva.raw() as usize), buf.len())
        .reader()
        .read_slice(buf)
}

/// Reads a naturally aligned word of the VMM's memory in one piece.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` for a size other than 1, 2, 4 and 8.
pub fn read_word(hva: Hva, size: u8) -> Result<u64> {
    let mut value = 0;
    // SAFETY: The callee checks that the address is in user space and catches faults.
    kernel::error::to_result(unsafe {
        bindings::rhv_get_user(hva.raw(), u32::from(size), &mut value)
    })?;
    Ok(value)
}

/// Writes a naturally aligned word of the VMM's memory in one piece.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` for a size other than 1, 2, 4 and 8.
pub fn write_word(hva: Hva, size: u8, value: u64) -> Result {
    // SAFETY: As in `read_word`.
    kernel::error::to_result(unsafe { bindings::rhv_put_user(hva.raw(), size.into(), value) })
}

/// Copies into the VMM's memory.
///
/// # Errors
///
/// `EFAULT`; some bytes may have been copied.
pub fn copy_to(hva: Hva, buf: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(hva.raw() as usize), buf.len())
        .writer()
        .write_slice(buf)
}

/// Runs `f`, in which accesses to user memory that is not there fail at once: they may be made
/// where nothing may sleep.
#[inline]
pub fn without_faults<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: Counts; undone below.
    unsafe { bindings::rhv_pagefault_disable() };
    let result = f();
    // SAFETY: As above.
    unsafe { bindings::rhv_pagefault_enable() };
    result
}

/// Bytes from an address to the end of its page.
pub fn to_page_end(offset: u64) -> usize {
    (PAGE_SIZE - offset % PAGE_SIZE) as usize
}

/// Replaces a naturally aligned word of the VMM's memory if it still holds `old`, atomically
/// against other CPUs; `size` is 1, 2, 4 or 8 bytes. Tells what was there.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` for another size or a misaligned address.
pub fn compare_exchange(hva: Hva, size: u8, old: u64, new: u64) -> Result<u64> {
    if !matches!(size, 1 | 2 | 4 | 8) || hva.raw() % u64::from(size) != 0 {
        return Err(EINVAL);
    }
    let mut found = old;
    // SAFETY: The callee checks that the address is in user space and catches faults.
    kernel::error::to_result(unsafe {
        bindings::rhv_cmpxchg_user(hva.raw(), u32::from(size), &mut found, new)
    })?;
    Ok(found)
}

/// Copies `count` structures in, once.
///
/// # Errors
///
/// `EFAULT`, `ENOMEM`.
pub fn read_slice<T: UserData>(arg: usize, count: usize) -> Result<KVec<T>> {
    let bytes = count.checked_mul(core::mem::size_of::<T>()).ok_or(EFAULT)?;
    let mut reader = UserSlice::new(UserPtr::from_addr(arg), bytes).reader();
    let mut values = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for _ in 0..count {
        values.push(reader.read()?, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(values)
}

/// Copies structures out.
///
/// # Errors
///
/// `EFAULT`; some may have been copied.
pub fn write_slice<T: UserData>(arg: usize, values: &[T]) -> Result {
    let bytes = core::mem::size_of_val(values);
    let mut writer = UserSlice::new(UserPtr::from_addr(arg), bytes).writer();
    values.iter().try_for_each(|value| writer.write(value))
}

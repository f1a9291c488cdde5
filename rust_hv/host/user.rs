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
    kvm_clear_dirty_log,
    kvm_cpuid_entry2,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_interrupt,
    kvm_regs,
    kvm_sregs,
    kvm_translation,
    kvm_userspace_memory_region,
    rusthv_frame,
    rusthv_gpa,
    rusthv_host_stats,
    rusthv_info,
    rusthv_intercepts,
    rusthv_measurement,
    rusthv_node_stats,
    rusthv_numa_policy,
    rusthv_paging_stats,
    rusthv_rights,
    rusthv_unmap,
    rusthv_vcpu_stats,
    rusthv_vm_stats,
    rusthv_walk,
    rusthv_wipe,
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

/// The address in a union of 64 bits. A 32-bit program's pointer is its lower half, and what is above
/// that is whatever was there, as with KVM (`kvm_vm_compat_ioctl()`).
fn address_in(union: u64, compat: bool) -> Hva {
    Hva::new(if compat {
        union & u64::from(u32::MAX)
    } else {
        union
    })
}

/// The same for the program whose system call this is.
fn caller_address(union: u64) -> Hva {
    // SAFETY: No preconditions.
    address_in(union, unsafe { bindings::rhv_in_compat_syscall() })
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
    Ok((log.slot, caller_address(address)))
}

/// What `KVM_CLEAR_DIRTY_LOG` is asked for.
#[derive(Clone, Copy)]
pub struct ClearLog {
    /// Number of the slot.
    pub slot: u32,
    /// Page of the slot that bit 0 stands for.
    pub first: u64,
    /// Bits.
    pub pages: u32,
    /// Where the bits are.
    pub bitmap: Hva,
}

/// A `struct kvm_clear_dirty_log`.
///
/// # Errors
///
/// `EFAULT`.
pub fn read_clear_log(arg: usize) -> Result<ClearLog> {
    let log: bindings::kvm_clear_dirty_log = read(arg)?;
    // SAFETY: An integer and a pointer, both of 64 bits, and any bits are a value.
    let address = unsafe { log.__bindgen_anon_1.padding2 };
    Ok(ClearLog {
        slot: log.slot,
        first: log.first_page,
        pages: log.num_pages,
        bitmap: caller_address(address),
    })
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

    /// What tells it from all others that exist.
    pub fn id(&self) -> usize {
        self.mm.as_ptr().addr()
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

/// Pages that [`UserPages`] has at most.
pub const BATCH: usize = 64;
/// As many of them that are held by reference.
const HELD: usize = 16;
/// Large pages that [`UserPages`] has at most.
pub const LARGE_BATCH: usize = bindings::RHV_LARGE_PAGES as usize;

/// What a look-up has found, in a [`PageRun`].
#[derive(Clone, Copy)]
struct Found {
    count: usize,
    writable: bool,
    /// There is one reference to give up on each.
    held: bool,
    shift: Option<u32>,
    /// Large pages.
    large: usize,
}

/// Room for the addresses of a run of pages, and of large pages.
pub struct PageRun([u64; BATCH], [u64; LARGE_BATCH]);

impl PageRun {
    /// Empty.
    pub const fn new() -> Self {
        Self([0; BATCH], [0; LARGE_BATCH])
    }

    /// Takes over the references on pages.
    fn hold(&mut self, pages: &[*mut kernel::bindings::page], writable: bool) -> Found {
        for (place, &page) in self.0.iter_mut().zip(pages) {
            // SAFETY: A live page.
            *place = unsafe { bindings::rhv_page_to_phys(page) };
        }
        Found {
            count: pages.len().min(BATCH),
            writable,
            held: true,
            shift: None,
            large: 0,
        }
    }

    /// At most `max` pages from `hva` on that are present, anonymous, writable and dirty; where the
    /// first is not, how many entries of the host's table are empty from there on.
    fn in_tables(&mut self, mm: &UserMm, hva: Hva, reach: Reach) -> Result<Found, usize> {
        let address = hva.page_base().raw() as usize;
        let max = reach.present.clamp(1, BATCH) as u32;
        let mut run = bindings::rhv_host_run {
            large: reach.large as u32,
            ..Default::default()
        };
        let to = self.0.as_mut_ptr();
        // SAFETY: The address space is the current task's, and there is room for `BATCH` pages.
        let count = unsafe { bindings::rhv_host_pages(mm.as_raw(), address, to, max, &mut run) };
        if count == 0 {
            return Err(run.absent as usize);
        }
        if run.large > 0 {
            self.1 = run.first;
        }
        Ok(Found {
            count: count as usize,
            writable: true,
            held: false,
            shift: Some(run.shift),
            large: run.large as usize,
        })
    }

    /// At most `max` pages from `hva` on that are present and writable, of whatever kind.
    fn by_reference(&mut self, hva: Hva, max: usize) -> Option<Found> {
        let mut pages = [core::ptr::null_mut(); HELD];
        // SAFETY: There is room for `HELD` pages.
        let got = unsafe {
            bindings::get_user_pages_fast_only(
                hva.page_base().raw() as usize,
                max.clamp(1, HELD) as i32,
                bindings::FOLL_WRITE,
                pages.as_mut_ptr(),
            )
        };
        let got = pages.get(..usize::try_from(got).unwrap_or(0));
        got.filter(|pages| !pages.is_empty())
            .map(|pages| self.hold(pages, true))
    }

    /// Pages from `hva` on that may be written. Nothing is faulted in but anonymous memory, where
    /// the guest wants to write.
    fn writable(&mut self, mm: &UserMm, hva: Hva, wanted: Wanted, reach: Reach) -> Option<Found> {
        let absent = match self.in_tables(mm, hva, reach) {
            Ok(found) => return Some(found),
            Err(absent) => absent,
        };
        if absent == 0 {
            let found = self.by_reference(hva, reach.present);
            if found.is_some() {
                return found;
            }
        }
        let pages = absent.min(reach.absent).clamp(1, BATCH);
        if wanted != Wanted::Write || !fault_in_anonymous(mm, hva, pages) {
            return None;
        }
        self.in_tables(mm, hva, reach).ok()
    }
}

/// Faults in a page of anonymous memory, to be written, and others behind it, of which the caller
/// has seen that they are absent: `pages` at most, and perhaps not all. False where it is not as
/// simple as that.
///
/// This is what [`fault_in`] does, without its look-ups before and after each page, and for several
/// pages under one lock.
fn fault_in_anonymous(mm: &UserMm, hva: Hva, pages: usize) -> bool {
    let address = hva.page_base().raw() as usize;
    // SAFETY: The address space is the current task's; we may sleep here.
    unsafe { bindings::rhv_fault_in(mm.as_raw(), address, pages as u32) }
}

/// One page, with a reference, faulted in when it is absent.
fn fault_in(hva: Hva, write: bool) -> Result<*mut kernel::bindings::page> {
    // What holds the page back (userfaultfd, a file system) may never give it: a signal ends that.
    let access = if write { bindings::FOLL_WRITE } else { 0 };
    let flags = access | bindings::FOLL_INTERRUPTIBLE;
    let address = hva.page_base().raw() as usize;
    let mut page = core::ptr::null_mut();
    // SAFETY: There is room for one page; we may sleep here.
    match unsafe { bindings::get_user_pages_unlocked(address, 1, &mut page, flags) } {
        1 => Ok(page),
        0 => Err(EFAULT),
        error => Err(Error::from_errno(error as i32)),
    }
}

/// What a guest may do with pages, and what it wants to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It wants to write.
    Write,
    /// It wants to read, and may write.
    Read,
    /// It may read only.
    ReadOnly,
}

/// How many pages a look-up is to find, at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// If they are present.
    pub present: usize,
    /// If they are absent, and the guest wants to write: of anonymous memory, where no userfaultfd
    /// waits for faults, so many are faulted in. All but the first are a guess about the guest.
    pub absent: usize,
    /// If they are large.
    pub large: usize,
}

impl Reach {
    const ONE: Self = Self {
        present: 1,
        absent: 1,
        large: 0,
    };
}

/// A run of the current task's pages, to be mapped for a guest.
///
/// Nothing keeps the pages where they are: they may be mapped only after a check, under the lock of
/// the MMU notifier's callbacks, that no invalidation came since the look-up began.
///
/// # Invariants
///
/// If `found.held`, we hold one reference on each of the first `found.count` pages of the run.
pub struct UserPages<'a> {
    run: &'a mut PageRun,
    found: Found,
}

impl<'a> UserPages<'a> {
    /// The page at `hva`, faulted in when it is absent. Where present pages follow that user space
    /// may write, as many of them as fit in `max`; they are given as writable even where the guest
    /// wants to read, as long as nothing has to be copied for it. A page that the guest wants to
    /// write has been dirtied.
    ///
    /// # Errors
    ///
    /// `EFAULT` where nothing is mapped or the access is not allowed, `EHWPOISON`, `ENOMEM`,
    /// `EINTR` when a signal came meanwhile.
    pub fn get(
        run: &'a mut PageRun,
        mm: &UserMm,
        hva: Hva,
        wanted: Wanted,
        max: usize,
    ) -> Result<Self> {
        let reach = Reach {
            present: max,
            ..Reach::ONE
        };
        Self::get_ahead(run, mm, hva, wanted, reach)
    }

    /// [`UserPages::get`], which faults in more than the page at `hva` where that is foreseen.
    ///
    /// # Errors
    ///
    /// The same. That other pages do not come is none.
    pub fn get_ahead(
        run: &'a mut PageRun,
        mm: &UserMm,
        hva: Hva,
        wanted: Wanted,
        reach: Reach,
    ) -> Result<Self> {
        let writable = match wanted {
            Wanted::ReadOnly => None,
            Wanted::Read | Wanted::Write => run.writable(mm, hva, wanted, reach),
        };
        let found = match writable {
            Some(found) => found,
            None => {
                let write = wanted == Wanted::Write;
                let page = fault_in(hva, write)?;
                let found = match wanted {
                    // Just faulted in: it may well be writable.
                    Wanted::Read => {
                        let found = run.in_tables(mm, hva, Reach::ONE).ok();
                        found.or_else(|| run.by_reference(hva, 1))
                    }
                    Wanted::Write | Wanted::ReadOnly => None,
                };
                match found {
                    Some(found) => {
                        // SAFETY: Our reference, which ends here.
                        unsafe { bindings::rhv_put_user_page(page, false) };
                        found
                    }
                    None => run.hold(&[page], write),
                }
            }
        };
        // INVARIANT: The references that `found` tells of are ours.
        Ok(Self { run, found })
    }

    /// Where the page at `hva` is, if that is to be found out without a fault or a reference, and it
    /// can be written.
    pub fn present(run: &mut PageRun, mm: &UserMm, hva: Hva) -> Option<Hpa> {
        run.in_tables(mm, hva, Reach::ONE).ok()?;
        run.0.first().map(|&page| Hpa::new(page))
    }

    /// Physical addresses of the pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = Hpa> + '_ {
        let run = self.run.0.iter().take(self.found.count);
        run.map(|&page| Hpa::new(page))
    }

    /// The same as numbers, to be looked through fast.
    pub fn addresses(&self) -> &[u64] {
        self.run.0.get(..self.found.count).unwrap_or_default()
    }

    /// First bytes of the large page that has the first one, and of large pages behind it; none if it
    /// is in no large page, or in one that may not be mapped as a whole without a further look.
    pub fn large_pages(&self) -> &[u64] {
        self.run.1.get(..self.found.large).unwrap_or_default()
    }

    /// Number of pages, at least one.
    pub fn count(&self) -> usize {
        self.found.count
    }

    /// Whether the pages may be written through the mapping that is made of them.
    pub fn writable(&self) -> bool {
        self.found.writable
    }

    /// [`UserMm::mapping_shift`] of the first, if the look-up has found out.
    pub fn mapping_shift(&self) -> Option<u32> {
        self.found.shift
    }
}

impl Drop for UserPages<'_> {
    fn drop(&mut self) {
        if !self.found.held {
            return;
        }
        for page in self.iter() {
            // SAFETY: We hold a reference, by the invariant, and give it up. A page that is mapped
            // writable counts as written from now on.
            unsafe {
                let page = bindings::rhv_phys_to_page(page.raw());
                bindings::rhv_put_user_page(page, self.found.writable);
            }
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

#[kunit_tests(rusthv_user)]
mod tests {
    use super::*;

    /// No 32-bit program runs on the dev kernel: this is the decision alone.
    #[test]
    fn a_32_bit_pointer_is_half_of_the_union() {
        for low in [0, 1, 0x7fff_f000, 0xffff_ffff] {
            for high in [0, 1, 0x5555_aaaa, 0xffff_ffff] {
                let union = high << 32 | low;
                assert_eq!(address_in(union, true).raw(), low);
                assert_eq!(address_in(union, false).raw(), union);
            }
        }
    }

    #[test]
    fn a_kernel_thread_is_no_32_bit_program() {
        assert_eq!(caller_address(u64::MAX).raw(), u64::MAX);
    }
}

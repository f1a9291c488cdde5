// SPDX-License-Identifier: GPL-2.0

//! File descriptors: the device node, and anonymous files for VMs and vCPUs.
//!
//! Every open file pins the module through `fops.owner`, which the kernel crate's `MiscDevice`
//! does not set in 7.2.

use super::bindings;
use super::errno::not_a_typewriter;
use super::frame::Frame;
use crate::model::arch::addr::PAGE_SIZE;
use core::ffi::c_void;
use kernel::bindings as host;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use kernel::types::{ForeignOwnable, Opaque};
use kernel::uaccess::{UserPtr, UserSlice, UserSliceWriter};

/// The module's own `struct module`, for `owner` fields.
pub(super) const THIS_MODULE: *mut host::module = (&raw const host::__this_module).cast_mut();

/// An object behind an anonymous file descriptor.
pub trait FdObject: Send + Sync + Sized + 'static {
    /// Name of the anonymous inode, as seen in `/proc/PID/fd`.
    const NAME: &'static CStr;

    /// The file's `ioctl`.
    fn ioctl(_this: ArcBorrow<'_, Self>, _cmd: u32, _arg: usize) -> Result<isize> {
        Err(not_a_typewriter())
    }

    /// Whether the file can be read.
    const READABLE: bool = false;

    /// Hands the file's content to `reader`, from the beginning.
    fn read(&self, _reader: &mut Reader) -> Result {
        Ok(())
    }

    /// Whether the file can be mapped; `mmap` is `ENODEV` otherwise.
    const MAPPABLE: bool = false;

    /// The frame that page `index` of a mapping shows; an access to one without is a bus error.
    fn page(&self, _index: usize) -> Option<&Frame> {
        None
    }
}

/// One `read` of a file, which takes the part that it wants.
pub struct Reader {
    /// Bytes of the content before that part.
    skip: u64,
    to: UserSliceWriter,
}

impl Reader {
    /// The next bytes of the content.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn put(&mut self, bytes: &[u8]) -> Result {
        let start = self.skip.min(bytes.len() as u64);
        self.skip -= start;
        let wanted = bytes.get(start as usize..).unwrap_or_default();
        let room = wanted.len().min(self.to.len());
        self.to.write_slice(wanted.get(..room).unwrap_or_default())
    }
}

struct FdOps<T>(core::marker::PhantomData<T>);

impl<T: FdObject> FdOps<T> {
    const TABLE: &'static host::file_operations = &host::file_operations {
        owner: THIS_MODULE,
        llseek: Some(host::noop_llseek),
        read: if T::READABLE { Some(Self::read) } else { None },
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: Some(host::compat_ptr_ioctl),
        mmap: Some(Self::mmap),
        release: Some(Self::release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` is one that `install` made, and open.
    unsafe extern "C" fn ioctl(file: *mut host::file, cmd: u32, arg: usize) -> isize {
        // SAFETY: `private_data` is an `Arc<T>` from `install` until `release`.
        let this = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) };
        result_to_isize(T::ioctl(this, cmd, arg))
    }

    /// # Safety
    ///
    /// As `ioctl`; `position` is for this call alone.
    unsafe extern "C" fn read(
        file: *mut host::file,
        buffer: *mut u8,
        size: usize,
        position: *mut host::loff_t,
    ) -> isize {
        // SAFETY: As in `ioctl`.
        let this = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) };
        // SAFETY: By the contract.
        let position = unsafe { &mut *position };
        let buffer = UserPtr::from_addr(buffer.addr());
        let mut reader = Reader {
            // The host lets no negative position through.
            skip: *position as u64,
            to: UserSlice::new(buffer, size).writer(),
        };
        result_to_isize(this.read(&mut reader).map(|()| {
            let got = size.saturating_sub(reader.to.len());
            *position = position.saturating_add(got as host::loff_t);
            got as isize
        }))
    }

    const AREA: &'static host::vm_operations_struct = &host::vm_operations_struct {
        fault: Some(Self::fault),
        access: Some(Self::access),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// As `ioctl`; `vma` is being set up by this thread alone.
    unsafe extern "C" fn mmap(_file: *mut host::file, vma: *mut host::vm_area_struct) -> i32 {
        if !T::MAPPABLE {
            return ENODEV.to_errno();
        }
        // SAFETY: By the contract.
        unsafe {
            bindings::rhv_vma_of_kernel_pages(vma);
            (*vma).vm_ops = Self::AREA;
        }
        0
    }

    /// The object behind a mapping.
    ///
    /// # Safety
    ///
    /// `vma` is a mapping that `mmap` made, and stays one for `'a`.
    unsafe fn mapped<'a>(vma: *const host::vm_area_struct) -> ArcBorrow<'a, T> {
        // SAFETY: The mapping holds its file; `private_data` as in `ioctl`.
        unsafe { <Arc<T> as ForeignOwnable>::borrow((*(*vma).vm_file).private_data) }
    }

    /// The host is told the frame's number, and takes no reference: the mapping holds the file, the
    /// file the object, and that the frame. So the page is no page of the process's to the host, and
    /// nobody is given it by its address: it ends up in no guest.
    ///
    /// # Safety
    ///
    /// A fault in a mapping that `mmap` made.
    unsafe extern "C" fn fault(fault: *mut host::vm_fault) -> host::vm_fault_t {
        // SAFETY: By the contract.
        let (vma, address, index) = unsafe {
            let details = &(*fault).__bindgen_anon_1;
            (details.vma, details.address, details.pgoff)
        };
        // SAFETY: The mapping is there as long as its fault is handled.
        let this = unsafe { Self::mapped(vma) };
        match this.page(index) {
            Some(frame) => {
                let number = frame.hpa().raw() / PAGE_SIZE;
                // SAFETY: `mmap` has made the mapping one for such pages; the frame outlives it.
                unsafe { host::vmf_insert_mixed(vma, address, number as usize) }
            }
            None => host::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// What debuggers see through `ptrace` and `/proc/PID/mem`: at most the rest of a page.
    ///
    /// # Safety
    ///
    /// `vma` is a mapping that `mmap` made, with `address` inside; `buffer` has `size` bytes.
    unsafe extern "C" fn access(
        vma: *mut host::vm_area_struct,
        address: usize,
        buffer: *mut c_void,
        size: i32,
        write: i32,
    ) -> i32 {
        let write = write != 0;
        // SAFETY: By the contract.
        let (allowed, index) = unsafe {
            (
                bindings::rhv_vma_shows_file(vma, write),
                bindings::rhv_vma_index(vma, address),
            )
        };
        // SAFETY: The caller holds the lock that keeps mappings where they are.
        let this = unsafe { Self::mapped(vma) };
        let Some(frame) = this.page(index).filter(|_| allowed) else {
            return EFAULT.to_errno();
        };
        let offset = address % PAGE_SIZE as usize;
        let count = (PAGE_SIZE as usize - offset).min(usize::try_from(size).unwrap_or(0));
        let buffer = buffer.cast::<u8>();
        for byte in 0..count {
            // SAFETY: Both are inside; user space may write the page at the same time.
            unsafe {
                let (there, here) = (frame.as_ptr().add(offset + byte), buffer.add(byte));
                match write {
                    true => there.write_volatile(here.read()),
                    false => here.write(there.read_volatile()),
                }
            }
        }
        count as i32
    }

    /// # Safety
    ///
    /// As `ioctl`, and nobody uses the file any more.
    unsafe extern "C" fn release(_inode: *mut host::inode, file: *mut host::file) -> i32 {
        // SAFETY: The last use of the file: the reference from `install` ends here.
        drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign((*file).private_data) });
        0
    }
}

fn result_to_isize(result: Result<isize>) -> isize {
    match result {
        Ok(value) => value,
        Err(error) => error.to_errno() as isize,
    }
}

/// A new file descriptor for `object`, close-on-exec; read-only if it can be read.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn install<T: FdObject>(object: Arc<T>) -> Result<i32> {
    let access = if T::READABLE {
        bindings::O_RDONLY
    } else {
        bindings::O_RDWR
    };
    let raw = object.into_foreign();
    // SAFETY: Name and table are static, and `raw` is what the table's functions expect.
    let fd = unsafe {
        bindings::rhv_anon_fd(
            T::NAME.as_char_ptr(),
            FdOps::<T>::TABLE,
            raw,
            (access | bindings::O_CLOEXEC) as i32,
        )
    };
    if fd < 0 {
        // SAFETY: No file was made: the reference is still ours.
        drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(raw) });
        return Err(Error::from_errno(fd));
    }
    Ok(fd)
}

/// The device node's `ioctl`.
pub trait Device: 'static {
    /// Name under `/dev`.
    const NAME: &'static CStr;

    /// Handles one ioctl.
    fn ioctl(cmd: u32, arg: usize) -> Result<isize>;
}

struct DeviceOps<D>(core::marker::PhantomData<D>);

impl<D: Device> DeviceOps<D> {
    const TABLE: &'static host::file_operations = &host::file_operations {
        owner: THIS_MODULE,
        llseek: Some(host::noop_llseek),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: Some(host::compat_ptr_ioctl),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// None; the type is the host's.
    unsafe extern "C" fn ioctl(_file: *mut host::file, cmd: u32, arg: usize) -> isize {
        result_to_isize(D::ioctl(cmd, arg))
    }
}

/// The device node, mode 0600, from `new` to drop.
pub struct DeviceNode {
    raw: Pin<KBox<Opaque<host::miscdevice>>>,
}

// SAFETY: Deregistration is not tied to a thread.
unsafe impl Send for DeviceNode {}
// SAFETY: No method takes `&self`.
unsafe impl Sync for DeviceNode {}

impl DeviceNode {
    /// Makes the node.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EEXIST`.
    pub fn new<D: Device>() -> Result<Self> {
        let raw = KBox::pin(
            Opaque::new(host::miscdevice {
                minor: host::MISC_DYNAMIC_MINOR as i32,
                name: D::NAME.as_char_ptr(),
                fops: DeviceOps::<D>::TABLE,
                mode: 0o600,
                ..pin_init::zeroed()
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The structure is pinned until `drop` has deregistered it.
        kernel::error::to_result(unsafe { host::misc_register(raw.get()) })?;
        Ok(Self { raw })
    }
}

impl Drop for DeviceNode {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`.
        unsafe { host::misc_deregister(self.raw.get()) };
    }
}

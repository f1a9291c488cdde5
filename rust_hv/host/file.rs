// SPDX-License-Identifier: GPL-2.0

//! File descriptors: the device node, and anonymous files for VMs and vCPUs.
//!
//! Every open file pins the module through `fops.owner`, which the kernel crate's `MiscDevice`
//! does not set in 7.2.

use super::bindings;
use super::errno::not_a_typewriter;
use super::frame::Frame;
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
        unsafe { (*vma).vm_ops = Self::AREA };
        0
    }

    /// # Safety
    ///
    /// A fault in a mapping that `mmap` made.
    unsafe extern "C" fn fault(fault: *mut host::vm_fault) -> host::vm_fault_t {
        // SAFETY: The mapping holds its file; `private_data` as in `ioctl`.
        let (this, index) = unsafe {
            let details = &(*fault).__bindgen_anon_1;
            let file = (*details.vma).vm_file;
            (
                <Arc<T> as ForeignOwnable>::borrow((*file).private_data),
                details.pgoff,
            )
        };
        match this.page(index) {
            Some(frame) => {
                // SAFETY: The frame is alive; the host takes over the new reference.
                unsafe {
                    bindings::rhv_get_page(frame.as_page());
                    (*fault).page = frame.as_page();
                }
                0
            }
            None => host::vm_fault_reason_VM_FAULT_SIGBUS,
        }
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

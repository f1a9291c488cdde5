// SPDX-License-Identifier: GPL-2.0

//! Files for people under debugfs.
//!
//! The kernel crate's own abstraction (`kernel::debugfs`) sets no `owner` in 7.2: a file that is
//! still open when the module goes would call into it on close. Ours pins the module, as every
//! open file does.
//!
//! debugfs is for looking, so that nothing depends on it: where the host has none, or no memory for
//! it, files are missing and that is all.

use super::bindings;
use super::file::THIS_MODULE;
use kernel::bindings as host;
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::sync::Arc;
use kernel::uaccess::{UserPtr, UserSlice};

/// What a file shows, record by record.
pub trait Content: Send + Sync + 'static {
    /// How many records there are now.
    fn records(&self) -> u64 {
        1
    }

    /// Prints a record, of which there may be fewer by now, with `seq_print!`. May be called again
    /// for the same record when its text was too long for the host's buffer.
    fn show(&self, record: u64, out: &SeqFile);

    /// Whether the file can be written.
    const WRITABLE: bool = false;

    /// Takes what was written, without white space at its ends.
    ///
    /// # Errors
    ///
    /// Whatever the writer is to see.
    fn store(&self, _text: &[u8]) -> Result {
        Err(EINVAL)
    }
}

/// Bytes that a write can have.
const LONGEST: usize = 64;

/// A directory or a file, removed on drop.
///
/// # Invariants
///
/// `raw` is what debugfs gave: a live entry that nobody else removes, or an error.
struct Entry {
    raw: *mut host::dentry,
}

// SAFETY: debugfs does its own locking.
unsafe impl Send for Entry {}
// SAFETY: As above.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the invariant; errors are ignored. Waits for accesses under way.
        unsafe { bindings::rhv_debugfs_remove(self.raw) };
    }
}

/// A directory. It goes with the last of its clones, its directories and its files.
#[derive(Clone)]
pub struct Dir {
    entry: Arc<Entry>,
    _parent: Option<Arc<Entry>>,
}

impl Dir {
    /// A directory at the root of debugfs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(name: &CStr) -> Result<Self> {
        Self::create(name, None)
    }

    /// A directory in this one.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn sub(&self, name: &CStr) -> Result<Self> {
        Self::create(name, Some(self.entry.clone()))
    }

    fn create(name: &CStr, parent: Option<Arc<Entry>>) -> Result<Self> {
        let above = parent.as_ref().map_or(core::ptr::null_mut(), |dir| dir.raw);
        // SAFETY: The name ends with a zero; `above` is the root, alive, or an error.
        let raw = unsafe { bindings::rhv_debugfs_dir(name.as_char_ptr(), above) };
        // INVARIANT: Just made. Should there be no memory for the `Arc`, `Entry` removes it.
        Ok(Self {
            entry: Arc::new(Entry { raw }, GFP_KERNEL)?,
            _parent: parent,
        })
    }

    /// A file in this directory, for root alone.
    pub fn file<T: Content>(&self, name: &CStr, content: Arc<T>) -> File<T> {
        let mode = if T::WRITABLE { 0o600 } else { 0o400 };
        let data: *const T = &*content;
        // SAFETY: The name ends with a zero, and the directory is alive or an error. The table's
        // functions want a `T`: `content` lives until the entry is removed.
        let raw = unsafe {
            bindings::rhv_debugfs_file(
                name.as_char_ptr(),
                mode,
                self.entry.raw,
                data.cast_mut().cast(),
                FileOps::<T>::TABLE,
            )
        };
        File {
            // INVARIANT: Just made.
            _entry: Entry { raw },
            _content: content,
            _dir: self.clone(),
        }
    }
}

/// A file, removed on drop: nobody is in `T`'s functions after that. Fields are dropped in the
/// order in which they stand here.
pub struct File<T: Content> {
    _entry: Entry,
    _content: Arc<T>,
    _dir: Dir,
}

struct FileOps<T>(core::marker::PhantomData<T>);

/// The host calls `open`, `read` and `write` of a file that is not removed yet, and its removal
/// waits for them: what they find in `i_private` is alive.
impl<T: Content> FileOps<T> {
    const TABLE: &'static host::file_operations = &host::file_operations {
        owner: THIS_MODULE,
        open: Some(Self::open),
        read: Some(host::seq_read),
        write: if T::WRITABLE { Some(Self::write) } else { None },
        llseek: Some(host::seq_lseek),
        release: Some(host::seq_release),
        ..pin_init::zeroed()
    };

    const RECORDS: &'static host::seq_operations = &host::seq_operations {
        start: Some(Self::start),
        stop: Some(Self::stop),
        next: Some(Self::next),
        show: Some(Self::show),
    };

    /// # Safety
    ///
    /// `inode` is of a file that [`Dir::file`] made for a `T`; `file` is being opened.
    unsafe extern "C" fn open(inode: *mut host::inode, file: *mut host::file) -> i32 {
        // SAFETY: By the contract.
        let failed = unsafe { host::seq_open(file, Self::RECORDS) };
        if failed == 0 {
            // SAFETY: `seq_open` has put a `seq_file` there; the inode is alive.
            unsafe {
                let seq: *mut host::seq_file = (*file).private_data.cast();
                (*seq).private = (*inode).i_private;
            }
        }
        failed
    }

    /// # Safety
    ///
    /// `seq` is from `open`, in a call that removal waits for.
    unsafe fn content<'a>(seq: *mut host::seq_file) -> &'a T {
        // SAFETY: By the contract.
        unsafe { &*(*seq).private.cast::<T>() }
    }

    /// The position, when there is a record.
    ///
    /// # Safety
    ///
    /// As `content`; `position` is for this call alone.
    unsafe fn at(
        seq: *mut host::seq_file,
        position: *mut host::loff_t,
    ) -> *mut kernel::ffi::c_void {
        // SAFETY: By the contract.
        let (content, record) = unsafe { (Self::content(seq), *position as u64) };
        match record < content.records() {
            true => position.cast(),
            false => core::ptr::null_mut(),
        }
    }

    /// # Safety
    ///
    /// As `at`.
    unsafe extern "C" fn start(
        seq: *mut host::seq_file,
        position: *mut host::loff_t,
    ) -> *mut kernel::ffi::c_void {
        // SAFETY: By the contract.
        unsafe { Self::at(seq, position) }
    }

    /// # Safety
    ///
    /// None.
    unsafe extern "C" fn stop(_seq: *mut host::seq_file, _at: *mut kernel::ffi::c_void) {}

    /// # Safety
    ///
    /// As `at`.
    unsafe extern "C" fn next(
        seq: *mut host::seq_file,
        _at: *mut kernel::ffi::c_void,
        position: *mut host::loff_t,
    ) -> *mut kernel::ffi::c_void {
        // SAFETY: By the contract.
        unsafe {
            *position += 1;
            Self::at(seq, position)
        }
    }

    /// # Safety
    ///
    /// As `content`; `at` is from `start` or `next`.
    unsafe extern "C" fn show(seq: *mut host::seq_file, at: *mut kernel::ffi::c_void) -> i32 {
        // SAFETY: By the contract: it is the position.
        let (content, record) = unsafe { (Self::content(seq), *at.cast::<host::loff_t>()) };
        // SAFETY: Alive for this call.
        content.show(record as u64, unsafe { SeqFile::from_raw(seq) });
        0
    }

    /// # Safety
    ///
    /// `file` is one that was opened with `open`.
    unsafe extern "C" fn write(
        file: *mut host::file,
        buffer: *const u8,
        size: usize,
        _position: *mut host::loff_t,
    ) -> isize {
        // SAFETY: By the contract, in a call that removal waits for.
        let content = unsafe { Self::content((*file).private_data.cast()) };
        let mut text = [0; LONGEST];
        let Some(text) = text.get_mut(..size) else {
            return EINVAL.to_errno() as isize;
        };
        let from = UserPtr::from_addr(buffer.addr());
        let stored = UserSlice::new(from, size)
            .reader()
            .read_slice(text)
            .and_then(|()| content.store(text.trim_ascii()));
        match stored {
            Ok(()) => size as isize,
            Err(error) => error.to_errno() as isize,
        }
    }
}

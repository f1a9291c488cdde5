// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading the module.

use crate::errno::Errno;
use std::fs::{self, File};
use std::os::fd::AsRawFd;

const NAME: &std::ffi::CStr = c"rust_hv";

pub fn is_loaded() -> bool {
    fs::read_to_string("/proc/modules")
        .is_ok_and(|text| text.lines().any(|line| line.split(' ').next() == NAME.to_str().ok()))
}

/// What `rmmod` does.
pub fn unload() -> Result<(), Errno> {
    // SAFETY: a C string that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, NAME.as_ptr(), libc::O_NONBLOCK) };
    Errno::check(result as libc::c_int)?;
    Ok(())
}

/// What `insmod` does.
pub fn load(path: &str) -> Result<(), Errno> {
    let file = File::open(path).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // SAFETY: an open file and a C string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    Errno::check(result as libc::c_int)?;
    Ok(())
}

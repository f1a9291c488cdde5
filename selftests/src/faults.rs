// SPDX-License-Identifier: GPL-2.0

//! Allocation failures on demand: the n-th one of this thread (debug kernels, CONFIG_FAULT_INJECTION).

use crate::errno::Errno;
use std::ffi::CString;
use std::fs;
use std::ptr;

const FAIL_NTH: &str = "/proc/thread-self/fail-nth";

/// Lets injection reach every kind of allocation; the reason when it is not there.
pub fn enable() -> Result<(), String> {
    if fs::metadata(FAIL_NTH).is_err() {
        return Err("the kernel has no fault injection".into());
    }
    let debugfs = "/sys/kernel/debug";
    let names = [debugfs, "debugfs"].map(|text| CString::new(text).unwrap_or_default());
    // SAFETY: C strings that outlive the call. Where it is mounted already this fails, and is no matter.
    unsafe { libc::mount(names[1].as_ptr(), names[0].as_ptr(), names[1].as_ptr(), 0, ptr::null()) };
    // By default only allocations that may not sleep fail, and most of ours may.
    for (kind, setting, value) in [
        ("failslab", "ignore-gfp-wait", "N"),
        ("fail_page_alloc", "ignore-gfp-wait", "N"),
        ("fail_page_alloc", "ignore-gfp-highmem", "N"),
        ("fail_page_alloc", "min-order", "0"),
        ("failslab", "verbose", "0"),
        ("fail_page_alloc", "verbose", "0"),
    ] {
        let path = format!("{debugfs}/{kind}/{setting}");
        if fs::write(&path, value).is_err() && setting == "ignore-gfp-wait" {
            return Err(format!("{path} cannot be written"));
        }
    }
    Ok(())
}

/// Runs `work` with its n-th allocation failing; true when there was an n-th one.
pub fn with_failure<T>(n: u64, work: impl FnOnce() -> T) -> Result<(T, bool), Errno> {
    set(n)?;
    let result = work();
    let left = fs::read_to_string(FAIL_NTH).map_err(|_| Errno::EIO)?;
    set(0)?;
    Ok((result, left.trim() == "0"))
}

fn set(n: u64) -> Result<(), Errno> {
    fs::write(FAIL_NTH, n.to_string()).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
}

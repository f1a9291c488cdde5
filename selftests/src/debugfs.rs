// SPDX-License-Identifier: GPL-2.0

//! What rusthv shows in debugfs.

use crate::device::Vm;
use crate::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;

pub const MOUNT: &str = "/sys/kernel/debug";

/// Mounts debugfs, if it is not mounted yet.
pub fn mount() {
    let names = [MOUNT, "debugfs"].map(|text| CString::new(text).unwrap_or_default());
    // SAFETY: C strings that outlive the call. Where it is mounted already this fails, and is no matter.
    unsafe { libc::mount(names[1].as_ptr(), names[0].as_ptr(), names[1].as_ptr(), 0, ptr::null()) };
}

/// The directory of the module; none where the kernel has no debugfs.
pub fn module() -> Option<PathBuf> {
    mount();
    let path = PathBuf::from(MOUNT).join("rust_hv");
    fs::metadata(&path).is_ok().then_some(path)
}

/// The directory of a VM of this process.
pub fn of(vm: &Vm) -> Result<PathBuf, Errno> {
    Ok(PathBuf::from(MOUNT).join(format!("rust_hv/{}-{}", process::id(), vm.stats()?.id)))
}

/// Has the inverted page table compared with the VMs' own; what came of it, by name.
pub fn verify() -> Result<BTreeMap<String, String>, String> {
    let path = module().ok_or("no debugfs")?.join("verify");
    let written = fs::write(&path, "1");
    let report = named(&path)?;
    match written {
        Ok(()) => Ok(report),
        Err(error) => Err(format!("{error}: {report:?}")),
    }
}

/// A file with a name and a value in each line.
pub fn named(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let line = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().map(|text| line(text).ok_or_else(|| format!("a line without a value: {text}"))).collect()
}

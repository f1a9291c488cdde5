// SPDX-License-Identifier: GPL-2.0

//! The device node is for its owner alone until an administrator says otherwise.

use crate::host;
use crate::prelude::*;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    t.rusthv()?;
    let metadata = std::fs::metadata(t.path())?;
    check!(metadata.file_type().is_char_device());
    check_eq!(metadata.mode() & 0o7777, 0o600);
    check_eq!((metadata.uid(), metadata.gid()), (0, 0));
    let path = t.path().to_owned();
    let errno = host::in_child(|| {
        // SAFETY: gives up rights, in a child.
        unsafe { libc::setuid(65534) };
        vec![Device::open(&path).err().map_or(0, |errno| errno.0 as u8)]
    })?;
    check_eq!(errno, [libc::EACCES as u8], "opened by another user");
    Ok(())
}

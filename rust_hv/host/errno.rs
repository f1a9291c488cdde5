// SPDX-License-Identifier: GPL-2.0

//! Errors that the kernel crate has no constant for.

use super::bindings;
use kernel::error::Error;

/// `EOPNOTSUPP`: the machine cannot do it.
pub fn unsupported() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// `ENXIO`: there is no such vector, interrupt or device.
pub fn no_such_device() -> Error {
    Error::from_errno(-(bindings::ENXIO as i32))
}

/// `ENOTTY`: no such ioctl.
pub fn not_a_typewriter() -> Error {
    kernel::error::code::ENOTTY
}

// SPDX-License-Identifier: GPL-2.0

//! Errors that the kernel crate has no constant for.

use super::bindings;
use kernel::error::Error;
use kernel::prelude::kunit_tests;

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

#[kunit_tests(rusthv_errno)]
mod tests {
    use super::*;

    /// The numbers of `errno.h`, which user space sees.
    #[test]
    fn numbers_are_the_uapis() {
        assert_eq!(unsupported().to_errno(), -95);
        assert_eq!(no_such_device().to_errno(), -6);
        assert_eq!(not_a_typewriter().to_errno(), -25);
    }
}

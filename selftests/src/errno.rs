// SPDX-License-Identifier: GPL-2.0

//! Error numbers as values that print by name.

use std::fmt;

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident),+ $(,)?) => {
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)+

            /// The symbolic name, where it is one that a hypervisor device may answer with.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Errno::$name => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

errnos!(
    EPERM, ENOENT, EINTR, EIO, ENXIO, E2BIG, EBADF, EAGAIN, ENOMEM, EACCES, EFAULT, EBUSY, EEXIST, ENODEV,
    EINVAL, EMFILE, ENFILE, ENOTTY, ENOSPC, ERANGE, ENOSYS, EOPNOTSUPP,
);

impl Errno {
    /// The error number of the last system call of this thread.
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// Turns the -1 of a system call into its error number.
    pub fn check(value: libc::c_int) -> Result<libc::c_int, Self> {
        if value < 0 {
            Err(Self::last())
        } else {
            Ok(value)
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

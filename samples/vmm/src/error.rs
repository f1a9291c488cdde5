// SPDX-License-Identifier: GPL-2.0
//! What can go wrong, and the exit code that says so to a script.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Exit codes, as `--help` and Documentation/samples.md list them. Code 2 is clap's, for usage.
pub mod exit_code {
    pub const OK: u8 = 0;
    pub const GUEST_FAILED: u8 = 1;
    pub const IMAGE: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const GUEST_DIED: u8 = 5;
    pub const TIMEOUT: u8 = 6;
    pub const TEXT_NOT_SEEN: u8 = 7;
    pub const OUTPUT: u8 = 8;
    /// Plus the number of the signal, as shells count.
    pub const SIGNAL: u8 = 128;
}

#[derive(Debug)]
pub enum Error {
    /// A file that the user named cannot be read or makes no sense.
    Image { path: PathBuf, why: String },
    /// The hypervisor device is missing or is not what it should be.
    Device { path: PathBuf, why: String },
    /// The device refused a request.
    Ioctl {
        what: &'static str,
        errno: io::Error,
    },
    /// Guest memory could not be allocated or written.
    Memory(String),
    /// The guest reached a state that it cannot leave.
    GuestDied(String),
    /// Guest output could not be written.
    Output(io::Error),
}

impl Error {
    pub fn image(path: &Path, why: impl fmt::Display) -> Self {
        Self::Image {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }

    pub fn device(path: &Path, why: impl fmt::Display) -> Self {
        Self::Device {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }

    pub fn ioctl(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Ioctl {
            what,
            errno: io::Error::from_raw_os_error(e.errno()),
        }
    }

    pub fn memory(why: impl fmt::Display) -> Self {
        Self::Memory(why.to_string())
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Image { .. } => exit_code::IMAGE,
            Self::Device { .. } | Self::Ioctl { .. } | Self::Memory(_) => exit_code::DEVICE,
            Self::GuestDied(_) => exit_code::GUEST_DIED,
            Self::Output(_) => exit_code::OUTPUT,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { path, why } | Self::Device { path, why } => {
                write!(f, "{}: {why}", path.display())
            }
            Self::Ioctl { what, errno } => write!(f, "{what}: {errno}"),
            Self::Memory(why) => write!(f, "guest memory: {why}"),
            Self::GuestDied(why) => write!(f, "the guest died: {why}"),
            Self::Output(e) => write!(f, "cannot write the guest's output: {e}"),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

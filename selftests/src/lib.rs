// SPDX-License-Identifier: GPL-2.0

//! What the selftests, the fuzzer and the benchmark share.
//!
//! The helpers call the raw ioctls, so that a test sees the exact errno, and can pass what a
//! well-behaved client library would refuse to.

pub mod balance;
pub mod bench;
pub mod compare;
pub mod debugfs;
pub mod device;
pub mod differential;
pub mod emulator;
pub mod errno;
pub mod faults;
pub mod fuzz;
pub mod garbage;
pub mod gigantic;
pub mod guest;
pub mod harness;
pub mod host;
pub mod ioctl;
pub mod kmsg;
pub mod ksm;
pub mod machine;
pub mod memory;
pub mod module;
pub mod numa;
pub mod random;
pub mod rusthv;
pub mod spin;
pub mod statistics;
pub mod stress;
pub mod swap;
pub mod tests;
pub mod traps;
pub mod userfault;
pub mod vendor;
pub mod verifier;
pub mod walk;

/// What nearly every test uses.
pub mod prelude {
    pub use crate::device::{Device, Direction, Exit, Vcpu, Vm};
    pub use crate::errno::Errno;
    pub use crate::guest;
    pub use crate::harness::{Context, Failure, Outcome, Test};
    pub use crate::machine::{layout, Machine};
    pub use crate::memory::Memory;
    pub use crate::{check, check_eq, check_err, fail, note, skip};
    pub use kvm_bindings::*;
}

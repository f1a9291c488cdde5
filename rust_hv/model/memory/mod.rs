// SPDX-License-Identifier: GPL-2.0

//! Guest memory as user space describes it.

pub mod dirty;
// Has locks, and nothing for the model checker.
#[cfg(not(loom))]
pub mod inverted;
pub mod slots;
pub mod write_log;

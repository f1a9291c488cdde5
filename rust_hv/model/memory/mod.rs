// SPDX-License-Identifier: GPL-2.0

//! Guest memory as user space describes it.

pub mod dirty;
pub mod inverted;
pub mod slots;

// SPDX-License-Identifier: GPL-2.0

//! Atomics: the real ones, or those of the model checker (`tests/loom.rs`), which tries every order
//! in which threads can get at them.
//!
//! Hot paths of the module use them as well where the host's own C code does not look: the kernel
//! crate's are calls of C functions, each seven instructions instead of one.

#[cfg(not(loom))]
pub use core::sync::atomic::{fence, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{fence, AtomicU64, Ordering};

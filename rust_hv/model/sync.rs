// SPDX-License-Identifier: GPL-2.0

//! Atomics: the real ones, or those of the model checker (`tests/loom.rs`), which tries every order
//! in which threads can get at them.

#[cfg(not(loom))]
pub use core::sync::atomic::{fence, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{fence, AtomicU64, Ordering};

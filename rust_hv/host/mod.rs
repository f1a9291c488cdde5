// SPDX-License-Identifier: GPL-2.0

//! What the host kernel gives: CPUs, frames, files, user memory, notifiers, FPU.
//!
//! One of the floors with `unsafe` (the others are `vmx` and `svm`). What leaves this room is
//! safe to call, or an `unsafe fn` that says what it asks for.

pub mod bindings;
pub mod cpu;
pub mod cpuid;
pub mod debug;
pub mod debugfs;
pub mod digest;
pub mod errno;
pub mod file;
pub mod fpu;
pub mod frame;
pub mod global;
pub mod inverted;
#[cfg(CONFIG_KUNIT = "y")]
pub mod kunit;
#[cfg(CONFIG_KUNIT = "y")]
pub mod mappings;
pub mod msr;
pub mod notifier;
pub mod pool;
pub mod run_page;
pub mod rwlock;
pub mod shrinker;
pub mod supply;
pub mod switch;
pub mod sync;
pub mod tables;
pub mod task;
pub mod tsc;
pub mod user;
pub mod write_log;

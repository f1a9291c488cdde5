// SPDX-License-Identifier: GPL-2.0

//! The machine's logic with no host underneath.
//!
//! Everything here builds in the module and, unchanged, as a cargo library
//! (`rust_hv/model/Cargo.toml`), where it is unit-, property- and fuzz-tested on any computer.
//! Rules of this floor: `core` only, no allocation, no `unsafe`, no panics on values that a guest
//! or user space controls, and no `use` of any other room of the module.
#![deny(unsafe_code)]

pub mod arch;
pub mod emulate;
pub mod exit;
pub mod memory;
pub mod paging;
pub mod stats;
pub mod sync;

// SPDX-License-Identifier: GPL-2.0

//! The cargo face of `rust_hv/model`: the module's own source, never a copy.
#![no_std]
#![warn(missing_docs)]

#[path = "../mod.rs"]
pub mod model;
pub use model::*;

// SPDX-License-Identifier: GPL-2.0

//! Structures and functions that the `kernel` crate lacks, generated at build time.
//!
//! KVM's UAPI, the extension header, host facilities and the shim: see `bindings.h` and
//! `bindgen.args`. Nothing in here is written by hand.
#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    missing_docs,
    unsafe_op_in_unsafe_fn,
    warnings
)]

/// Host types that the kernel crate's own bindings have.
mod kernel_types {
    pub(super) use kernel::bindings::*;
    pub(super) use kernel::ffi;
}

mod generated {
    include!(env!("RUSTHV_BINDINGS"));
}
pub use generated::*;

// SPDX-License-Identifier: GPL-2.0

//! rusthv: a hypervisor in a loadable kernel module.

use kernel::prelude::*;

pub mod host;
pub mod mmu;
pub mod model;
pub mod vmx;

module! {
    type: RustHv,
    name: "rust_hv",
    authors: ["The rusthv developers"],
    description: "A KVM-ABI hypervisor in Rust",
    license: "GPL v2",
}

struct RustHv;

impl kernel::Module for RustHv {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(RustHv)
    }
}

// SPDX-License-Identifier: GPL-2.0

//! This package is the model with `cfg(loom)`, and nothing else is.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}

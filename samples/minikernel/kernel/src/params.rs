// SPDX-License-Identifier: GPL-2.0
//! What the VMM asks for.

use minikernel_abi::{Parameters, MAGIC, MAX_VCPUS, PARAMETERS};

pub fn get() -> Parameters {
    // SAFETY: the VMM has put it there before the kernel started, and nobody writes it.
    unsafe { (PARAMETERS as *const Parameters).read_volatile() }
}

pub fn vcpus() -> usize {
    get().vcpus as usize
}

/// Whether this is a VMM that knows what it starts.
pub fn good() -> bool {
    let p = get();
    p.magic == MAGIC
        && (1..=MAX_VCPUS).contains(&p.vcpus)
        && p.memory <= minikernel_abi::MAX_MEMORY
        && (p.workload as usize) < minikernel_abi::WORKLOADS.len()
}

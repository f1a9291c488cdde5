// SPDX-License-Identifier: GPL-2.0

//! The tests, one behaviour per file. Each file's first line of documentation says what it shows.

use crate::harness::Test;

mod api_version;
mod bad_pointers;
mod check_extension;
mod check_extension_vm;
mod closed_vm;
mod concurrent_run;
mod cpuid_guest;
mod cpuid_per_vcpu;
mod cpuid_set;
mod cpuid_supported;
mod create_vcpu;
mod create_vm;
mod extension_claims;
mod memslot_arguments;
mod memslot_count;
mod memslot_modify;
mod memslot_overlap;
mod memslot_unmapped;
mod other_process;
mod real_mode;
mod regs_round_trip;
mod run_arguments;
mod sregs_invalid;
mod sregs_round_trip;
mod unknown_ioctl;
mod vcpu_area_outlives;
mod vcpu_limit;
mod vcpu_mmap;
mod vm_addresses;
mod wrong_fd;

/// A test in the registry.
pub struct Entry {
    pub name: &'static str,
    pub shows: &'static str,
    pub test: &'static Test,
}

include!(concat!(env!("OUT_DIR"), "/registry.rs"));

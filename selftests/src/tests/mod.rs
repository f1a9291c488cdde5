// SPDX-License-Identifier: GPL-2.0

//! The tests, one behaviour per file. Each file's first line of documentation says what it shows.

use crate::harness::Test;

mod api_version;
mod avx_state;
mod bad_guest_state;
mod bad_pointers;
mod check_extension;
mod check_extension_vm;
mod closed_vm;
mod coexist_parallel;
mod coexist_turns;
mod compare_cpuid;
mod compare_entry;
mod compare_errnos;
mod compare_exits;
mod compare_memslots;
mod compare_registers;
mod compare_sregs;
mod concurrent_run;
mod control_registers;
mod cpu_hotplug;
mod cpuid_after_run;
mod cpuid_before_entry;
mod cpuid_guest;
mod cpuid_per_vcpu;
mod cpuid_set;
mod cpuid_supported;
mod create_vcpu;
mod create_vm;
mod debug_registers;
mod delivery_outside;
mod delivery_resumed;
mod device_node;
mod exceptions;
mod extension_claims;
mod extension_info;
mod extension_stats;
mod fail_allocations;
mod fd_limit;
mod fetch_outside;
mod fpu_state;
mod garbage_guest;
mod high_memory;
mod hlt;
mod host_msrs_kept;
mod host_writes;
mod immediate_exit;
mod interrupt_bitmap;
mod io_all_ports;
mod io_sizes;
mod io_string;
mod io_string_16;
mod io_string_fault;
mod io_string_gone;
mod io_string_outside;
mod kill_vmm;
mod large_pages;
mod large_pages_running;
mod long_mode;
mod memslot_arguments;
mod memslot_count;
mod memslot_modify;
mod memslot_overlap;
mod memslot_unmapped;
mod mmio_instructions_16;
mod mmio_instructions_32;
mod mmio_instructions_64;
mod mmio_memory_edge;
mod mmio_read;
mod mmio_read_modify_write;
mod mmio_unknown_instruction;
mod mmio_whole_words;
mod mmio_write;
mod mode_switch;
mod module_pinned;
mod module_reload;
mod msr_unknown;
mod msr_values;
mod notifier_dontneed;
mod notifier_dontneed_running;
mod notifier_fork;
mod notifier_protect;
mod notifier_protect_running;
mod notifier_remap;
mod notifier_unmap;
mod notifier_unmap_running;
mod other_process;
mod page_migration;
mod paging_32;
mod paging_pae;
mod pending_io;
mod protected_mode;
mod rdtscp;
mod readonly_slot;
mod real_mode;
mod regs_round_trip;
mod run_area_mapping;
mod run_area_scribbled;
mod run_arguments;
mod run_fields;
mod several_vcpus;
mod several_vms;
mod signal;
mod single_step;
mod slot_alias;
mod slot_delete_running;
mod slot_move_running;
mod sregs_invalid;
mod sregs_round_trip;
mod suspend;
mod system_instructions;
mod triple_fault;
mod tsc;
mod unknown_ioctl;
mod user_mode;
mod vcpu_area_outlives;
mod vcpu_limit;
mod vcpu_migrates;
mod vcpu_mmap;
mod vm_addresses;
mod wrong_fd;
mod xsetbv;

/// A test in the registry.
pub struct Entry {
    pub name: &'static str,
    pub shows: &'static str,
    pub test: &'static Test,
}

include!(concat!(env!("OUT_DIR"), "/registry.rs"));

// SPDX-License-Identifier: GPL-2.0

//! `/dev/rusthv`: ioctl numbers to method calls, and nothing else.
//!
//! One table per kind of file. Numbers and structures are KVM's
//! (`Documentation/virt/kvm/api.rst`), and those of `uapi/rusthv.h`; an unknown number is
//! `ENOTTY`.

pub mod inverted;
pub mod numbers;
pub mod stats;
pub mod vcpu;
pub mod vm;

use crate::host::bindings::{
    self, kvm_cpuid_entry2, rusthv_host_stats, rusthv_info, rusthv_node_stats,
};
use crate::host::errno::not_a_typewriter;
use crate::host::file::{install, Device};
use crate::host::global::Global;
use crate::host::pool::PoolCounts;
use crate::host::{cpu, frame, pool, user};
use crate::model::paging::format::Notice;
use crate::vcpu::{cpuid, Machine};
use crate::vendor::{Caps, Vendor};
use crate::vm::{self as machines, Vm};
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;
use kernel::sync::Arc;
use numbers::*;

/// The machine behind the device, whoever made its CPUs.
pub trait Platform: Send + Sync {
    /// What guests can have.
    fn caps(&self) -> &Caps;

    /// The best way to notice guests' writes.
    fn notice(&self) -> Notice;

    /// A new VM's file descriptor.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EMFILE`, `EINTR` when killed meanwhile.
    fn create_vm(&self) -> Result<isize>;
}

impl<V: Vendor> Platform for Machine<V> {
    fn caps(&self) -> &Caps {
        self.vendor.caps()
    }

    fn notice(&self) -> Notice {
        self.vendor.format().notice()
    }

    fn create_vm(&self) -> Result<isize> {
        let vm = Vm::new(*self)?;
        let file = Arc::new(vm::VmFile::new(vm), GFP_KERNEL_ACCOUNT)?;
        install(file).map(|fd| fd as isize)
    }
}

/// The machine, from load to unload.
pub static PLATFORM: Global<KBox<dyn Platform>> = Global::new();

/// The device.
pub enum RustHvDevice {}

impl Device for RustHvDevice {
    const NAME: &'static CStr = c"rusthv";

    #[inline]
    fn ioctl(cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            KVM_GET_API_VERSION => {
                no_argument(arg)?;
                Ok(API_VERSION)
            }
            KVM_CREATE_VM => create_vm(arg),
            KVM_CHECK_EXTENSION => Ok(check_extension(arg)),
            KVM_GET_VCPU_MMAP_SIZE => {
                no_argument(arg)?;
                Ok(vcpu::MMAP_SIZE)
            }
            KVM_GET_SUPPORTED_CPUID => get_supported_cpuid(arg),
            RUSTHV_GET_INFO => info(arg),
            RUSTHV_GET_HOST_STATS => host_stats(arg),
            RUSTHV_GET_NODE_STATS => node_stats(arg),
            RUSTHV_GET_FRAME => inverted::frame(arg),
            RUSTHV_UNMAP_FRAME => inverted::unmap(arg),
            _ => Err(not_a_typewriter()),
        }
    }
}

/// The API that the numbers and structures belong to (KVM API section 4.1).
const API_VERSION: isize = 12;

fn no_argument(arg: usize) -> Result {
    if arg == 0 {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// KVM API section 4.2. There is one machine type: 0.
#[inline(never)]
fn create_vm(machine_type: usize) -> Result<isize> {
    no_argument(machine_type)?;
    PLATFORM.get()?.create_vm()
}

/// KVM API section 4.4.
#[inline(never)]
pub(crate) fn check_extension(number: usize) -> isize {
    const YES: isize = 1;
    match u32::try_from(number).unwrap_or(0) {
        bindings::KVM_CAP_USER_MEMORY
        | bindings::KVM_CAP_SET_TSS_ADDR
        | bindings::KVM_CAP_EXT_CPUID
        | bindings::KVM_CAP_IMMEDIATE_EXIT
        | bindings::KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | bindings::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | bindings::KVM_CAP_SYNC_MMU
        | bindings::KVM_CAP_READONLY_MEM
        | bindings::KVM_CAP_SET_IDENTITY_MAP_ADDR
        | bindings::KVM_CAP_INTERNAL_ERROR_DATA
        | bindings::KVM_CAP_ENABLE_CAP_VM
        | bindings::KVM_CAP_BINARY_STATS_FD
        | bindings::KVM_CAP_CHECK_EXTENSION_VM
        | bindings::RUSTHV_CAP_GUEST_TICKS
        | bindings::RUSTHV_CAP_RIGHTS => YES,
        bindings::RUSTHV_CAP_INVERTED => inverted::VERSION,
        bindings::KVM_CAP_NR_VCPUS => (cpu::max_cpus().min(machines::MAX_VCPUS)) as isize,
        bindings::KVM_CAP_MAX_VCPUS => machines::MAX_VCPUS as isize,
        bindings::KVM_CAP_MAX_VCPU_ID => machines::MAX_VCPU_IDS as isize,
        bindings::KVM_CAP_NR_MEMSLOTS => crate::model::memory::slots::USER_SLOTS as isize,
        bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => crate::mmu::dirty::Manual::ALL as isize,
        bindings::RUSTHV_CAP_PAGING => 0b111,
        bindings::RUSTHV_CAP_DIRTY_TRACKING => dirty_tracking(),
        bindings::RUSTHV_CAP_EXTENSIONS => bindings::RUSTHV_EXTENSIONS_VERSION as isize,
        bindings::RUSTHV_CAP_NUMA_POLICY => vm::NUMA_POLICIES,
        bindings::RUSTHV_CAP_WIPE => vm::WIPE_MODES,
        bindings::RUSTHV_CAP_INTERCEPTS => vm::INTERCEPTS,
        _ => 0,
    }
}

/// A bit for each way to notice writes that the CPU has: the best one, and all below it.
fn dirty_tracking() -> isize {
    match PLATFORM.get().map(|platform| platform.notice()) {
        Ok(Notice::Fault) => 0b1,
        Ok(Notice::Flag) => 0b11,
        Ok(Notice::Log) => 0b111,
        Err(_) => 0,
    }
}

/// KVM API section 4.46.
#[inline(never)]
fn get_supported_cpuid(arg: usize) -> Result<isize> {
    // Count and padding, as one: a header that is cut off is a fault.
    let room = user::read::<u64>(arg)? as u32;
    if room == 0 {
        return Err(E2BIG);
    }
    let room = (room as usize).min(cpuid::MAX_ENTRIES);
    let entries = cpuid::supported(PLATFORM.get()?.caps(), room)?;
    let first = first_entry(arg)?;
    user::write_slice(first, &entries)?;
    user::write(arg, &(entries.len() as u32))?;
    Ok(0)
}

/// Address of the entries behind a `struct kvm_cpuid2`.
pub(crate) fn first_entry(arg: usize) -> Result<usize> {
    const HEADER: usize = core::mem::size_of::<bindings::kvm_cpuid2>();
    const _: () = assert!(HEADER % core::mem::align_of::<kvm_cpuid_entry2>() == 0);
    arg.checked_add(HEADER).ok_or(EFAULT)
}

#[inline(never)]
fn info(arg: usize) -> Result<isize> {
    let caps = PLATFORM.get()?.caps();
    let info = rusthv_info {
        present: caps.present,
        missing: caps.missing,
        revision: caps.revision,
        phys_bits: caps.phys_bits,
        reserved: [0; 5],
    };
    user::write(arg, &info).map(|()| 0)
}

#[inline(never)]
fn host_stats(arg: usize) -> Result<isize> {
    let (vms, vcpus) = machines::alive();
    let stats = rusthv_host_stats {
        frames_in_use: pool::in_use(),
        frames_pooled: pool::pooled(),
        vms,
        vcpus,
        frames_wiped: frame::WIPED.load(Relaxed),
        reserved: [0; 3],
    };
    user::write(arg, &stats).map(|()| 0)
}

#[inline(never)]
fn node_stats(arg: usize) -> Result<isize> {
    let asked = user::read::<rusthv_node_stats>(arg)?;
    let node = asked.node as usize;
    if asked.padding != 0 || node >= frame::max_nodes() {
        return Err(EINVAL);
    }
    let PoolCounts {
        hits,
        misses,
        shrunk,
    } = pool::POOLS.get()?.counts(node);
    let stats = rusthv_node_stats {
        node: asked.node,
        padding: 0,
        frames_in_use: pool::in_use_on(node),
        frames_pooled: pool::POOLED.on(node),
        pool_hits: hits,
        pool_misses: misses,
        pool_shrunk: shrunk,
        reserved: [0; 2],
    };
    user::write(arg, &stats).map(|()| 0)
}

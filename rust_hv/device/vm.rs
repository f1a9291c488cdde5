// SPDX-License-Identifier: GPL-2.0

//! The ioctls of a VM's file.

use super::check_extension;
use super::inverted;
use super::numbers::*;
use super::stats::VmStats;
use super::vcpu::VcpuFile;
use crate::host::bindings::{
    self, kvm_enable_cap, kvm_userspace_memory_region, rusthv_intercepts, rusthv_measurement,
    rusthv_numa_policy, rusthv_rights, rusthv_wipe,
};
use crate::host::errno::not_a_typewriter;
use crate::host::file::{install, FdObject};
use crate::host::frame::{NodeSet, Wipe};
use crate::host::supply::Policy;
use crate::host::user;
use crate::model::arch::addr::Gpa;
use crate::model::arch::intercept::{Intercepted, Numbers};
use crate::model::paging::Permissions;
use crate::vendor::Vendor;
use crate::vm::Vm;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// A VM's file.
pub struct VmFile<V: Vendor> {
    vm: Arc<Vm<V>>,
}

impl<V: Vendor> VmFile<V> {
    /// For a new VM.
    pub fn new(vm: Arc<Vm<V>>) -> Self {
        Self { vm }
    }
}

impl<V: Vendor> FdObject for VmFile<V> {
    const NAME: &'static CStr = c"rusthv-vm";

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        let vm = &this.vm;
        if !vm.is_ours() {
            return Err(EIO);
        }
        match cmd {
            KVM_CREATE_VCPU => {
                let vcpu = vm.create_vcpu(arg)?;
                let file = VcpuFile::new(vm.clone(), vcpu.clone());
                let fd = match Arc::new(file, GFP_KERNEL_ACCOUNT) {
                    Ok(file) => install(file),
                    Err(error) => Err(error.into()),
                };
                if fd.is_err() {
                    vm.remove_vcpu(&vcpu);
                }
                fd.map(|fd| fd as isize)
            }
            KVM_SET_USER_MEMORY_REGION => {
                let region: kvm_userspace_memory_region = user::read(arg)?;
                vm.set_memory_region(&region).map(|()| 0)
            }
            KVM_GET_DIRTY_LOG => {
                let (slot, bitmap) = user::read_dirty_log(arg)?;
                vm.dirty_log(slot, bitmap).map(|()| 0)
            }
            KVM_CLEAR_DIRTY_LOG => {
                let wanted = user::read_clear_log(arg)?;
                vm.clear_dirty_log(&wanted).map(|()| 0)
            }
            KVM_ENABLE_CAP => enable_cap(vm, arg),
            KVM_CHECK_EXTENSION => Ok(check_extension(arg)),
            // Where older CPUs need three pages of guest-physical memory for real mode. Ours run
            // it as it is; the address is checked and not used.
            KVM_SET_TSS_ADDR => set_tss_address(arg),
            KVM_SET_IDENTITY_MAP_ADDR if vm.has_vcpus() => Err(EINVAL),
            KVM_SET_IDENTITY_MAP_ADDR => user::read::<u64>(arg).map(|_| 0),
            KVM_GET_STATS_FD => {
                let file = Arc::new(VmStats::new((*vm).clone())?, GFP_KERNEL_ACCOUNT)?;
                install(file).map(|fd| fd as isize)
            }
            RUSTHV_GET_GPA => inverted::locate(vm, arg),
            RUSTHV_MEASURE => measure(vm, arg),
            RUSTHV_GET_PAGING_STATS => user::write(arg, &vm.paging_stats()).map(|()| 0),
            RUSTHV_SET_NUMA_POLICY => set_numa_policy(vm, arg),
            RUSTHV_SET_WIPE => set_wipe(vm, arg),
            RUSTHV_SET_INTERCEPTS => set_intercepts(vm, arg),
            RUSTHV_SET_RIGHTS => set_rights(vm, arg),
            RUSTHV_GET_VM_STATS => user::write(arg, &vm.stats()).map(|()| 0),
            _ => Err(not_a_typewriter()),
        }
    }
}

/// KVM API section 4.37, for a VM.
#[inline(never)]
fn enable_cap(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    let wanted: kvm_enable_cap = user::read(arg)?;
    let [value, more, ..] = wanted.args;
    match wanted.cap {
        _ if wanted.flags != 0 => Err(EINVAL),
        bindings::RUSTHV_CAP_PAGING => {
            if !matches!(wanted.args, [_, _, 0, 0]) {
                return Err(EINVAL);
            }
            let count = usize::try_from(more).map_err(|_| EINVAL)?;
            vm.choose_paging(value, count).map(|()| 0)
        }
        bindings::RUSTHV_CAP_GUEST_TICKS => {
            let [on @ (0 | 1), 0, 0, 0] = wanted.args else {
                return Err(EINVAL);
            };
            vm.count_guest_ticks(on == 1).map(|()| 0)
        }
        bindings::RUSTHV_CAP_DIRTY_TRACKING => {
            let [tracking, 0, 0, 0] = wanted.args else {
                return Err(EINVAL);
            };
            vm.choose_dirty_tracking(tracking).map(|()| 0)
        }
        bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => vm.set_manual_log(value).map(|()| 0),
        _ => Err(EINVAL),
    }
}

#[inline(never)]
fn measure(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    let mut measurement: rusthv_measurement = user::read(arg)?;
    if measurement.reserved != [0; 2] {
        return Err(EINVAL);
    }
    measurement.sha256 = vm.measure(Gpa::new(measurement.gpa), measurement.size)?;
    user::write(arg, &measurement).map(|()| 0)
}

/// A bit for each policy that there is.
pub(super) const NUMA_POLICIES: isize = 1 << bindings::RUSTHV_NUMA_LOCAL
    | 1 << bindings::RUSTHV_NUMA_BIND
    | 1 << bindings::RUSTHV_NUMA_INTERLEAVE;

#[inline(never)]
fn set_numa_policy(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    let asked: rusthv_numa_policy = user::read(arg)?;
    if asked.padding != 0 || asked.reserved != [0; 6] {
        return Err(EINVAL);
    }
    let nodes = NodeSet::from_bits(asked.nodes);
    let policy = match asked.policy {
        bindings::RUSTHV_NUMA_LOCAL if asked.nodes == 0 => Policy::Local,
        bindings::RUSTHV_NUMA_BIND => Policy::Bind(nodes),
        bindings::RUSTHV_NUMA_INTERLEAVE => Policy::Interleave(nodes),
        _ => return Err(EINVAL),
    };
    vm.set_numa_policy(policy).map(|()| 0)
}

/// A bit for each mode that there is.
pub(super) const WIPE_MODES: isize = 1 << bindings::RUSTHV_WIPE_NEVER
    | 1 << bindings::RUSTHV_WIPE_ZEROS
    | 1 << bindings::RUSTHV_WIPE_RANDOM;

#[inline(never)]
fn set_wipe(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    let asked: rusthv_wipe = user::read(arg)?;
    if asked.padding != 0 || asked.reserved != [0; 3] {
        return Err(EINVAL);
    }
    let wipe = match asked.mode {
        bindings::RUSTHV_WIPE_NEVER => Wipe::Never,
        bindings::RUSTHV_WIPE_ZEROS => Wipe::Zeros,
        bindings::RUSTHV_WIPE_RANDOM => Wipe::Random,
        _ => return Err(EINVAL),
    };
    vm.set_wipe(wipe).map(|()| 0)
}

/// A bit for each kind of access that there is.
pub(super) const INTERCEPTS: isize = 1 << bindings::RUSTHV_INTERCEPT_PORT
    | 1 << bindings::RUSTHV_INTERCEPT_MSR_READ
    | 1 << bindings::RUSTHV_INTERCEPT_MSR_WRITE;

#[inline(never)]
fn set_intercepts(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    let asked: rusthv_intercepts = user::read(arg)?;
    if asked.reserved != [0; 2] {
        return Err(EINVAL);
    }
    let what = match asked.what {
        bindings::RUSTHV_INTERCEPT_PORT => Intercepted::Port,
        bindings::RUSTHV_INTERCEPT_MSR_READ => Intercepted::MsrRead,
        bindings::RUSTHV_INTERCEPT_MSR_WRITE => Intercepted::MsrWrite,
        _ => return Err(EINVAL),
    };
    let exits = match asked.exits {
        0 => false,
        1 => true,
        _ => return Err(EINVAL),
    };
    let numbers = Numbers::new(asked.first, asked.count).ok_or(EINVAL)?;
    vm.set_intercepts(what, numbers, exits).map(|()| 0)
}

#[inline(never)]
fn set_rights(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    let asked: rusthv_rights = user::read(arg)?;
    let slot = u16::try_from(asked.slot).map_err(|_| EINVAL)?;
    // The bits are those of `RUSTHV_MAP_*`.
    let rights = Permissions::from_bits(asked.rights as u8);
    if asked.reserved != [0; 3] || u32::from(rights.bits()) != asked.rights {
        return Err(EINVAL);
    }
    vm.set_rights(slot, rights).map(|()| 0)
}

/// Three pages must fit below 4 GiB (KVM API section 4.36).
fn set_tss_address(address: usize) -> Result<isize> {
    const PAGES: usize = 3 << 12;
    if address > (1 << 32) - PAGES {
        return Err(EINVAL);
    }
    Ok(0)
}

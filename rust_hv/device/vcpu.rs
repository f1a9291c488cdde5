// SPDX-License-Identifier: GPL-2.0

//! The ioctls and the mapping of a vCPU's file.

use super::first_entry;
use super::inverted;
use super::numbers::*;
use super::stats::VcpuStats;
use crate::host::bindings::{
    kvm_cpuid_entry2, kvm_interrupt, kvm_regs, kvm_sregs, kvm_translation,
};
use crate::host::errno::not_a_typewriter;
use crate::host::file::{install, FdObject};
use crate::host::frame::Frame;
use crate::host::run_page::PAGES;
use crate::host::user;
use crate::model::arch::addr::{Gpa, Gva, PAGE_SIZE};
use crate::vcpu::cpuid::{Cpuid, MAX_ENTRIES};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::vm::Vm;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// Bytes of the mapping: `struct kvm_run`, then port I/O data.
pub const MMAP_SIZE: isize = PAGES as isize * PAGE_SIZE as isize;

/// A vCPU's file. It keeps the VM alive.
pub struct VcpuFile<V: Vendor> {
    vcpu: Arc<Vcpu<V>>,
    vm: Arc<Vm<V>>,
}

impl<V: Vendor> VcpuFile<V> {
    /// For a new vCPU of `vm`.
    pub fn new(vm: Arc<Vm<V>>, vcpu: Arc<Vcpu<V>>) -> Self {
        Self { vcpu, vm }
    }
}

impl<V: Vendor> FdObject for VcpuFile<V> {
    const NAME: &'static CStr = c"rusthv-vcpu";
    const MAPPABLE: bool = true;

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        if !this.vm.is_ours() {
            return Err(EIO);
        }
        let vcpu = &this.vcpu;
        match cmd {
            KVM_RUN => {
                if arg != 0 {
                    return Err(EINVAL);
                }
                vcpu.run()
            }
            KVM_GET_REGS => user::write(arg, &vcpu.regs()?).map(|()| 0),
            KVM_SET_REGS => {
                let regs: kvm_regs = user::read(arg)?;
                vcpu.set_regs(&regs).map(|()| 0)
            }
            KVM_GET_SREGS => user::write(arg, &vcpu.sregs()?).map(|()| 0),
            KVM_SET_SREGS => {
                let sregs: kvm_sregs = user::read(arg)?;
                vcpu.set_sregs(&sregs).map(|()| 0)
            }
            KVM_SET_CPUID2 => set_cpuid(vcpu, arg),
            KVM_TRANSLATE => translate(vcpu, arg),
            KVM_INTERRUPT => {
                let interrupt: kvm_interrupt = user::read(arg)?;
                vcpu.interrupt(interrupt.irq).map(|()| 0)
            }
            KVM_GET_STATS_FD => {
                let stats = VcpuStats::new(this.vm.clone(), vcpu.clone())?;
                install(Arc::new(stats, GFP_KERNEL_ACCOUNT)?).map(|fd| fd as isize)
            }
            RUSTHV_WALK => inverted::trace(vcpu, arg),
            RUSTHV_GET_VCPU_STATS => user::write(arg, &vcpu.counters().read()).map(|()| 0),
            _ => Err(not_a_typewriter()),
        }
    }

    fn page(&self, index: usize) -> Option<&Frame> {
        self.vcpu.page(index)
    }
}

/// `KVM_TRANSLATE`. What KVM does not work out is what KVM says of it always: writeable, and not of
/// user mode.
fn translate(vcpu: &Vcpu<impl Vendor>, arg: usize) -> Result<isize> {
    let mut translation: kvm_translation = user::read(arg)?;
    let found = vcpu.translate(Gva::new(translation.linear_address))?;
    translation.physical_address = found.map_or(u64::MAX, Gpa::raw);
    translation.valid = u8::from(found.is_some());
    translation.writeable = 1;
    translation.usermode = 0;
    user::write(arg, &translation).map(|()| 0)
}

/// `KVM_SET_CPUID2`, which is described with `KVM_GET_CPUID2` in the KVM API.
fn set_cpuid(vcpu: &Vcpu<impl Vendor>, arg: usize) -> Result<isize> {
    // Count and padding, as one: a header that is cut off is a fault.
    let count = user::read::<u64>(arg)? as u32 as usize;
    if count > MAX_ENTRIES {
        return Err(E2BIG);
    }
    let entries: KVec<kvm_cpuid_entry2> = user::read_slice(first_entry(arg)?, count)?;
    vcpu.set_cpuid(Cpuid::new(entries)).map(|()| 0)
}

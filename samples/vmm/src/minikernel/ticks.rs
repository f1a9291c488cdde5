// SPDX-License-Identifier: GPL-2.0
//! Ticks of the time-stamp counter that pass in guests, which rusthv counts if it is asked to; and how
//! many of those are not the guest's but the entry's and the exit's.

use std::path::Path;

use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::counters::Counters;
use crate::error::{Error, Result};
use crate::machine;

/// Of <rusthv.h>.
const RUSTHV_CAP_GUEST_TICKS: u32 = 0x5248_0019;

/// A guest that does nothing but exit: OUT, and JMP back to it.
const CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc];
const INSTRUCTIONS: u64 = 2;
/// The exits that count, after some on which the host gets ready.
const EXITS: u32 = 256;

/// Has the vCPUs to come of a VM count their ticks in the guest.
pub fn count(vm: &VmFd) -> Result<()> {
    let cap = kvm_enable_cap {
        cap: RUSTHV_CAP_GUEST_TICKS,
        args: [1, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(Error::ioctl("RUSTHV_CAP_GUEST_TICKS"))
}

/// How many ticks of an entry with its exit are counted as the guest's. `None` where the device does not
/// count them.
pub fn of_an_exit(device: &Path) -> Result<Option<u64>> {
    let kvm = machine::open(device)?;
    if kvm.check_extension_raw(RUSTHV_CAP_GUEST_TICKS.into()) <= 0 {
        return Ok(None);
    }
    let vm = kvm.create_vm().map_err(Error::ioctl("KVM_CREATE_VM"))?;
    count(&vm)?;
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).map_err(Error::memory)?;
    memory
        .write_slice(&CODE, GuestAddress(0))
        .map_err(Error::memory)?;
    machine::map_memory(&vm, &memory, |_| 0)?;
    let mut vcpu = vm.create_vcpu(0).map_err(Error::ioctl("KVM_CREATE_VCPU"))?;
    let mut regs = vcpu.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?;
    let mut sregs = vcpu.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?;
    (sregs.cs.base, sregs.cs.selector, regs.rip) = (0, 0, 0);
    vcpu.set_sregs(&sregs)
        .map_err(Error::ioctl("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))?;

    run(&mut vcpu)?;
    let before = counted(&vcpu);
    run(&mut vcpu)?;
    let now = counted(&vcpu);
    // In this order: the VM has the memory mapped.
    drop(vcpu);
    drop(vm);
    drop(memory);
    let ticks = now.guest_ticks - before.guest_ticks;
    // At least those to user space.
    let exits = (now.exits - before.exits).max(EXITS.into());
    Ok(Some((ticks / exits).saturating_sub(INSTRUCTIONS)))
}

fn counted(vcpu: &VcpuFd) -> Counters {
    let mut counters = Counters::default();
    counters.add_vcpu(vcpu);
    counters
}

fn run(vcpu: &mut VcpuFd) -> Result<()> {
    for _ in 0..EXITS {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => {}
            Ok(other) => return Err(Error::GuestDied(format!("unexpected exit {other:?}"))),
            Err(e) => return Err(Error::ioctl("KVM_RUN")(e)),
        }
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! ioctl numbers of the KVM UAPI (tier T0 and what the tests probe for), and the raw call.

use crate::errno::Errno;
use kvm_bindings::*;
use std::mem::size_of;
use std::os::fd::RawFd;

/// The type byte of KVM's ioctl numbers.
pub const KVMIO: u64 = 0xAE;

pub const fn io(kind: u64, number: u64) -> u64 {
    kind << 8 | number
}

pub const fn iow<T>(kind: u64, number: u64) -> u64 {
    1 << 30 | (size_of::<T>() as u64) << 16 | io(kind, number)
}

pub const fn ior<T>(kind: u64, number: u64) -> u64 {
    2 << 30 | (size_of::<T>() as u64) << 16 | io(kind, number)
}

pub const fn iowr<T>(kind: u64, number: u64) -> u64 {
    3 << 30 | (size_of::<T>() as u64) << 16 | io(kind, number)
}

// On the device.
pub const KVM_GET_API_VERSION: u64 = io(KVMIO, 0x00);
pub const KVM_CREATE_VM: u64 = io(KVMIO, 0x01);
pub const KVM_GET_MSR_INDEX_LIST: u64 = iowr::<kvm_msr_list>(KVMIO, 0x02);
pub const KVM_CHECK_EXTENSION: u64 = io(KVMIO, 0x03);
pub const KVM_GET_VCPU_MMAP_SIZE: u64 = io(KVMIO, 0x04);
pub const KVM_GET_SUPPORTED_CPUID: u64 = iowr::<kvm_cpuid2>(KVMIO, 0x05);

// On a VM.
pub const KVM_CREATE_VCPU: u64 = io(KVMIO, 0x41);
pub const KVM_GET_DIRTY_LOG: u64 = iow::<kvm_dirty_log>(KVMIO, 0x42);
pub const KVM_SET_USER_MEMORY_REGION: u64 = iow::<kvm_userspace_memory_region>(KVMIO, 0x46);
pub const KVM_SET_TSS_ADDR: u64 = io(KVMIO, 0x47);
pub const KVM_SET_IDENTITY_MAP_ADDR: u64 = iow::<u64>(KVMIO, 0x48);
pub const KVM_ENABLE_CAP: u64 = iow::<kvm_enable_cap>(KVMIO, 0xA3);
pub const KVM_CLEAR_DIRTY_LOG: u64 = iowr::<kvm_clear_dirty_log>(KVMIO, 0xC0);
pub const KVM_CREATE_IRQCHIP: u64 = io(KVMIO, 0x60);

// On a vCPU.
pub const KVM_RUN: u64 = io(KVMIO, 0x80);
pub const KVM_GET_REGS: u64 = ior::<kvm_regs>(KVMIO, 0x81);
pub const KVM_SET_REGS: u64 = iow::<kvm_regs>(KVMIO, 0x82);
pub const KVM_GET_SREGS: u64 = ior::<kvm_sregs>(KVMIO, 0x83);
pub const KVM_SET_SREGS: u64 = iow::<kvm_sregs>(KVMIO, 0x84);
pub const KVM_TRANSLATE: u64 = iowr::<kvm_translation>(KVMIO, 0x85);
pub const KVM_INTERRUPT: u64 = iow::<kvm_interrupt>(KVMIO, 0x86);
pub const KVM_SET_CPUID2: u64 = iow::<kvm_cpuid2>(KVMIO, 0x90);
/// Statistics in KVM's self-describing binary format, on a VM or a vCPU.
pub const KVM_GET_STATS_FD: u64 = io(KVMIO, 0xCE);

/// The raw system call.
///
/// # Safety
///
/// `argument` must be what `request` expects of this file: where the kernel writes through it,
/// nothing that Rust owns may be damaged. An invalid address is no danger, the kernel refuses it.
pub unsafe fn ioctl(fd: RawFd, request: u64, argument: u64) -> Result<i32, Errno> {
    // SAFETY: the caller's contract.
    Errno::check(unsafe { libc::ioctl(fd, request as libc::c_ulong as _, argument) })
}

// SPDX-License-Identifier: GPL-2.0

//! ioctl numbers of the KVM UAPI (what rusthv has of it, and what the tests probe for), the table of
//! all of rusthv's, and the raw call.

use crate::errno::Errno;
use crate::rusthv::*;
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

/// A kind of file that has ioctls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    Device,
    Vm,
    Vcpu,
}

/// An ioctl that rusthv has on a kind of file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ioctl {
    pub name: &'static str,
    pub request: u64,
    pub on: FileKind,
}

impl Ioctl {
    /// Bytes of the structure that the argument is the address of; 0 where it is a number, or nothing.
    pub const fn size(&self) -> usize {
        (self.request >> 16 & 0x3FFF) as usize
    }

    /// The number says that the kernel reads the structure.
    pub const fn is_read(&self) -> bool {
        self.request >> 30 & 1 != 0
    }

    /// The number says that the kernel writes the structure.
    pub const fn is_written(&self) -> bool {
        self.request >> 31 & 1 != 0
    }

    /// It is one of KVM's.
    pub const fn is_kvms(&self) -> bool {
        self.request >> 8 & 0xFF == KVMIO
    }

    /// What it returns is a new file descriptor.
    pub const fn makes_file(&self) -> bool {
        matches!(self.request, KVM_CREATE_VM | KVM_CREATE_VCPU | KVM_GET_STATS_FD)
    }
}

macro_rules! ioctls {
    ($($on:ident: $($name:ident),+;)+) => {
        &[$($(Ioctl { name: stringify!($name), request: $name, on: FileKind::$on },)+)+]
    };
}

/// Every ioctl that rusthv has, once for each kind of file that has it. `tests/uapi.rs` compares it with
/// the module's own numbers and with the C headers: a new ioctl that is not here fails there.
pub const IOCTLS: &[Ioctl] = ioctls! {
    Device:
        KVM_GET_API_VERSION,
        KVM_CREATE_VM,
        KVM_CHECK_EXTENSION,
        KVM_GET_VCPU_MMAP_SIZE,
        KVM_GET_SUPPORTED_CPUID,
        RUSTHV_GET_INFO,
        RUSTHV_GET_HOST_STATS,
        RUSTHV_GET_NODE_STATS,
        RUSTHV_GET_FRAME,
        RUSTHV_UNMAP_FRAME;
    Vm:
        KVM_CHECK_EXTENSION,
        KVM_CREATE_VCPU,
        KVM_GET_DIRTY_LOG,
        KVM_SET_USER_MEMORY_REGION,
        KVM_SET_TSS_ADDR,
        KVM_SET_IDENTITY_MAP_ADDR,
        KVM_ENABLE_CAP,
        KVM_CLEAR_DIRTY_LOG,
        KVM_GET_STATS_FD,
        RUSTHV_GET_VM_STATS,
        RUSTHV_GET_PAGING_STATS,
        RUSTHV_MEASURE,
        RUSTHV_SET_NUMA_POLICY,
        RUSTHV_SET_WIPE,
        RUSTHV_SET_INTERCEPTS,
        RUSTHV_SET_RIGHTS,
        RUSTHV_GET_GPA;
    Vcpu:
        KVM_RUN,
        KVM_GET_REGS,
        KVM_SET_REGS,
        KVM_GET_SREGS,
        KVM_SET_SREGS,
        KVM_TRANSLATE,
        KVM_INTERRUPT,
        KVM_SET_CPUID2,
        KVM_GET_STATS_FD,
        RUSTHV_GET_VCPU_STATS,
        RUSTHV_WALK;
};

/// Whether that kind of file has the ioctl.
pub fn is_on(request: u64, on: FileKind) -> bool {
    IOCTLS.iter().any(|one| one.request == request && one.on == on)
}

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

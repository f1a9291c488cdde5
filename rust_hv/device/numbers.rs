// SPDX-License-Identifier: GPL-2.0

//! ioctl numbers, made from the structures that they carry.
//!
//! bindgen cannot evaluate the `_IOR` family of macros, so the encoding is applied here to the
//! type letters and structures that it does generate.

use crate::host::bindings::{
    kvm_clear_dirty_log, kvm_cpuid2, kvm_dirty_log, kvm_enable_cap, kvm_interrupt, kvm_regs,
    kvm_sregs, kvm_translation, kvm_userspace_memory_region, rusthv_frame, rusthv_gpa,
    rusthv_host_stats, rusthv_info, rusthv_intercepts, rusthv_measurement, rusthv_node_stats,
    rusthv_numa_policy, rusthv_paging_stats, rusthv_rights, rusthv_unmap, rusthv_vcpu_stats,
    rusthv_vm_stats, rusthv_walk, rusthv_wipe, KVMIO, RUSTHV_IO,
};
use kernel::ioctl::{_IO, _IOR, _IOW, _IOWR};

macro_rules! numbers {
    ($($name:ident = $value:expr;)*) => {$(
        #[allow(missing_docs)]
        pub const $name: u32 = $value;
    )*};
}

numbers! {
    KVM_GET_API_VERSION = _IO(KVMIO, 0x00);
    KVM_CREATE_VM = _IO(KVMIO, 0x01);
    KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03);
    KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04);
    KVM_GET_SUPPORTED_CPUID = _IOWR::<kvm_cpuid2>(KVMIO, 0x05);

    KVM_CREATE_VCPU = _IO(KVMIO, 0x41);
    KVM_GET_DIRTY_LOG = _IOW::<kvm_dirty_log>(KVMIO, 0x42);
    KVM_SET_USER_MEMORY_REGION = _IOW::<kvm_userspace_memory_region>(KVMIO, 0x46);
    KVM_SET_TSS_ADDR = _IO(KVMIO, 0x47);
    KVM_SET_IDENTITY_MAP_ADDR = _IOW::<u64>(KVMIO, 0x48);
    KVM_ENABLE_CAP = _IOW::<kvm_enable_cap>(KVMIO, 0xa3);
    KVM_CLEAR_DIRTY_LOG = _IOWR::<kvm_clear_dirty_log>(KVMIO, 0xc0);

    KVM_RUN = _IO(KVMIO, 0x80);
    KVM_GET_REGS = _IOR::<kvm_regs>(KVMIO, 0x81);
    KVM_SET_REGS = _IOW::<kvm_regs>(KVMIO, 0x82);
    KVM_GET_SREGS = _IOR::<kvm_sregs>(KVMIO, 0x83);
    KVM_SET_SREGS = _IOW::<kvm_sregs>(KVMIO, 0x84);
    KVM_TRANSLATE = _IOWR::<kvm_translation>(KVMIO, 0x85);
    KVM_INTERRUPT = _IOW::<kvm_interrupt>(KVMIO, 0x86);
    KVM_SET_CPUID2 = _IOW::<kvm_cpuid2>(KVMIO, 0x90);

    KVM_GET_STATS_FD = _IO(KVMIO, 0xce);

    RUSTHV_GET_INFO = _IOR::<rusthv_info>(RUSTHV_IO, 0x00);
    RUSTHV_GET_HOST_STATS = _IOR::<rusthv_host_stats>(RUSTHV_IO, 0x01);
    RUSTHV_GET_NODE_STATS = _IOWR::<rusthv_node_stats>(RUSTHV_IO, 0x02);
    RUSTHV_GET_PAGING_STATS = _IOR::<rusthv_paging_stats>(RUSTHV_IO, 0x50);
    RUSTHV_GET_VM_STATS = _IOR::<rusthv_vm_stats>(RUSTHV_IO, 0x40);
    RUSTHV_SET_NUMA_POLICY = _IOW::<rusthv_numa_policy>(RUSTHV_IO, 0x56);
    RUSTHV_SET_WIPE = _IOW::<rusthv_wipe>(RUSTHV_IO, 0x57);
    RUSTHV_SET_INTERCEPTS = _IOW::<rusthv_intercepts>(RUSTHV_IO, 0x58);
    RUSTHV_SET_RIGHTS = _IOW::<rusthv_rights>(RUSTHV_IO, 0x59);
    RUSTHV_MEASURE = _IOWR::<rusthv_measurement>(RUSTHV_IO, 0x41);
    RUSTHV_GET_VCPU_STATS = _IOR::<rusthv_vcpu_stats>(RUSTHV_IO, 0x80);

    RUSTHV_GET_FRAME = _IOWR::<rusthv_frame>(RUSTHV_IO, 0xd0);
    RUSTHV_GET_GPA = _IOWR::<rusthv_gpa>(RUSTHV_IO, 0xd1);
    RUSTHV_WALK = _IOWR::<rusthv_walk>(RUSTHV_IO, 0xd2);
    RUSTHV_UNMAP_FRAME = _IOWR::<rusthv_unmap>(RUSTHV_IO, 0xd3);
}

// SPDX-License-Identifier: GPL-2.0
//! What rusthv has counted of a run: exits by reason, and tables. Other devices count nothing here.

use std::os::fd::AsRawFd;

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_ior_nr;

/// Of <rusthv.h>.
const RUSTHV_IO: u32 = 0xB9;
const VM_STATS: usize = 16;
const PAGING_STATS: usize = 16;
const VCPU_STATS: usize = 24;
const FRAMES_PER_SHADOW: u64 = 3;

ioctl_ior_nr!(RUSTHV_GET_VM_STATS, RUSTHV_IO, 0x40, [u64; VM_STATS]);
ioctl_ior_nr!(
    RUSTHV_GET_PAGING_STATS,
    RUSTHV_IO,
    0x50,
    [u64; PAGING_STATS]
);
ioctl_ior_nr!(RUSTHV_GET_VCPU_STATS, RUSTHV_IO, 0x80, [u64; VCPU_STATS]);

/// Counters of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub exits: u64,
    pub nested_faults: u64,
    pub page_faults: u64,
    pub invalidations: u64,
    pub control_registers: u64,
    pub table_writes: u64,
    /// 4 KiB frames in page tables at the end.
    pub table_frames: u64,
    pub root_hits: u64,
    pub root_misses: u64,
}

impl Counters {
    pub const NAMES: [&'static str; 9] = [
        "vmexits", "nested", "pf", "invlpg", "cr", "twrites", "frames", "hits", "misses",
    ];

    pub fn values(&self) -> [u64; 9] {
        [
            self.exits,
            self.nested_faults,
            self.page_faults,
            self.invalidations,
            self.control_registers,
            self.table_writes,
            self.table_frames,
            self.root_hits,
            self.root_misses,
        ]
    }

    /// Adds what a vCPU has counted.
    pub fn add_vcpu(&mut self, vcpu: &VcpuFd) {
        let stats = read::<VCPU_STATS>(vcpu, RUSTHV_GET_VCPU_STATS());
        self.exits += stats[0];
        self.nested_faults += stats[3];
        self.control_registers += stats[7];
        self.page_faults += stats[12];
        self.invalidations += stats[13];
        self.table_writes += stats[14];
    }

    /// Adds what the VM has counted.
    pub fn add_vm(&mut self, vm: &VmFd) {
        let paging = read::<PAGING_STATS>(vm, RUSTHV_GET_PAGING_STATS());
        self.root_hits += paging[4];
        self.root_misses += paging[5];
        let [frames, ..] = read::<VM_STATS>(vm, RUSTHV_GET_VM_STATS());
        self.table_frames += match paging[0] {
            0 => frames,
            _ => paging[1] * FRAMES_PER_SHADOW,
        };
    }
}

/// Zeroes, where the device does not know the request.
fn read<const N: usize>(fd: &impl AsRawFd, request: libc::c_ulong) -> [u64; N] {
    let mut stats = [0; N];
    // SAFETY: the request's number says how much is written, and there is room for it.
    if unsafe { ioctl_with_mut_ref(fd, request, &mut stats) } == 0 {
        stats
    } else {
        [0; N]
    }
}

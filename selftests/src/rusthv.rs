// SPDX-License-Identifier: GPL-2.0

//! The extension ioctls, as `rust_hv/uapi/rusthv.h` declares them.
//!
//! `tests/uapi.rs` compiles that header and compares sizes, offsets and numbers.

use crate::device::{Device, Vcpu, Vm};
use crate::errno::Errno;
use crate::ioctl::{ior, iow, iowr};
use std::ptr;

pub const RUSTHV_IO: u64 = 0xB9;
pub const RUSTHV_CAP_EXTENSIONS: u32 = 0x5248_0000;
/// How a VM's memory is virtualized.
pub const CAP_PAGING: u32 = 0x5248_0001;
pub const PAGING_NESTED: u32 = 0;
pub const PAGING_SHADOW: u32 = 1;
pub const PAGING_TRAP: u32 = 2;
pub const RUSTHV_EXTENSIONS_VERSION: i32 = 3;

/// What the processor offers of the features that rusthv knows by name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Info {
    pub present: u64,
    pub missing: u64,
    pub revision: u32,
    pub phys_bits: u32,
    pub reserved: [u64; 5],
}

/// What the module holds of the host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostStats {
    pub frames_in_use: u64,
    pub frames_pooled: u64,
    pub vms: u64,
    pub vcpus: u64,
    pub frames_wiped: u64,
    pub reserved: [u64; 3],
}

/// What of that is on one NUMA node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeStats {
    pub node: u32,
    pub padding: u32,
    pub frames_in_use: u64,
    pub frames_pooled: u64,
    pub pool_hits: u64,
    pub pool_misses: u64,
    pub pool_shrunk: u64,
    pub reserved: [u64; 2],
}

/// What a VM's paging mode has done.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PagingStats {
    pub mode: u64,
    pub shadow_tables: u64,
    pub mapped_4k: u64,
    pub mapped_2m: u64,
    pub root_hits: u64,
    pub root_misses: u64,
    pub evictions: u64,
    pub loosened: u64,
    pub compared: u64,
    pub changed: u64,
    pub released: u64,
    pub reserved: [u64; 5],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VmStats {
    pub table_frames: u64,
    pub mapped_4k: u64,
    pub mapped_2m: u64,
    pub flushes: u64,
    pub flush_ipis: u64,
    pub invept: u64,
    pub unmap_notifications: u64,
    pub fault_retries: u64,
    pub id: u64,
    pub mapped_1g: u64,
    pub reserved: [u64; 6],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VcpuStats {
    pub exits: u64,
    pub io: u64,
    pub mmio: u64,
    pub ept_faults: u64,
    pub cpuid: u64,
    pub hlt: u64,
    pub msr: u64,
    pub cr: u64,
    pub interrupts: u64,
    pub exceptions: u64,
    pub other: u64,
    pub user_exits: u64,
    pub page_faults: u64,
    pub invalidations: u64,
    pub table_writes: u64,
    pub node_moves: u64,
    pub guest_ticks: u64,
    pub reserved: [u64; 7],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measurement {
    pub gpa: u64,
    pub size: u64,
    pub sha256: [u8; 32],
    pub reserved: [u64; 2],
}

/// Which NUMA nodes a VM's frames come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NumaPolicy {
    pub policy: u32,
    pub padding: u32,
    pub nodes: u64,
    pub reserved: [u64; 6],
}

/// What becomes of what a VM's frames hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wipe {
    pub mode: u32,
    pub padding: u32,
    pub reserved: [u64; 3],
}

pub const RUSTHV_CAP_NUMA_POLICY: u32 = 0x5248_0015;
pub const RUSTHV_CAP_WIPE: u32 = 0x5248_0016;
pub const RUSTHV_NUMA_LOCAL: u32 = 0;
pub const RUSTHV_NUMA_BIND: u32 = 1;
pub const RUSTHV_NUMA_INTERLEAVE: u32 = 2;
pub const RUSTHV_WIPE_NEVER: u32 = 0;
pub const RUSTHV_WIPE_ZEROS: u32 = 1;
pub const RUSTHV_WIPE_RANDOM: u32 = 2;
pub const RUSTHV_SET_NUMA_POLICY: u64 = iow::<NumaPolicy>(RUSTHV_IO, 0x56);
pub const RUSTHV_CAP_INTERCEPTS: u32 = 0x5248_0017;
pub const RUSTHV_CAP_RIGHTS: u32 = 0x5248_0018;
pub const RUSTHV_CAP_GUEST_TICKS: u32 = 0x5248_0019;
pub const RUSTHV_CAP_DIRTY_TRACKING: u32 = 0x5248_001a;
pub const RUSTHV_TRACK_FAULTS: u32 = 0;
pub const RUSTHV_TRACK_FLAGS: u32 = 1;
pub const RUSTHV_TRACK_LOG: u32 = 2;
pub const RUSTHV_INTERCEPT_PORT: u32 = 0;
pub const RUSTHV_INTERCEPT_MSR_READ: u32 = 1;
pub const RUSTHV_INTERCEPT_MSR_WRITE: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Intercepts {
    pub what: u32,
    pub first: u32,
    pub count: u32,
    pub exits: u32,
    pub reserved: [u64; 2],
}

/// What guests may do with a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rights {
    pub slot: u32,
    pub rights: u32,
    pub reserved: [u64; 3],
}

pub const RUSTHV_SET_RIGHTS: u64 = iow::<Rights>(RUSTHV_IO, 0x59);
pub const RUSTHV_SET_INTERCEPTS: u64 = iow::<Intercepts>(RUSTHV_IO, 0x58);
pub const RUSTHV_SET_WIPE: u64 = iow::<Wipe>(RUSTHV_IO, 0x57);

pub const RUSTHV_GET_INFO: u64 = ior::<Info>(RUSTHV_IO, 0x00);
pub const RUSTHV_GET_HOST_STATS: u64 = ior::<HostStats>(RUSTHV_IO, 0x01);
pub const RUSTHV_GET_NODE_STATS: u64 = iowr::<NodeStats>(RUSTHV_IO, 0x02);
pub const RUSTHV_GET_VM_STATS: u64 = ior::<VmStats>(RUSTHV_IO, 0x40);
pub const RUSTHV_GET_PAGING_STATS: u64 = ior::<PagingStats>(RUSTHV_IO, 0x50);
pub const RUSTHV_MEASURE: u64 = iowr::<Measurement>(RUSTHV_IO, 0x41);
pub const RUSTHV_GET_VCPU_STATS: u64 = ior::<VcpuStats>(RUSTHV_IO, 0x80);

impl Device {
    /// True where the extensions of this file are there.
    pub fn has_extensions(&self) -> bool {
        self.check_extension(RUSTHV_CAP_EXTENSIONS).is_ok_and(|version| version > 0)
    }

    pub fn info(&self) -> Result<Info, Errno> {
        let mut info = Info::default();
        self.ioctl(RUSTHV_GET_INFO, ptr::from_mut(&mut info) as u64)?;
        Ok(info)
    }

    pub fn host_stats(&self) -> Result<HostStats, Errno> {
        let mut stats = HostStats::default();
        self.ioctl(RUSTHV_GET_HOST_STATS, ptr::from_mut(&mut stats) as u64)?;
        Ok(stats)
    }

    pub fn node_stats(&self, node: u32) -> Result<NodeStats, Errno> {
        let mut stats = NodeStats { node, ..Default::default() };
        self.ioctl(RUSTHV_GET_NODE_STATS, ptr::from_mut(&mut stats) as u64)?;
        Ok(stats)
    }
}

impl Vm {
    /// What the VM's paging mode has done.
    pub fn paging_stats(&self) -> Result<PagingStats, Errno> {
        let mut stats = PagingStats::default();
        self.ioctl(RUSTHV_GET_PAGING_STATS, ptr::from_mut(&mut stats) as u64)?;
        Ok(stats)
    }

    pub fn stats(&self) -> Result<VmStats, Errno> {
        let mut stats = VmStats::default();
        self.ioctl(RUSTHV_GET_VM_STATS, ptr::from_mut(&mut stats) as u64)?;
        Ok(stats)
    }
}

impl Vm {
    /// The SHA-256 of guest memory.
    pub fn measure(&self, gpa: u64, size: u64) -> Result<[u8; 32], Errno> {
        let mut measurement = Measurement { gpa, size, ..Default::default() };
        self.ioctl(RUSTHV_MEASURE, ptr::from_mut(&mut measurement) as u64)?;
        Ok(measurement.sha256)
    }
}

impl Vm {
    pub fn set_numa_policy(&self, policy: u32, nodes: u64) -> Result<i32, Errno> {
        let policy = NumaPolicy { policy, nodes, ..Default::default() };
        self.ioctl(RUSTHV_SET_NUMA_POLICY, ptr::from_ref(&policy) as u64)
    }

    pub fn set_intercepts(&self, what: u32, first: u32, count: u32, exits: u32) -> Result<i32, Errno> {
        let wanted = Intercepts { what, first, count, exits, ..Default::default() };
        self.ioctl(RUSTHV_SET_INTERCEPTS, ptr::from_ref(&wanted) as u64)
    }

    /// `rights` are `RUSTHV_MAP_*`.
    pub fn set_rights(&self, slot: u32, rights: u32) -> Result<i32, Errno> {
        let rights = Rights { slot, rights, ..Default::default() };
        self.ioctl(RUSTHV_SET_RIGHTS, ptr::from_ref(&rights) as u64)
    }

    pub fn set_wipe(&self, mode: u32) -> Result<i32, Errno> {
        let wipe = Wipe { mode, ..Default::default() };
        self.ioctl(RUSTHV_SET_WIPE, ptr::from_ref(&wipe) as u64)
    }
}

impl Vcpu {
    pub fn stats(&self) -> Result<VcpuStats, Errno> {
        let mut stats = VcpuStats::default();
        self.ioctl(RUSTHV_GET_VCPU_STATS, ptr::from_mut(&mut stats) as u64)?;
        Ok(stats)
    }
}

/// A mapping of a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Owner {
    pub vm: u64,
    pub gpa: u64,
    pub pid: u32,
    pub page_shift: u32,
    pub flags: u32,
    pub mode: u32,
}

/// Who has a frame mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Frame {
    pub hpa: u64,
    pub first: u32,
    pub count: u32,
    pub total: u64,
    pub kind: u32,
    pub node: i32,
    pub owners: [Owner; 8],
    pub reserved: [u64; 4],
}

/// A frame that is unmapped from all guests.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unmap {
    pub hpa: u64,
    pub unmapped: u64,
    pub reserved: [u64; 6],
}

/// Where a guest-physical address is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpaInfo {
    pub gpa: u64,
    pub hva: u64,
    pub hpa: u64,
    pub slot: u32,
    pub page_shift: u32,
    pub flags: u32,
    pub mode: u32,
    pub kind: u32,
    pub node: i32,
    pub owners: u64,
    pub reserved: [u64; 4],
}

/// An entry that a walk has met.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WalkEntry {
    pub table: u32,
    pub level: u32,
    pub address: u64,
    pub entry: u64,
}

/// A linear address, level by level.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Walk {
    pub gva: u64,
    pub access: u32,
    pub result: u32,
    pub gpa: u64,
    pub hpa: u64,
    pub error_code: u32,
    pub count: u32,
    pub entries: [WalkEntry; 12],
    pub reserved: [u64; 4],
}

/// Nested entries that allow fetches alone: RUSTHV_FEAT_EPT_EXEC_ONLY.
pub const FEAT_EPT_EXEC_ONLY: u64 = 1 << 6;
/// Page-modification logging: RUSTHV_FEAT_PML.
pub const FEAT_PML: u64 = 1 << 13;
/// 1 GiB pages in nested tables, of either vendor: RUSTHV_FEAT_EPT_1G, RUSTHV_FEAT_NPT_1G.
pub const FEAT_1G: u64 = 1 << 4 | 1 << 21;
pub const RUSTHV_CAP_INVERTED: u32 = 0x5248_000b;
pub const RUSTHV_MAP_READ: u32 = 1 << 0;
pub const RUSTHV_MAP_WRITE: u32 = 1 << 1;
pub const RUSTHV_MAP_EXEC: u32 = 1 << 2;
pub const RUSTHV_PAGE_PRIVATE: u32 = 0;
pub const RUSTHV_PAGE_ZERO: u32 = 3;
pub const RUSTHV_PAGE_SHARED: u32 = 4;
/// How guests are paged, as an owner tells.
pub const RUSTHV_MODE_EPT: u32 = 0;
pub const RUSTHV_MODE_NPT: u32 = 1;
pub const RUSTHV_MODE_SHADOW: u32 = 2;
pub const RUSTHV_MODE_TRAP: u32 = 3;
/// Whose entry a walk has met.
pub const RUSTHV_TABLE_GUEST: u32 = 0;
pub const RUSTHV_TABLE_NESTED: u32 = 1;
pub const RUSTHV_TABLE_SHADOW: u32 = 2;
pub const RUSTHV_WALK_DONE: u32 = 0;
pub const RUSTHV_WALK_NOT_CANONICAL: u32 = 1;
pub const RUSTHV_WALK_PAGE_FAULT: u32 = 2;
pub const RUSTHV_WALK_NO_TABLE: u32 = 3;
pub const RUSTHV_WALK_NOT_MAPPED: u32 = 4;

pub const RUSTHV_GET_FRAME: u64 = iowr::<Frame>(RUSTHV_IO, 0xd0);
pub const RUSTHV_GET_GPA: u64 = iowr::<GpaInfo>(RUSTHV_IO, 0xd1);
pub const RUSTHV_WALK: u64 = iowr::<Walk>(RUSTHV_IO, 0xd2);
pub const RUSTHV_UNMAP_FRAME: u64 = iowr::<Unmap>(RUSTHV_IO, 0xd3);

impl Device {
    /// Who has a frame mapped, after the first owners.
    pub fn frame(&self, hpa: u64, first: u32) -> Result<Frame, Errno> {
        let mut frame = Frame { hpa, first, ..Default::default() };
        self.ioctl(RUSTHV_GET_FRAME, ptr::from_mut(&mut frame) as u64)?;
        Ok(frame)
    }

    /// Unmaps a frame from all guests; how many mappings there were.
    pub fn unmap_frame(&self, hpa: u64) -> Result<u64, Errno> {
        let mut unmap = Unmap { hpa, ..Default::default() };
        self.ioctl(RUSTHV_UNMAP_FRAME, ptr::from_mut(&mut unmap) as u64)?;
        Ok(unmap.unmapped)
    }
}

impl Vm {
    /// Where a guest-physical address is.
    pub fn locate(&self, gpa: u64) -> Result<GpaInfo, Errno> {
        let mut info = GpaInfo { gpa, ..Default::default() };
        self.ioctl(RUSTHV_GET_GPA, ptr::from_mut(&mut info) as u64)?;
        Ok(info)
    }
}

impl Vcpu {
    /// Where an access to a linear address goes: 0 a read, 1 a write, 2 a fetch.
    pub fn walk(&self, gva: u64, access: u32) -> Result<Walk, Errno> {
        let mut walk = Walk { gva, access, ..Default::default() };
        self.ioctl(RUSTHV_WALK, ptr::from_mut(&mut walk) as u64)?;
        Ok(walk)
    }
}

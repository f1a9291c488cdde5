// SPDX-License-Identifier: GPL-2.0
//! What the device has counted of a run: exits by reason, and tables. rusthv has requests for that;
//! of KVM there are its statistics file, which lacks some, and what the host says of its memory.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr};

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

/// Of <linux/kvm.h>.
const KVM_IO: u32 = 0xAE;
ioctl_io_nr!(KVM_GET_STATS_FD, KVM_IO, 0xCE);
/// More than such a file has.
const STATS_FILE: usize = 64 << 10;
const STATS_HEADER: usize = 24;
/// What stands before the name in a descriptor.
const STATS_DESCRIPTOR: usize = 16;

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
    /// Of the time-stamp counter, in the guest: with the entries and exits, where the device counts them.
    pub guest_ticks: u64,
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
        let Some(stats) = read::<VCPU_STATS>(vcpu, RUSTHV_GET_VCPU_STATS()) else {
            let stats = Statistics::of(vcpu);
            self.exits += stats.get("exits");
            self.invalidations += stats.get("invlpg");
            let faults = stats.get("pf_taken");
            if kvm_nests() {
                self.nested_faults += faults;
            } else {
                self.page_faults += faults;
            }
            return;
        };
        self.exits += stats[0];
        self.nested_faults += stats[3];
        self.control_registers += stats[7];
        self.page_faults += stats[12];
        self.invalidations += stats[13];
        self.table_writes += stats[14];
        self.guest_ticks += stats[16];
    }

    /// Adds what the VM has counted.
    pub fn add_vm(&mut self, vm: &VmFd) {
        let (Some(paging), Some(stats)) = (
            read::<PAGING_STATS>(vm, RUSTHV_GET_PAGING_STATS()),
            read::<VM_STATS>(vm, RUSTHV_GET_VM_STATS()),
        ) else {
            self.table_writes += Statistics::of(vm).get("mmu_pte_write");
            self.table_frames += secondary_tables();
            return;
        };
        self.root_hits += paging[4];
        self.root_misses += paging[5];
        self.table_frames += match paging[0] {
            0 => stats[0],
            _ => paging[1] * FRAMES_PER_SHADOW,
        };
    }
}

/// `None`, where the device does not know the request.
fn read<const N: usize>(fd: &impl AsRawFd, request: libc::c_ulong) -> Option<[u64; N]> {
    let mut stats = [0; N];
    // SAFETY: the request's number says how much is written, and there is room for it.
    let result = unsafe { ioctl_with_mut_ref(fd, request, &mut stats) };
    (result == 0).then_some(stats)
}

/// Whether KVM, where it is loaded, has guests' memory translated by nested tables.
fn kvm_nests() -> bool {
    ["kvm_intel/parameters/ept", "kvm_amd/parameters/npt"]
        .iter()
        .filter_map(|name| fs::read_to_string(format!("/sys/module/{name}")).ok())
        .any(|value| value.starts_with(['Y', '1']))
}

/// The host's count of 4 KiB frames in page tables of virtual machines, whosoever they are.
fn secondary_tables() -> u64 {
    // Each CPU keeps some of the count to itself until it is asked. Without the right to ask, it
    // is off by these.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("SecPageTables:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib / 4)
}

/// KVM's statistics file, as it was read.
#[derive(Default)]
struct Statistics(Vec<u8>);

impl Statistics {
    /// Empty, where the device has none.
    fn of(fd: &impl AsRawFd) -> Self {
        // SAFETY: the request takes no argument.
        let file = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
        if file < 0 {
            return Self::default();
        }
        // SAFETY: the file is new, and nobody else's.
        let file = unsafe { fs::File::from_raw_fd(file) };
        let mut bytes = vec![0; STATS_FILE];
        let length = file.read_at(&mut bytes, 0).unwrap_or(0);
        bytes.truncate(length);
        Self(bytes)
    }

    fn u32(&self, at: usize) -> Option<usize> {
        let bytes = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    }

    /// The first number of the statistic with that name, or 0.
    fn get(&self, name: &str) -> u64 {
        self.find(name).unwrap_or(0)
    }

    fn find(&self, name: &str) -> Option<u64> {
        let (name_size, count) = (self.u32(4)?, self.u32(8)?);
        let (descriptors, data) = (self.u32(16)?, self.u32(20)?);
        let all = self.0.get(descriptors.max(STATS_HEADER)..)?;
        let found = all
            .chunks_exact(STATS_DESCRIPTOR.checked_add(name_size)?)
            .take(count)
            .find(|descriptor| {
                let text = &descriptor[STATS_DESCRIPTOR..];
                text.strip_prefix(name.as_bytes())
                    .is_some_and(|rest| rest.first().is_none_or(|end| *end == 0))
            })?;
        let offset = u32::from_le_bytes(found[8..12].try_into().ok()?) as usize;
        let at = data.checked_add(offset)?;
        let bytes = self.0.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with two statistics whose names begin alike.
    fn file() -> Vec<u8> {
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let mut file = words(&[0, 8, 2, 24, 24, 72]);
        for (name, offset) in [(*b"exits_x\0", 0), (*b"exits\0\0\0", 8)] {
            file.extend(words(&[0, 1 << 16, offset, 0]));
            file.extend(name);
        }
        file.extend(7_u64.to_le_bytes());
        file.extend(0x1_0000_0009_u64.to_le_bytes());
        file
    }

    #[test]
    fn statistics_are_found_by_their_whole_names() {
        let stats = Statistics(file());
        assert_eq!(stats.get("exits_x"), 7);
        assert_eq!(stats.get("exits"), 0x1_0000_0009);
        assert_eq!(stats.get("exit"), 0);
    }

    #[test]
    fn a_short_statistics_file_has_zeroes() {
        let file = file();
        for length in 0..file.len() {
            assert_eq!(Statistics(file[..length].to_vec()).get("exits"), 0);
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! How many VM exits a vCPU has had: rusthv's own counters, or KVM's binary statistics.

use crate::device::{Device, Vcpu};
use crate::errno::Errno;
use crate::ioctl::KVM_GET_STATS_FD;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

/// All exits since the vCPU was made, where the device tells.
pub fn count(device: &Device, vcpu: &Vcpu) -> Option<u64> {
    if device.has_extensions() {
        vcpu.stats().ok().map(|stats| stats.exits)
    } else {
        kvm_statistic(vcpu, "exits").ok().flatten()
    }
}

/// One value of KVM's self-describing statistics (Documentation/virt/kvm/api.rst, 4.133).
fn kvm_statistic(vcpu: &Vcpu, name: &str) -> Result<Option<u64>, Errno> {
    let fd = vcpu.ioctl(KVM_GET_STATS_FD, 0)?;
    // SAFETY: the descriptor is new, so it is ours.
    let file = unsafe { File::from_raw_fd(fd) };
    let read = |offset: u64, length: usize| -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map_err(|_| Errno::EIO)?;
        Ok(bytes)
    };
    let word = |bytes: &[u8], index: usize| {
        bytes[4 * index..4 * index + 4].iter().rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte))
    };
    // The header: flags, size of a name, number of descriptors, offsets of id, descriptors, data.
    let header = read(0, 24)?;
    let [name_size, count, descriptors, data] = [1, 2, 4, 5].map(|index| u64::from(word(&header, index)));
    // A descriptor: flags, exponent and size, offset of the value, bucket size, then its name.
    let size = 16 + name_size;
    for index in 0..count {
        let descriptor = read(descriptors + index * size, size as usize)?;
        let bytes = &descriptor[16..];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        if &bytes[..end] == name.as_bytes() {
            let value = read(data + u64::from(word(&descriptor, 2)), 8)?;
            return Ok(Some(u64::from(word(&value, 0)) | u64::from(word(&value, 1)) << 32));
        }
    }
    Ok(None)
}

// SPDX-License-Identifier: GPL-2.0

//! When the host has no more open files, KVM_CREATE_VM, KVM_CREATE_VCPU and KVM_GET_STATS_FD are ENFILE, and nothing stays of them.

use crate::host;
use crate::ioctl::{KVM_CREATE_VCPU, KVM_CREATE_VM, KVM_GET_STATS_FD};
use crate::prelude::*;
use std::fs;

pub const TEST: Test = Test::new(20, run);

const FILE_MAX: &str = "/proc/sys/fs/file-max";
/// Anyone but root, who may open more files than there can be.
const NOBODY: libc::uid_t = 65534;
const OTHER: u8 = 255;

fn run(t: &Context) -> Outcome {
    // Whoever is not root has no file to be had meanwhile.
    t.exclusive()?;
    let device = t.device()?;
    let counts = || match device.has_extensions() {
        true => device.host_stats().map(|stats| (stats.vms, stats.vcpus)),
        false => Ok((0, 0)),
    };
    let before = counts()?;
    let limit = fs::read_to_string(FILE_MAX)?;
    let answers =
        host::in_child(|| without_files(&device).unwrap_or_else(|errno| vec![OTHER, errno.0 as u8]));
    fs::write(FILE_MAX, limit)?;
    let enfile = libc::ENFILE as u8;
    check_eq!(answers?, [enfile, enfile, enfile, enfile, 0], "VM, vCPU, statistics of both; the id is free");
    check_eq!(counts()?, before, "VMs and vCPUs alive");
    check!(device.vm()?.vcpu(0).is_ok());
    Ok(())
}

/// The errors of those that make files when there is none to be had, and of making the vCPU as root
/// again.
fn without_files(device: &Device) -> Result<Vec<u8>, Errno> {
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    // This process keeps its identity, and so the way back to root.
    let become_user = |user| {
        // SAFETY: changes this process only, which has one thread.
        Errno::check(unsafe { libc::seteuid(user) })
    };
    // Not one: the host compares a number that leaves out what each processor has counted by itself.
    fs::write(FILE_MAX, "0").map_err(|_| Errno::EIO)?;
    become_user(NOBODY)?;
    let results = [
        device.ioctl(KVM_CREATE_VM, 0),
        vm.ioctl(KVM_CREATE_VCPU, 1),
        vm.ioctl(KVM_GET_STATS_FD, 0),
        vcpu.ioctl(KVM_GET_STATS_FD, 0),
    ];
    become_user(0)?;
    let again = [vm.ioctl(KVM_CREATE_VCPU, 1)];
    Ok(results.iter().chain(&again).map(|result| result.err().map_or(0, |errno| errno.0 as u8)).collect())
}

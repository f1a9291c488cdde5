// SPDX-License-Identifier: GPL-2.0

//! The ioctls of the device, a VM and a vCPU are refused on each other's files, and all of them on a file of statistics.

use crate::device::Files;
use crate::ioctl::*;
use crate::prelude::*;
use std::os::fd::AsRawFd;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    let files = Files { device: &device, vm: &vm, vcpu: &vcpu };
    // Any address will do: where the ioctl is not known, nobody looks at it.
    let mut room = [0u64; 64];
    for argument in [0, room.as_mut_ptr() as u64] {
        for one in IOCTLS {
            for on in [FileKind::Device, FileKind::Vm, FileKind::Vcpu] {
                // KVM has this one on vCPUs, too.
                let kvms = device.is_kvm() && one.request == KVM_ENABLE_CAP && on == FileKind::Vcpu;
                if is_on(one.request, on) && (one.is_kvms() || device.has_extensions()) || kvms {
                    continue;
                }
                let unknown = match on {
                    FileKind::Device | FileKind::Vcpu if device.is_kvm() => Errno::EINVAL,
                    _ => Errno::ENOTTY,
                };
                check_eq!(files.ioctl(on, one.request, argument), Err(unknown), "{} on {on:?}", one.name);
            }
        }
    }
    check_eq!(room, [0; 64], "nothing was written");
    for statistics in [vm.statistics()?, vcpu.statistics()?] {
        for one in IOCTLS {
            // SAFETY: the file has no ioctl that could write anywhere.
            let result = unsafe { ioctl(statistics.file.as_raw_fd(), one.request, 0) };
            check_err!(result, ENOTTY, "{} on a file of statistics", one.name);
        }
    }
    Ok(())
}

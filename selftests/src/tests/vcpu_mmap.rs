// SPDX-License-Identifier: GPL-2.0

//! The `kvm_run` area: its size, what may be mapped of it, and that mappings share it.

use crate::host;
use crate::ioctl::KVM_GET_VCPU_MMAP_SIZE;
use crate::memory::PAGE;
use crate::prelude::*;
use std::os::fd::AsRawFd;
use std::ptr;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    check_err!(device.ioctl(KVM_GET_VCPU_MMAP_SIZE, 1), EINVAL);
    let size = device.ioctl(KVM_GET_VCPU_MMAP_SIZE, 0)? as usize;
    check!(size % PAGE == 0 && size >= 2 * PAGE, "size {size}: no room for kvm_run and a page of port data");
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;

    let again = Memory::map(size, libc::MAP_SHARED, vcpu.fd())?;
    vcpu.set_immediate_exit(0x5A);
    // SAFETY: the second mapping of the same area.
    let seen = unsafe { (*again.at(0, PAGE).cast::<kvm_run>()).immediate_exit };
    check_eq!(seen, 0x5A, "two mappings of one vCPU's area");
    drop(again);

    // One page alone is what many programs map.
    let first = Memory::map(PAGE, libc::MAP_SHARED, vcpu.fd())?;
    // SAFETY: as above.
    check_eq!(unsafe { (*first.at(0, PAGE).cast::<kvm_run>()).immediate_exit }, 0x5A);

    // Past its end there is nothing: refused at once, or a SIGBUS at the first touch.
    match Memory::map(size + 4 * PAGE, libc::MAP_SHARED, vcpu.fd()) {
        Err(errno) => check_eq!(errno, Errno::EINVAL, "mapping more than there is"),
        Ok(more) => check_eq!(
            host::signal_of_child(|| {
                more.read(size + 3 * PAGE, 1);
            })?,
            Some(libc::SIGBUS),
            "touching what is past the end"
        ),
    }
    // SAFETY: asks for a mapping, and touches nothing.
    let far =
        unsafe { libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, vcpu.fd(), 1 << 40) };
    if far != libc::MAP_FAILED {
        let address = far as usize;
        let signal = host::signal_of_child(|| {
            // SAFETY: mapped; a SIGBUS is what is expected, and hits a child.
            unsafe { (address as *const u8).read_volatile() };
        })?;
        check_eq!(signal, Some(libc::SIGBUS), "touching what is far past the end");
    }

    // Neither the device nor a VM has such an area.
    check_err!(Memory::map(PAGE, libc::MAP_SHARED, vm.fd()).map(|_| ()), ENODEV);
    check_err!(Memory::map(PAGE, libc::MAP_SHARED, device.fd().as_raw_fd()).map(|_| ()), ENODEV);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A slot can be moved and deleted; its size, host address and read-only flag are fixed (EINVAL).

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let memory = Memory::new(64 * PAGE)?;
    let hva = memory.address();
    let page = PAGE as u64;
    check_eq!(vm.set_slot(0, 0, 0, 4 * page, hva), Ok(0));
    check_eq!(vm.set_slot(0, 0, 0, 4 * page, hva), Ok(0), "the same again is no change");
    check_err!(vm.set_slot(0, 0, 0, 8 * page, hva), EINVAL, "grown");
    check_err!(vm.set_slot(0, 0, 0, 2 * page, hva), EINVAL, "shrunk");
    check_err!(vm.set_slot(0, 0, 0, 4 * page, hva + page), EINVAL, "other host memory");
    check_eq!(vm.set_slot(0, 0, 8 * page, 4 * page, hva), Ok(0), "moved");
    check_eq!(vm.set_slot(1, 0, 0, 4 * page, hva), Ok(0), "its old place is free");
    check_eq!(vm.set_slot(0, 0, 0, 0, 0), Ok(0), "deleted; only the number counts");
    check_err!(vm.set_slot(0, 0, 0, 0, 0), EINVAL, "deleted twice");
    check_eq!(vm.set_slot(0, 0, 8 * page, 16 * page, hva), Ok(0), "made again, larger");
    if device.check_extension(KVM_CAP_READONLY_MEM)? > 0 {
        check_err!(vm.set_slot(0, KVM_MEM_READONLY, 8 * page, 16 * page, hva), EINVAL, "made read-only");
        check_eq!(vm.set_slot(2, KVM_MEM_READONLY, 32 * page, page, hva), Ok(0), "read-only from the start");
        check_err!(vm.set_slot(2, 0, 32 * page, page, hva), EINVAL, "made writable");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Slots of one VM may touch and not overlap (EEXIST); other VMs do not matter.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let memory = Memory::new(64 * PAGE)?;
    let hva = memory.address();
    let page = PAGE as u64;
    check_eq!(vm.set_slot(1, 0, 16 * page, 16 * page, hva), Ok(0));
    for (what, first, count) in [
        ("the same range", 16, 16),
        ("inside", 20, 1),
        ("around", 15, 18),
        ("over the start", 15, 2),
        ("over the end", 31, 2),
    ] {
        check_err!(vm.set_slot(2, 0, first * page, count * page, hva), EEXIST, "{what}");
    }
    check_eq!(vm.set_slot(2, 0, 0, 16 * page, hva), Ok(0), "right before it, of the same host memory");
    check_eq!(vm.set_slot(3, 0, 32 * page, 16 * page, hva), Ok(0), "right behind it");
    check_err!(vm.set_slot(3, 0, 31 * page, 16 * page, hva), EEXIST, "moved onto another");
    check_eq!(vm.set_slot(3, 0, 33 * page, 16 * page, hva), Ok(0), "moved over its own old place");
    let other = device.vm()?;
    check_eq!(other.set_slot(1, 0, 16 * page, 16 * page, hva), Ok(0), "another VM");
    Ok(())
}

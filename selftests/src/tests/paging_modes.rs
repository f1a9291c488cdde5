// SPDX-License-Identifier: GPL-2.0

//! A VM's paging mode is chosen before its first vCPU, with how many shadow tables it may have; bad choices are refused.

use crate::prelude::*;
use crate::rusthv::{CAP_PAGING, PAGING_NESTED, PAGING_SHADOW, PAGING_TRAP};
use crate::vendor::{vendor, Vendor};

pub const TEST: Test = Test::new(60, run);

/// Tables, one more than there may be.
const TOO_MANY: u64 = 8193;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    check_eq!(device.check_extension(CAP_PAGING), Ok(0b111), "a bit for each mode");
    let (shadow, trap) = (u64::from(PAGING_SHADOW), u64::from(PAGING_TRAP));
    let vm = device.plain_vm()?;
    for (flags, args, what) in [
        (0, [3, 0, 0, 0], "a mode that there is not"),
        (0, [u64::MAX, 0, 0, 0], "one that is no number of a mode"),
        (0, [shadow, 15, 0, 0], "too few tables"),
        (0, [shadow, TOO_MANY, 0, 0], "too many"),
        (0, [shadow, u64::MAX, 0, 0], "far too many"),
        (0, [u64::from(PAGING_NESTED), 16, 0, 0], "tables for nested paging"),
        (0, [shadow, 0, 1, 0], "a third argument"),
        (0, [shadow, 0, 0, 1], "a fourth one"),
        (1, [shadow, 0, 0, 0], "a flag"),
    ] {
        check_err!(vm.enable_cap_with(CAP_PAGING, flags, args), EINVAL, "{what}");
    }
    check_eq!(vm.paging_stats()?.mode, 0, "as it was");
    // As often as one likes, until there is a vCPU.
    for mode in [shadow, trap, shadow] {
        check_eq!(vm.enable_cap_with(CAP_PAGING, 0, [mode, 16, 0, 0]), Ok(0));
        check_eq!(vm.paging_stats()?.mode, mode);
    }
    check_err!(vm.enable_cap_with(CAP_PAGING, 0, [0; 4]), EBUSY, "the nested tables are gone");
    let vcpu = vm.vcpu(0)?;
    check_err!(vm.enable_cap_with(CAP_PAGING, 0, [trap, 0, 0, 0]), EBUSY, "with a vCPU");
    if vendor() == Vendor::Intel {
        // After a reset it is in real mode, which takes unrestricted guests.
        let memory = Memory::new(0x1_0000)?;
        vm.map(0, 0, &memory)?;
        check_err!(vcpu.run(), EOPNOTSUPP, "real mode");
    }
    drop((vcpu, vm));
    Ok(())
}

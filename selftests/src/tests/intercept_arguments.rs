// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_SET_INTERCEPTS: what is refused, and to whom.

use crate::host;
use crate::prelude::*;
use crate::rusthv::*;
use std::ptr;
use std::thread;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    check_eq!(device.check_extension(RUSTHV_CAP_INTERCEPTS), Ok(0b111));
    let vm = device.vm()?;
    check_err!(vm.ioctl(RUSTHV_SET_INTERCEPTS, 0), EFAULT);
    let good = Intercepts { what: RUSTHV_INTERCEPT_PORT, first: 0x80, count: 1, exits: 1, reserved: [0; 2] };
    let port = RUSTHV_INTERCEPT_PORT;
    let (read, write) = (RUSTHV_INTERCEPT_MSR_READ, RUSTHV_INTERCEPT_MSR_WRITE);
    for bad in [
        Intercepts { what: 3, ..good },
        Intercepts { exits: 2, ..good },
        Intercepts { reserved: [0, 1], ..good },
        Intercepts { count: 0, ..good },
        Intercepts { first: 0, count: 0x10001, ..good },
        Intercepts { first: 0xFFFF, count: 2, ..good },
        Intercepts { first: 0x10000, ..good },
        Intercepts { first: u32::MAX, count: 2, ..good },
        // MSRs that no bitmap has.
        Intercepts { what: read, first: 0x2000, ..good },
        Intercepts { what: read, first: 0x1FFF, count: 2, ..good },
        Intercepts { what: write, first: 0xBFFF_FFFF, count: 2, ..good },
        Intercepts { what: write, first: 0xC000_1FFF, count: 2, ..good },
        // What no guest may write unseen: EFER, LSTAR, what is behind the bases, the TSC.
        Intercepts { what: write, first: 0xC000_0080, exits: 0, ..good },
        Intercepts { what: write, first: 0xC000_0082, exits: 0, ..good },
        Intercepts { what: write, first: 0xC000_0100, count: 4, exits: 0, ..good },
        Intercepts { what: write, first: 0x10, exits: 0, ..good },
    ] {
        check_err!(vm.ioctl(RUSTHV_SET_INTERCEPTS, ptr::from_ref(&bad) as u64), EINVAL, "{bad:x?}");
    }
    for (what, first) in [(port, 0), (port, 0xFFFF), (read, 0), (read, 0x1FFF), (write, 0xC000_1FFF)] {
        check_eq!(vm.set_intercepts(what, first, 1, 1), Ok(0), "{first:#x}");
    }
    check_eq!(vm.set_intercepts(read, 0x10, 1, 0), Ok(0));

    // What is the host's takes a right, the rest none.
    let result = thread::scope(|scope| {
        let checks = || -> Outcome {
            host::drop_capability(host::CAP_SYS_RAWIO)?;
            check_err!(vm.set_intercepts(port, 0x80, 1, 0), EPERM);
            check_err!(vm.set_intercepts(read, 0xC000_0082, 1, 0), EPERM);
            check_eq!(vm.set_intercepts(port, 0x80, 1, 1), Ok(0));
            check_eq!(vm.set_intercepts(read, 0x174, 1, 1), Ok(0));
            check_eq!(vm.set_intercepts(read, 0x174, 3, 0), Ok(0));
            check_eq!(vm.set_intercepts(write, 0xC000_0100, 3, 0), Ok(0));
            Ok(())
        };
        scope.spawn(checks).join().unwrap()
    });
    result?;
    check_eq!(vm.set_intercepts(port, 0x80, 1, 0), Ok(0));
    let _vcpu = vm.vcpu(0)?;
    check_err!(vm.set_intercepts(port, 0x80, 1, 1), EBUSY, "there is a vCPU");
    Ok(())
}

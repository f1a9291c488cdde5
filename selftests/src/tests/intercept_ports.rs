// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_SET_INTERCEPTS: only the ports that are intercepted exit, looked at one by one at the edges of
//! the port space and of the bitmaps, and by accesses that touch several.

use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(20, run);

guest!(intercept_ports_1, code64, "2: in al, dx", "hlt", "jmp 2b");
guest!(intercept_ports_2, code64, "2: in ax, dx", "hlt", "jmp 2b");
guest!(intercept_ports_4, code64, "2: in eax, dx", "hlt", "jmp 2b");

/// What the guest is let through to. Reading there changes nothing that matters.
const PASSED: [u16; 5] = [0x80, 0x7FFF, 0x8000, 0x8001, 0xFFFF];

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    for (size, code) in [(1u32, intercept_ports_1()), (2, intercept_ports_2()), (4, intercept_ports_4())] {
        let vm = device.vm()?;
        // There and back: the last word counts.
        check_eq!(vm.set_intercepts(RUSTHV_INTERCEPT_PORT, 0x80, 1, 0), Ok(0));
        check_eq!(vm.set_intercepts(RUSTHV_INTERCEPT_PORT, 0, 0x10000, 1), Ok(0));
        for port in PASSED {
            check_eq!(vm.set_intercepts(RUSTHV_INTERCEPT_PORT, port.into(), 1, 0), Ok(0));
        }
        let machine = Machine::long_in(&device, vm, code)?;
        for port in [
            0, 1, 0x7D, 0x7E, 0x7F, 0x80, 0x81, 0x7FFC, 0x7FFD, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0x8002,
            0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF,
        ] {
            // An access past the last port exits, whatever the bits say (SDM Vol. 3C 25.1.3).
            let touched = u32::from(port)..u32::from(port) + size;
            let passes = |port: u32| PASSED.iter().any(|&passed| u32::from(passed) == port);
            let exits = !touched.into_iter().all(passes);
            machine.change_regs(|regs| (regs.rdx, regs.rip) = (port.into(), layout::CODE as u64))?;
            let exit = machine.run()?;
            if exits {
                check!(
                    matches!(exit, Exit::Io { direction: Direction::In, port: p, .. } if p == port),
                    "{size} bytes at {port:#x}: {exit:x?}"
                );
                // Completes it.
                check_eq!(machine.run()?, Exit::Hlt);
            } else {
                check_eq!(exit, Exit::Hlt, "{size} bytes at {port:#x}");
            }
        }
        // Another VM has nothing of that.
        let other = Machine::long(&device, code)?;
        other.change_regs(|regs| regs.rdx = 0x80)?;
        let exit = other.run()?;
        check!(matches!(exit, Exit::Io { port: 0x80, .. }), "another VM: {exit:x?}");
    }
    Ok(())
}

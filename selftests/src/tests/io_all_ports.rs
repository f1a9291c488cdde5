// SPDX-License-Identifier: GPL-2.0

//! Every port exits: the edges of the port space and of each page of the I/O bitmaps.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(io_all_ports, code16, "2: out dx, al", "in al, dx", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, io_all_ports())?;
    for port in [0, 1, 0x60, 0x80, 0xCF8, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF] {
        machine.change_regs(|regs| (regs.rdx, regs.rip) = (port.into(), layout::CODE as u64))?;
        for expected in [Direction::Out, Direction::In] {
            let exit = machine.run()?;
            check!(
                matches!(exit, Exit::Io { direction, port: p, size: 1, .. } if (direction, p) == (expected, port)),
                "port {port:#x}: {exit:x?}"
            );
        }
        // Completes the pending IN, so that the registers may be set.
        machine.vcpu.set_immediate_exit(1);
        check_err!(machine.run(), EINTR);
        machine.vcpu.set_immediate_exit(0);
    }
    Ok(())
}

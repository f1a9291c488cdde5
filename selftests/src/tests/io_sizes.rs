// SPDX-License-Identifier: GPL-2.0

//! IN and OUT of 1, 2 and 4 bytes, immediate and DX ports, with the other bits of RAX kept or cleared as on a CPU.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    io_sizes,
    code64,
    "out 0x80, al",
    "out 0x81, ax",
    "out 0x82, eax",
    "out dx, al",
    "out dx, ax",
    "out dx, eax",
    "in al, 0x83",
    "in ax, 0x84",
    "in eax, 0x85",
    "in al, dx",
    "in ax, dx",
    "in eax, dx",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, io_sizes())?;
    let mut rax = 0x1122_3344_5566_7788u64;
    machine.change_regs(|regs| (regs.rax, regs.rdx) = (rax, 0xFFFF_FFFF_0000_FFF8))?;
    for (port, size) in [(0x80, 1), (0x81, 2), (0x82, 4), (0xFFF8, 1), (0xFFF8, 2), (0xFFF8, 4)] {
        let data = rax.to_le_bytes()[..size].to_vec();
        check_eq!(machine.run()?, Exit::Io { direction: Direction::Out, port, size, count: 1, data });
    }
    let answer = 0x99AA_BBCC_u32.to_le_bytes();
    for (port, size) in [(0x83, 1), (0x84, 2), (0x85, 4), (0xFFF8, 1), (0xFFF8, 2), (0xFFF8, 4)] {
        let exit = machine.run()?;
        check!(
            matches!(&exit, Exit::Io { direction: Direction::In, port: p, size: s, count: 1, .. } if (*p, *s) == (port, size)),
            "got {exit:x?}, expected {size} bytes from port {port:#x}"
        );
        check_eq!(machine.vcpu.regs()?.rax, rax, "RAX while its IN is pending");
        machine.vcpu.answer_io(&answer[..size]);
        rax = match size {
            1 => rax & !0xFF | 0xCC,
            2 => rax & !0xFFFF | 0xBBCC,
            _ => 0x99AA_BBCC,
        };
        // The IN takes effect when the vCPU is entered again.
        machine.vcpu.set_immediate_exit(1);
        check_err!(machine.run(), EINTR);
        machine.vcpu.set_immediate_exit(0);
        check_eq!(machine.vcpu.regs()?.rax, rax, "RAX after {size} bytes from port {port:#x}");
    }
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rip, (layout::CODE + io_sizes().len()) as u64);
    Ok(())
}

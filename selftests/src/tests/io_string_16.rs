// SPDX-License-Identifier: GPL-2.0

//! String I/O in real mode: segment override, 16-bit counts and pointers that wrap.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(io_string_16_out, code16, "rep outsb dx, fs:[si]", "hlt");
guest!(io_string_16_in, code16, "rep insw", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, io_string_16_out())?;
    let base = 0x30000;
    machine.change_sregs(|sregs| {
        for segment in [&mut sregs.fs, &mut sregs.es] {
            (segment.base, segment.selector) = (base as u64, (base >> 4) as u16);
        }
    })?;
    // SI wraps from 0xFFFF to 0 inside of the segment.
    machine.memory.write(base + 0xFFFE, &[1, 2]);
    machine.memory.write(base, &[3, 4]);
    machine.memory.write(base + 0x10000, &[0x77, 0x77]);
    machine.change_regs(|regs| {
        (regs.rcx, regs.rdx, regs.rsi) = (0xABCD_0004, 0x10, 0x5555_FFFE);
    })?;
    let mut seen = Vec::new();
    let end = loop {
        match machine.run()? {
            Exit::Io { direction: Direction::Out, port: 0x10, size: 1, data, .. } => seen.extend(data),
            other => break other,
        }
    };
    check_eq!(end, Exit::Hlt);
    check_eq!(seen, [1, 2, 3, 4]);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rcx, regs.rsi), (0xABCD_0000, 0x5555_0002), "only the low halves move");

    machine.load(io_string_16_in());
    machine.change_regs(|regs| {
        (regs.rip, regs.rcx, regs.rdi) = (layout::CODE as u64, 2, 0xFFFC);
    })?;
    let mut answer = (0x21..).map(|byte: u8| byte);
    let end = loop {
        match machine.run()? {
            Exit::Io { direction: Direction::In, size: 2, count, .. } => {
                let data: Vec<u8> = answer.by_ref().take(2 * count).collect();
                machine.vcpu.answer_io(&data);
            }
            other => break other,
        }
    };
    check_eq!(end, Exit::Hlt);
    check_eq!(machine.memory.read(base + 0xFFFC, 4), [0x21, 0x22, 0x23, 0x24]);
    check_eq!(machine.vcpu.regs()?.rdi, 0);
    Ok(())
}

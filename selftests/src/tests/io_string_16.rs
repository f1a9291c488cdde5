// SPDX-License-Identifier: GPL-2.0

//! String I/O in real mode: segment override, 16-bit counts and pointers that wrap.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(io_string_16_out, code16, "rep outsb dx, fs:[si]", "hlt");
guest!(io_string_16_in, code16, "rep insw", "hlt");
guest!(io_string_16_bytes, code16, "rep insb", "hlt");
guest!(io_string_16_limit, code16, "rep outsb", "hlt");
guest!(io_string_16_fault, code16, "mov bp, sp", "out 0x20, al", "hlt");

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
    check_eq!(answer(&machine, 2, 0x21)?, Exit::Hlt);
    check_eq!(machine.memory.read(base + 0xFFFC, 4), [0x21, 0x22, 0x23, 0x24]);
    check_eq!(machine.vcpu.regs()?.rdi, 0);
    wraps_inside_of_a_page(&machine)?;
    ends_at_the_limit(&machine)
}

/// Answers INS of items of a size with one byte after the other, from `first` on; the exit after that.
fn answer(machine: &Machine, width: usize, first: u8) -> Result<Exit, Errno> {
    let mut bytes = first..;
    loop {
        match machine.run()? {
            Exit::Io { direction: Direction::In, size, count, .. } if size == width => {
                let data: Vec<u8> = bytes.by_ref().take(width * count).collect();
                machine.vcpu.answer_io(&data);
            }
            other => return Ok(other),
        }
    }
}

/// DI wraps where no page ends.
fn wraps_inside_of_a_page(machine: &Machine) -> Outcome {
    let base = 0x30010;
    machine.load(io_string_16_bytes());
    machine.change_sregs(|sregs| (sregs.es.base, sregs.es.selector) = (base as u64, 0x3001))?;
    machine.memory.write(base, &[0; 8]);
    machine.memory.write(base + 0x10000, &[0x77; 8]);
    machine.change_regs(|regs| {
        (regs.rip, regs.rcx, regs.rdi) = (layout::CODE as u64, 16, 0xFFF8);
    })?;
    check_eq!(answer(machine, 1, 1)?, Exit::Hlt);
    check_eq!(machine.memory.read(base + 0xFFF8, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    check_eq!(machine.memory.read(base, 8), [9, 10, 11, 12, 13, 14, 15, 16]);
    check_eq!(machine.memory.read(base + 0x10000, 8), [0x77; 8], "behind the segment");
    check_eq!(machine.vcpu.regs()?.rdi, 8);
    Ok(())
}

/// What is in the segment goes out, and the next is a fault.
fn ends_at_the_limit(machine: &Machine) -> Outcome {
    const GENERAL_PROTECTION: usize = 13;
    machine.load(io_string_16_limit());
    machine.memory.write(layout::DATA, io_string_16_fault());
    // Segment and offset.
    machine.memory.write(4 * GENERAL_PROTECTION, &((layout::DATA as u32) << 12).to_le_bytes());
    machine.memory.write(0x32100 + 0xFF0, &[5; 32]);
    machine.change_sregs(|sregs| {
        (sregs.ds.base, sregs.ds.selector, sregs.ds.limit) = (0x32100, 0x3210, 0xFFF);
    })?;
    machine.change_regs(|regs| {
        (regs.rip, regs.rcx, regs.rsi) = (layout::CODE as u64, 32, 0xFF0);
    })?;
    let mut sent = 0;
    let end = loop {
        match machine.run()? {
            Exit::Io { direction: Direction::Out, port: 0x10, count, .. } => sent += count,
            other => break other,
        }
    };
    check!(matches!(end, Exit::Io { port: 0x20, .. }), "the handler, not {end:x?}");
    let regs = machine.vcpu.regs()?;
    check_eq!((sent, regs.rcx, regs.rsi), (16, 16, 0x1000));
    Ok(())
}

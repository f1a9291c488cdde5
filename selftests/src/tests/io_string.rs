// SPDX-License-Identifier: GPL-2.0

//! REP OUTS and REP INS of every width, both directions, across pages: every element arrives once, in order.

use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

guest!(io_outsb, code64, "rep outsb", "hlt");
guest!(io_outsw, code64, "rep outsw", "hlt");
guest!(io_outsd, code64, "rep outsd", "hlt");
guest!(io_insb, code64, "rep insb", "hlt");
guest!(io_insw, code64, "rep insw", "hlt");
guest!(io_insd, code64, "rep insd", "hlt");

const DF: u64 = 1 << 10;
const AREA: usize = 0x6000;
const PORT: u16 = 0x1F0;

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, io_outsb())?;
    let pattern: Vec<u8> = (0..AREA).map(|index| (index * 7 + index / 256) as u8).collect();
    for (size, outs, ins) in
        [(1, io_outsb(), io_insb()), (2, io_outsw(), io_insw()), (4, io_outsd(), io_insd())]
    {
        for down in [false, true] {
            // None, one, few, more than a page, with elements that straddle pages.
            // Downwards one element exits at a time, in KVM at least: a long run would only be slow.
            let long = if down { 0x40 } else { 0x1800 / size };
            for (start, count) in [(0, 0), (0x10, 1), (0xFF9, 5), (0x1003, long), (0xFFE, long / 2 + 1)] {
                let span: usize = count * size;
                let first = if down { start + span.saturating_sub(size) } else { start };
                let setup = |code: &[u8]| {
                    machine.load(code);
                    machine.change_regs(|regs| {
                        regs.rip = layout::CODE as u64;
                        regs.rcx = count as u64;
                        regs.rdx = PORT.into();
                        regs.rsi = (layout::DATA + first) as u64;
                        regs.rdi = regs.rsi;
                        regs.rflags = if down { 2 | DF } else { 2 };
                    })
                };
                let what = format!("{count} of {size} bytes at {start:#x}, down {down}");

                machine.memory.write(layout::DATA, &pattern);
                setup(outs)?;
                let mut seen = Vec::new();
                while let Some((data, _)) = string_exit(&machine, Direction::Out, size)? {
                    seen.extend(data);
                }
                check_eq!(seen, in_order(&pattern[start..start + span], size, down), "OUTS of {what}");
                check_end(&machine, first, span, down, false)?;

                machine.memory.fill(layout::DATA, AREA, 0xEE);
                setup(ins)?;
                let device = in_order(&pattern[start..start + span], size, down);
                let mut sent = 0;
                while let Some((data, _)) = string_exit(&machine, Direction::In, size)? {
                    check!(sent + data.len() <= device.len(), "INS of {what} asks for more than its count");
                    machine.vcpu.answer_io(&device[sent..sent + data.len()]);
                    sent += data.len();
                }
                check_eq!(sent, span, "INS of {what}");
                let mut expected = vec![0xEE; AREA];
                expected[start..start + span].copy_from_slice(&pattern[start..start + span]);
                check!(machine.memory.read(layout::DATA, AREA) == expected, "memory after INS of {what}");
                check_end(&machine, first, span, down, true)?;
            }
        }
    }
    Ok(())
}

/// The elements as the instruction meets them.
fn in_order(bytes: &[u8], size: usize, down: bool) -> Vec<u8> {
    if down {
        bytes.chunks(size).rev().flatten().copied().collect()
    } else {
        bytes.to_vec()
    }
}

/// The data of the next string exit, nothing when the guest is through.
fn string_exit(
    machine: &Machine,
    expected: Direction,
    width: usize,
) -> Result<Option<(Vec<u8>, usize)>, Failure> {
    match machine.run()? {
        Exit::Hlt => Ok(None),
        Exit::Io { direction, port: PORT, size, count, data }
            if direction == expected && size == width && count > 0 =>
        {
            Ok(Some((data, count)))
        }
        other => Err(Failure::failed(format!("string I/O was due, not {other:x?}"))),
    }
}

fn check_end(machine: &Machine, first: usize, span: usize, down: bool, ins: bool) -> Outcome {
    let regs = machine.vcpu.regs()?;
    let pointer = if ins { regs.rdi } else { regs.rsi } as usize;
    let moved = if down { first.wrapping_sub(span) } else { first + span };
    check_eq!((pointer.wrapping_sub(layout::DATA), regs.rcx), (moved, 0), "pointer and count at the end");
    Ok(())
}

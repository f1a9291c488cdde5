// SPDX-License-Identifier: GPL-2.0

//! Instructions on MMIO against the same instructions on memory.
//!
//! Each instruction runs once with its operand in RAM, where the processor executes it, and once
//! with the operand in MMIO, where the hypervisor does, and the bus is an array here. Registers,
//! flags and bytes must come out the same. So the processor itself says what is right.

use crate::device::{Device, Exit};
use crate::emulator;
use crate::errno::Errno;
use crate::harness::Outcome;
use crate::machine::{enter_long, enter_protected, enter_real, layout, Machine};
use crate::memory::{Memory, PAGE};
use crate::random::Random;
use crate::{check_eq, fail};
use kvm_bindings::*;

/// Each instruction sequence starts at a multiple of this.
pub const STRIDE: usize = 32;
/// Bytes behind the bus, and in the RAM that stands for it.
const WINDOW: usize = 2 * PAGE;
/// Where the sources and targets of string instructions are, in RAM.
const OTHER: usize = 0x28000;
/// Where the operand is in the window: inside a page, and across two.
const OFFSETS: [u64; 2] = [0x800, 0xFFD];
/// In 16-bit mode the bus is behind this segment, and RAM ends below it.
const REAL_MMIO: u64 = 0x90000;
const REAL_SIZE: usize = 0x80000;

/// CF, PF, AF, ZF, SF, OF and DF.
const FLAGS: u64 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11;
const AF: u64 = 1 << 4;

/// Defines instruction sequences, a guest function, and the list of their texts.
///
/// RBX and RDI point at the operand (DS and ES in 16-bit mode), RSI at other memory (FS and GS).
#[macro_export]
macro_rules! instructions {
    ($name:ident, $texts:ident, $mode:ident, [$($line:literal),+ $(,)?]) => {
        $crate::guest!($name, $mode, $(concat!(".balign 32\n", $line, "\nhlt")),+);
        const $texts: &[&str] = &[$($line),+];
    };
}

/// The mode that the instructions run in.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Real,
    Protected,
    Long,
}

/// What an instruction left behind.
#[derive(PartialEq, Debug)]
struct Result {
    general: [u64; 16],
    rip: u64,
    flags: u64,
    operand: Vec<u8>,
    other: Vec<u8>,
}

/// Runs every sequence in RAM and on MMIO, with several register contents.
pub fn run(device: &Device, mode: Mode, code: &[u8], texts: &[&str], rounds: u64) -> Outcome {
    let size = if mode == Mode::Real { REAL_SIZE } else { layout::SIZE };
    let machine = Machine::with_memory(device, Memory::new(size)?)?;
    machine.load(code);
    machine.write_tables();
    machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    for (index, text) in texts.iter().enumerate() {
        for round in 0..rounds {
            for offset in OFFSETS {
                // QEMU's TCG executes a locked access that is not aligned with all other processors
                // stopped, and an exit from there has lost the status flags (with KVM, too).
                let locked = text.starts_with("xchg [") || text.starts_with("lock");
                if emulator::is_tcg() && locked && offset % 8 != 0 {
                    continue;
                }
                let seed = index as u64 * 1000 + round;
                let one = |mmio| execute(&machine, mode, index, text, seed, offset, mmio);
                let (expected, actual) = (one(false)?, one(true)?);
                check_eq!(
                    actual,
                    expected,
                    "`{}`, seed {seed}, offset {offset:#x}",
                    text.replace('\n', "; ")
                );
            }
        }
    }
    Ok(())
}

fn execute(
    machine: &Machine,
    mode: Mode,
    index: usize,
    text: &str,
    seed: u64,
    offset: u64,
    mmio: bool,
) -> core::result::Result<Result, crate::harness::Failure> {
    let base = match (mmio, mode) {
        (false, _) => layout::DATA as u64,
        (true, Mode::Real) => REAL_MMIO,
        (true, _) => layout::MMIO,
    };
    set_mode(machine, mode, base)?;
    let mut random = Random::new(seed);
    let mut bus = random.bytes(WINDOW);
    machine.memory.write(OTHER, &random.bytes(WINDOW));
    machine.memory.write(layout::DATA, &bus);

    let address = |base: u64, offset: u64| if mode == Mode::Real { offset } else { base + offset };
    let operand = address(base, offset);
    let mut regs = registers(&mut random, text);
    (regs.rbx, regs.rdi) = (operand, operand);
    regs.rsi = address(OTHER as u64, 0x800);
    regs.rsp = 0x7800;
    regs.rip = (layout::CODE + index * STRIDE) as u64;
    machine.vcpu.set_regs(&regs)?;

    // More exits than any of the sequences may need means that one does not end.
    for _ in 0..200 {
        let exit = machine.run()?;
        let within = |address: u64, length: usize| {
            let start = address.wrapping_sub(base) as usize;
            (mmio && start.saturating_add(length) <= WINDOW).then_some(start)
        };
        match &exit {
            Exit::Hlt => {
                let operand_bytes = if mmio { bus } else { machine.memory.read(layout::DATA, WINDOW) };
                return Ok(collect(machine, text, operand, operand_bytes)?);
            }
            Exit::MmioRead { address, length } => match within(*address, *length) {
                Some(start) => machine.vcpu.answer_mmio(&bus[start..start + length]),
                None => fail!("`{text}` reads {length} bytes at {address:#x}"),
            },
            Exit::MmioWrite { address, data } => match within(*address, data.len()) {
                Some(start) => bus[start..start + data.len()].copy_from_slice(data),
                None => fail!("`{text}` writes {data:x?} to {address:#x}"),
            },
            other => fail!("`{text}` on {} left with {other:x?}", if mmio { "MMIO" } else { "RAM" }),
        }
    }
    fail!("`{text}` does not end");
}

fn set_mode(machine: &Machine, mode: Mode, base: u64) -> core::result::Result<(), Errno> {
    match mode {
        Mode::Real => {
            enter_real(&machine.vcpu)?;
            machine.change_sregs(|sregs| {
                for segment in [&mut sregs.ds, &mut sregs.es] {
                    (segment.base, segment.selector) = (base, (base >> 4) as u16);
                }
                for segment in [&mut sregs.fs, &mut sregs.gs] {
                    (segment.base, segment.selector) = (OTHER as u64, (OTHER >> 4) as u16);
                }
            })
        }
        Mode::Protected => enter_protected(&machine.vcpu),
        Mode::Long => enter_long(&machine.vcpu),
    }
}

/// Random contents where they mean something: RCX and R8 count and index, so they are small.
fn registers(random: &mut Random, text: &str) -> kvm_regs {
    let mut word = || random.word();
    let mut regs = kvm_regs {
        rax: word(),
        rdx: word(),
        rbp: word(),
        r9: word(),
        r10: word(),
        r11: word(),
        r12: word(),
        r13: word(),
        r14: word(),
        r15: word(),
        rflags: word() & FLAGS | 2,
        ..Default::default()
    };
    regs.r8 = random.below(8);
    regs.rcx = random.below(6);
    if text.contains("bt") {
        // A bit offset far from the operand, on either side.
        regs.rcx = random.below(400).wrapping_sub(200);
    }
    regs
}

fn collect(
    machine: &Machine,
    text: &str,
    operand: u64,
    bytes: Vec<u8>,
) -> core::result::Result<Result, Errno> {
    let regs = machine.vcpu.regs()?;
    // Pointers into the two windows are compared by where they point in them.
    let relative = |value: u64| {
        let distance = value.wrapping_sub(operand) as i64;
        if distance.unsigned_abs() < 0x400 {
            0x5555_0000_0000_0000u64.wrapping_add_signed(distance)
        } else {
            value
        }
    };
    Ok(Result {
        general: [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ]
        .map(relative),
        rip: regs.rip,
        flags: regs.rflags & defined_flags(text),
        operand: bytes,
        other: machine.memory.read(OTHER, WINDOW),
    })
}

/// The flags that the architecture defines after this instruction.
fn defined_flags(text: &str) -> u64 {
    let mnemonic = text.split_whitespace().find(|word| *word != "lock").unwrap_or_default();
    match mnemonic {
        "and" | "or" | "xor" | "test" => FLAGS & !AF,
        // ZF stays, CF is the bit; the others are undefined.
        "bt" | "bts" | "btr" | "btc" => 1 | 1 << 6 | 1 << 10,
        _ => FLAGS,
    }
}

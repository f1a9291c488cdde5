// SPDX-License-Identifier: GPL-2.0

//! Exception handlers for 64-bit guests: every vector tells the host through a port.

use crate::device::{Direction, Exit};
use crate::errno::Errno;
use crate::machine::{layout, Machine};

/// The port that the handlers write to.
const PORT: u8 = 0xE0;
const VECTORS: usize = 32;
const STUB_SIZE: usize = 16;
const COMMON: usize = layout::STUBS + VECTORS * STUB_SIZE;

pub const DIVIDE_ERROR: u64 = 0;
pub const DEBUG: u64 = 1;
pub const BREAKPOINT: u64 = 3;
pub const INVALID_OPCODE: u64 = 6;
pub const DOUBLE_FAULT: u64 = 8;
pub const STACK_FAULT: u64 = 12;
pub const GENERAL_PROTECTION: u64 = 13;
pub const PAGE_FAULT: u64 = 14;

/// Vectors for which the processor pushes an error code.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

/// What a handler found on its stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
}

/// Writes the IDT and the handlers; `Machine::long` has pointed the IDTR there.
pub fn install(machine: &Machine) {
    let memory = &machine.memory;
    for vector in 0..VECTORS {
        let stub = layout::STUBS + vector * STUB_SIZE;
        let mut code = Vec::new();
        if WITH_ERROR_CODE >> vector & 1 == 0 {
            code.extend([0x6A, 0]); // push 0, in place of the error code
        }
        code.extend([0x6A, vector as u8]); // push the vector
        code.push(0xE9); // jmp COMMON
        let next = stub + code.len() + 4;
        code.extend((COMMON.wrapping_sub(next) as i32).to_le_bytes());
        memory.write(stub, &code);
        memory.write_u64(layout::IDT + 16 * vector, gate(stub));
        memory.write_u64(layout::IDT + 16 * vector + 8, 0);
    }
    // out PORT, al; add rsp, 16; iretq
    memory.write(COMMON, &[0xE6, PORT, 0x48, 0x83, 0xC4, 0x10, 0x48, 0xCF]);
}

/// The lower half of a 64-bit interrupt gate to a handler below 4 GiB.
pub fn gate(handler: usize) -> u64 {
    let address = handler as u64;
    address & 0xFFFF | u64::from(layout::CODE64) << 16 | 0x8E << 40 | (address >> 16) << 48
}

/// The trap that this exit reports, if it is one of the handlers'.
pub fn trap(machine: &Machine, exit: &Exit) -> Result<Option<Trap>, Errno> {
    match exit {
        Exit::Io { direction: Direction::Out, port, size: 1, count: 1, .. } if *port == u16::from(PORT) => {
            let stack = machine.vcpu.regs()?.rsp as usize;
            let word = |index: usize| machine.memory.read_u64(stack + 8 * index);
            Ok(Some(Trap {
                vector: word(0),
                error: word(1),
                rip: word(2),
                cs: word(3),
                rflags: word(4),
                rsp: word(5),
            }))
        }
        _ => Ok(None),
    }
}

/// Lets the handler return to `rip` instead of to where the exception was.
pub fn resume_at(machine: &Machine, rip: u64) -> Result<(), Errno> {
    let stack = machine.vcpu.regs()?.rsp as usize;
    machine.memory.write_u64(stack + 16, rip);
    Ok(())
}

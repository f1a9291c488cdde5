// SPDX-License-Identifier: GPL-2.0

//! A guest that goes through every kind of exit does so with the same exits and registers as under KVM.

use crate::compare::{compare, Log};
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

guest!(
    compare_exits,
    code64,
    "mov rdx, 0x3f8",
    "mov rax, 0x1122334455667788",
    "out dx, al",
    "out dx, ax",
    "out dx, eax",
    "in al, dx",
    "in eax, dx",
    "mov rsi, 0x20ff8",
    "mov ecx, 20",
    "rep outsb",
    "mov rdi, 0x21ffe",
    "mov ecx, 7",
    "rep insd",
    "mov ebx, 0xd0000ffc",
    "mov [rbx], rax",
    "mov rax, [rbx]",
    "mov [rbx + 1], ax",
    "lock inc dword ptr [rbx - 4]",
    "xchg [rbx], eax",
    "mov rdi, rbx",
    "mov ecx, 3",
    "rep stosw",
    "mov rsi, rbx",
    "mov rdi, 0x22000",
    "mov ecx, 2",
    "rep movsq",
    "movzx eax, word ptr [rbx + 3]",
    "movsx r9, byte ptr [rbx]",
    "bts dword ptr [rbx], 9",
    "cmp [rbx], eax",
    "hlt",
    "mov eax, 0x40000100",
    "xor ecx, ecx",
    "cpuid",
    "hlt",
    "xor ebx, ebx",
    "lidt [rbx]",
    "ud2",
);

/// RFLAGS.RF
const RF: u64 = 1 << 16;

fn run(t: &Context) -> Outcome {
    compare(t, scenario)
}

fn scenario(device: &Device, log: &mut Log) -> Outcome {
    let machine = Machine::long(device, compare_exits())?;
    let entry =
        kvm_cpuid_entry2 { function: 0x4000_0100, eax: 1, ebx: 2, ecx: 3, edx: 4, ..Default::default() };
    let mut cpuid = device.supported_cpuid(256)?;
    // What KVM adds for its own paravirtual guests is nobody's business here.
    cpuid.retain(|entry| entry.function >> 28 != 4);
    cpuid.push(entry);
    machine.vcpu.set_cpuid(&cpuid)?;
    machine.memory.write(0x20FF8, b"crosses the page border");
    let mut value = 0x11u8;
    for _ in 0..200 {
        let exit = machine.run()?;
        let mut regs = machine.vcpu.regs()?;
        // While an exit is pending RIP may be at the instruction or behind it: not promised. Nor is
        // how many items of a string go into one exit, and RF in the middle of it.
        if exit != Exit::Hlt {
            (regs.rip, regs.rcx, regs.rsi, regs.rdi) = (0, 0, 0, 0);
            regs.rflags &= !RF;
        }
        match exit {
            Exit::Io { direction: Direction::In, port, size, count, .. } => {
                let mut data = Vec::new();
                for _ in 0..count {
                    note!(log, "In {port:#x}, {size} bytes, {regs:x?}");
                    data.extend(vec![next(&mut value); size]);
                }
                machine.vcpu.answer_io(&data);
            }
            Exit::Io { direction: Direction::Out, port, size, ref data, .. } => {
                for item in data.chunks(size) {
                    note!(log, "Out {port:#x}, {item:x?}, {regs:x?}");
                }
            }
            Exit::MmioRead { length, .. } => {
                note!(log, "{exit:x?} {regs:x?}");
                machine.vcpu.answer_mmio(&vec![next(&mut value); length]);
            }
            Exit::Shutdown => {
                note!(log, "{:x?}", machine.memory.read(0x21F00, 0x200));
                return Ok(());
            }
            _ => note!(log, "{exit:x?} {regs:x?}"),
        }
    }
    fail!("no shutdown");
}

/// The next answer of a device.
fn next(value: &mut u8) -> u8 {
    *value = value.wrapping_mul(3).wrapping_add(7);
    *value
}

// SPDX-License-Identifier: GPL-2.0

//! Random guests: their code, tables and registers.

use crate::device::Vcpu;
use crate::errno::Errno;
use crate::machine::*;
use crate::memory::Memory;
use crate::random::Random;
use kvm_bindings::kvm_segment;

/// Instructions that leave the guest or change its mode, to be found more often than by chance.
const INTERESTING: &[&[u8]] = &[
    &[0xF4],                   // hlt
    &[0xE6, 0x10],             // out 0x10, al
    &[0xE5, 0x10],             // in eax, 0x10
    &[0xF3, 0x6E],             // rep outsb
    &[0xF3, 0x6D],             // rep insd
    &[0x0F, 0xA2],             // cpuid
    &[0x0F, 0x30],             // wrmsr
    &[0x0F, 0x32],             // rdmsr
    &[0x0F, 0x22, 0xC0],       // mov cr0, eax
    &[0x0F, 0x22, 0xD8],       // mov cr3, eax
    &[0x0F, 0x22, 0xE0],       // mov cr4, eax
    &[0x0F, 0x23, 0xF8],       // mov dr7, eax
    &[0x0F, 0x01, 0xD1],       // xsetbv
    &[0x0F, 0x01, 0xC1],       // vmcall
    &[0x0F, 0x01, 0x13],       // lgdt [rbx]
    &[0x0F, 0x00, 0xD8],       // ltr ax
    &[0x0F, 0x0B],             // ud2
    &[0x0F, 0x09],             // wbinvd
    &[0x8B, 0x03],             // mov eax, [rbx]
    &[0x89, 0x03],             // mov [rbx], eax
    &[0xF3, 0xA5],             // rep movsd
    &[0xF3, 0xAB],             // rep stosd
    &[0xF0, 0x0F, 0xC1, 0x03], // lock xadd [rbx], eax
    &[0x87, 0x03],             // xchg [rbx], eax
    &[0x0F, 0xAB, 0x03],       // bts [rbx], eax
    &[0xFB],                   // sti
    &[0x0F, 0x05],             // syscall
    &[0xCD, 0x80],             // int 0x80
];

/// What the guests of a round are.
///
/// None of them should be able to spin with interrupts off, so that CS and IDTR stay as they are. That would be a good test, but Bochs 2.7 does not
/// give the host its interrupts back from such a guest (kvm_intel's neither), and the machine
/// would hang.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any mode at CPL 0; instructions from the list in a straight line, then halts for ever.
    Kernel,
    /// Protected or long mode at CPL 3 with IOPL 0, where IF cannot be cleared: any bytes.
    User,
}

impl Kind {
    /// One of them.
    pub fn pick(random: &mut Random) -> Self {
        random.pick(&[Self::Kernel, Self::User])
    }
}

/// Where guest code may run into: halts as far as it goes.
const CODE_END: usize = layout::STACK - 0x1000;
const HLT: u8 = 0xF4;
/// Only user mode may have these.
const LOOPS: &[&[u8]] = &[
    &[0xEA, 0, 0x80, 0, 0, 0x08, 0], // far jump
    &[0xEB, 0xFE],                   // jmp self
];

/// Fills guest memory with code, tables and noise.
pub fn fill(memory: &Memory, random: &mut Random, kind: Kind) {
    write_tables(memory);
    let mut code = Vec::new();
    while code.len() < 2048 {
        match random.below(12) {
            0..=3 if kind == Kind::User => code.extend(random.bytes(4)),
            4 if kind == Kind::User => code.extend(random.pick(LOOPS)),
            _ => code.extend(random.pick(INTERESTING)),
        }
    }
    let halts = layout::CODE + code.len();
    memory.write(layout::CODE, &code);
    memory.write(halts, &vec![HLT; CODE_END - halts]);
    // Real mode finds its vectors at 0: to the halts.
    for vector in 0..256 {
        let [low, high] = ((halts + vector) as u16).to_le_bytes();
        memory.write(4 * vector, &[low, high, 0, 0]);
    }
    for _ in 0..random.below(4) * 10 {
        let table = layout::PML4 + 8 * random.below(0x6000 / 8) as usize;
        memory.write_u64(table, random.edge());
    }
}

/// A state that is valid, then somewhat changed.
pub fn set_state(vcpu: &Vcpu, random: &mut Random, kind: Kind) -> Result<(), Errno> {
    let first = u64::from(kind == Kind::User);
    match first + random.below(3 - first) {
        0 => enter_real(vcpu)?,
        1 => enter_protected(vcpu)?,
        _ => enter_long(vcpu)?,
    }
    if kind == Kind::User {
        leave_kernel(vcpu)?;
    }
    let mut regs = vcpu.regs()?;
    let places = [layout::DATA as u64, layout::MMIO, layout::CODE as u64, layout::PML4 as u64, 0xFFC];
    (regs.rbx, regs.rsi, regs.rdi) = (random.pick(&places), random.pick(&places), random.pick(&places));
    (regs.rax, regs.rcx, regs.rdx) = (random.edge(), random.below(300), random.edge());
    if random.one_in(4) {
        // All but IF and IOPL.
        regs.rflags ^= (1 << random.below(22)) & !0x3200;
        if kind == Kind::User {
            regs.rip = regs.rip.wrapping_add(random.below(2000));
        }
    }
    vcpu.set_regs(&regs)?;
    if random.one_in(2) {
        let mut sregs = vcpu.sregs()?;
        for _ in 0..1 + random.below(4) {
            let (bit, word) = (1 << random.below(64), random.edge());
            match random.below(10) {
                0 => sregs.cr0 ^= bit,
                1 => sregs.cr4 ^= bit,
                // Not SCE: SYSCALL leads to CPL 0, with any bytes there.
                2 => sregs.efer ^= bit & !1,
                3 => sregs.cr3 = word,
                5 if kind == Kind::Kernel => sregs.ss = segment(random),
                6 => sregs.tr = segment(random),
                7 => sregs.gdt.base = word,
                8 if kind == Kind::Kernel => sregs.idt.limit = word as u16,
                _ => sregs.interrupt_bitmap[random.below(4) as usize] ^= bit,
            }
        }
        // Most of these are refused, and that is the point.
        let _ = vcpu.set_sregs(&sregs);
    }
    Ok(())
}

/// From CPL 0 to CPL 3, without SYSCALL and without a handler to come back to.
fn leave_kernel(vcpu: &Vcpu) -> Result<(), Errno> {
    let mut sregs = vcpu.sregs()?;
    for segment in [&mut sregs.cs, &mut sregs.ss] {
        segment.dpl = 3;
        segment.selector |= 3;
    }
    sregs.efer &= !1;
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs)?;
    Ok(())
}

fn segment(random: &mut Random) -> kvm_segment {
    let word = random.word();
    kvm_segment {
        base: random.edge(),
        limit: random.edge() as u32,
        selector: word as u16,
        type_: (word >> 16 & 15) as u8,
        present: (word >> 20 & 1) as u8,
        dpl: (word >> 21 & 3) as u8,
        db: (word >> 23 & 1) as u8,
        s: (word >> 24 & 1) as u8,
        l: (word >> 25 & 1) as u8,
        g: (word >> 26 & 1) as u8,
        avl: (word >> 27 & 1) as u8,
        unusable: (word >> 28 & 1) as u8,
        padding: 0,
    }
}

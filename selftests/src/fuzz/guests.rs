// SPDX-License-Identifier: GPL-2.0

//! Random guests: their code, tables and registers.

use crate::device::Vcpu;
use crate::emulator;
use crate::errno::Errno;
use crate::machine::*;
use crate::memory::Memory;
use crate::random::Random;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Instructions that leave the guest or change its mode, to be found more often than by chance.
const INTERESTING: &[&[u8]] = &[
    &[0xF4],                         // hlt
    &[0xE6, 0x10],                   // out 0x10, al
    &[0xE5, 0x10],                   // in eax, 0x10
    &[0xF3, 0x6E],                   // rep outsb
    &[0xF3, 0x6D],                   // rep insd
    &[0x0F, 0xA2],                   // cpuid
    &[0x0F, 0x30],                   // wrmsr
    &[0x0F, 0x32],                   // rdmsr
    &[0x0F, 0x22, 0xC0],             // mov cr0, eax
    &[0x0F, 0x22, 0xD8],             // mov cr3, eax
    &[0x0F, 0x22, 0xE0],             // mov cr4, eax
    &[0x0F, 0x01, 0x3B],             // invlpg [rbx]
    &[0x66, 0x0F, 0x38, 0x82, 0x03], // invpcid eax, [rbx]
    &[0x0F, 0x20, 0xD8],             // mov eax, cr3
    &[0x0F, 0x23, 0xF8],             // mov dr7, eax
    &[0x0F, 0x01, 0xD1],             // xsetbv
    &[0x0F, 0x01, 0xC1],             // vmcall
    &[0x0F, 0x01, 0x13],             // lgdt [rbx]
    &[0x0F, 0x00, 0xD8],             // ltr ax
    &[0x0F, 0x0B],                   // ud2
    &[0x0F, 0x09],                   // wbinvd
    &[0x8B, 0x03],                   // mov eax, [rbx]
    &[0x89, 0x03],                   // mov [rbx], eax
    &[0xF3, 0xA5],                   // rep movsd
    &[0xF3, 0xAB],                   // rep stosd
    &[0xF0, 0x0F, 0xC1, 0x03],       // lock xadd [rbx], eax
    &[0x87, 0x03],                   // xchg [rbx], eax
    &[0x0F, 0xAB, 0x03],             // bts [rbx], eax
    &[0xFA],                         // cli
    &[0xFB],                         // sti
    &[0x0F, 0x05],                   // syscall
    &[0xCD, 0x80],                   // int 0x80
];

/// Instructions that go on for ever, for guests that interrupts can take out of them.
const LOOPS: &[&[u8]] = &[
    &[0xEA, 0, 0x80, 0, 0, 0x08, 0], // far jump
    &[0xEB, 0xFE],                   // jmp self
];

/// For guests that may keep interrupts off as they like.
const MASKING: &[&[u8]] = &[
    &[0xFA, 0xEB, 0xFE], // cli; jmp self
    &[0x6A, 0x02, 0x9D], // push 2; popf
];

/// Turns interrupts off again and again, wherever in it a guest begins.
const MASKED_LOOP: &[u8] = &[0xFA, 0xEB, 0xFD]; // 1: cli; jmp 1b

const REP: u8 = 0xF3;
/// What keeps a repetition from getting to where a guest's code or vectors are.
const FEW_TIMES: &[u8] = &[0xB1, 0x10, 0x0F, 0xB6, 0xC9]; // mov cl, 16; movzx ecx, cl

/// What the guests of a round are.
///
/// Bochs gives the host no interrupt while a guest runs that was entered with RFLAGS.IF clear, until
/// the guest exits or executes something that writes IF, whatever value (Documentation/testing.md
/// says why). A guest that spins so takes the emulated processor with it. `Line` and `User` can not,
/// not even while other threads change the state of their vCPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything at all.
    Any,
    /// Any mode at CPL 0, interrupts on or off. Its only loop is `MASKED_LOOP`, everything else
    /// leads to halts.
    Line,
    /// Protected or long mode at CPL 1 to 3 with IOPL 0, where nothing clears IF: any bytes.
    User,
}

impl Kind {
    /// One of them; none that could spin with interrupts off unless `masked_spin`.
    pub fn pick(random: &mut Random, masked_spin: bool) -> Self {
        if masked_spin {
            random.pick(&[Self::Any, Self::Any, Self::Line, Self::User])
        } else {
            random.pick(&[Self::Line, Self::User])
        }
    }
}

/// How much code there is; from there to `HALTS_END` guests halt.
const CODE_SIZE: usize = 2048;
const HALTS: usize = layout::CODE + CODE_SIZE;
const HALTS_END: usize = layout::STACK - 0x1000;
const HLT: u8 = 0xF4;
/// The end of real mode's vectors.
const VECTORS_END: usize = 0x400;

/// Fills guest memory with code, tables and noise.
pub fn fill(memory: &Memory, random: &mut Random, kind: Kind) {
    write_tables(memory);
    if kind == Kind::Line {
        write_line(memory, random);
    } else {
        write_anything(memory, random, kind);
    }
    memory.write(HALTS, &[HLT; HALTS_END - HALTS]);
    // Real mode finds its vectors at 0: to the halts. So does SYSCALL, which jumps to 0: these bytes
    // are additions, and behind them there are more halts.
    for vector in 0..VECTORS_END / 8 {
        memory.write_u64(8 * vector, (HALTS | HALTS << 32) as u64);
    }
    memory.write(VECTORS_END, &[HLT; layout::PML4 - VECTORS_END]);
    for _ in 0..random.below(4) * 10 {
        let table = layout::PML4 + 8 * random.below(0x6000 / 8) as usize;
        memory.write_u64(table, random.edge());
    }
}

fn interesting(random: &mut Random) -> &'static [u8] {
    emulator::bearable(random.pick(INTERESTING))
}

fn write_anything(memory: &Memory, random: &mut Random, kind: Kind) {
    let mut code = Vec::new();
    while code.len() < CODE_SIZE {
        match random.below(12) {
            0..=3 => code.extend(random.bytes(4)),
            4 => code.extend(random.pick(LOOPS)),
            5 if kind == Kind::Any => code.extend(random.pick(MASKING)),
            _ => code.extend(interesting(random)),
        }
    }
    memory.write(layout::CODE, &code[..CODE_SIZE]);
}

/// One word for each instruction, written as one: a guest that runs here meanwhile is inside a word
/// only where every word has prefixes or whole instructions, and so never makes a jump of the middle
/// of one.
fn write_line(memory: &Memory, random: &mut Random) {
    let masked_loop = random.below(4 * CODE_SIZE as u64 / 8);
    for index in 0..CODE_SIZE / 8 {
        let word = if index as u64 == masked_loop {
            let mut word = [0x90; 8];
            word[..MASKED_LOOP.len()].copy_from_slice(MASKED_LOOP);
            word
        } else {
            line_word(interesting(random))
        };
        memory.write_u64(layout::CODE + 8 * index, u64::from_le_bytes(word));
    }
}

/// An instruction behind as many DS prefixes as fill a word.
fn line_word(instruction: &[u8]) -> [u8; 8] {
    let mut word = [0x3E; 8];
    let start = 8 - instruction.len();
    word[start..].copy_from_slice(instruction);
    if instruction[0] == REP {
        word[start - FEW_TIMES.len()..start].copy_from_slice(FEW_TIMES);
    }
    word
}

/// A state that is valid, then somewhat changed. `reset` is what the vCPU began with.
pub fn set_state(vcpu: &Vcpu, random: &mut Random, kind: Kind, reset: &kvm_sregs) -> Result<(), Errno> {
    let mut regs = start_registers();
    // From reset, or from whatever there is.
    let mut sregs = if random.one_in(2) { *reset } else { vcpu.sregs()? };
    let first = u64::from(kind == Kind::User);
    match first + random.below(3 - first) {
        0 => {
            sregs = *reset;
            real_mode(&mut sregs);
            regs.rsp = 0x7000;
        }
        1 => protected_mode(&mut sregs),
        _ => long_mode(&mut sregs),
    }
    if kind == Kind::User {
        leave_kernel(&mut sregs, 1 + random.below(3) as u8);
    }
    // Another thread may run the vCPU between any two of these: first to code that suits every mode.
    vcpu.set_regs(&regs)?;
    emulator::spare(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&some_registers(regs, random, kind))?;
    if random.one_in(2) {
        for _ in 0..1 + random.below(4) {
            change_sregs(&mut sregs, random, kind);
        }
        // Most of these are refused, and that is the point.
        emulator::spare(&mut sregs);
        let _ = vcpu.set_sregs(&sregs);
    }
    Ok(())
}

/// As an address of 16 bits: tables that real mode has no use for, half a page from what is before
/// and behind them.
const LOW_TABLES: u64 = 0x1800;

fn some_registers(mut regs: kvm_regs, random: &mut Random, kind: Kind) -> kvm_regs {
    let places = [
        layout::DATA as u64,
        layout::MMIO,
        layout::SIZE as u64 - 2,
        0xFFC,
        layout::PML4 as u64,
        layout::CODE as u64,
    ];
    (regs.rbx, regs.rsi, regs.rdi) = (random.pick(&places), random.pick(&places), random.pick(&places));
    if kind == Kind::Line {
        // What it writes through leads neither to its code nor to vectors, be it cut off to 16 bits.
        regs.rbx = random.pick(&places[..5]);
        regs.rdi = random.pick(&[layout::DATA as u64, layout::MMIO]) + LOW_TABLES;
    }
    (regs.rax, regs.rcx, regs.rdx) = (random.edge(), random.below(300), random.edge());
    if random.one_in(4) {
        let bit = 1 << random.below(22);
        // IF and IOPL are what keeps User where it is.
        regs.rflags ^= if kind == Kind::User { bit & !0x3200 } else { bit };
        if kind != Kind::Line {
            regs.rip += random.below(CODE_SIZE as u64);
        }
    }
    regs
}

fn change_sregs(sregs: &mut kvm_sregs, random: &mut Random, kind: Kind) {
    let (bit, word) = (1 << random.below(64), random.edge());
    let user = kind == Kind::User;
    match random.below(10) {
        // In real mode everybody may clear IF.
        0 => sregs.cr0 ^= if user { bit & !CR0_PE } else { bit },
        1 => sregs.cr4 ^= bit,
        // SYSCALL leads to CPL 0, with any bytes there.
        2 => sregs.efer ^= if user { bit & !EFER_SCE } else { bit },
        3 => sregs.cr3 = word,
        4 if kind == Kind::Any => sregs.cs = segment(random),
        5 if !user => sregs.ss = segment(random),
        6 => sregs.tr = segment(random),
        7 => sregs.gdt.base = word,
        8 if !user => sregs.idt.limit = word as u16,
        _ => sregs.interrupt_bitmap[random.below(4) as usize] ^= bit,
    }
}

/// From CPL 0 to `dpl`, without SYSCALL and without a handler to come back to.
fn leave_kernel(sregs: &mut kvm_sregs, dpl: u8) {
    for segment in [&mut sregs.cs, &mut sregs.ss] {
        segment.dpl = dpl;
        segment.selector |= u16::from(dpl);
    }
    sregs.efer &= !EFER_SCE;
    sregs.idt.limit = 0;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_words_end_in_their_instruction() {
        for instruction in INTERESTING {
            let word = line_word(instruction);
            assert!(word.ends_with(instruction));
            let front = &word[..8 - instruction.len()];
            assert_eq!(front.ends_with(FEW_TIMES), instruction[0] == REP);
        }
    }

    /// Which kinds there are depends on what the machine can take.
    #[test]
    fn no_masked_spin_without_leave() {
        let mut random = Random::new(1);
        assert!((0..200).all(|_| Kind::pick(&mut random, false) != Kind::Any));
        assert!((0..200).any(|_| Kind::pick(&mut random, true) == Kind::Any));
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Register states that nobody in their right mind sets, repeatable by seed.

use crate::emulator;
use crate::machine::*;
use crate::random::Random;
use kvm_bindings::*;

/// Some registers of `regs` replaced; the guest starts in its own memory once in a while.
///
/// Interrupts stay on: see `START_FLAGS`.
pub fn regs(random: &mut Random, regs: &mut kvm_regs) {
    let fields = [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
        &mut regs.rsp,
        &mut regs.rip,
        &mut regs.r8,
        &mut regs.r15,
    ];
    for field in fields {
        if random.one_in(3) {
            *field = random.edge();
        }
    }
    if random.one_in(2) {
        regs.rflags = random.edge() | START_FLAGS;
    }
}

/// Some system registers of `sregs` replaced, by bits or as a whole.
pub fn sregs(random: &mut Random, sregs: &mut kvm_sregs) {
    for _ in 0..1 + random.below(4) {
        let bit = 1 << random.below(64);
        match random.below(12) {
            0 => sregs.cr0 ^= bit,
            1 => sregs.cr4 ^= bit,
            2 => sregs.efer ^= bit,
            3 => sregs.cr0 ^= random.pick(&[CR0_PE, CR0_PG, CR0_WP, CR0_NE, 1 << 29, 1 << 30]),
            4 => sregs.cr4 ^= random.pick(&[CR4_PAE, CR4_OSXSAVE, 1 << 4, 1 << 17, 1 << 20, 1 << 21]),
            5 => sregs.efer ^= random.pick(&[EFER_LME, EFER_LMA, EFER_NXE, EFER_SCE]),
            6 => sregs.cr3 = random.edge(),
            7 => table(random, &mut sregs.gdt),
            8 => table(random, &mut sregs.idt),
            _ => {
                let segments = [
                    &mut sregs.cs,
                    &mut sregs.ss,
                    &mut sregs.ds,
                    &mut sregs.es,
                    &mut sregs.fs,
                    &mut sregs.gs,
                    &mut sregs.tr,
                    &mut sregs.ldt,
                ];
                let index = random.below(segments.len() as u64) as usize;
                for (at, place) in segments.into_iter().enumerate() {
                    if at == index {
                        segment(random, place);
                    }
                }
            }
        }
    }
    emulator::spare(sregs);
}

fn table(random: &mut Random, table: &mut kvm_dtable) {
    table.base = random.edge();
    table.limit = random.word() as u16;
}

fn segment(random: &mut Random, segment: &mut kvm_segment) {
    match random.below(10) {
        0 => segment.base = random.edge(),
        1 => segment.limit = random.edge() as u32,
        2 => segment.selector = random.word() as u16,
        3 => segment.type_ = random.below(16) as u8,
        4 => segment.present ^= 1,
        5 => segment.dpl = random.below(4) as u8,
        6 => (segment.db, segment.l) = (random.below(2) as u8, random.below(2) as u8),
        7 => segment.s ^= 1,
        8 => segment.g ^= 1,
        _ => segment.unusable ^= 1,
    }
}

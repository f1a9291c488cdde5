// SPDX-License-Identifier: GPL-2.0

//! Accesses through garbage page tables, to memory and to devices, fault, exit and set flags as with KVM.

use crate::compare::{compare, Log};
use crate::machine::*;
use crate::prelude::*;
use crate::random::Random;
use crate::traps;

pub const TEST: Test = Test::new(120, run);

guest!(tables_read, code64, "mov rax, [rbx]", "out 0x10, al");
guest!(tables_write, code64, "mov [rbx], eax", "out 0x10, al");
guest!(tables_modify, code64, "lock add [rbx], ax", "out 0x10, al");
guest!(tables_jump, code64, "jmp rbx");
guest!(tables_from, code64, "mov rsi, rbx", "movsb", "out 0x10, al");
guest!(tables_to, code64, "mov rdi, rbx", "stosd", "out 0x10, al");
guest!(tables_outs, code64, "mov rsi, rbx", "outsb", "out 0x10, al");

/// Two top-level tables in turn, so that nothing of the last round is cached.
const TOPS: [usize; 2] = [layout::PML4, 0x10_0000];
const POINTERS: usize = 0x10_1000;
const DIRECTORY: usize = 0x10_2000;
const TABLE: usize = 0x10_3000;
const MEMORY: usize = 4 << 20;
const IOPL_3: u64 = 3 << 12;
const CR4_SMAP: u64 = 1 << 21;

fn run(t: &Context) -> Outcome {
    t.nested()?;
    let count = t.repetitions(600);
    let cpuid = t.device()?.supported_cpuid(256)?;
    compare(t, |device, log| scenario(device, log, &cpuid, count))
}

fn scenario(device: &Device, log: &mut Log, cpuid: &[kvm_cpuid_entry2], count: u64) -> Outcome {
    let smap = cpuid.iter().any(|entry| entry.function == 7 && entry.index == 0 && entry.ebx >> 20 & 1 != 0);
    let machine = Machine::with_memory(device, Memory::new(MEMORY)?)?;
    machine.vcpu.set_cpuid(cpuid)?;
    let codes = [
        ("read", tables_read()),
        ("write", tables_write()),
        ("modify", tables_modify()),
        ("jump", tables_jump()),
        ("movs from", tables_from()),
        ("stos to", tables_to()),
        ("outs", tables_outs()),
        // Not INS: KVM asks the device before it looks whether its data can be stored.
    ];
    let mut random = Random::new(23);
    for round in 0..count as usize {
        machine.write_tables();
        traps::install(&machine);
        machine.memory.fill(0x20_0000, 0x1000, 0xF4);
        let (name, code) = random.pick(&codes);
        machine.load(code);
        let top = TOPS[round % 2];
        machine.memory.write_u64(TOPS[1], machine.memory.read_u64(TOPS[0]));
        let indices: [u64; 3] = [0; 3].map(|_: u64| random.below(512));
        let at = |table: usize, index: u64| table + 8 * index as usize;
        let places = [at(top, 1), at(POINTERS, indices[0]), at(DIRECTORY, indices[1]), at(TABLE, indices[2])];
        for (level, place) in places.into_iter().enumerate() {
            machine.memory.write_u64(place, entry(&mut random, level));
        }
        let offset = random.pick(&[0, 0x10, 0x7F8, 0xFF0]);
        let address = 1 << 39 | indices[0] << 30 | indices[1] << 21 | indices[2] << 12 | offset;
        enter_long(&machine.vcpu)?;
        let user = random.one_in(2);
        let toggles = random.word();
        machine.change_sregs(|sregs| {
            sregs.cr3 = top as u64;
            if toggles & 1 != 0 {
                sregs.cr0 &= !CR0_WP;
            }
            if toggles & 6 == 6 {
                sregs.efer &= !EFER_NXE;
            }
            if user {
                (sregs.cs.selector, sregs.cs.dpl) = (layout::USER_CODE64 | 3, 3);
                (sregs.ss.selector, sregs.ss.dpl) = (layout::USER_DATA | 3, 3);
            } else if smap && toggles & 0x18 == 0x18 && name != "movs from" {
                // All that the supervisor runs on belongs to users: only data accesses can be told.
                // Not MOVS: KVM asks the device before it looks whether its data can be stored.
                sregs.cr4 |= CR4_SMAP;
            }
        })?;
        machine.change_regs(|regs| {
            (regs.rax, regs.rbx, regs.rdx, regs.rdi) = (0x5A5A, address, 0x11, layout::DATA as u64);
            regs.rflags |= IOPL_3;
        })?;
        let mut steps = Vec::new();
        for _ in 0..4 {
            let exit = match machine.run() {
                Ok(exit) => exit,
                Err(errno) => {
                    steps.push(format!("{errno}"));
                    break;
                }
            };
            let trap = traps::trap(&machine, &exit)?;
            if let Some(trap) = trap {
                steps.push(format!("{:x?} CR2 {:#x}", (trap.vector, trap.error), machine.vcpu.sregs()?.cr2));
                break;
            }
            match exit {
                Exit::MmioRead { length, .. } => machine.vcpu.answer_mmio(&vec![0x33; length]),
                Exit::Io { direction: Direction::In, size, .. } => machine.vcpu.answer_io(&vec![0x44; size]),
                _ => {}
            }
            if name == "outs" && matches!(exit, Exit::MmioRead { .. } | Exit::InternalError { .. }) {
                // KVM reads the data from user space, rusthv says that there are none.
                steps.push("data where no memory is".into());
                break;
            }
            let last = matches!(exit, Exit::Io { port: 0x10, .. } | Exit::Hlt | Exit::Shutdown);
            match exit {
                Exit::InternalError { suberror, .. } => {
                    steps.push(format!("internal error {suberror}"));
                    break;
                }
                exit => steps.push(format!("{exit:x?}")),
            }
            if last {
                break;
            }
        }
        machine.vcpu.set_immediate_exit(1);
        let _ = machine.run();
        machine.vcpu.set_immediate_exit(0);
        let tables = places.map(|place| machine.memory.read_u64(place));
        note!(
            log,
            "round {round}: {name} {address:#x} user {user} toggles {:#x}: {steps:?}, tables now {tables:x?}",
            toggles & 0x1F
        );
    }
    Ok(())
}

/// An entry of a level, 0 at the top: mostly good.
fn entry(random: &mut Random, level: usize) -> u64 {
    let next = [POINTERS, DIRECTORY, TABLE, 0][level] as u64;
    let mut entry = PTE_ALL;
    let large = level > 0 && level < 3 && random.one_in(6);
    if level == 3 || large {
        entry |= match (level, random.one_in(3)) {
            // A gigabyte: memory and holes, or nothing at all.
            (1, false) => 0,
            (1, true) => 0xC000_0000,
            (2, false) => random.pick(&[0, 0x20_0000]),
            (2, true) => layout::MMIO,
            (_, false) => random.pick(&[0x10_4000, 0x20_0000, 0x3F_F000]),
            (_, true) => layout::MMIO + 0x3000,
        };
    } else {
        entry |= next;
    }
    if large {
        entry |= PTE_LARGE;
        // Bit 12 selects a memory type, those above it must be zero.
        if random.one_in(8) {
            entry |= 1 << (13 + random.below(8));
        }
    }
    for (bit, rarely) in [(0, 12), (1, 4), (2, 4), (63, 6), (7, 16)] {
        if random.one_in(rarely) {
            entry ^= 1 << bit;
        }
    }
    if level < 3 && entry & PTE_LARGE == 0 {
        // Tables are in memory: elsewhere KVM calls them absent, and rusthv gives up on them.
        entry = entry & !0x3FFF_FFFF_F000 | next;
    }
    // Accessed, dirty, and what software may use; cache control.
    entry |= random.word() & (1 << 5 | 1 << 6 | 7 << 9 | 1 << 3 | 1 << 4);
    if random.one_in(12) {
        // Above every physical address here.
        entry |= 1 << (46 + random.below(6));
    }
    entry
}

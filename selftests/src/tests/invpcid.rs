// SPDX-License-Identifier: GPL-2.0

//! INVPCID with operands that are not allowed raises what a CPU raises, in every paging mode; with others it is done.

use crate::emulator;
use crate::machine::*;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(invpcid_64, code64, "invpcid rax, [rbx]", "hlt");

const CR4_PCIDE: u64 = 1 << 17;
const LEAF_FEATURES: u32 = 7;
const INVPCID: u32 = 1 << 10;
/// The first address that is not canonical, and the last one before those that are again.
const HOLE: [u64; 2] = [0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF];
/// Not mapped in the guest's tables.
const ABSENT: u64 = 1 << 32;

/// Kind, the two halves of the descriptor, CR4.PCIDE; and whether it is done.
const CASES: &[(u64, [u64; 2], bool, bool)] = &[
    (0, [0, 0x1000], false, true),
    (1, [0, 0], false, true),
    (2, [0, 0], false, true),
    (3, [0, 0], false, true),
    (0, [0xFFF, 0x1000], true, true),
    (1, [0xFFF, 0], true, true),
    // Kinds that there are not.
    (4, [0, 0], false, false),
    (1 << 32, [0, 0], false, false),
    (u64::MAX, [0, 0], false, false),
    // Reserved bits of the descriptor.
    (0, [0x1000, 0], true, false),
    (1, [1 << 63, 0], true, false),
    (2, [0x1000, 0], true, false),
    (3, [1 << 32, 0], true, false),
    // A context where there are none; it says nothing to those that forget all.
    (0, [1, 0], false, false),
    (1, [0xFFF, 0], false, false),
    (2, [1, 0], false, true),
    (3, [0xFFF, 0], false, true),
    // Addresses that are not canonical count where one is to be forgotten.
    (0, [0, HOLE[0]], false, false),
    (0, [0, HOLE[1]], true, false),
    (0, [0, HOLE[0] - 1], false, true),
    (0, [0, HOLE[1] + 1], false, true),
    (1, [0, HOLE[0]], false, true),
    (3, [0, HOLE[1]], false, true),
];

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let features = device.supported_cpuid(256)?;
    let has = |entry: &kvm_cpuid_entry2| entry.function == LEAF_FEATURES && entry.ebx & INVPCID != 0;
    if !features.iter().any(has) {
        skip!("the CPU has no INVPCID");
    }
    let machine = Machine::long(&device, invpcid_64())?;
    let start = |kind: u64, descriptor: u64| -> Outcome {
        let regs = start_registers();
        machine.vcpu.set_regs(&kvm_regs { rax: kind, rbx: descriptor, ..regs })?;
        Ok(())
    };
    for &(kind, [context, address], contexts, done) in CASES {
        if kind >> 32 != 0 && kind as u32 <= 3 && emulator::is_bochs() && emulator::is_nested() {
            // Its CPU looks at 32 bits of the register, unless there is a REX.W.
            continue;
        }
        let what = format!("kind {kind:#x} of {context:#x}, {address:#x}, contexts: {contexts}");
        machine.memory.write_u64(layout::DATA, context);
        machine.memory.write_u64(layout::DATA + 8, address);
        machine.change_sregs(|sregs| {
            sregs.cr4 = sregs.cr4 & !CR4_PCIDE | if contexts { CR4_PCIDE } else { 0 };
        })?;
        start(kind, layout::DATA as u64)?;
        if done {
            check_eq!(machine.run()?, Exit::Hlt, "{what}");
            continue;
        }
        let trap = machine.run_to_trap(&what)?;
        check_eq!((trap.vector, trap.error), (traps::GENERAL_PROTECTION, 0), "{what}");
        check_eq!(trap.rip, layout::CODE as u64, "{what}");
    }
    // The descriptor itself.
    start(0, ABSENT)?;
    let trap = machine.run_to_trap("a descriptor that is not there")?;
    check_eq!((trap.vector, trap.error), (traps::PAGE_FAULT, 0));
    check_eq!(machine.vcpu.sregs()?.cr2, ABSENT);
    start(0, HOLE[0] - 8)?;
    let trap = machine.run_to_trap("a descriptor that is not canonical")?;
    check_eq!((trap.vector, trap.error), (traps::GENERAL_PROTECTION, 0));
    Ok(())
}

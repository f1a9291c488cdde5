// SPDX-License-Identifier: GPL-2.0

//! mremap() under a guest: memory moved away is gone from it, memory moved in is there.

use crate::memory::PAGE;
use crate::prelude::*;
use std::ptr;

pub const TEST: Test = Test::new(10, run);

guest!(notifier_remap, code64, "2: mov rax, [0x400000]", "mov [0x400008], rax", "hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, notifier_remap())?;
    let memory = Memory::new(PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    for round in 1..=5u64 {
        memory.write_u64(0, round);
        check_eq!(machine.run()?, Exit::Hlt);
        let there = Memory::new(PAGE)?;
        there.write_u64(0, 100 + round);
        // The guest's page goes elsewhere, and keeps its contents there.
        let elsewhere = Memory::new(PAGE)?;
        move_page(&memory, &elsewhere)?;
        check_err!(machine.run(), EFAULT, "round {round}");
        check_eq!((elsewhere.read_u64(0), elsewhere.read_u64(8)), (round, round));
        // Another page comes to where the slot looks.
        move_page(&there, &memory)?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, 100 + round);
        check_eq!(memory.read_u64(8), 100 + round, "the guest's write");
        check_eq!(elsewhere.read_u64(8), round, "and not in the page that left");
    }
    Ok(())
}

/// The mapping moves; what was at the target is dropped, the source is a hole.
fn move_page(from: &Memory, to: &Memory) -> Result<(), Errno> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are pages of ours, and nothing but volatile access through `Memory` refers to
    // them. A hole that a `Memory` unmaps once more on drop is no harm: nothing maps in between.
    let moved = unsafe {
        libc::mremap(from.at(0, PAGE).cast(), PAGE, PAGE, flags, to.at(0, PAGE).cast::<libc::c_void>())
    };
    if moved == libc::MAP_FAILED || ptr::eq(moved, ptr::null()) {
        return Err(Errno::last());
    }
    Ok(())
}

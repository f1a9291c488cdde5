// SPDX-License-Identifier: GPL-2.0

//! Pages move between NUMA nodes under a running guest, which loses nothing.

use crate::memory::PAGE;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(120, run);

const PAGES: usize = 16;
const MPOL_MF_MOVE: libc::c_int = 2;

guest!(
    page_migration,
    code64,
    "2: mov ebx, 0x400000",
    "mov r8d, 16",
    "3: cmp [rbx], r10",
    "jne 4f",
    "inc qword ptr [rbx]",
    "add rbx, 0x1000",
    "dec r8",
    "jnz 3b",
    "inc r10",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "4: ud2",
);

fn run(t: &Context) -> Outcome {
    if !std::path::Path::new("/sys/devices/system/node/node1").exists() {
        skip!("only one NUMA node (numa=fake=2 makes two)");
    }
    let machine = Machine::long(&t.device()?, page_migration())?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, PAGES * PAGE, 0);
    machine.vm.map(1, 0x40_0000, &memory)?;
    let rounds = t.repetitions(200);
    let done = AtomicBool::new(false);
    let (exit, moved) = thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let guest = scope.spawn(move || {
            let exit = machine.run();
            done.store(true, Ordering::Release);
            exit
        });
        let mut moved = 0;
        for round in 0..rounds {
            moved += migrate(&memory, (round % 2) as i32);
            if done.load(Ordering::Acquire) {
                break;
            }
        }
        machine.memory.write(layout::DATA, &[1]);
        (guest.join().unwrap_or(Err(Errno::EIO)), moved)
    });
    check_eq!(exit, Ok(Exit::Hlt), "a lost write ends in the handler of #UD");
    check!(moved > 0, "no page was moved");
    let sweeps = machine.vcpu.regs()?.r10;
    for page in 0..PAGES {
        check_eq!(memory.read_u64(page * PAGE), sweeps, "page {page}");
    }
    Ok(())
}

/// Moves all pages to a node; how many are there afterwards.
fn migrate(memory: &Memory, node: i32) -> usize {
    let pages: Vec<u64> = (0..PAGES).map(|page| memory.address() + (page * PAGE) as u64).collect();
    let nodes = [node; PAGES];
    let mut status = [-1i32; PAGES];
    // SAFETY: arrays of as many elements as said, all of them ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            PAGES,
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    if result < 0 {
        return 0;
    }
    status.into_iter().filter(|state| *state == node).count()
}

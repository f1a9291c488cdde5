// SPDX-License-Identifier: GPL-2.0

//! MADV_DONTNEED while the guest writes: every value it reads is one it wrote since, or zero.

use crate::memory::PAGE;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

const PAGES: usize = 8;

guest!(
    dontneed_running,
    code64,
    // Increments a counter in each page. A zero is a page that was taken away. The low half is
    // what this page counts, the high half is the page's address: frames must not be mixed up.
    "2: mov rbx, 0x400000",
    "3: mov rax, [rbx]",
    "test rax, rax",
    "jz 4f",
    "mov rdx, rax",
    "shr rdx, 32",
    "cmp rdx, rbx",
    "jne 5f",
    "inc rax",
    "mov [rbx], rax",
    "jmp 6f",
    "4: mov rax, rbx",
    "shl rax, 32",
    "inc rax",
    "mov [rbx], rax",
    "inc rcx",
    "6: add rbx, 0x1000",
    "cmp rbx, 0x408000",
    "jne 3b",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "5: ud2",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, dontneed_running())?;
    let memory = Memory::new(PAGES * PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    let rounds = t.repetitions(3000);
    let done = AtomicBool::new(false);
    let exit = thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let guest = scope.spawn(move || {
            let exit = machine.run();
            done.store(true, Ordering::Release);
            exit
        });
        let mut advised = Ok(());
        for round in 0..rounds as usize {
            let (page, count) = (round * 5 % PAGES, 1 + round % 3);
            let count = count.min(PAGES - page);
            advised = advised.and(memory.advise(page * PAGE, count * PAGE, libc::MADV_DONTNEED));
            if done.load(Ordering::Acquire) {
                break;
            }
        }
        machine.memory.write(layout::DATA, &[1]);
        advised.and_then(|()| guest.join().unwrap_or(Err(Errno::EIO)))
    })?;
    check_eq!(exit, Exit::Hlt, "a wrong value ends in the handler of #UD");
    check!(machine.vcpu.regs()?.rcx >= PAGES as u64, "pages that the guest found fresh");
    Ok(())
}

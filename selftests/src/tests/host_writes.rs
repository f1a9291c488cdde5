// SPDX-License-Identifier: GPL-2.0

//! Memory is shared with the VMM while the guest runs: each sees what the other writes.

use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(60, run);

guest!(
    host_writes,
    code64,
    // Answers each number that appears at 0x20000 with its double at 0x20040; 0 is no number.
    "2: mov rax, [0x20000]",
    "cmp rax, rbx",
    "je 2b",
    "mov rbx, rax",
    "add rax, rax",
    "mov [0x20040], rax",
    "cmp rbx, -1",
    "jne 2b",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, host_writes())?;
    let rounds = t.repetitions(100);
    let failed = AtomicBool::new(false);
    let (exit, answered) = thread::scope(|scope| {
        let (machine, failed) = (&machine, &failed);
        let guest = scope.spawn(move || {
            let exit = machine.run();
            failed.store(true, Ordering::Relaxed);
            exit
        });
        let mut answered = 0;
        for number in 1..=rounds {
            machine.memory.write_u64(layout::DATA, number);
            let deadline = Instant::now() + Duration::from_secs(10);
            while machine.memory.read_u64(layout::DATA + 0x40) != 2 * number
                && Instant::now() < deadline
                && !failed.load(Ordering::Relaxed)
            {
                thread::yield_now();
            }
            answered += u64::from(machine.memory.read_u64(layout::DATA + 0x40) == 2 * number);
        }
        machine.memory.write_u64(layout::DATA, u64::MAX);
        (guest.join(), answered)
    });
    check!(matches!(exit, Ok(Ok(Exit::Hlt))), "{exit:x?}");
    check_eq!(answered, rounds);
    Ok(())
}

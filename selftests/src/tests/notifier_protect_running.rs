// SPDX-License-Identifier: GPL-2.0

//! Once mprotect() has taken write permission, not one more write of a running guest arrives.

use crate::memory::PAGE;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(protect_running, code64, "2: inc qword ptr [0x400000]", "cmp byte ptr [0x20000], 0", "je 2b", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, protect_running())?;
    let memory = Memory::new(PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    let rounds = t.repetitions(100);
    let done = AtomicBool::new(false);
    let exit = thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let guest = scope.spawn(move || {
            loop {
                match machine.run() {
                    // What a write without permission is; it is repeated until it works.
                    Err(Errno::EFAULT) => thread::yield_now(),
                    other => {
                        done.store(true, Ordering::Release);
                        return other;
                    }
                }
            }
        });
        let outcome = (0..rounds).try_for_each(|round| one(&memory, round, done));
        let _ = memory.protect(0, PAGE, libc::PROT_READ | libc::PROT_WRITE);
        machine.memory.write(layout::DATA, &[1]);
        let exit = guest.join().unwrap_or(Err(Errno::EIO));
        outcome.map(|()| exit)
    })?;
    check_eq!(exit, Ok(Exit::Hlt));
    Ok(())
}

fn one(memory: &Memory, round: u64, done: &AtomicBool) -> Outcome {
    let start = memory.read_u64(0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while memory.read_u64(0) == start && Instant::now() < deadline && !done.load(Ordering::Acquire) {
        thread::yield_now();
    }
    check!(memory.read_u64(0) != start, "round {round}: the guest stands still");
    memory.protect(0, PAGE, libc::PROT_READ)?;
    let frozen = memory.read_u64(0);
    for _ in 0..20 {
        thread::yield_now();
        check_eq!(memory.read_u64(0), frozen, "round {round}, behind mprotect()");
    }
    memory.protect(0, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
    Ok(())
}

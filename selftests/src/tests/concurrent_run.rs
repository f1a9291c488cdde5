// SPDX-License-Identifier: GPL-2.0

//! Two threads in KVM_RUN on one vCPU take turns: both come back, and no instruction runs twice.

use crate::host;
use crate::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

pub const TEST: Test = Test::new(60, run).with_several_cpus();

guest!(concurrent_run, code16, "2: inc eax", "out 0x10, al", "jmp 2b");

fn run(t: &Context) -> Outcome {
    t.real_mode()?;
    let machine = Machine::real(&t.device()?, concurrent_run())?;
    let turns = t.repetitions(2000);
    let exits = AtomicU64::new(0);
    let other = AtomicU64::new(0);
    thread::scope(|scope| {
        for index in 0..2 {
            let (machine, exits, other) = (&machine, &exits, &other);
            scope.spawn(move || {
                let cpus = host::online_cpus();
                let _ = host::pin(cpus[index % cpus.len()]);
                for _ in 0..turns {
                    match machine.vcpu.ioctl(crate::ioctl::KVM_RUN, 0) {
                        Ok(_) => exits.fetch_add(1, Ordering::Relaxed),
                        Err(_) => other.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
    });
    check_eq!(other.into_inner(), 0, "calls that failed");
    let exits = exits.into_inner();
    check_eq!(exits, 2 * turns);
    check_eq!(machine.vcpu.regs()?.rax, exits, "one more loop for each exit");
    Ok(())
}

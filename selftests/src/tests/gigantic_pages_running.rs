// SPDX-License-Identifier: GPL-2.0

//! A page of 1 GiB is cut and made whole again under two running vCPUs, which never lose a write.

use crate::gigantic::{self, GIB, GPA, LARGE, PAGES};
use crate::host;
use crate::machine::enter_long;
use crate::memory::LARGE_PAGE;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(240, run);

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(
    gigantic_pages_running,
    code64,
    // Each vCPU increments a word of its own (at r9) in every 2 MiB, round by round, and counts the rounds at r11.
    "2: mov ebx, 0x40000000",
    "add rbx, r9",
    "mov r8d, 512",
    "3: cmp [rbx], r10",
    "jne 4f",
    "inc qword ptr [rbx]",
    "add rbx, 0x200000",
    "dec r8",
    "jnz 3b",
    "inc r10",
    "mov [r11], r10",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "4: ud2",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, gigantic_pages_running())?;
    let memory = gigantic::memory()?;
    let words = [8, 0x808];
    let counts = [layout::DATA + 0x100, layout::DATA + 0x200];
    let set = |flags| machine.vm.set_slot(1, flags, GPA, GIB as u64, memory.address());
    set(0)?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    for (index, vcpu) in [&machine.vcpu, &second].into_iter().enumerate() {
        let mut regs = vcpu.regs()?;
        (regs.r9, regs.r11) = (words[index] as u64, counts[index] as u64);
        regs.rsp = (layout::STACK - 0x1000 * index) as u64;
        vcpu.set_regs(&regs)?;
    }
    let done = AtomicBool::new(false);
    let logged = AtomicU64::new(0);
    let cpus = host::online_cpus();
    let rounds = t.repetitions(12);
    let (exits, outcome) = thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let threads = [&machine.vcpu, &second].map(|vcpu| {
            let cpu = cpus[vcpu.fd() as usize % cpus.len()];
            scope.spawn(move || {
                let pinned = host::pin(cpu);
                // A write while the page is read-only for the VMM is EFAULT: that is right, and the guest goes on.
                let run = || loop {
                    match vcpu.run() {
                        Err(Errno::EFAULT) => thread::yield_now(),
                        exit => break exit,
                    }
                };
                let exit = pinned.and_then(|()| run());
                done.store(true, Ordering::Release);
                exit
            })
        });
        let sweeps = |number: u64| {
            let start = counts.map(|at| machine.memory.read_u64(at));
            let behind = |at: &usize| {
                let index = usize::from(*at != counts[0]);
                machine.memory.read_u64(*at) < start[index] + number
            };
            while counts.iter().any(behind) && !done.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
        };
        let host = || -> Outcome {
            for round in 0..rounds {
                sweeps(1);
                set(LOG)?;
                // At any point of a sweep, or behind whole ones, when all 512 parts are cut.
                if round % 3 == 0 {
                    sweeps(2);
                }
                logged.fetch_add(machine.vm.dirty_pages(1, PAGES)?.len() as u64, Ordering::Relaxed);
                set(0)?;
                if round % 4 == 3 {
                    memory.protect(0, GIB, libc::PROT_READ)?;
                    memory.protect(0, GIB, libc::PROT_READ | libc::PROT_WRITE)?;
                }
                if done.load(Ordering::Acquire) {
                    break;
                }
            }
            Ok(())
        };
        let outcome = host();
        machine.memory.write(layout::DATA, &[1]);
        (threads.map(|thread| thread.join().unwrap_or(Err(Errno::EIO))), outcome)
    });
    outcome?;
    for (index, (vcpu, exit)) in [&machine.vcpu, &second].into_iter().zip(exits).enumerate() {
        check_eq!(exit, Ok(Exit::Hlt), "vCPU {index}; a lost write ends in the handler of #UD");
        let sweeps = vcpu.regs()?.r10;
        for part in 0..LARGE {
            let found = memory.read_u64(part * LARGE_PAGE + words[index]);
            check_eq!(found, sweeps, "vCPU {index}, part {part}");
        }
    }
    let logged = logged.load(Ordering::Relaxed);
    check!(logged >= LARGE as u64, "{logged} pages were logged: no sweep was");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Huge pages are split and collapsed under two running vCPUs, which never lose a write.

use crate::host;
use crate::machine::enter_long;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(180, run).with_several_cpus();

const GPA: u64 = 0x4000_0000;
const SIZE: usize = 2 * LARGE_PAGE;
const MADV_COLLAPSE: libc::c_int = 25;

guest!(
    large_pages_running,
    code64,
    // Each vCPU increments a word of its own (at r9) in every page, round by round.
    "2: mov ebx, 0x40000000",
    "add rbx, r9",
    "mov r8d, 1024",
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
    let device = t.device()?;
    let machine = Machine::long(&device, large_pages_running())?;
    check_eq!(SIZE / PAGE, 1024, "what the guest sweeps");
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    if memory.advise(0, SIZE, libc::MADV_HUGEPAGE).is_err() {
        skip!("no transparent huge pages in this kernel");
    }
    machine.vm.map(1, GPA, &memory)?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let mut regs = second.regs()?;
    (regs.r9, regs.rsp) = (0x800, layout::STACK as u64 - 0x1000);
    second.set_regs(&regs)?;
    let done = AtomicBool::new(false);
    let cpus = host::online_cpus();
    let rounds = t.repetitions(300);
    let exits = thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let threads = [&machine.vcpu, &second].map(|vcpu| {
            let cpu = cpus[vcpu.fd() as usize % cpus.len()];
            scope.spawn(move || {
                let exit = host::pin(cpu).and_then(|()| vcpu.run());
                done.store(true, Ordering::Release);
                exit
            })
        });
        for round in 0..rounds as usize {
            let page = round * 37 % 1024 * PAGE;
            // Each of them may be refused by the host for reasons of its own; the guest must not care.
            let _ = memory.protect(page, PAGE, libc::PROT_READ);
            let _ = memory.protect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
            if round % 4 == 0 {
                let _ = memory.advise(page / LARGE_PAGE * LARGE_PAGE, LARGE_PAGE, MADV_COLLAPSE);
            }
            if done.load(Ordering::Acquire) {
                break;
            }
        }
        machine.memory.write(layout::DATA, &[1]);
        threads.map(|thread| thread.join().unwrap_or(Err(Errno::EIO)))
    });
    // A write while the page was read-only for the VMM is EFAULT: that is right, and the guest goes on.
    for (index, (vcpu, exit)) in [&machine.vcpu, &second].into_iter().zip(exits).enumerate() {
        let exit = if exit == Err(Errno::EFAULT) { vcpu.run() } else { exit };
        check_eq!(exit, Ok(Exit::Hlt), "vCPU {index}; a lost write ends in the handler of #UD");
        let sweeps = vcpu.regs()?.r10;
        for page in 0..SIZE / PAGE {
            check_eq!(memory.read_u64(page * PAGE + 0x800 * index), sweeps, "vCPU {index}, page {page}");
        }
    }
    Ok(())
}

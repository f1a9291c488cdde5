// SPDX-License-Identifier: GPL-2.0

//! Calls on a vCPU that runs wait until it leaves the guest, calls on its VM do not, and a kill ends all of them.

use crate::harness::runner::reap;
use crate::host::{self, Thread};
use crate::memory::PAGE;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(60, run).with_several_cpus();

guest!(calls_wait, code16, "2: inc dword ptr [0x2000]", "jmp 2b");

type Call = fn(&Vcpu) -> Result<i32, Errno>;

const CALLS: [Call; 4] = [
    |vcpu| vcpu.regs().map(|_| 0),
    |vcpu| vcpu.sregs().map(|_| 0),
    |vcpu| vcpu.interrupt(0x51),
    |vcpu| vcpu.set_cpuid(&[]),
];

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    // First, as long as there is one thread to fork from.
    for _ in 0..t.repetitions(5) {
        killed(&device)?;
    }
    let machine = Machine::real(&device, calls_wait())?;
    host::interruptible_by_sigusr1();
    let returned = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let me = Thread::current();
    let (outcome, result) = thread::scope(|scope| {
        let (machine, returned, done) = (&machine, &returned, &done);
        let other = scope.spawn(move || {
            wait_for_guest(machine);
            for call in CALLS {
                scope.spawn(move || {
                    if call(&machine.vcpu).is_ok() {
                        returned.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let outcome = while_it_runs(machine, returned);
            while !done.load(Ordering::Relaxed) {
                me.interrupt();
                thread::sleep(Duration::from_millis(1));
            }
            outcome
        });
        let result = machine.run();
        done.store(true, Ordering::Relaxed);
        (other.join(), result)
    });
    outcome.unwrap_or_else(|_| Err(Failure::failed("a thread panicked")))?;
    check_err!(result, EINTR);
    check_eq!(returned.into_inner(), CALLS.len(), "calls that came through once it had left");
    Ok(())
}

/// Until the guest runs.
fn wait_for_guest(machine: &Machine) {
    while machine.memory.read_u32(0x2000) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
}

fn while_it_runs(machine: &Machine, returned: &AtomicUsize) -> Outcome {
    let memory = Memory::new(PAGE)?;
    check_eq!(machine.vm.map(1, 0x100_0000, &memory), Ok(0), "a slot is added");
    check_eq!(machine.vm.set_slot(1, 0, 0, 0, 0), Ok(0), "and taken away");
    check!(machine.vm.vcpu(1)?.regs().is_ok(), "another vCPU");
    thread::sleep(Duration::from_millis(100));
    let count = machine.memory.read_u32(0x2000);
    thread::sleep(Duration::from_millis(20));
    check!(machine.memory.read_u32(0x2000) != count, "the guest stands still");
    check_eq!(returned.load(Ordering::Relaxed), 0, "calls that did not wait for the guest");
    Ok(())
}

/// A process with one thread in the guest and others that wait for it dies of SIGKILL at once.
fn killed(device: &Device) -> Outcome {
    let (reader, writer) = host::pipe()?;
    // SAFETY: this process has one thread, so the child may go on with anything.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        if let Ok(machine) = Machine::real(device, calls_wait()) {
            thread::scope(|scope| {
                scope.spawn(|| machine.run());
                wait_for_guest(&machine);
                for call in CALLS {
                    let machine = &machine;
                    scope.spawn(move || call(&machine.vcpu));
                }
                thread::sleep(Duration::from_millis(20));
                // Tells the parent that all of them are where they should be.
                drop(writer);
            });
        }
        // SAFETY: ends the child without the parent's destructors.
        unsafe { libc::_exit(1) };
    }
    drop(writer);
    let deadline = Instant::now() + Duration::from_secs(30);
    let reader = std::fs::File::from(reader);
    check!(crate::harness::runner::wait_readable(&reader, deadline), "the child does not get there");
    // SAFETY: our child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let status = reap(pid, Instant::now() + Duration::from_secs(10));
    let signal = status.filter(|status| libc::WIFSIGNALED(*status)).map(|status| libc::WTERMSIG(status));
    check_eq!(signal, Some(libc::SIGKILL), "how the child ended: {status:x?}");
    Ok(())
}

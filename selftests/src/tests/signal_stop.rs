// SPDX-License-Identifier: GPL-2.0

//! SIGSTOP stops a VMM in the middle of its guest, SIGCONT lets both go on, and nothing of the guest is lost.

use crate::harness::runner::reap;
use crate::prelude::*;
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(60, run);

guest!(signal_stop, code64, "2: inc rbx", "mov [0x20000], rbx", "cmp byte ptr [0x20008], 0", "je 2b", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    // The guest's memory is this process's, too.
    let memory = Memory::map(layout::SIZE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: this process has one thread, so the child may go on with anything.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        let status = i32::from(vmm(&device, &memory).is_err());
        // SAFETY: ends the child without the parent's destructors.
        unsafe { libc::_exit(status) };
    }
    let outcome = stop_and_go(t, pid, &memory);
    memory.write(layout::DATA + 8, &[1]);
    let status = reap(pid, Instant::now() + Duration::from_secs(20));
    outcome?;
    check_eq!(status, Some(0), "how the VMM ended");
    Ok(())
}

fn vmm(device: &Device, memory: &Memory) -> Outcome {
    let again = Memory::new(0x1000)?;
    let machine = Machine::with_memory(device, again)?;
    machine.vm.set_slot(0, 0, 0, 0, 0)?;
    machine.vm.map(0, 0, memory)?;
    memory.write(layout::CODE, signal_stop());
    crate::machine::write_tables(memory);
    machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    crate::machine::enter_long(&machine.vcpu)?;
    loop {
        match machine.run() {
            // The stop takes it out of the guest, with no handler to be called.
            Err(Errno::EINTR) => check_eq!(machine.vcpu.exit(), Exit::Intr),
            Ok(Exit::Hlt) => break,
            other => fail!("{other:x?}"),
        }
    }
    check_eq!(machine.vcpu.regs()?.rbx, memory.read_u64(layout::DATA), "the last value");
    Ok(())
}

fn stop_and_go(t: &Context, pid: libc::pid_t, memory: &Memory) -> Outcome {
    let count = || memory.read_u64(layout::DATA);
    // SAFETY: signals our child.
    let send = |signal: libc::c_int| Errno::check(unsafe { libc::kill(pid, signal) });
    let advances = |from: u64| {
        (0..5000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            count() > from
        })
    };
    check!(advances(0), "the guest does not start");
    for round in 0..t.repetitions(20) {
        send(libc::SIGSTOP)?;
        let mut status = 0;
        // SAFETY: the status is ours.
        Errno::check(unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) })?;
        check!(libc::WIFSTOPPED(status), "round {round}: {status:#x}");
        let stopped = count();
        thread::sleep(Duration::from_millis(5));
        check_eq!(count(), stopped, "round {round}: the guest of a stopped VMM runs");
        send(libc::SIGCONT)?;
        check!(advances(stopped), "round {round}: the guest does not go on");
    }
    Ok(())
}

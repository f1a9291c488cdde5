// SPDX-License-Identifier: GPL-2.0

//! The host's SYSCALL, FS, GS and TSC_AUX state is its own again whenever KVM_RUN comes back.

use crate::host;
use crate::prelude::*;
use core::arch::x86_64::__rdtscp;
use std::cell::Cell;
use std::thread;

pub const TEST: Test = Test::new(60, run).with_several_cpus();

guest!(
    host_msrs_kept,
    code64,
    // Everything that SYSCALL and thread-local storage of the host need, set to nonsense.
    "mov ecx, 0xc0000081",
    "mov eax, 0x11111111",
    "mov edx, 0x22222222",
    "wrmsr",
    "mov ecx, 0xc0000082",
    "mov edx, 0x5555",
    "wrmsr",
    "mov ecx, 0xc0000084",
    "mov eax, -1",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0xc0000100",
    "mov eax, 0x1000",
    "wrmsr",
    "inc ecx",
    "wrmsr",
    "inc ecx",
    "wrmsr",
    "2: out 0x10, al",
    "jmp 2b",
);

thread_local! {
    static LOCAL: Cell<u64> = const { Cell::new(0) };
}

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let turns = t.repetitions(1000);
    let cpus = host::online_cpus();
    thread::scope(|scope| -> Outcome {
        let threads: Vec<_> = (0..4)
            .map(|index| {
                let (device, cpu) = (&device, cpus[index % cpus.len()]);
                scope.spawn(move || one_thread(device, index as u64, cpu, turns))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked")))
        })
    })?;
    check!(turns > 0);
    Ok(())
}

fn one_thread(device: &Device, index: u64, cpu: usize, turns: u64) -> Outcome {
    host::pin(cpu)?;
    let machine = Machine::long(device, host_msrs_kept())?;
    let aux = std::is_x86_feature_detected!("sse4.2").then(tsc_aux);
    for turn in 0..turns {
        LOCAL.set(index << 32 | turn);
        check!(matches!(machine.run()?, Exit::Io { port: 0x10, .. }), "{:x?}", machine.vcpu.exit());
        check_eq!(LOCAL.get(), index << 32 | turn, "thread-local storage");
        check_eq!(aux.map(|_| tsc_aux()), aux, "TSC_AUX");
    }
    Ok(())
}

/// Linux keeps the processor and the node there.
fn tsc_aux() -> u32 {
    let mut aux = 0;
    // SAFETY: callers made sure that the processor is recent enough.
    unsafe { __rdtscp(&mut aux) };
    aux
}

// SPDX-License-Identifier: GPL-2.0

//! Guests of random bytes, in random modes, end in an exit or an errno, and never touch the host.

use crate::host::{self, Thread};
use crate::machine::*;
use crate::prelude::*;
use crate::random::Random;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(240, run);

guest!(garbage_probe, code16, "hlt");

fn run(t: &Context) -> Outcome {
    t.real_mode()?;
    let device = t.device()?;
    host::interruptible_by_sigusr1();
    let me = Thread::current();
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Outcome {
        let done = &done;
        // Guests that loop for ever are taken out.
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
                if IN_GUEST.load(Ordering::Relaxed) {
                    me.interrupt();
                }
            }
        });
        let outcome = (0..t.repetitions(300)).try_for_each(|seed| one(&device, seed));
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    check_eq!(Machine::real(&device, garbage_probe())?.run()?, Exit::Hlt, "a good guest afterwards");
    Ok(())
}

/// Set around KVM_RUN: making a VM may give way to a signal, too.
static IN_GUEST: AtomicBool = AtomicBool::new(false);
/// Enough for tables and code. Where there is none the guest leaves for user space.
const SIZE: usize = 0x28000;
const HLT: u8 = 0xF4;

fn one(device: &Device, seed: u64) -> Outcome {
    let mut random = Random::new(seed);
    let machine = retry(|| Machine::with_memory(device, Memory::new(SIZE)?))?;
    // Whoever strays is stopped soon.
    machine.memory.fill(0, SIZE, HLT);
    machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    let enter = random.pick(&[enter_real as fn(&Vcpu) -> Result<(), Errno>, enter_protected, enter_long]);
    machine.write_tables();
    machine.load(&random.bytes(4096));
    if random.one_in(3) {
        // The page tables, too.
        for _ in 0..20 {
            let entry = layout::PML4 + 8 * random.below(0x6000 / 8) as usize;
            machine.memory.write_u64(entry, random.edge());
        }
    }
    retry(|| enter(&machine.vcpu))?;
    for _ in 0..20 {
        IN_GUEST.store(true, Ordering::Relaxed);
        let exit = machine.run();
        IN_GUEST.store(false, Ordering::Relaxed);
        match exit {
            Ok(Exit::Shutdown | Exit::InternalError { .. } | Exit::FailEntry { .. }) => break,
            Ok(Exit::Io { .. } | Exit::MmioRead { .. } | Exit::MmioWrite { .. } | Exit::Hlt | Exit::Intr) => {
            }
            // Exits that KVM has, and user space need not know to go on.
            Ok(Exit::Other(reason)) if device.is_kvm() => check!(reason != 0, "seed {seed}"),
            Err(Errno::EINTR | Errno::EFAULT) => {}
            other => fail!("seed {seed}: {other:x?}"),
        }
    }
    check!(machine.vcpu.regs().is_ok(), "seed {seed}");
    Ok(())
}

/// The signal may come late and hit the next call.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! A VMM that is killed at any moment, a thousand times, leaves nothing behind: no object, frame or memory.

use crate::balance;
use crate::host;
use crate::machine::enter_long;
use crate::prelude::*;
use crate::random::Random;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(900, run).with_several_cpus();

guest!(
    kill_vmm,
    code64,
    // Touches memory, exits now and then.
    "2: mov rbx, 0x40000000",
    "3: mov [rbx], rax",
    "add rbx, 0x1000",
    "cmp rbx, 0x40200000",
    "jne 3b",
    "out 0x10, al",
    "mov edi, 0xd0000000",
    "mov [rdi], al",
    "jmp 2b",
);

/// What a kill may cost the host: less than half a page. Smaller sums than this are noise.
const KIB_PER_KILL: i64 = 2;
const NOISE: i64 = 500;
/// Fewer kills would cost less than that whatever they leak: then only objects and frames are compared.
const FEWEST: u64 = 10;

fn run(t: &Context) -> Outcome {
    // Two sets of this make the thousand.
    let kills = t.repetitions(500);
    let slack = (kills as i64 * KIB_PER_KILL).max(NOISE);
    // KASAN keeps about a page for each thread that there was (the shadow of its stack, page_owner tells):
    // with it only slab, objects and frames can be compared.
    let shadows = host::has_symbol("__kasan_populate_vmalloc");
    // The mean of all sets but the first, which fills the host's caches.
    let within = |grown: &[(i64, i64)]| {
        let sets = grown.len() as i64 - 1;
        let (slab, used) = grown.iter().skip(1).fold((0, 0), |sum, set| (sum.0 + set.0, sum.1 + set.1));
        sets > 0 && slab / sets < slack && (shadows || used / sets < slack)
    };
    let mut random = Random::new(0x6B69_6C6C);
    // What is allocated once (caches, pools, per-CPU data) is there after the first of them.
    for _ in 0..kills.min(50) {
        one(t, random.below(3000))?;
    }
    let device = t.device()?;
    let before = balance::now(&device)?;
    let measure = || if t.is_exclusive() && kills >= FEWEST { host::kernel_memory() } else { None };
    let mut memory = measure();
    let mut grown = Vec::new();
    // The host's caches come and go by megabytes; a leak grows every time.
    for set in 1..=4 {
        for _ in 0..kills {
            one(t, random.below(3000))?;
        }
        let (Some(old), Some(new)) = (&memory, measure()) else {
            if set > 1 {
                break;
            }
            continue;
        };
        grown.push((new.slab - old.slab, old.free - new.free));
        println!("# slab and used memory grew by {:?} KiB over {kills} kills", grown.last());
        memory = Some(new);
        if within(&grown) {
            break;
        }
    }
    if let Some(before) = before {
        balance::restored(&device, &before)?;
    }
    check!(
        grown.is_empty() || within(&grown),
        "KiB that the slab grew, and that are no longer free, after each {kills} kills: {grown:?}"
    );
    check!(Machine::long(&device, kill_vmm())?.run().is_ok(), "the device works");
    Ok(())
}

/// A VMM with two vCPUs and a thread that changes slots, killed after so many microseconds.
fn one(t: &Context, microseconds: u64) -> Outcome {
    // SAFETY: this test has one thread here; the child never comes back.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        let _ = vmm(t);
        // SAFETY: ends the child: only reached when it failed.
        unsafe { libc::_exit(1) };
    }
    thread::sleep(Duration::from_micros(microseconds));
    // SAFETY: our child, not waited for yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let status = host::wait(pid)?;
    check!(libc::WIFSIGNALED(status), "the VMM ended by itself, with status {status:#x}");
    Ok(())
}

fn vmm(t: &Context) -> Outcome {
    let device = t.device()?;
    loop {
        let machine = Machine::long(&device, kill_vmm())?;
        let memory = Memory::new(2 << 20)?;
        machine.vm.map(1, 0x4000_0000, &memory)?;
        let second = machine.vm.vcpu(1)?;
        second.set_cpuid(&device.supported_cpuid(256)?)?;
        enter_long(&second)?;
        thread::scope(|scope| {
            for vcpu in [&machine.vcpu, &second] {
                scope.spawn(move || (0..200).all(|_| vcpu.run().is_ok()));
            }
            for page in 0..40 {
                let _ = memory.advise(page * 0x8000, 0x8000, libc::MADV_DONTNEED);
                let _ = machine.vm.set_slot(2, 0, 0x8000_0000, 0x10000, memory.address());
                let _ = machine.vm.set_slot(2, 0, 0, 0, 0);
            }
        });
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Each flush is counted by what was forgotten, which processors were interrupted for it, and which flush later.

use crate::host;
use crate::prelude::*;
use crate::vendor::{self, Vendor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(60, run).with_several_cpus();

guest!(
    flush_counters,
    code64,
    "2: mov al, [0x100000]",
    "out 0x10, al",
    "jmp 2b",
    // EFER.NXE changes what the guest's own tables say: all translations go.
    "3: mov ecx, 0xc0000080",
    "rdmsr",
    "xor eax, 0x800",
    "wrmsr",
    "xor eax, 0x800",
    "wrmsr",
    "out 0x10, al",
    "jmp 3b",
    // Stays in the guest.
    "4: mov al, [0x100000]",
    "jmp 4b",
);

/// Where the second and the third loop start.
fn entry_points() -> (u64, u64) {
    let code = flush_counters();
    let at = |bytes: &[u8]| code.windows(bytes.len()).position(|window| window == bytes).unwrap_or(0) as u64;
    // MOV ECX; and the last load, which is followed by a jump onto itself.
    let second = at(&[0xB9, 0x80, 0, 0, 0xC0]);
    let first_load = &code[..7];
    let third = code.windows(7).rposition(|window| window == first_load).unwrap_or(0) as u64;
    (layout::CODE as u64 + second, layout::CODE as u64 + third)
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    requests: u64,
    ipis: u64,
    deferred: u64,
    invalidations: u64,
    tag: u64,
    all_tags: u64,
    nested: u64,
    all_nested: u64,
}

fn counts(vm: &Vm) -> Result<Counts, Errno> {
    let statistics = vm.statistics()?;
    let value = |name: &str| statistics.value(name)?.ok_or(Errno::ENOENT);
    Ok(Counts {
        requests: value("remote_tlb_flush")?,
        ipis: value("remote_tlb_flush_ipis")?,
        deferred: value("remote_tlb_flush_deferred")?,
        invalidations: value("tlb_invalidations")?,
        tag: value("tlb_flush_tag")?,
        all_tags: value("tlb_flush_all_tags")?,
        nested: value("tlb_flush_nested")?,
        all_nested: value("tlb_flush_all_nested")?,
    })
}

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let cpus = host::online_cpus();
    host::pin(cpus[0])?;
    let machine = Machine::long(&device, flush_counters())?;
    // Or khugepaged, where it comes by meanwhile, has a flush of its own.
    machine.memory.advise(0, machine.memory.size(), libc::MADV_NOHUGEPAGE)?;
    let out = |what: &str| -> Outcome {
        check!(matches!(machine.run()?, Exit::Io { port: 0x10, .. }), "{what}");
        Ok(())
    };
    for _ in 0..3 {
        out("at the start")?;
    }
    // The page goes and comes back: one flush, deferred, as the VM does not run; then one entry that does it.
    for round in 0..10 {
        let before = counts(&machine.vm)?;
        machine.memory.advise(0x10_0000, 0x1000, libc::MADV_DONTNEED)?;
        let gone = counts(&machine.vm)?;
        check_eq!(gone.requests - before.requests, 1, "round {round}: {before:?}, {gone:?}");
        check_eq!((gone.ipis, gone.deferred - before.deferred), (before.ipis, 1), "round {round}: {gone:?}");
        check_eq!(gone.invalidations, before.invalidations, "round {round}: not yet");
        out("after the flush")?;
        let after = counts(&machine.vm)?;
        check_eq!(after.invalidations - before.invalidations, 1, "round {round}: {before:?}, {after:?}");
        match vendor::vendor() {
            // An ASID tags everything.
            Vendor::Amd => check!(
                after.tag + after.all_tags >= before.tag + before.all_tags
                    && (after.nested, after.all_nested) == (0, 0),
                "round {round}: {after:?}"
            ),
            Vendor::Intel => check_eq!(
                after.nested + after.all_nested - before.nested - before.all_nested,
                1,
                "round {round}: {before:?}, {after:?}"
            ),
        }
    }
    // Nothing to forget, nothing counted.
    let before = counts(&machine.vm)?;
    for _ in 0..10 {
        out("undisturbed")?;
    }
    let after = counts(&machine.vm)?;
    check_eq!((after.requests, after.invalidations), (before.requests, before.invalidations));
    check_eq!((after.nested, after.all_nested), (before.nested, before.all_nested));

    // The guest's own tables.
    let (own, spin) = entry_points();
    machine.change_regs(|regs| regs.rip = own)?;
    out("EFER")?;
    let before = counts(&machine.vm)?;
    out("EFER again")?;
    let after = counts(&machine.vm)?;
    let own_flushes = (after.tag + after.all_tags) - (before.tag + before.all_tags);
    // Where it cannot flush by ASID, AMD-V has a new one instead.
    check!(own_flushes == 2 || vendor::vendor() == Vendor::Amd, "{before:?}, {after:?}");
    check_eq!((after.requests, after.nested), (before.requests, before.nested), "no tables of ours changed");

    // A VM that runs somewhere else has to be interrupted there.
    let [_, second, ..] = cpus[..] else {
        return Ok(());
    };
    let (stop, vcpu) = (AtomicBool::new(false), &machine.vcpu);
    let mut regs = vcpu.regs()?;
    regs.rip = spin;
    vcpu.set_regs(&regs)?;
    host::interruptible_by_sigusr1();
    thread::scope(|scope| -> Outcome {
        let (send, receive) = std::sync::mpsc::channel();
        let stop = &stop;
        let runner = scope.spawn(move || {
            let ready = host::pin(second);
            let _ = send.send(host::Thread::current());
            ready?;
            while !stop.load(Ordering::Relaxed) {
                match vcpu.run() {
                    Err(Errno::EINTR) => {}
                    other => return other.map(drop),
                }
            }
            Ok(())
        });
        let thread = receive.recv();
        let outcome = interrupted(&machine);
        stop.store(true, Ordering::Relaxed);
        while !runner.is_finished() {
            if let Ok(thread) = &thread {
                thread.interrupt();
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
        let ran = runner.join();
        check!(matches!(ran, Ok(Ok(()))), "{ran:?}");
        outcome
    })
}

/// Every page that goes away under a running guest interrupts its processor.
fn interrupted(machine: &Machine) -> Outcome {
    let before = counts(&machine.vm)?;
    let mut now = before;
    for _ in 0..2000 {
        machine.memory.advise(0x10_0000, 0x1000, libc::MADV_DONTNEED)?;
        now = counts(&machine.vm)?;
        if now.ipis >= before.ipis + 5 {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(2));
    }
    check!(now.ipis >= before.ipis + 5, "{before:?}, {now:?}");
    check!(now.requests - before.requests >= now.ipis - before.ipis, "one processor each time: {now:?}");
    check!(now.invalidations > before.invalidations, "{before:?}, {now:?}");
    Ok(())
}

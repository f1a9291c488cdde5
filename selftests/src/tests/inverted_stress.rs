// SPDX-License-Identifier: GPL-2.0

//! The inverted page table stays in step with the VMs' own while guests run, the host takes pages away and VMs come and go.

use crate::debugfs;
use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(240, run).with_several_cpus();

guest!(
    inverted_stress,
    code64,
    // Touches pages of the window in an order that RDX has, for ever.
    "2: mov rax, rdx",
    "shl rax, 12",
    "mov [rbx + rax], rdx",
    "imul rdx, rdx, 1664525",
    "add rdx, 1013904223",
    "and rdx, 1023",
    "loop 2b",
    "mov ecx, 3000",
    "out 0x10, al",
    "jmp 2b",
);

const BASE: u64 = 0x40_0000;
const PAGES: usize = 1024;

/// A VM whose guest runs until it is told to stop, and whose memory changes under it.
fn churn(device: &Device, cpu: usize, seed: u64, stop: &AtomicBool) -> Result<u64, Failure> {
    host::pin(cpu)?;
    let (mut random, mut turns) = (Random::new(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        let machine = Machine::long(device, inverted_stress())?;
        let memory = Memory::new(PAGES * PAGE)?;
        machine.vm.map(1, BASE, &memory)?;
        machine.change_regs(|regs| (regs.rbx, regs.rcx, regs.rdx) = (BASE, 3000, seed % 1024))?;
        for _ in 0..20 {
            let exit = machine.run()?;
            check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{exit:x?}");
            turns += 1;
            let (first, pages) = (random.below(PAGES as u64 - 1) as usize, 1 + random.below(64) as usize);
            let length = pages.min(PAGES - first) * PAGE;
            match random.below(4) {
                0 => memory.advise(first * PAGE, length, libc::MADV_DONTNEED)?,
                1 => memory.advise(first * PAGE, length, libc::MADV_HUGEPAGE)?,
                2 => drop(machine.vm.set_slot(
                    1,
                    (turns % 2) as u32,
                    BASE,
                    memory.size() as u64,
                    memory.address(),
                )),
                _ => {
                    machine.vm.set_slot(1, 0, BASE, 0, memory.address())?;
                    machine.vm.map(1, BASE, &memory)?;
                }
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(turns)
}

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.rusthv()?;
    let Some(files) = debugfs::module() else {
        return Err(Failure::Skipped("no debugfs".into()));
    };
    let cpus = host::online_cpus();
    let stop = AtomicBool::new(false);
    let until = Instant::now() + Duration::from_millis(t.repetitions(6000));
    // On a slow machine each comparison may come while the guests have nothing but large pages, or none.
    let patience = until + Duration::from_secs(60);
    let (mut most, mut checks) = (0u64, 0);
    let turns = thread::scope(|scope| -> Result<u64, Failure> {
        let workers: Vec<_> = (0..2 * cpus.len())
            .map(|index| {
                let (device, cpu, stop) = (&device, cpus[index % cpus.len()], &stop);
                scope.spawn(move || churn(device, cpu, index as u64, stop))
            })
            .collect();
        let watch = || -> Outcome {
            while Instant::now() < until || checks < 3 || most == 0 && Instant::now() < patience {
                let report = debugfs::verify().map_err(Failure::failed)?;
                check_eq!(report["result"], "good", "{report:?}");
                most = most.max(report["pages_4k"].parse().unwrap_or(0));
                // Readers are in the way of nobody.
                let lines = fs::read_to_string(files.join("frames"))
                    .map_err(|error| Failure::failed(error.to_string()))?;
                check!(
                    lines.lines().all(|line| line.split(' ').count() == 9),
                    "{}",
                    lines.lines().next().unwrap_or("")
                );
                checks += 1;
            }
            Ok(())
        };
        let mut watch = watch;
        let watched = watch();
        stop.store(true, Ordering::Relaxed);
        let mut turns = 0;
        for worker in workers {
            turns += worker.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked")))?;
        }
        watched.map(|()| turns)
    })?;
    println!("# {turns} turns, {checks} comparisons, at most {most} small pages in one");
    check!(turns > 0 && most > 0, "nothing happened");
    let report = debugfs::verify().map_err(Failure::failed)?;
    check_eq!((report["pages_4k"].as_str(), report["vms"].as_str()), ("0", "0"), "{report:?}");
    let usage = debugfs::named(&files.join("inverted")).map_err(Failure::failed)?;
    check_eq!((usage["entries"].as_str(), usage["lost"].as_str()), ("0", "0"), "{usage:?}");
    Ok(())
}

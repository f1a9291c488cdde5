// SPDX-License-Identifier: GPL-2.0

//! How the throughput of nested faults grows with the number of vCPUs, each on a CPU of its own.
//!
//! Each vCPU touches pages that are present in the host, far from each other, so that each takes a
//! fault of its own. Measured by the clock: who waits for a lock pays here.

use super::options::Options;
use crate::device::{Device, Exit, Vcpu};
use crate::guest;
use crate::harness::Failure;
use crate::host;
use crate::machine::{enter_long, layout, Machine};
use crate::memory::{Memory, LARGE_PAGE, PAGE};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

guest!(bench_stride, code64, "2: mov [rbx], al", "add rbx, rcx", "dec r8", "jnz 2b", "hlt");

const GPA: u64 = 0x1000_0000;
/// Pages that each vCPU touches, and how far apart.
const PAGES: usize = 1024;
const STRIDE: usize = 64 * PAGE;
const MOST: usize = 4;

/// The memory of all vCPUs, with the pages to be touched present.
fn memory(vcpus: usize) -> Result<Memory, Failure> {
    let memory = Memory::aligned(vcpus * PAGES * STRIDE, LARGE_PAGE)?;
    match memory.advise(0, memory.size(), libc::MADV_NOHUGEPAGE) {
        Ok(()) | Err(crate::errno::Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    for offset in (0..memory.size()).step_by(STRIDE) {
        // SAFETY: `at` checks the range.
        unsafe { memory.at(offset, 1).write_volatile(1) };
    }
    Ok(memory)
}

fn touch(vcpu: &Vcpu, start: u64, pages: usize) -> Result<(), Failure> {
    let mut regs = vcpu.regs()?;
    (regs.rip, regs.rbx, regs.rcx, regs.r8) = (layout::CODE as u64, start, STRIDE as u64, pages as u64);
    vcpu.set_regs(&regs)?;
    match vcpu.run()? {
        Exit::Hlt => Ok(()),
        exit => Err(Failure::failed(format!("the guest left with {exit:x?}"))),
    }
}

/// The time that so many vCPUs take for their faults, all at once.
fn round(device: &Device, cpus: &[usize]) -> Result<Duration, Failure> {
    let memory = memory(cpus.len())?;
    let machine = Machine::long(device, bench_stride())?;
    machine.vm.map(1, GPA, &memory)?;
    let mut others = Vec::new();
    for id in 1..cpus.len() {
        let vcpu = machine.vm.vcpu(id as u64)?;
        vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
        enter_long(&vcpu)?;
        others.push(vcpu);
    }
    let vcpus: Vec<&Vcpu> = [&machine.vcpu].into_iter().chain(&others).collect();
    let start = Barrier::new(cpus.len());
    let times = thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter()
            .zip(cpus)
            .enumerate()
            .map(|(index, (vcpu, &cpu))| {
                let start = &start;
                scope.spawn(move || -> Result<(Instant, Instant), Failure> {
                    host::pin(cpu)?;
                    // Its own code and data first.
                    let warm = touch(vcpu, layout::DATA as u64, 1);
                    start.wait();
                    warm?;
                    let begin = Instant::now();
                    touch(vcpu, GPA + (index * PAGES * STRIDE) as u64, PAGES)?;
                    Ok((begin, Instant::now()))
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
        threads.into_iter().map(join).collect::<Result<Vec<_>, Failure>>()
    })?;
    let begin = times.iter().map(|(begin, _)| *begin).min().unwrap();
    let end = times.iter().map(|(_, end)| *end).max().unwrap();
    Ok(end - begin)
}

/// Measures, and prints the table.
pub fn run(options: &Options) -> Result<(), Failure> {
    let cpus = host::online_cpus();
    println!(
        "Nested faults by several vCPUs at once, best of {} rounds, {} CPUs: faults in a millisecond, \
         and how many times those of one vCPU",
        options.rounds,
        cpus.len()
    );
    println!("{:14} {:>6} {:>10} {:>8}", "device", "vCPUs", "faults/ms", "growth");
    for path in &options.devices {
        let device = Device::open(path)?;
        let mut alone = None;
        for count in 1..=cpus.len().min(MOST) {
            let mut best = Duration::MAX;
            for _ in 0..options.rounds {
                best = best.min(round(&device, &cpus[..count])?);
            }
            let rate = (count * PAGES) as f64 / (best.as_secs_f64() * 1000.0);
            let growth = rate / *alone.get_or_insert(rate);
            println!("{path:14} {count:>6} {rate:>10.1} {growth:>8.2}");
        }
    }
    Ok(())
}

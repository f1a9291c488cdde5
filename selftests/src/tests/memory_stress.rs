// SPDX-License-Identifier: GPL-2.0

//! Four vCPUs check every word they read while the host takes pages away, protects, collapses, logs and moves slots.

use crate::device::Vm;
use crate::machine::enter_long;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(240, run).with_several_cpus();

const VCPUS: usize = 4;
/// Each vCPU's own pages: nobody else writes there, nothing is taken away.
const PRIVATE: u64 = 0x40_0000;
const PRIVATE_SIZE: usize = 0x4000;
/// Pages of all, which the host takes away and gives back as zeroes.
const SHARED: u64 = 0x60_0000;
/// A slot that is there at times, and a device's registers otherwise.
const MOVING: u64 = 0x80_0000;
const ELSEWHERE: u64 = 0x90_0000;
const MOVING_SIZE: usize = 0x1_0000;
const MADV_COLLAPSE: libc::c_int = 25;
/// Changes of one kind in the time of a sweep: the guests come to something, however slow they are.
const CHANGES: u64 = 6;

guest!(
    memory_stress,
    code64,
    // RBP counts the sweeps. Every private page has the number of the last one.
    "2: inc rbp",
    "mov rbx, r15",
    "lea rdx, [r15 + 0x4000]",
    "3: mov rax, [rbx]",
    "inc rax",
    "cmp rax, rbp",
    "jne 9f",
    "mov [rbx], rbp",
    "add rbx, 0x1000",
    "cmp rbx, rdx",
    "jne 3b",
    // Every eighth shared page has its own address in the high half, or is new.
    "mov rbx, 0x600000",
    "4: mov rax, [rbx]",
    "test rax, rax",
    "jz 5f",
    "shr rax, 32",
    "cmp eax, ebx",
    "jne 9f",
    "5: mov rax, rbx",
    "shl rax, 32",
    "or rax, rbp",
    "mov [rbx], rax",
    "add rbx, 0x8000",
    "cmp rbx, 0x800000",
    "jne 4b",
    // Memory or a device: both take the write.
    "mov rax, [rbx]",
    "mov [rbx], rbp",
    "out 0x10, al",
    "jmp 2b",
    "9: ud2",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, memory_stress())?;
    let cpuid = device.supported_cpuid(256)?;
    let mut vcpus = Vec::new();
    for id in 1..VCPUS as u64 {
        let vcpu = machine.vm.vcpu(id)?;
        vcpu.set_cpuid(&cpuid)?;
        enter_long(&vcpu)?;
        vcpus.push(vcpu);
    }
    let vcpus: Vec<&Vcpu> = vcpus.iter().chain([&machine.vcpu]).collect();
    for (index, vcpu) in vcpus.iter().enumerate() {
        let mut regs = vcpu.regs()?;
        regs.r15 = PRIVATE + (index * PRIVATE_SIZE) as u64;
        regs.rbp = 0;
        vcpu.set_regs(&regs)?;
    }
    let private = Memory::new(VCPUS * PRIVATE_SIZE)?;
    let shared = Memory::aligned(LARGE_PAGE, LARGE_PAGE)?;
    let moving = Memory::new(MOVING_SIZE)?;
    machine.vm.map(1, PRIVATE, &private)?;
    machine.vm.map(2, SHARED, &shared)?;

    let goal = match t.duration() {
        Some(duration) => Goal::Time(Instant::now() + duration),
        None => Goal::Sweeps(t.repetitions(30)),
    };
    let progress = Progress::default();
    let swept = thread::scope(|scope| {
        let (progress, vm) = (&progress, &machine.vm);
        let guests: Vec<_> =
            vcpus.iter().map(|vcpu| scope.spawn(move || sweep(vcpu, goal, progress))).collect();
        let hosts = [
            scope.spawn(|| take_away(&shared, progress)),
            scope.spawn(|| protect(&shared, progress)),
            scope.spawn(|| move_slot(vm, &moving, progress)),
            scope.spawn(|| log_writes(vm, &shared, progress)),
        ];
        let swept: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        progress.done.store(true, Ordering::Release);
        let changes: Vec<_> = hosts.into_iter().map(|host| host.join()).collect();
        (swept, changes)
    });
    for (index, (result, vcpu)) in swept.0.into_iter().zip(&vcpus).enumerate() {
        let sweeps = result.map_err(|_| Failure::failed("a vCPU's thread panicked"))??;
        check_eq!(vcpu.regs()?.rbp, sweeps, "sweeps of vCPU {index}");
    }
    for (what, result) in
        ["pages taken away", "protections", "slots moved", "logs read"].into_iter().zip(swept.1)
    {
        let count = result.unwrap_or(Err(Errno::EIO))?;
        check!(count > 0, "{what}: none");
    }
    Ok(())
}

/// How far a vCPU is to go.
#[derive(Clone, Copy)]
enum Goal {
    Sweeps(u64),
    Time(Instant),
}

impl Goal {
    fn is_reached(self, sweeps: u64) -> bool {
        match self {
            Self::Sweeps(goal) => sweeps >= goal,
            Self::Time(end) => Instant::now() >= end,
        }
    }
}

/// Runs a vCPU until it has reached its goal. How often it has swept then.
fn sweep(vcpu: &Vcpu, goal: Goal, progress: &Progress) -> Result<u64, Failure> {
    let mut done = 0;
    loop {
        match vcpu.run() {
            Ok(Exit::Io { port: 0x10, .. }) => {
                done += 1;
                progress.sweeps.fetch_add(1, Ordering::Relaxed);
                // At the end of a sweep alone.
                if goal.is_reached(done) {
                    return Ok(done);
                }
            }
            Ok(Exit::MmioRead { length, .. }) => vcpu.answer_mmio(&vec![0; length]),
            Ok(Exit::MmioWrite { .. }) => {}
            // The page is protected at the moment.
            Err(Errno::EFAULT) => thread::yield_now(),
            other => fail!("sweep {done}: {other:x?}, {:x?}", vcpu.regs()),
        }
    }
}

/// How far the guests are, and whether they are done.
#[derive(Default)]
struct Progress {
    sweeps: AtomicU64,
    done: AtomicBool,
}

impl Progress {
    /// Waits until it is time for another change. False when there is to be none.
    fn wants_change(&self, count: u64) -> bool {
        while !self.done.load(Ordering::Acquire) {
            if count < (self.sweeps.load(Ordering::Relaxed) + 1) * CHANGES {
                return true;
            }
            thread::sleep(Duration::from_micros(200));
        }
        false
    }
}

fn take_away(memory: &Memory, progress: &Progress) -> Result<u64, Errno> {
    let mut random = Random::new(41);
    let mut count = 0;
    let pages = memory.size() / PAGE;
    while progress.wants_change(count) {
        let first = random.below(pages as u64) as usize;
        let number = (1 + random.below(40) as usize).min(pages - first);
        memory.advise(first * PAGE, number * PAGE, libc::MADV_DONTNEED)?;
        if random.one_in(16) {
            // It may be busy, or the kernel may have no large page for it.
            let _ = memory.advise(0, memory.size(), MADV_COLLAPSE);
        }
        count += 1;
    }
    Ok(count)
}

fn protect(memory: &Memory, progress: &Progress) -> Result<u64, Errno> {
    let mut random = Random::new(42);
    let mut count = 0;
    let pages = memory.size() / PAGE;
    while progress.wants_change(count) {
        let first = random.below(pages as u64 - 8) as usize * PAGE;
        memory.protect(first, 8 * PAGE, libc::PROT_READ)?;
        memory.protect(first, 8 * PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        count += 1;
    }
    Ok(count)
}

fn log_writes(vm: &Vm, memory: &Memory, progress: &Progress) -> Result<u64, Errno> {
    let mut count = 0;
    while progress.wants_change(count) {
        for flags in [KVM_MEM_LOG_DIRTY_PAGES, 0] {
            vm.set_slot(2, flags, SHARED, memory.size() as u64, memory.address())?;
            for _ in 0..3 * flags {
                vm.dirty_pages(2, memory.size() / PAGE)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

fn move_slot(vm: &Vm, memory: &Memory, progress: &Progress) -> Result<u64, Errno> {
    let mut count = 0;
    let size = memory.size() as u64;
    while progress.wants_change(count) {
        for gpa in [MOVING, ELSEWHERE] {
            vm.set_slot(3, 0, gpa, size, memory.address())?;
        }
        vm.set_slot(3, 0, 0, 0, 0)?;
        count += 1;
    }
    Ok(count)
}

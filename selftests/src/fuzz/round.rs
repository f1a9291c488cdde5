// SPDX-License-Identifier: GPL-2.0

//! One round: a VM, its vCPUs, and threads that do random things to them.

use super::calls::{self, Sandbox};
use super::guests::Kind;
use super::options::Options;
use super::{errnos, guests, settings, Counts};
use crate::debugfs;
use crate::device::{Device, Files, Vcpu, Vm};
use crate::errno::Errno;
use crate::host::{self, Thread};
use crate::ioctl::*;
use crate::machine::layout;
use crate::memory::{Memory, PAGE};
use crate::random::Random;
use crate::rusthv::*;
use crate::statistics::Statistics;
use kvm_bindings::kvm_sregs;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Steps of each thread.
const STEPS: u64 = 150;
/// How long the threads of a round go on at most.
const ROUND: Duration = Duration::from_millis(600);

struct Shared {
    kind: Kind,
    device: Device,
    vm: Vm,
    vcpus: Vec<Vcpu>,
    /// What each of them began with.
    reset: Vec<kvm_sregs>,
    memory: Memory,
    /// Threads stop at their next step.
    over: AtomicBool,
    /// Threads that are through.
    done: AtomicUsize,
    /// Nothing refers to the threads any more: they may go.
    release: AtomicBool,
}

pub fn run(options: &Options, seed: u64) -> Result<Counts, String> {
    host::interruptible_by_sigusr1();
    let mut random = Random::new(seed);
    let shared = set_up(options, &mut random).map_err(|errno| format!("setting up: {errno}"))?;
    let seeds: Vec<u64> = (0..options.threads).map(|_| random.word()).collect();
    thread::scope(|scope| {
        let shared = &shared;
        let (sender, receiver) = mpsc::channel();
        let threads: Vec<_> = seeds
            .iter()
            .map(|&seed| {
                let sender = sender.clone();
                scope.spawn(move || {
                    let _ = sender.send(Thread::current());
                    let result = panic::catch_unwind(AssertUnwindSafe(|| work(shared, seed)));
                    shared.done.fetch_add(1, Ordering::AcqRel);
                    // The watchdog may still send signals here.
                    while !shared.release.load(Ordering::Acquire) {
                        thread::sleep(Duration::from_millis(1));
                    }
                    result.unwrap_or(Err("a thread panicked".into()))
                })
            })
            .collect();
        let handles: Vec<Thread> = seeds.iter().filter_map(|_| receiver.recv().ok()).collect();
        watch(shared, &handles);
        let mut counts = Counts::default();
        for thread in threads {
            let done = thread.join().map_err(|_| "a thread panicked".to_owned())??;
            counts.calls += done.calls;
            counts.exits += done.exits;
        }
        // Whatever was done to it, the frames of the VM are known.
        if !shared.device.is_kvm() && debugfs::module().is_some() {
            debugfs::verify()?;
        }
        Ok(counts)
    })
}

/// Takes threads out of guests again and again, ends the round after a while.
fn watch(shared: &Shared, threads: &[Thread]) {
    let end = Instant::now() + ROUND;
    let mut tick = 0u64;
    while shared.done.load(Ordering::Acquire) < threads.len() {
        thread::sleep(Duration::from_millis(2));
        tick += 1;
        let over = Instant::now() > end;
        shared.over.store(over, Ordering::Release);
        for vcpu in &shared.vcpus {
            // Now and then, so that KVM_RUN meets both.
            vcpu.set_immediate_exit(u8::from(over || tick % 3 == 0));
        }
        threads.iter().for_each(|thread| thread.interrupt());
    }
    shared.release.store(true, Ordering::Release);
}

fn set_up(options: &Options, random: &mut Random) -> Result<Shared, Errno> {
    let device = Device::open(&options.device)?;
    let vm = device.plain_vm()?;
    if device.has_extensions() {
        choose_paging(options, &vm, random)?;
    }
    settings::choose(&device, &vm, random)?;
    let memory = Memory::new(layout::SIZE)?;
    let kind = Kind::pick(random, options.masked_spin);
    guests::fill(&memory, random, kind);
    vm.map(100, 0, &memory)?;
    let cpuid = device.supported_cpuid(256)?;
    let (mut vcpus, mut reset) = (Vec::new(), Vec::new());
    for id in 0..1 + random.below(3) {
        let vcpu = vm.vcpu(id)?;
        vcpu.set_cpuid(&cpuid)?;
        reset.push(vcpu.sregs()?);
        guests::set_state(&vcpu, random, kind, &reset[id as usize])?;
        vcpus.push(vcpu);
    }
    Ok(Shared {
        kind,
        device,
        vm,
        vcpus,
        reset,
        memory,
        over: AtomicBool::new(false),
        done: AtomicUsize::new(0),
        release: AtomicBool::new(false),
    })
}

/// One of the ways to virtualize memory, with many shadow tables or with the fewest that there can be.
fn choose_paging(options: &Options, vm: &Vm, random: &mut Random) -> Result<(), Errno> {
    let any = random.pick(&[PAGING_NESTED, PAGING_NESTED, PAGING_SHADOW, PAGING_TRAP]);
    let (mode, tables) = (options.paging.unwrap_or(any), random.pick(&[0, 16, 40]));
    if mode != PAGING_NESTED {
        vm.enable_cap_with(CAP_PAGING, 0, [mode.into(), tables, 0, 0])?;
    }
    Ok(())
}

/// The errno of a call, checked against what is documented.
fn checked(request: u64, result: Result<i32, Errno>, counts: &mut Counts) -> Result<Option<i32>, String> {
    counts.calls += 1;
    match result {
        Ok(value) => Ok(Some(value)),
        Err(errno) if errnos::documented(request).contains(&errno) => Ok(None),
        Err(errno) => Err(format!("ioctl {request:#x} gave {errno}, which is not documented for it")),
    }
}

fn work(shared: &Shared, seed: u64) -> Result<Counts, String> {
    let mut random = Random::new(seed);
    let mut counts = Counts::default();
    let sandbox = Sandbox::new().map_err(|errno| errno.to_string())?;
    for _ in 0..STEPS {
        if shared.over.load(Ordering::Acquire) {
            break;
        }
        let index = random.below(shared.vcpus.len() as u64) as usize;
        let vcpu = &shared.vcpus[index];
        match random.below(20) {
            0..=8 => enter(vcpu, &mut random, &mut counts)?,
            9 => set(shared, index, &mut random, &mut counts)?,
            10 => guests::fill(&shared.memory, &mut random, shared.kind),
            11 => {
                let page = random.below((layout::SIZE / PAGE) as u64) as usize * PAGE;
                let length = PAGE.min(layout::SIZE - page);
                let _ = shared.memory.advise(page, length, libc::MADV_DONTNEED);
            }
            12 => objects(shared, &mut random, &mut counts)?,
            _ => call(shared, vcpu, &sandbox, &mut random, &mut counts)?,
        }
    }
    Ok(counts)
}

/// KVM_RUN, and an answer to what it asks.
fn enter(vcpu: &Vcpu, random: &mut Random, counts: &mut Counts) -> Result<(), String> {
    for _ in 0..1 + random.below(10) {
        if checked(KVM_RUN, vcpu.ioctl(KVM_RUN, 0), counts)?.is_none() {
            continue;
        }
        counts.exits += 1;
        // Other threads run the same vCPU: the rest of the area may be theirs by now.
        let reason = vcpu.exit_reason();
        if reason > 64 {
            return Err(format!("exit reason {reason} does not exist"));
        }
        match random.below(6) {
            0..=2 => vcpu.answer_mmio(&random.bytes(8)),
            // The fields of the exit: the kernel must not believe what it finds there.
            3 => vcpu.scribble(0x20 + random.below(0x120) as usize, &random.bytes(8)),
            _ => {}
        }
    }
    Ok(())
}

/// A new state for a vCPU that may be running.
fn set(shared: &Shared, index: usize, random: &mut Random, counts: &mut Counts) -> Result<(), String> {
    match guests::set_state(&shared.vcpus[index], random, shared.kind, &shared.reset[index]) {
        Ok(()) => counts.calls += 4,
        Err(errno) => {
            checked(KVM_SET_SREGS, Err(errno), counts)?;
        }
    }
    Ok(())
}

/// Makes objects and drops them again.
fn objects(shared: &Shared, random: &mut Random, counts: &mut Counts) -> Result<(), String> {
    let id = if random.one_in(3) { random.edge() } else { 10 + random.below(4) };
    match random.below(3) {
        0 => match shared.device.vm() {
            Ok(vm) => {
                settings::choose(&shared.device, &vm, random)
                    .map_err(|errno| format!("settings of a new VM: {errno}"))?;
                drop(vm.vcpu(id));
            }
            Err(errno) => {
                checked(KVM_CREATE_VM, Err(errno), counts)?;
            }
        },
        1 => {
            if let Some(fd) = checked(KVM_CREATE_VCPU, shared.vm.ioctl(KVM_CREATE_VCPU, id), counts)? {
                // SAFETY: a new descriptor that nobody else has.
                unsafe { libc::close(fd) };
            }
        }
        _ => {
            let kind = 2 + (random.edge() >> 1);
            if let Some(fd) = checked(KVM_CREATE_VM, shared.device.ioctl(KVM_CREATE_VM, kind), counts)? {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    }
    Ok(())
}

fn call(
    shared: &Shared,
    vcpu: &Vcpu,
    sandbox: &Sandbox,
    random: &mut Random,
    counts: &mut Counts,
) -> Result<(), String> {
    let on = random.pick(&[FileKind::Device, FileKind::Vm, FileKind::Vm, FileKind::Vcpu, FileKind::Vcpu]);
    let request = calls::request(on, random);
    let argument = argument(shared, sandbox, request, random);
    let files = Files { device: &shared.device, vm: &shared.vm, vcpu };
    let result = files.ioctl(on, request, argument);
    if !is_on(request, on) {
        // The set is that of the kind of file the request belongs to; elsewhere it is an unknown one.
        if let Err(Errno::ENOTTY | Errno::EINVAL) = result {
            counts.calls += 1;
            return Ok(());
        }
    }
    match checked(request, result, counts)? {
        Some(fd) if request == KVM_GET_STATS_FD => read_statistics(fd),
        _ => Ok(()),
    }
}

/// What goes with a request: mostly something that means something to it.
fn argument(shared: &Shared, sandbox: &Sandbox, request: u64, random: &mut Random) -> u64 {
    let start = sandbox.0.address();
    match request {
        KVM_SET_USER_MEMORY_REGION if random.one_in(2) => {
            sandbox.region(random);
            start
        }
        KVM_GET_DIRTY_LOG => {
            sandbox.log(random);
            // No other place: the kernel writes to where the structure says.
            let bad = random.one_in(4);
            if bad {
                sandbox.bad_address(random)
            } else {
                start
            }
        }
        KVM_CLEAR_DIRTY_LOG => {
            sandbox.clear_log(random);
            let bad = random.one_in(8);
            if bad {
                sandbox.bad_address(random)
            } else {
                start
            }
        }
        KVM_ENABLE_CAP if random.one_in(2) => {
            sandbox.capability(random);
            start
        }
        KVM_INTERRUPT if random.one_in(2) => {
            sandbox.0.write_u64(0, random.below(260));
            start
        }
        RUSTHV_GET_FRAME
        | RUSTHV_UNMAP_FRAME
        | RUSTHV_GET_GPA
        | RUSTHV_WALK
        | RUSTHV_MEASURE
        | RUSTHV_GET_NODE_STATS
        | RUSTHV_SET_NUMA_POLICY
        | RUSTHV_SET_WIPE
        | RUSTHV_SET_INTERCEPTS
        | RUSTHV_SET_RIGHTS
            if !random.one_in(4) =>
        {
            sandbox.question(request, random);
            start
        }
        KVM_RUN | KVM_GET_API_VERSION | KVM_CHECK_EXTENSION | KVM_GET_VCPU_MMAP_SIZE | KVM_SET_TSS_ADDR => {
            if random.one_in(2) {
                0
            } else {
                random.edge()
            }
        }
        KVM_SET_REGS | KVM_SET_SREGS if shared.kind != Kind::Any => {
            // Just any registers would make another kind of guest of it: only what cannot be read.
            sandbox.fill(random);
            sandbox.bad_address(random)
        }
        _ => {
            sandbox.fill(random);
            sandbox.address(random)
        }
    }
}

/// A file of statistics says what it says it has.
fn read_statistics(fd: i32) -> Result<(), String> {
    let text = |errno: Errno| format!("statistics: {errno}");
    let statistics = Statistics::new(fd).map_err(text)?;
    let (id, all) = (statistics.id().map_err(text)?, statistics.descriptors().map_err(text)?);
    if id.is_empty() || all.is_empty() {
        return Err(format!("statistics of {id:?} with {} values", all.len()));
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! The operations that are measured.

use super::exits;
use crate::device::{Device, Exit, Vcpu};
use crate::errno::Errno;
use crate::guest;
use crate::harness::{Failure, Outcome};
use crate::host;
use crate::ioctl::KVM_GET_API_VERSION;
use crate::machine::{layout, Machine};
use crate::memory::{Memory, LARGE_PAGE, PAGE};
use core::arch::x86_64::{_mm_lfence, _rdtsc};

/// One operation.
pub struct Row {
    pub name: &'static str,
    /// One round, from an empty start.
    pub round: fn(&Device) -> Result<Sample, Failure>,
    /// False for what does not depend on the device.
    pub compared: bool,
}

/// What one operation cost in a round.
#[derive(Clone, Copy)]
pub struct Sample {
    pub cost: f64,
    pub exits: Option<f64>,
}

pub const ROWS: &[Row] = &[
    Row { name: "ioctl that does nothing (floor)", round: ioctl_floor, compared: true },
    Row { name: "CPUID exit handled in the kernel", round: cpuid, compared: true },
    Row { name: "OUT exit to user space and back", round: port_write, compared: true },
    Row { name: "MMIO read exit to user space and back", round: mmio_read, compared: true },
    Row { name: "EPT fault, 4 KiB, host page present, per page", round: fault_present, compared: true },
    Row { name: "EPT fault, 4 KiB, host page absent, per page", round: fault_absent, compared: true },
    Row { name: "the same, present, in random order", round: fault_random, compared: true },
    Row { name: "the same, present, one page in 64, in random order", round: fault_sparse, compared: true },
    Row { name: "host's own fault alone, per page", round: fault_host, compared: false },
    Row { name: "first touch of THP-backed memory, per 4 KiB", round: large_first, compared: true },
    Row { name: "later touch of THP-backed memory, per 4 KiB", round: large_later, compared: true },
    Row { name: "memory taken back by the host (MADV_DONTNEED), per page", round: take_back, compared: true },
    Row { name: "first write to a logged page, per page", round: logged_write, compared: true },
    Row { name: "reading the dirty log, per dirty page", round: log_read, compared: true },
    Row { name: "clearing the dirty log, per dirty page", round: log_clear, compared: true },
    Row { name: "reading the dirty log, clean, per page that is mapped", round: log_idle, compared: false },
    Row { name: "the same, where the guest has read all of them", round: log_only_read, compared: false },
    Row { name: "reading the dirty log of 64 GiB, clean", round: log_clean, compared: true },
    Row { name: "VM + vCPU create and destroy, 64 MiB slot", round: create_destroy, compared: true },
];

const REPEAT: u64 = 2000;
/// Where the swept memory is, and how much of it.
const SWEEP_GPA: u64 = 0x1000_0000;
const SWEEP_SIZE: usize = 16 << 20;
const SWEEP_PAGES: u64 = (SWEEP_SIZE / PAGE) as u64;

guest!(bench_cpuid, code64, "2: xor eax, eax", "xor ecx, ecx", "cpuid", "dec r8", "jnz 2b", "hlt");
guest!(bench_out, code64, "2: out 0x10, al", "jmp 2b");
guest!(bench_mmio, code64, "2: mov eax, [rbx]", "jmp 2b");
guest!(bench_read, code64, "2: mov al, [rbx]", "add rbx, 0x1000", "dec r8", "jnz 2b", "hlt");
guest!(bench_sweep, code64, "2: mov [rbx], al", "add rbx, 0x1000", "dec r8", "jnz 2b", "hlt");

// Every page once, 2^RCX bytes apart: RDX goes through all numbers below 4096 in an order that only
// looks random (a linear congruential generator of full period).
guest!(
    bench_random,
    code64,
    "2: mov rax, rdx",
    "shl rax, cl",
    "mov [rbx + rax], al",
    "imul rdx, rdx, 1664525",
    "add rdx, 1013904223",
    "and rdx, 4095",
    "dec r8",
    "jnz 2b",
    "hlt",
);

/// The time stamp, after everything before it.
pub fn now() -> u64 {
    // SAFETY: both instructions are on every 64-bit processor that runs VMs.
    unsafe {
        _mm_lfence();
        let stamp = _rdtsc();
        _mm_lfence();
        stamp
    }
}

/// The cost of `work`, which is `count` operations.
fn timed(count: u64, work: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = now();
    work()?;
    Ok((now() - start) as f64 / count as f64)
}

/// The same, with the exits of a vCPU.
fn timed_exits(
    vcpu: &Vcpu,
    count: u64,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<Sample, Failure> {
    let before = exits::count(vcpu);
    let cost = timed(count, work)?;
    let after = exits::count(vcpu);
    let exits = before.zip(after).map(|(before, after)| (after - before) as f64 / count as f64);
    Ok(Sample { cost, exits })
}

fn expect(exit: Exit, right: bool) -> Result<(), Failure> {
    if right {
        Ok(())
    } else {
        Err(Failure::failed(format!("the guest left with {exit:x?}")))
    }
}

fn ioctl_floor(device: &Device) -> Result<Sample, Failure> {
    let cost = timed(REPEAT, || {
        for _ in 0..REPEAT {
            device.ioctl(KVM_GET_API_VERSION, 0)?;
        }
        Ok(())
    })?;
    Ok(Sample { cost, exits: None })
}

fn cpuid(device: &Device) -> Result<Sample, Failure> {
    let machine = Machine::long(device, bench_cpuid())?;
    let run = |count: u64| {
        machine.change_regs(|regs| (regs.rip, regs.r8) = (layout::CODE as u64, count))?;
        timed_exits(&machine.vcpu, 1, || {
            let exit = machine.run()?;
            expect(exit.clone(), exit == Exit::Hlt)
        })
    };
    // The first run has the faults of the guest's pages in it; the call itself cancels out.
    run(100)?;
    let (few, many) = (run(REPEAT)?, run(2 * REPEAT)?);
    let exits = few.exits.zip(many.exits).map(|(few, many)| (many - few) / REPEAT as f64);
    Ok(Sample { cost: (many.cost - few.cost) / REPEAT as f64, exits })
}

fn port_write(device: &Device) -> Result<Sample, Failure> {
    let machine = Machine::long(device, bench_out())?;
    let run = |count: u64| {
        for _ in 0..count {
            machine.vcpu.ioctl(crate::ioctl::KVM_RUN, 0)?;
        }
        Ok(())
    };
    run(10)?;
    let sample = timed_exits(&machine.vcpu, REPEAT, || run(REPEAT))?;
    let exit = machine.vcpu.exit();
    expect(exit.clone(), matches!(exit, Exit::Io { port: 0x10, .. }))?;
    Ok(sample)
}

fn mmio_read(device: &Device) -> Result<Sample, Failure> {
    let machine = Machine::long(device, bench_mmio())?;
    machine.change_regs(|regs| regs.rbx = layout::MMIO)?;
    let run = |count: u64| {
        for _ in 0..count {
            machine.vcpu.ioctl(crate::ioctl::KVM_RUN, 0)?;
            machine.vcpu.answer_mmio(&[1, 2, 3, 4]);
        }
        Ok(())
    };
    run(10)?;
    let sample = timed_exits(&machine.vcpu, REPEAT, || run(REPEAT))?;
    let exit = machine.vcpu.exit();
    expect(exit.clone(), exit == Exit::MmioRead { address: layout::MMIO, length: 4 })?;
    Ok(sample)
}

/// A machine with `memory` at `SWEEP_GPA`, its own code already faulted in.
fn sweeper(device: &Device, memory: &Memory) -> Result<Machine, Failure> {
    let machine = Machine::long(device, bench_sweep())?;
    machine.vm.map(1, SWEEP_GPA, memory)?;
    sweep(&machine, layout::DATA as u64, 1)?;
    Ok(machine)
}

fn sweep(machine: &Machine, start: u64, pages: u64) -> Result<Sample, Failure> {
    machine.change_regs(|regs| {
        (regs.rip, regs.rbx, regs.r8, regs.rax) = (layout::CODE as u64, start, pages, 1);
    })?;
    timed_exits(&machine.vcpu, pages, || {
        let exit = machine.run()?;
        expect(exit.clone(), exit == Exit::Hlt)
    })
}

fn small_pages() -> Result<Memory, Errno> {
    let memory = Memory::aligned(SWEEP_SIZE, LARGE_PAGE)?;
    // Without THP in the kernel there are only small pages, and the advice is not known.
    match memory.advise(0, SWEEP_SIZE, libc::MADV_NOHUGEPAGE) {
        Ok(()) | Err(Errno::EINVAL) => Ok(memory),
        Err(errno) => Err(errno),
    }
}

fn touch(memory: &Memory) {
    for offset in (0..memory.size()).step_by(PAGE) {
        // SAFETY: `at` checks the range.
        unsafe { memory.at(offset, 1).write_volatile(1) };
    }
}

fn fault_present(device: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    touch(&memory);
    let machine = sweeper(device, &memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)
}

fn fault_absent(device: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    let machine = sweeper(device, &memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)
}

/// Pages that are touched in random order, `stride` bytes apart.
fn random(device: &Device, stride: usize) -> Result<Sample, Failure> {
    const PAGES: usize = 4096;
    let memory = Memory::aligned(PAGES * stride, LARGE_PAGE)?;
    match memory.advise(0, memory.size(), libc::MADV_NOHUGEPAGE) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    for offset in (0..memory.size()).step_by(stride) {
        // SAFETY: `at` checks the range.
        unsafe { memory.at(offset, 1).write_volatile(1) };
    }
    let machine = Machine::long(device, bench_random())?;
    machine.vm.map(1, SWEEP_GPA, &memory)?;
    let run = |base: u64, pages: u64| {
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.rdx, regs.r8) = (layout::CODE as u64, base, 0, pages);
            regs.rcx = u64::from(stride.trailing_zeros());
        })?;
        timed_exits(&machine.vcpu, pages, || {
            let exit = machine.run()?;
            expect(exit.clone(), exit == Exit::Hlt)
        })
    };
    // Its own code and data first.
    run(layout::DATA as u64, 1)?;
    run(SWEEP_GPA, PAGES as u64)
}

fn fault_random(device: &Device) -> Result<Sample, Failure> {
    random(device, PAGE)
}

fn fault_sparse(device: &Device) -> Result<Sample, Failure> {
    random(device, 64 * PAGE)
}

fn take_back(device: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    touch(&memory);
    let machine = sweeper(device, &memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    let cost = timed(SWEEP_PAGES, || Ok(memory.advise(0, SWEEP_SIZE, libc::MADV_DONTNEED)?))?;
    Ok(Sample { cost, exits: None })
}

fn fault_host(_: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    let cost = timed(SWEEP_PAGES, || {
        touch(&memory);
        Ok(())
    })?;
    Ok(Sample { cost, exits: None })
}

fn large_pages() -> Result<Memory, Failure> {
    let memory = Memory::aligned(SWEEP_SIZE, LARGE_PAGE)?;
    if memory.advise(0, SWEEP_SIZE, libc::MADV_HUGEPAGE).is_err() {
        return Err(Failure::Skipped("no transparent huge pages in this kernel".into()));
    }
    touch(&memory);
    if host::huge_bytes(memory.address())? < SWEEP_SIZE as u64 {
        return Err(Failure::Skipped("the host gave no huge pages".into()));
    }
    Ok(memory)
}

fn large_first(device: &Device) -> Result<Sample, Failure> {
    let memory = large_pages()?;
    let machine = sweeper(device, &memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)
}

fn large_later(device: &Device) -> Result<Sample, Failure> {
    let memory = large_pages()?;
    let machine = sweeper(device, &memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    // The call itself would be most of it in a single pass: the difference is the sweep alone.
    let half = sweep(&machine, SWEEP_GPA, SWEEP_PAGES / 2)?;
    let full = sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    Ok(Sample { cost: 2.0 * full.cost - half.cost, exits: full.exits })
}

const LOG: u32 = kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;

/// A machine whose swept memory logs: all of it is mapped, and clean.
fn logger(device: &Device, memory: &Memory) -> Result<Machine, Failure> {
    let machine = sweeper(device, memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    machine.vm.set_slot(1, LOG, SWEEP_GPA, SWEEP_SIZE as u64, memory.address())?;
    Ok(machine)
}

fn logged_write(device: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    touch(&memory);
    let machine = logger(device, &memory)?;
    let sample = sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    all_dirty(&machine)?;
    Ok(sample)
}

fn log_read(device: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    touch(&memory);
    let machine = logger(device, &memory)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    let mut words = faulted_in(SWEEP_PAGES);
    let cost = timed(SWEEP_PAGES, || {
        machine.vm.dirty_log_to(1, words.as_mut_ptr() as u64)?;
        Ok(())
    })?;
    expect_all(&words)?;
    Ok(Sample { cost, exits: None })
}

/// What KVM_CLEAR_DIRTY_LOG costs, where user space has read the log before.
fn log_clear(device: &Device) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    touch(&memory);
    let machine = logger(device, &memory)?;
    machine.vm.set_manual_log(kvm_bindings::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)?;
    sweep(&machine, SWEEP_GPA, SWEEP_PAGES)?;
    all_dirty(&machine)?;
    let words = vec![!0; (SWEEP_PAGES / 64) as usize];
    let cost = timed(SWEEP_PAGES, || {
        machine.vm.clear_log(1, 0, SWEEP_PAGES as u32, &words)?;
        Ok(())
    })?;
    let mut words = faulted_in(SWEEP_PAGES);
    machine.vm.dirty_log_to(1, words.as_mut_ptr() as u64)?;
    if words.iter().any(|&word| word != 0) {
        return Err(Failure::failed("a page is dirty that was cleared"));
    }
    Ok(Sample { cost, exits: None })
}

/// What is paid for pages that were not written since the last reading, when `meanwhile` was done.
fn log_unwritten(device: &Device, meanwhile: impl Fn(&Machine) -> Outcome) -> Result<Sample, Failure> {
    let memory = small_pages()?;
    touch(&memory);
    let machine = logger(device, &memory)?;
    let mut words = faulted_in(SWEEP_PAGES);
    let mut read = || -> Outcome {
        machine.vm.dirty_log_to(1, words.as_mut_ptr() as u64)?;
        Ok(())
    };
    for _ in 0..3 {
        read()?;
    }
    meanwhile(&machine)?;
    let cost = timed(SWEEP_PAGES, &mut read)?;
    if words.iter().any(|&word| word != 0) {
        return Err(Failure::failed("a page is dirty that nobody wrote"));
    }
    Ok(Sample { cost, exits: None })
}

fn log_idle(device: &Device) -> Result<Sample, Failure> {
    log_unwritten(device, |_| Ok(()))
}

/// Where dirty flags are looked for, each page is looked at.
fn log_only_read(device: &Device) -> Result<Sample, Failure> {
    log_unwritten(device, |machine| {
        machine.load(bench_read());
        sweep(machine, SWEEP_GPA, SWEEP_PAGES)?;
        Ok(())
    })
}

/// What is paid for the size of a slot of which nothing was written.
fn log_clean(device: &Device) -> Result<Sample, Failure> {
    const BYTES: u64 = 64 << 30;
    let memory = Memory::new(BYTES as usize)?;
    let vm = device.vm()?;
    vm.set_slot(1, LOG, SWEEP_GPA, BYTES, memory.address())?;
    let mut words = faulted_in(BYTES / PAGE as u64);
    let cost = timed(1, || {
        vm.dirty_log_to(1, words.as_mut_ptr() as u64)?;
        Ok(())
    })?;
    if words.iter().any(|&word| word != 0) {
        return Err(Failure::failed("a page is dirty that nobody wrote"));
    }
    Ok(Sample { cost, exits: None })
}

/// Words of a bitmap, written once: their own faults are not measured. The log has none of these
/// bits, and not all of them.
fn faulted_in(pages: u64) -> Vec<u64> {
    vec![1; (pages / 64) as usize]
}

fn all_dirty(machine: &Machine) -> Result<(), Failure> {
    let mut words = vec![0u64; (SWEEP_PAGES / 64) as usize];
    machine.vm.dirty_log_to(1, words.as_mut_ptr() as u64)?;
    expect_all(&words)
}

fn expect_all(words: &[u64]) -> Result<(), Failure> {
    if words.iter().any(|&word| word != !0) {
        return Err(Failure::failed("a page was written that the log does not have"));
    }
    Ok(())
}

fn create_destroy(device: &Device) -> Result<Sample, Failure> {
    const COUNT: u64 = 4;
    let memory = Memory::new(64 << 20)?;
    let cost = timed(COUNT, || {
        for _ in 0..COUNT {
            let vm = device.vm()?;
            vm.map(0, 0, &memory)?;
            vm.vcpu(0)?;
        }
        Ok(())
    })?;
    Ok(Sample { cost, exits: None })
}

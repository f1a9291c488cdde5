// SPDX-License-Identifier: GPL-2.0

//! A logged slot that goes and comes back under running vCPUs has a new log with just what was written since.

use crate::machine::enter_long;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(120, run).with_several_cpus();

pub const PLACES: [u64; 2] = [0x4000_0000, 0x5000_0000];
pub const PAGES: usize = 230;
pub const SIZE: usize = PAGES * PAGE;
pub const SLOT: u32 = 1;
pub const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(
    dirty_log_delete_running,
    code64,
    // Writes to R8 pages at R9 and at R10, in an order that only looks random, memory or not.
    "2: imul rdx, rdx, 69069",
    "inc rdx",
    "mov rax, rdx",
    "shr rax, 16",
    "and eax, 255",
    "cmp rax, r8",
    "jae 3f",
    "shl rax, 12",
    "inc qword ptr [r9 + rax]",
    "inc qword ptr [r10 + rax + 8]",
    "3: cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "jmp 2b",
);

/// Two vCPUs that write to both places.
pub struct Writers {
    pub machine: Machine,
    second: Vcpu,
}

impl Writers {
    pub fn new(device: &Device) -> Result<Self, Errno> {
        let machine = Machine::long(device, dirty_log_delete_running())?;
        let second = machine.vm.vcpu(1)?;
        second.set_cpuid(&device.supported_cpuid(256)?)?;
        enter_long(&second)?;
        for (vcpu, seed) in [(&machine.vcpu, 7), (&second, 11)] {
            let mut regs = vcpu.regs()?;
            (regs.r8, regs.r9, regs.r10, regs.rdx) = (PAGES as u64, PLACES[0], PLACES[1], seed);
            vcpu.set_regs(&regs)?;
        }
        Ok(Self { machine, second })
    }

    /// Lets them run meanwhile.
    pub fn while_running<R>(&self, change: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        self.machine.memory.write(layout::DATA, &[0]);
        thread::scope(|scope| {
            let threads =
                [&self.machine.vcpu, &self.second].map(|vcpu| scope.spawn(move || to_the_end(vcpu)));
            let result = change();
            self.machine.memory.write(layout::DATA, &[1]);
            for (index, thread) in threads.into_iter().enumerate() {
                check_eq!(thread.join().unwrap_or(Err(Errno::EIO)), Ok(Exit::Hlt), "vCPU {index}");
            }
            result
        })
    }
}

fn to_the_end(vcpu: &Vcpu) -> Result<Exit, Errno> {
    loop {
        match vcpu.run()? {
            Exit::MmioRead { length, .. } => vcpu.answer_mmio(&vec![0; length]),
            Exit::MmioWrite { .. } => {}
            other => return Ok(other),
        }
    }
}

/// The pages that are not as they were when they were cleared.
pub fn written(memory: &Memory) -> Vec<usize> {
    let word = |page: usize, index: usize| memory.read_u64(page * PAGE + 8 * index);
    (0..PAGES).filter(|page| word(*page, 0) != 0 || word(*page, 1) != 0).collect()
}

/// Waits until a vCPU has come to write.
pub fn wait_until_written(memory: &Memory) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(20);
    while written(memory).is_empty() {
        check!(Instant::now() < deadline, "nothing is written");
        thread::yield_now();
    }
    Ok(())
}

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let writers = Writers::new(&device)?;
    let vm = &writers.machine.vm;
    let memory = Memory::new(SIZE)?;
    let mut random = Random::new(61);
    for round in 0..t.repetitions(20) {
        let dirty = writers.while_running(|| {
            // A few times while they run: what a log had is gone with it.
            for turn in 0..1 + random.below(4) {
                memory.fill(0, SIZE, 0);
                vm.set_slot(SLOT, LOG, PLACES[0], SIZE as u64, memory.address())?;
                thread::sleep(Duration::from_micros(random.below(3000)));
                if turn % 2 == 0 {
                    vm.dirty_pages(SLOT, PAGES)?;
                }
                vm.set_slot(SLOT, 0, 0, 0, 0)?;
                check_err!(vm.dirty_pages(SLOT, PAGES), ENOENT, "a log of no slot");
                check_err!(vm.clear_log(SLOT, 0, PAGES as u32, &[!0; 4]), ENOENT, "a log of no slot");
            }
            memory.fill(0, SIZE, 0);
            vm.set_slot(SLOT, LOG, PLACES[0], SIZE as u64, memory.address())?;
            wait_until_written(&memory)?;
            thread::sleep(Duration::from_micros(random.below(5000)));
            Ok(vm.dirty_pages(SLOT, PAGES)?)
        })?;
        // With what came after that reading.
        let mut dirty = [dirty, vm.dirty_pages(SLOT, PAGES)?].concat();
        dirty.sort();
        dirty.dedup();
        check_eq!(dirty, written(&memory), "round {round}");
        vm.set_slot(SLOT, 0, 0, 0, 0)?;
    }
    Ok(())
}

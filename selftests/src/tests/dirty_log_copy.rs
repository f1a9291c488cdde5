// SPDX-License-Identifier: GPL-2.0

//! A guest that is copied while two vCPUs write to it is the same to the last byte when they have stopped.

use crate::host;
use crate::machine::enter_long;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(240, run).with_several_cpus();

const GPA: u64 = 0x4000_0000;
pub const SIZE: usize = 2 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;
const PAGE_WORDS: usize = PAGE / 8;
/// The guest writes to this much at a time; at R8.
const WINDOW: usize = 256 << 10;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(
    dirty_log_copy,
    code64,
    // R10 is the state of a generator, R11 counts. Words of both vCPUs share pages, not places.
    "2: mov rax, r10",
    "shl rax, 13",
    "xor r10, rax",
    "mov rax, r10",
    "shr rax, 7",
    "xor r10, rax",
    "mov rax, r10",
    "shl rax, 17",
    "xor r10, rax",
    "mov rax, r10",
    "shr rax, 20",
    "and eax, 0x3fff0",
    "add rax, r9",
    "mov [r8 + rax], r10",
    "inc r11",
    // Now and then by whoever emulates it.
    "test r11d, 0xffff",
    "jnz 3f",
    "lea rdi, [r8 + rax]",
    "mov edx, 0x10",
    "mov ecx, 2",
    "rep insd",
    "3: cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "jmp 2b",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let trials = t.repetitions(20);
    let small = Memory::aligned(SIZE, LARGE_PAGE)?;
    // Not known where there are no huge pages: then they are small anyway.
    let _ = small.advise(0, SIZE, libc::MADV_NOHUGEPAGE);
    copy(&device, &small, trials, Reading::Get)?;
    let large = Memory::aligned(SIZE, LARGE_PAGE)?;
    if large.advise(0, SIZE, libc::MADV_HUGEPAGE).is_ok() {
        copy(&device, &large, trials, Reading::Get)?;
    }
    Ok(())
}

/// How pages that were written are found and made clean.
#[derive(Clone, Copy, PartialEq)]
pub enum Reading {
    /// By one call, all of them.
    Get,
    /// Found by one call, and made clean a chunk of so many pages at a time, before they are copied.
    /// A log begins with all pages.
    Clear(usize),
}

pub fn copy(device: &Device, memory: &Memory, trials: u64, reading: Reading) -> Outcome {
    memory.fill(0, SIZE, 0);
    let machine = Machine::long(device, dirty_log_copy())?;
    if reading != Reading::Get {
        machine.vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)?;
    }
    machine.vm.map(1, GPA, memory)?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let vcpus = [&machine.vcpu, &second];
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        let mut regs = vcpu.regs()?;
        (regs.r9, regs.r10, regs.r11) = (8 * index as u64, 0x9E37_79B9_7F4A_7C15 << index, 0);
        vcpu.set_regs(&regs)?;
    }
    let mut copy = Copy { vm: &machine.vm, memory, words: vec![0; SIZE / 8], pages: 0, reading };
    let cpus = host::online_cpus();
    for trial in 0..trials {
        // Somewhere else each time, across the ends of pages, words of the log and large pages.
        let window = trial as usize * 37 * PAGE % (SIZE - WINDOW);
        for vcpu in vcpus {
            let mut regs = vcpu.regs()?;
            regs.r8 = GPA + window as u64;
            vcpu.set_regs(&regs)?;
        }
        machine.memory.write(layout::DATA, &[0]);
        let (copied, exits) = thread::scope(|scope| {
            let threads = vcpus.map(|vcpu| {
                let cpu = cpus[vcpu.fd() as usize % cpus.len()];
                scope.spawn(move || host::pin(cpu).and_then(|()| to_the_end(vcpu)))
            });
            let copied = copy.while_running(trial);
            // At once: what is written without a fault by now must be in the next log.
            machine.memory.write(layout::DATA, &[1]);
            (copied, threads.map(|thread| thread.join().unwrap_or(Err(Errno::EIO))))
        });
        for (index, exit) in exits.into_iter().enumerate() {
            check_eq!(exit, Ok(Exit::Hlt), "vCPU {index}");
        }
        copied?;
        copy.dirty()?;
        for (page, copied) in copy.words.chunks(PAGE_WORDS).enumerate() {
            let mut now = [0; PAGE_WORDS];
            memory.copy_words(page * PAGE, &mut now);
            check!(now == copied, "trial {trial}: page {page} is not what the copy has");
        }
        // Nobody writes any more.
        check_eq!(machine.vm.dirty_pages(1, PAGES)?, [0; 0]);
    }
    check!(copy.pages > trials, "{} pages were written while the copy was made", copy.pages);
    Ok(())
}

fn to_the_end(vcpu: &Vcpu) -> Result<Exit, Errno> {
    let mut answer = 0u8;
    loop {
        match vcpu.run()? {
            Exit::Io { data, .. } => {
                answer = answer.wrapping_add(1);
                vcpu.answer_io(&vec![answer; data.len()]);
            }
            other => return Ok(other),
        }
    }
}

/// What the VMM has of the guest.
struct Copy<'a> {
    vm: &'a Vm,
    memory: &'a Memory,
    words: Vec<u64>,
    /// Pages that were copied since they were dirty.
    pages: u64,
    reading: Reading,
}

impl Copy<'_> {
    /// Everything, if it is the first time or by lot; then what was written since, a few times.
    fn while_running(&mut self, trial: u64) -> Result<(), Errno> {
        if trial % 8 == 0 {
            // For some time without a log: what is mapped then has to be caught, too.
            self.vm.set_slot(1, 0, GPA, SIZE as u64, self.memory.address())?;
            thread::sleep(Duration::from_millis(2));
            self.vm.set_slot(1, LOG, GPA, SIZE as u64, self.memory.address())?;
            match self.reading {
                Reading::Get => self.memory.copy_words(0, &mut self.words),
                // The log has all of them.
                Reading::Clear(_) => {
                    self.words.fill(!0);
                    self.dirty()?;
                    self.pages -= PAGES as u64;
                }
            }
        }
        for round in 0..3 {
            thread::sleep(Duration::from_micros(300 * (round + trial % 3)));
            self.dirty()?;
        }
        Ok(())
    }

    /// What the log says.
    fn dirty(&mut self) -> Result<(), Errno> {
        let mut bits = vec![0u64; PAGES / 64];
        self.vm.dirty_log_to(1, bits.as_mut_ptr() as u64)?;
        let chunk = match self.reading {
            Reading::Get => PAGES,
            Reading::Clear(pages) => pages,
        };
        for first in (0..PAGES).step_by(chunk) {
            let bits = &bits[first / 64..(first + chunk) / 64];
            if self.reading != Reading::Get {
                self.vm.clear_log(1, first as u64, chunk as u32, bits)?;
            }
            for page in (0..chunk).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0) {
                let page = first + page;
                let words = page * PAGE_WORDS..(page + 1) * PAGE_WORDS;
                self.memory.copy_words(page * PAGE, &mut self.words[words]);
                self.pages += 1;
            }
        }
        Ok(())
    }
}

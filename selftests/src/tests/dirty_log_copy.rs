// SPDX-License-Identifier: GPL-2.0

//! A guest that is copied while two vCPUs write to it is the same to the last byte when they have stopped.

use crate::host;
use crate::machine::enter_long;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(240, run);

const GPA: u64 = 0x4000_0000;
const SIZE: usize = 4 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;
/// How much of it one vCPU writes to at a time; where that is moves on and on.
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
    // Somewhere in 256 KiB, at a place in the 8 MiB that moves on.
    "mov rax, r10",
    "shr rax, 20",
    "and eax, 0x3fff0",
    "mov rbx, r11",
    "shl rbx, 4",
    "add rax, rbx",
    "and eax, 0x7ffff0",
    "add rax, r9",
    "mov [rax + 0x40000000], r10",
    "inc r11",
    // Now and then by whoever emulates it.
    "test r11d, 0xfff",
    "jnz 3f",
    "lea rdi, [rax + 0x40000000]",
    "mov edx, 0x10",
    "mov ecx, 2",
    "rep insd",
    "3: cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let rounds = t.repetitions(60);
    let small = Memory::aligned(SIZE, LARGE_PAGE)?;
    // Not known where there are no huge pages: then they are small anyway.
    let _ = small.advise(0, SIZE, libc::MADV_NOHUGEPAGE);
    copy(&device, &small, rounds)?;
    let large = Memory::aligned(SIZE, LARGE_PAGE)?;
    if large.advise(0, SIZE, libc::MADV_HUGEPAGE).is_ok() {
        copy(&device, &large, rounds)?;
    }
    Ok(())
}

fn copy(device: &Device, memory: &Memory, rounds: u64) -> Outcome {
    memory.fill(0, SIZE, 0);
    let machine = Machine::long(device, dirty_log_copy())?;
    machine.vm.map(1, GPA, memory)?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    for (index, vcpu) in [&machine.vcpu, &second].into_iter().enumerate() {
        let mut regs = vcpu.regs()?;
        (regs.r9, regs.r10, regs.r11) = (8 * index as u64, 0x9E37_79B9_7F4A_7C15 << index, 0);
        vcpu.set_regs(&regs)?;
    }
    let cpus = host::online_cpus();
    let mut image = vec![0; SIZE];
    let (copied, exits) = thread::scope(|scope| {
        let machine = &machine;
        let threads = [&machine.vcpu, &second].map(|vcpu| {
            let cpu = cpus[vcpu.fd() as usize % cpus.len()];
            scope.spawn(move || host::pin(cpu).and_then(|()| to_the_end(vcpu)))
        });
        let copied = copy_in_rounds(machine, memory, &mut image, rounds);
        machine.memory.write(layout::DATA, &[1]);
        (copied, threads.map(|thread| thread.join().unwrap_or(Err(Errno::EIO))))
    });
    for (index, exit) in exits.into_iter().enumerate() {
        check_eq!(exit, Ok(Exit::Hlt), "vCPU {index}");
    }
    let copied = copied?;
    check!(copied > 0, "nothing was written while the rounds went on");
    let rest = copy_dirty(&machine, memory, &mut image)?;
    check!(rest < PAGES, "the last round has every page");
    let now = memory.read(0, SIZE);
    if let Some(at) = (0..SIZE).find(|&at| image[at] != now[at]) {
        fail!("byte {at:#x} is {:#x}, the copy has {:#x}", now[at], image[at]);
    }
    // Nobody writes any more.
    check_eq!(machine.vm.dirty_pages(1, PAGES)?, [0; 0]);
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

/// Everything once, then what was written since, again and again. Tells how many pages that was.
fn copy_in_rounds(machine: &Machine, memory: &Memory, image: &mut [u8], rounds: u64) -> Result<usize, Errno> {
    // For some time without a log: what is mapped then has to be caught, too.
    thread::sleep(Duration::from_millis(5));
    machine.vm.set_slot(1, LOG, GPA, SIZE as u64, memory.address())?;
    image.copy_from_slice(&memory.read(0, SIZE));
    let mut copied = 0;
    for round in 0..rounds {
        copied += copy_dirty(machine, memory, image)?;
        if round % 16 == 15 {
            // From the start: off and on, and everything again.
            machine.vm.set_slot(1, 0, GPA, SIZE as u64, memory.address())?;
            thread::sleep(Duration::from_millis(1));
            machine.vm.set_slot(1, LOG, GPA, SIZE as u64, memory.address())?;
            image.copy_from_slice(&memory.read(0, SIZE));
        }
        thread::sleep(Duration::from_micros(200 * (round % 7)));
    }
    Ok(copied)
}

fn copy_dirty(machine: &Machine, memory: &Memory, image: &mut [u8]) -> Result<usize, Errno> {
    let dirty = machine.vm.dirty_pages(1, PAGES)?;
    for &page in &dirty {
        let at = page * PAGE;
        image[at..at + PAGE].copy_from_slice(&memory.read(at, PAGE));
    }
    Ok(dirty.len())
}

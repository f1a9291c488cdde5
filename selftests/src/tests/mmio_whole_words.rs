// SPDX-License-Identifier: GPL-2.0

//! An instruction between MMIO and memory moves an aligned operand of memory in one piece: nobody sees half of it.

use crate::host;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(mmio_whole_word, code64, "2: mov rdi, r8", "mov rsi, rbx", "movsw", "jmp 2b");
guest!(mmio_whole_dword, code64, "2: mov rdi, r8", "mov rsi, rbx", "movsd", "jmp 2b");
guest!(mmio_whole_qword, code64, "2: mov rdi, r8", "mov rsi, rbx", "movsq", "jmp 2b");

fn run(t: &Context) -> Outcome {
    // KVM copies operands of two bytes one by one.
    let device = t.rusthv()?;
    let cpus = host::online_cpus();
    if cpus.len() < 2 {
        skip!("only one processor");
    }
    let rounds = t.repetitions(2000);
    for (size, code) in [(2, mmio_whole_word()), (4, mmio_whole_dword()), (8, mmio_whole_qword())] {
        for (what, from, to) in [
            ("to memory", layout::MMIO, layout::DATA as u64),
            ("from memory", layout::DATA as u64, layout::MMIO),
        ] {
            let machine = Machine::long(&device, code)?;
            machine.change_regs(|regs| (regs.rbx, regs.r8) = (from, to))?;
            let done = AtomicBool::new(false);
            let (outcome, other) = thread::scope(|scope| {
                let (machine, done) = (&machine, &done);
                let cpu = cpus[1];
                let other = scope.spawn(move || -> Outcome {
                    host::pin(cpu)?;
                    if to == layout::MMIO {
                        // Writes all zeros and all ones in turn.
                        while !done.load(Ordering::Relaxed) {
                            store(machine, size, 0);
                            store(machine, size, u64::MAX);
                        }
                    } else {
                        while !done.load(Ordering::Relaxed) {
                            let word = load(machine, size);
                            check!(whole(word, size), "{size} bytes {what}: {word:#x}");
                        }
                    }
                    Ok(())
                });
                let outcome = drive(machine, size, rounds, cpus[0]);
                done.store(true, Ordering::Relaxed);
                (outcome, other.join())
            });
            outcome?;
            other.unwrap_or_else(|_| Err(Failure::failed("the thread panicked")))?;
        }
    }
    Ok(())
}

/// Answers the device's reads with all zeros and all ones in turn, looks at its writes.
fn drive(machine: &Machine, size: usize, rounds: u64, cpu: usize) -> Outcome {
    host::pin(cpu)?;
    for round in 0..rounds {
        match machine.run()? {
            Exit::MmioRead { address: layout::MMIO, length } if length == size => {
                machine.vcpu.answer_mmio(&vec![if round % 2 == 0 { 0xFF } else { 0 }; size]);
            }
            Exit::MmioWrite { address: layout::MMIO, data } if data.len() == size => {
                let mut bytes = [0; 8];
                bytes[..size].copy_from_slice(&data);
                let word = u64::from_le_bytes(bytes);
                check!(whole(word, size), "{size} bytes from memory: {word:#x}");
            }
            other => fail!("{other:x?}"),
        }
    }
    Ok(())
}

fn whole(word: u64, size: usize) -> bool {
    word == 0 || word == u64::MAX >> (64 - 8 * size)
}

fn store(machine: &Machine, size: usize, value: u64) {
    let place = machine.memory.at(layout::DATA, 8);
    // SAFETY: inside the guest's memory, aligned; each is one access.
    unsafe {
        match size {
            2 => place.cast::<u16>().write_volatile(value as u16),
            4 => place.cast::<u32>().write_volatile(value as u32),
            _ => place.cast::<u64>().write_volatile(value),
        }
    }
}

fn load(machine: &Machine, size: usize) -> u64 {
    let place = machine.memory.at(layout::DATA, 8);
    // SAFETY: as in `store`.
    unsafe {
        match size {
            2 => place.cast::<u16>().read_volatile().into(),
            4 => place.cast::<u32>().read_volatile().into(),
            _ => place.cast::<u64>().read_volatile(),
        }
    }
}

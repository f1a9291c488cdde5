// SPDX-License-Identifier: GPL-2.0

//! mprotect() holds running vCPUs back from just the pages and accesses it is about, and nothing is lost.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use crate::verifier::{Running, Verifier};
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

/// Some of it in a large page, some not.
const SIZE: usize = LARGE_PAGE + 40 * PAGE;
const PAGES: usize = SIZE / PAGE;
const ALL: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?;
    let mut random = Random::new(52);
    guest.while_running(|running| {
        running.sweeps(1)?;
        check_eq!(running.refused(), 0, "before anything is protected");
        for round in 0..t.repetitions(15) {
            let first = random.below(PAGES as u64 - 1) as usize;
            let most = random.pick(&[1, 8, 600]).min((PAGES - first) as u64);
            let count = 1 + random.below(most) as usize;
            // However it goes, the guest gets its memory back.
            let held = hold(running, &memory, first, count);
            memory.protect(first * PAGE, count * PAGE, ALL)?;
            if held.is_err() {
                println!("# round {round}, {count} pages from {first} on");
            }
            held?;
            running.sweeps(1)?;
        }
        look(running, &memory)
    })
}

/// The guest does not get on, and does not write.
fn hold(running: &Running<'_>, memory: &Memory, first: usize, count: usize) -> Outcome {
    memory.protect(first * PAGE, count * PAGE, libc::PROT_READ)?;
    let mut before = vec![0; count * PAGE / 8];
    memory.copy_words(first * PAGE, &mut before);
    running.wait_refused()?;
    for _ in 0..20 {
        thread::yield_now();
    }
    let mut after = vec![0; count * PAGE / 8];
    memory.copy_words(first * PAGE, &mut after);
    check!(before == after, "a write came after mprotect()");
    memory.protect(first * PAGE, count * PAGE, libc::PROT_NONE)?;
    running.wait_refused()
}

/// Who only reads is not held back from what can be read.
fn look(running: &Running<'_>, memory: &Memory) -> Outcome {
    running.look_only(true)?;
    let before = running.refused();
    memory.protect(0, SIZE, libc::PROT_READ)?;
    running.sweeps(1)?;
    check_eq!(running.refused(), before, "reads of memory that may be read");
    memory.protect(0, SIZE, ALL)?;
    running.look_only(false)
}

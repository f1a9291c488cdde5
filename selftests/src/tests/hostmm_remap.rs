// SPDX-License-Identifier: GPL-2.0

//! mremap() takes the backing from under running vCPUs, whose VMM gets EFAULT, and gives it back unharmed.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use crate::verifier::{Running, Verifier};
use std::thread;

pub const TEST: Test = Test::new(120, run);

const SIZE: usize = 2 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?;
    let mut random = Random::new(53);
    guest.while_running(|running| {
        running.sweeps(1)?;
        for round in 0..t.repetitions(12) {
            // A large page as a whole, where there is one; or a few pages.
            let (first, count) = match round % 3 {
                0 => (round as usize % 2 * (PAGES / 2), PAGES / 2),
                _ => {
                    let first = random.below(PAGES as u64 - 16) as usize;
                    (first, 1 + random.below(16) as usize)
                }
            };
            let away = Memory::aligned(count * PAGE, LARGE_PAGE)?;
            memory.move_to(first * PAGE, count * PAGE, &away, 0)?;
            let held = hold(running, &away);
            away.move_to(0, count * PAGE, &memory, first * PAGE)?;
            // What is left is a hole: nobody else's mapping is to be removed with it.
            std::mem::forget(away);
            held?;
            running.sweeps(1)?;
        }
        check!(running.refused() > 0, "no exit for the VMM");
        Ok(())
    })
}

/// The guest does not get on, and does not write to where its pages are now.
fn hold(running: &Running<'_>, away: &Memory) -> Outcome {
    let mut before = vec![0; away.size() / 8];
    away.copy_words(0, &mut before);
    running.wait_refused()?;
    for _ in 0..20 {
        thread::yield_now();
    }
    let mut after = vec![0; away.size() / 8];
    away.copy_words(0, &mut after);
    check!(before == after, "a write came after mremap()");
    Ok(())
}

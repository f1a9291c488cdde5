// SPDX-License-Identifier: GPL-2.0

//! Pages go to a swap device, compressed, and come back under running vCPUs, and every word stays.

use crate::emulator;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::swap::{self, Swap};
use crate::verifier::Verifier;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(240, run);

const SIZE: usize = LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    // Compressing takes Bochs the best part of a minute.
    let slow = emulator::is_bochs();
    if slow && !emulator::is_nested() {
        skip!("in Bochs with nested paging alone, for the time that it takes");
    }
    let device = t.device()?;
    let swap = Swap::new(32 * SIZE)?;
    let (_, before) = swap::counts();
    let advices: &[libc::c_int] = match slow {
        true => &[libc::MADV_NOHUGEPAGE],
        false => &[libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE],
    };
    for &advice in advices {
        let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
        // A kernel without huge pages has small ones anyway.
        let _ = memory.advise(0, SIZE, advice);
        anonymous(t, &device, &swap, &memory)?;
    }
    if !slow {
        shared(t, &device)?;
    }
    check!(swap::counts().1 > before, "nothing came back from the device");
    Ok(())
}

/// Sends the pages out a few times, in which the guest wants them back, and until some have gone.
fn send_out(memory: &Memory) -> Outcome {
    let (before, _) = swap::counts();
    for attempt in 0..200 {
        memory.advise(0, SIZE, libc::MADV_PAGEOUT)?;
        thread::sleep(Duration::from_millis(1));
        if attempt >= 2 && swap::counts().0 > before {
            return Ok(());
        }
    }
    Err(Failure::failed("nothing went out"))
}

fn anonymous(t: &Context, device: &Device, swap: &Swap, memory: &Memory) -> Outcome {
    let guest = Verifier::new(device, memory, 2)?;
    guest.while_running(|running| {
        running.sweeps(1)?;
        for round in 0..t.repetitions(2) {
            // Brought back by reads, or by writes.
            running.look_only(round % 2 == 1)?;
            let before = swap::counts();
            send_out(memory)?;
            // The first may have been half done.
            running.sweeps(2)?;
            let after = swap::counts();
            // What came back may not have left memory yet: that is counted over all rounds.
            check!(after.0 > before.0, "round {round}: {before:?}, {after:?}");
        }
        running.look_only(false)
    })?;
    // With nobody in the way, most of them at once (the host may have some on lists of its own).
    send_out(memory)?;
    let out = swap::pages_out(memory)?;
    check!(out > 0, "none of {PAGES} pages is out");
    let (contents, taken) = swap.compressed();
    check!(taken < contents, "{contents} bytes take {taken}");
    guest.while_running(|running| running.sweeps(2))?;
    check_eq!(swap::pages_out(memory)?, 0, "pages that are out after the guest has seen all");
    Ok(())
}

/// Memory that is shared, and so shared memory's business.
fn shared(t: &Context, device: &Device) -> Outcome {
    let memory = Memory::map(SIZE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    let guest = Verifier::new(device, &memory, 2)?;
    guest.while_running(|running| {
        for round in 0..t.repetitions(2) {
            running.sweeps(1)?;
            let before = swap::counts();
            send_out(&memory)?;
            running.sweeps(2)?;
            check!(swap::counts().0 > before.0, "round {round}: nothing went out");
        }
        Ok(())
    })
}

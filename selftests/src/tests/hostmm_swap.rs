// SPDX-License-Identifier: GPL-2.0

//! Pages go to a swap device, compressed, and come back under running vCPUs, and every word stays.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::swap::{self, Swap};
use crate::verifier::Verifier;

pub const TEST: Test = Test::new(240, run);

const SIZE: usize = LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;
const MOST: usize = PAGES / 8 * 7;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let swap = Swap::new(32 * SIZE)?;
    for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE] {
        let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
        // A kernel without huge pages has small ones anyway.
        let _ = memory.advise(0, SIZE, advice);
        anonymous(t, &device, &swap, &memory)?;
    }
    shared(t, &device)
}

/// As often as it takes until so many pages are out at once: those that the guest is being given at the
/// moment stay, and it wants them back all the time.
fn until_out(memory: &Memory, wanted: usize, out: impl Fn() -> Outcome) -> Outcome {
    let mut most = 0;
    for _ in 0..200 {
        out()?;
        most = most.max(swap::pages_out(memory)?);
        if most >= wanted {
            break;
        }
    }
    check!(most >= wanted, "at most {most} pages were out at once, not {wanted}");
    Ok(())
}

fn anonymous(t: &Context, device: &Device, swap: &Swap, memory: &Memory) -> Outcome {
    let guest = Verifier::new(device, memory, 2)?;
    let page_out = || memory.advise(0, SIZE, libc::MADV_PAGEOUT).map_err(Failure::from);
    guest.while_running(|running| {
        running.sweeps(1)?;
        for round in 0..t.repetitions(6) {
            // Brought back by reads, or by writes.
            running.look_only(round % 2 == 1)?;
            let before = swap::counts();
            until_out(memory, PAGES / 8, page_out)?;
            running.sweeps(1)?;
            let after = swap::counts();
            check!(after.0 > before.0 && after.1 > before.1, "round {round}: {before:?}, {after:?}");
        }
        running.look_only(false)?;
        Ok(())
    })?;
    // With nobody in the way, nearly all of them (the host may have some on lists of its own); and in
    // the device they are smaller.
    let before = swap::counts();
    until_out(memory, MOST, page_out)?;
    let (contents, taken) = swap.compressed();
    check!(contents >= (MOST * PAGE) as u64 && taken < contents, "{contents} bytes take {taken}");
    guest.while_running(|running| running.sweeps(1))?;
    check_eq!(swap::pages_out(memory)?, 0, "pages that are out after the guest has seen all");
    let after = swap::counts();
    let came = after.1 - before.1;
    check!(came >= MOST as u64, "{came} of {PAGES} pages came back from the device");
    Ok(())
}

/// Memory that is shared, and so shared memory's business.
fn shared(t: &Context, device: &Device) -> Outcome {
    let memory = Memory::map(SIZE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    let guest = Verifier::new(device, &memory, 2)?;
    guest.while_running(|running| {
        for round in 0..t.repetitions(3) {
            running.sweeps(1)?;
            let before = swap::counts();
            for attempt in 0.. {
                memory.advise(0, SIZE, libc::MADV_PAGEOUT)?;
                if swap::counts().0 >= before.0 + PAGES as u64 / 8 {
                    break;
                }
                check!(attempt < 200, "round {round}: {before:?}, {:?}", swap::counts());
            }
            running.sweeps(1)?;
            let (before, after) = (before.1, swap::counts().1);
            check!(after > before, "round {round}: nothing came back");
        }
        Ok(())
    })
}

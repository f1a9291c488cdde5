// SPDX-License-Identifier: GPL-2.0

//! Memory that a balloon gives back to the host is fresh at once for running vCPUs, and the rest stays.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use crate::verifier::Verifier;

pub const TEST: Test = Test::new(120, run);

const SIZE: usize = 2 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    // Of large pages, where there are any: then these are cut.
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?.lossy()?;
    let mut random = Random::new(51);
    guest.while_running(|running| {
        running.sweeps(1)?;
        check_eq!(guest.losses(), 0, "before anything is taken");
        for round in 0..t.repetitions(8) {
            let before = guest.losses();
            // In one piece, or here and there: each page is one that both find fresh.
            let mut taken = 0;
            let pieces = random.pick(&[1, 1, 3, 20]);
            let room = PAGES / pieces;
            for piece in 0..pieces {
                let count = 1 + random.below(room as u64) as usize;
                memory.advise(piece * room * PAGE, count * PAGE, libc::MADV_DONTNEED)?;
                taken += count as u64;
            }
            running.sweeps(1)?;
            let lost = guest.losses() - before;
            check!(lost >= taken, "round {round}: {taken} pages were taken, {lost} words are fresh");
        }
        Ok(())
    })
}

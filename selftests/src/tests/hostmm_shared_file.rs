// SPDX-License-Identifier: GPL-2.0

//! A guest in a shared file writes to the file; holes and a shorter file take its pages, under running vCPUs.

use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;
use crate::verifier::Verifier;
use std::os::fd::AsRawFd;

pub const TEST: Test = Test::new(120, run);

const PAGES: usize = 300;
const SIZE: usize = PAGES * PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let file = host::memory_file(SIZE, 0)?;
    let memory = Memory::map(SIZE, libc::MAP_SHARED, file.as_raw_fd())?;
    let other = Memory::map(SIZE, libc::MAP_SHARED, file.as_raw_fd())?;
    let guest = Verifier::new(&device, &memory, 2)?;
    guest.while_running(|running| running.sweeps(2))?;
    guest.verify_copy(&other)?;
    let guest = guest.lossy()?;
    let mut random = Random::new(55);
    guest.while_running(|running| {
        for round in 0..t.repetitions(15) {
            let first = random.below(PAGES as u64 - 1) as usize;
            let count = 1 + random.below((PAGES - first) as u64) as usize;
            let before = guest.losses();
            if round % 3 == 2 {
                // Behind the end of the file there is no memory.
                host::set_size(&file, first * PAGE)?;
                let refused = running.wait_refused();
                host::set_size(&file, SIZE)?;
                refused?;
            } else {
                host::punch_hole(&file, first * PAGE, count * PAGE)?;
            }
            running.sweeps(1)?;
            let lost = guest.losses() - before;
            check!(lost >= count as u64, "round {round}: {count} pages are new, {lost} words");
        }
        Ok(())
    })?;
    guest.verify_copy(&other)
}

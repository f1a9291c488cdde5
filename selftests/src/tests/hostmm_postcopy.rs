// SPDX-License-Identifier: GPL-2.0

//! A guest runs while its memory is still arriving: each page that it misses comes before it goes on.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;
use crate::userfault::{Faults, MISSING};
use crate::verifier::Verifier;
use std::thread;

pub const TEST: Test = Test::new(120, run);

const PAGES: usize = 400;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    for round in 0..t.repetitions(4) {
        let memory = Memory::new(PAGES * PAGE)?;
        let faults = match Faults::of(&memory, MISSING) {
            Ok(faults) => faults,
            Err(errno) => skip!("userfaultfd: {errno}"),
        };
        let guest = Verifier::unfilled(&device, &memory, 2)?;
        // Those that nobody has asked for, in any order.
        let mut random = Random::new(round);
        let mut rest: Vec<usize> = (0..PAGES).collect();
        for index in 0..PAGES {
            rest.swap(index, random.below(PAGES as u64) as usize);
        }
        let (asked, arrived) = guest.while_running(|running| {
            let (mut asked, mut arrived) = (0, 0);
            while arrived < PAGES {
                if let Some(address) = faults.poll() {
                    let page = faults.page_of(address);
                    let filled = faults.fill(page, &guest.page(page))?;
                    // A page that came by itself meanwhile wakes the vCPU, too.
                    asked += usize::from(filled);
                    arrived += usize::from(filled);
                } else if round % 2 == 0 || asked * 2 > PAGES {
                    let Some(page) = rest.pop() else { continue };
                    arrived += usize::from(faults.fill(page, &guest.page(page))?);
                } else {
                    thread::yield_now();
                }
            }
            running.sweeps(1)?;
            Ok((asked, arrived))
        })?;
        check!(asked > 0, "round {round}: the guest has missed none of {arrived} pages");
    }
    Ok(())
}

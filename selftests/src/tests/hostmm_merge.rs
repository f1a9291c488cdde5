// SPDX-License-Identifier: GPL-2.0

//! Pages are merged under running vCPUs that read them, and come apart when those write, and when the host says so.

use crate::ksm::{self, Merging};
use crate::memory::PAGE;
use crate::prelude::*;
use crate::verifier::Verifier;

pub const TEST: Test = Test::new(240, run);

const PAGES: usize = 96;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    if !ksm::is_there() {
        skip!("the kernel does not merge pages");
    }
    let device = t.device()?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.advise(0, PAGES * PAGE, libc::MADV_NOHUGEPAGE)?;
    // One vCPU, so that all pages are the same after a sweep; and two, with two kinds of pages.
    for vcpus in [1, 2] {
        let guest = Verifier::new(&device, &memory, vcpus)?.alike()?;
        memory.advise(0, PAGES * PAGE, libc::MADV_MERGEABLE)?;
        let merging = Merging::new()?;
        guest.while_running(|running| {
            for round in 0..t.repetitions(3) {
                running.look_only(true)?;
                let merged = merging.merge((PAGES - vcpus) as u64)?;
                check!(
                    merged >= PAGES as u64 / 2,
                    "round {round}, {vcpus} vCPUs: {merged} pages were merged, {}",
                    merging.describe()
                );
                running.sweeps(2)?;
                if round % 2 == 1 {
                    merging.unmerge()?;
                    check_eq!(ksm::sharing(), 0, "merged pages after they were taken apart");
                    running.sweeps(1)?;
                }
                // Every write is to a page that others share, and must change that one alone.
                running.look_only(false)?;
                running.sweeps(2)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

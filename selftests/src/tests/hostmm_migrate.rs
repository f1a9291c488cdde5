// SPDX-License-Identifier: GPL-2.0

//! Small and huge pages move between NUMA nodes under running vCPUs, and every word stays.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::numa::migrate;
use crate::prelude::*;
use crate::verifier::Verifier;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(120, run);

const SIZE: usize = LARGE_PAGE + 64 * PAGE;

fn run(t: &Context) -> Outcome {
    if !std::path::Path::new("/sys/devices/system/node/node1").exists() {
        skip!("only one NUMA node (numa=fake=2 makes two)");
    }
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?;
    // A huge page is named by its first address: all of it moves, or nothing.
    let heads: Vec<usize> = [0].into_iter().chain(LARGE_PAGE / PAGE..SIZE / PAGE).collect();
    guest.while_running(|running| {
        for round in 0..t.repetitions(12) {
            let node = (round % 2) as i32;
            // A page that the guest is being given at the moment is left where it is.
            for attempt in 0.. {
                let there = migrate(&memory, &heads, node)?;
                if there.len() >= heads.len() / 2 {
                    break;
                }
                check!(attempt < 200, "round {round}: only {there:?} have moved to node {node}");
                thread::sleep(Duration::from_millis(2));
            }
            running.sweeps(1)?;
        }
        Ok(())
    })?;
    // With nobody in the way, all of them.
    for node in [1, 0] {
        check_eq!(migrate(&memory, &heads, node)?, heads, "pages on node {node}");
        guest.while_running(|running| running.sweeps(1))?;
    }
    Ok(())
}

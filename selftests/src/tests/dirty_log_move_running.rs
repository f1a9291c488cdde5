// SPDX-License-Identifier: GPL-2.0

//! A logged slot that moves under running vCPUs keeps its log, and loses no write at either place.

use super::dirty_log_delete_running::{wait_until_written, written, Writers};
use super::dirty_log_delete_running::{LOG, PAGES, PLACES, SIZE, SLOT};
use crate::prelude::*;
use crate::random::Random;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let writers = Writers::new(&device)?;
    let vm = &writers.machine.vm;
    let memory = Memory::new(SIZE)?;
    let mut random = Random::new(62);
    for round in 0..t.repetitions(20) {
        memory.fill(0, SIZE, 0);
        let moves = 2 + random.below(6) as usize;
        let mut dirty = writers.while_running(|| {
            let mut dirty = Vec::new();
            for turn in 0..moves {
                let place = PLACES[turn % 2];
                vm.set_slot(SLOT, LOG, place, SIZE as u64, memory.address())?;
                thread::sleep(Duration::from_micros(random.below(2000)));
                if random.one_in(3) {
                    dirty.extend(vm.dirty_pages(SLOT, PAGES)?);
                }
            }
            wait_until_written(&memory)?;
            Ok(dirty)
        })?;
        dirty.extend(vm.dirty_pages(SLOT, PAGES)?);
        dirty.sort();
        dirty.dedup();
        let written = written(&memory);
        let lost = written.iter().find(|page| !dirty.contains(page));
        check_eq!(lost, None, "round {round}: a page that was written, and is not in the log");
        // A vCPU that may write a page, as the slot moves, writes elsewhere: one of each, each time.
        let extra = dirty.len() - written.len();
        check!(extra <= 2 * moves, "round {round}: {extra} pages too many in the log, {moves} moves");
        vm.set_slot(SLOT, 0, 0, 0, 0)?;
    }
    Ok(())
}

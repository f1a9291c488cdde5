// SPDX-License-Identifier: GPL-2.0

//! Logging starts and stops under running vCPUs: from its start each page they write is in the log, and no other.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::verifier::{Running, Verifier, GPA, SLOT};

pub const TEST: Test = Test::new(120, run).with_several_cpus();

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
/// A large page, and no whole word of the bitmap behind it.
const SIZE: usize = LARGE_PAGE + 90 * PAGE;
const PAGES: usize = SIZE / PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?;
    let set = |flags| guest.machine.vm.set_slot(SLOT, flags, GPA, SIZE as u64, memory.address());
    let all: Vec<usize> = (0..PAGES).collect();
    guest.while_running(|running| {
        running.sweeps(1)?;
        for round in 0..t.repetitions(5) {
            // In quick succession, too: the guest may not even notice.
            for _ in 0..round % 4 {
                set(LOG)?;
                set(0)?;
            }
            set(LOG)?;
            running.sweeps(1)?;
            check_eq!(guest.machine.vm.dirty_pages(SLOT, PAGES)?, all, "round {round}: all is written");
            nobody_writes(running, &guest)?;
            // Part of it, by the other call.
            running.sweeps(1)?;
            guest.machine.vm.clear_log(SLOT, 64, 128, &[!0; 2])?;
            running.sweeps(1)?;
            check_eq!(guest.machine.vm.dirty_pages(SLOT, PAGES)?, all, "round {round}: all, once more");
            set(0)?;
            check_err!(guest.machine.vm.dirty_pages(SLOT, PAGES), ENOENT, "round {round}: no log");
            running.sweeps(1)?;
        }
        Ok(())
    })
}

/// What is only read is in no log, whatever it is read through.
fn nobody_writes(running: &Running<'_>, guest: &Verifier<'_>) -> Outcome {
    running.look_only(true)?;
    // What was written until then.
    guest.machine.vm.dirty_pages(SLOT, PAGES)?;
    running.sweeps(1)?;
    check_eq!(guest.machine.vm.dirty_pages(SLOT, PAGES)?, [0; 0], "pages that were read");
    running.look_only(false)
}

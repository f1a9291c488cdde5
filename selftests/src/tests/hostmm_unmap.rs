// SPDX-License-Identifier: GPL-2.0

//! munmap() under running vCPUs is EFAULT for the VMM; the VM goes on with new memory, and the host has all back.

use crate::balance;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use crate::verifier::Verifier;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

const SIZE: usize = 2 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let frames = if t.is_exclusive() { balance::now(&device)? } else { None };
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?.lossy()?;
    let mut random = Random::new(54);
    guest.while_running(|running| {
        running.sweeps(1)?;
        for round in 0..t.repetitions(12) {
            let (first, count) = match round % 4 {
                0 => (0, PAGES),
                _ => {
                    let first = random.below(PAGES as u64 - 100) as usize;
                    (first, 1 + random.below(100) as usize)
                }
            };
            let before = guest.losses();
            memory.unmap(first * PAGE, count * PAGE)?;
            let refused = running.wait_refused();
            memory.map_anew(first * PAGE, count * PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
            refused?;
            running.sweeps(1)?;
            let lost = guest.losses() - before;
            check!(lost >= count as u64, "round {round}: {count} new pages, {lost} words are new");
        }
        Ok(())
    })?;
    // All of it goes, for good, while the guest runs: its threads come back, and the VM is closed.
    guest.run(|running| {
        running.sweeps(1)?;
        memory.unmap(0, SIZE)?;
        running.wait_refused()
    })?;
    for vcpu in guest.vcpus() {
        check_err!(vcpu.run(), EFAULT, "without memory");
    }
    drop(guest);
    match frames {
        Some(frames) => balance::restored(&device, &frames),
        None => Ok(()),
    }
}

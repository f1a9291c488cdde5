// SPDX-License-Identifier: GPL-2.0

//! Pages that the host may drop, unless they are written again, are not dropped once a guest has written them.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::verifier::Verifier;

pub const TEST: Test = Test::new(120, run);

const PAGES: usize = 256;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.advise(0, PAGES * PAGE, libc::MADV_NOHUGEPAGE)?;
    let free = || memory.advise(0, PAGES * PAGE, libc::MADV_FREE);
    let reclaim = || memory.advise(0, PAGES * PAGE, libc::MADV_PAGEOUT);
    // Without writes they are dropped: this is what the rest is about.
    memory.fill(0, PAGES * PAGE, 0x5A);
    if free().is_err() || reclaim().is_err() {
        skip!("the kernel does not know MADV_FREE or MADV_PAGEOUT");
    }
    let dropped = (0..PAGES).filter(|page| memory.read_u64(page * PAGE) == 0).count();
    if dropped < PAGES / 2 {
        skip!("the host drops {dropped} of {PAGES} pages that it may");
    }
    let guest = Verifier::new(&device, &memory, 2)?;
    guest.while_running(|running| {
        for round in 0..t.repetitions(10) {
            running.sweeps(1)?;
            // Mapped by writes; or by reads, and written through those mappings.
            running.look_only(round % 2 == 1)?;
            free()?;
            running.sweeps(1)?;
            running.look_only(false)?;
            running.sweeps(1)?;
            reclaim()?;
            running.sweeps(1)?;
            // Cold pages only: the accessed flags of the guest's mappings are asked.
            memory.advise(0, PAGES * PAGE, libc::MADV_COLD)?;
        }
        Ok(())
    })
}

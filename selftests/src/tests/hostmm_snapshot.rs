// SPDX-License-Identifier: GPL-2.0

//! A snapshot of a running guest: write-protected by userfaultfd, no page changes before it has been copied.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::userfault::{Faults, WRITE_PROTECT};
use crate::verifier::{Running, Verifier};

pub const TEST: Test = Test::new(120, run);

const PAGES: usize = 300;
const WORDS: usize = PAGE / 8;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.advise(0, PAGES * PAGE, libc::MADV_NOHUGEPAGE)?;
    let guest = Verifier::new(&device, &memory, 2)?;
    let faults = match Faults::of(&memory, WRITE_PROTECT) {
        Ok(faults) => faults,
        Err(errno) => skip!("userfaultfd, write protection: {errno}"),
    };
    guest.while_running(|running| {
        for round in 0..t.repetitions(6) {
            running.sweeps(1)?;
            faults.protect(0, PAGES, true)?;
            let taken = snapshot(running, &faults, &memory);
            // However it went, nobody is to be left waiting.
            faults.protect(0, PAGES, false)?;
            let faulted = taken?;
            check!(faulted > 0, "round {round}: no write met the protection");
        }
        Ok(())
    })
}

/// Copies all pages, each when it is written, or later. How many were written.
fn snapshot(running: &Running<'_>, faults: &Faults<'_>, memory: &Memory) -> Result<usize, Failure> {
    let mut moment = vec![0; PAGES * WORDS];
    memory.copy_words(0, &mut moment);
    let mut copied = [false; PAGES];
    let mut now = [0; WORDS];
    let mut copy = |page: usize| {
        memory.copy_words(page * PAGE, &mut now);
        now[..] == moment[page * WORDS..][..WORDS]
    };
    let mut faulted = 0;
    // Those that come in the time of half of them; then the others, one by one.
    while faulted < PAGES / 2 {
        let Some(address) = faults.next() else {
            fail!("{faulted} pages were written, and then none");
        };
        let page = faults.page_of(address);
        // The same once more is a fault that was repeated.
        if !copied[page] {
            check!(copy(page), "page {page} was written behind the protection");
            copied[page] = true;
            faulted += 1;
        }
        faults.protect(page, 1, false)?;
    }
    for (page, _) in copied.iter().enumerate().filter(|(_, copied)| !**copied) {
        check!(copy(page), "page {page} was written behind the protection");
        faults.protect(page, 1, false)?;
    }
    running.sweeps(1)?;
    Ok(faulted)
}

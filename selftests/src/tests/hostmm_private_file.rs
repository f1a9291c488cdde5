// SPDX-License-Identifier: GPL-2.0

//! A guest in a private mapping reads the file until it writes, then has its own page; the file never changes.

use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::verifier::Verifier;
use std::os::fd::AsRawFd;

pub const TEST: Test = Test::new(60, run);

const PAGES: usize = 200;
const SIZE: usize = PAGES * PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let file = host::memory_file(SIZE, 0)?;
    let contents = Memory::map(SIZE, libc::MAP_SHARED, file.as_raw_fd())?;
    for round in 0..t.repetitions(5) {
        let memory = Memory::map(SIZE, libc::MAP_PRIVATE, file.as_raw_fd())?;
        let guest = Verifier::unfilled(&device, &memory, 2)?;
        // What the guest expects comes from the file.
        for page in 0..PAGES {
            for (index, word) in guest.page(page).into_iter().enumerate() {
                contents.write_u64(page * PAGE + 8 * index, word);
            }
        }
        guest.look_first();
        guest.while_running(|running| {
            running.sweeps(1)?;
            // The file's pages go and come back under the guest, with the same in them.
            memory.advise(0, SIZE, libc::MADV_DONTNEED)?;
            running.sweeps(1)?;
            running.look_only(false)?;
            running.sweeps(1)
        })?;
        let mut now = [0; PAGE / 8];
        for page in 0..PAGES {
            contents.copy_words(page * PAGE, &mut now);
            check!(now[..] == guest.page(page), "round {round}: page {page} of the file has changed");
        }
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! The same copy with KVM_CLEAR_DIRTY_LOG in chunks, from a log that begins with all pages, is bit-identical too.

use super::dirty_log_copy::{copy, Reading, SIZE};
use crate::memory::LARGE_PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(240, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let trials = t.repetitions(9);
    let small = Memory::aligned(SIZE, LARGE_PAGE)?;
    // Not known where there are no huge pages: then they are small anyway.
    let _ = small.advise(0, SIZE, libc::MADV_NOHUGEPAGE);
    copy(&device, &small, trials, Reading::Clear(128))?;
    let large = Memory::aligned(SIZE, LARGE_PAGE)?;
    if large.advise(0, SIZE, libc::MADV_HUGEPAGE).is_ok() {
        copy(&device, &large, trials, Reading::Clear(64))?;
    }
    Ok(())
}

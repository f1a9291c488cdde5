// SPDX-License-Identifier: GPL-2.0

//! A guest is copied without a fault also if the host takes its pages out of the tables all the while.

use super::dirty_log_copy::{copy, Reading, SIZE};
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

pub const TEST: Test = Test::new(240, run).with_several_cpus();

const PAGES: u64 = (SIZE / PAGE) as u64;
const PLAIN: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    // Not known where there are no huge pages: then they are small anyway.
    let _ = memory.advise(0, SIZE, libc::MADV_NOHUGEPAGE);
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Outcome {
        let taking = scope.spawn(|| take_and_give(&memory, &over));
        let copied = copy(&device, &memory, t.repetitions(20), Reading::Get);
        over.store(true, Relaxed);
        let taken = taking.join().unwrap_or(Err(Errno::EIO))?;
        copied?;
        check!(taken > 0, "no page was taken");
        Ok(())
    })
}

/// Pages may be executed, and may not: nothing that the guest would notice, but the host takes them out of all tables
/// for it. How often.
fn take_and_give(memory: &Memory, over: &AtomicBool) -> Result<u64, Errno> {
    let mut random = Random::new(97);
    let mut count = 0;
    while !over.load(Relaxed) {
        let first = random.below(PAGES);
        let pages = 1 + random.below(PAGES - first).min(random.below(80));
        let (at, length) = (first as usize * PAGE, pages as usize * PAGE);
        memory.protect(at, length, PLAIN | libc::PROT_EXEC)?;
        memory.protect(at, length, PLAIN)?;
        count += 1;
        thread::yield_now();
    }
    Ok(count)
}

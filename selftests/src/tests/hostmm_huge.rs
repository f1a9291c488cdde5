// SPDX-License-Identifier: GPL-2.0

//! Huge pages are split and collapsed under running vCPUs; the guest's mappings follow, by their counts.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::verifier::Verifier;
use std::fs;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(120, run);

const LARGE: usize = 3;
const SIZE: usize = LARGE * LARGE_PAGE;
const MADV_COLLAPSE: libc::c_int = 25;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    if memory.advise(0, SIZE, libc::MADV_HUGEPAGE).is_err() {
        skip!("no transparent huge pages in this kernel");
    }
    let guest = Verifier::new(&device, &memory, 2)?;
    if host::huge_bytes(memory.address())? < SIZE as u64 {
        skip!("the host gave no huge pages");
    }
    let vm = &guest.machine.vm;
    // Whoever has no such count is KVM. The machine's own memory may be one huge page, too.
    let ours = device.has_extensions();
    let large = || if ours { vm.stats().map(|stats| stats.mapped_2m) } else { Ok(0) };
    guest.while_running(|running| {
        running.sweeps(1)?;
        let whole = large()?;
        check!(!ours || whole >= LARGE as u64, "{whole} large pages");
        for round in 0..t.repetitions(4) {
            let index = round as usize % LARGE;
            let offset = index * LARGE_PAGE;
            // The mapping alone, and back as soon as the guest may write again; or the page itself.
            if round % 2 == 0 {
                memory.protect(offset + 7 * PAGE, PAGE, libc::PROT_READ)?;
                memory.protect(offset + 7 * PAGE, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
            } else {
                // The host gives up when somebody else has the page in hand.
                for _ in 0..50 {
                    split(memory.address() + offset as u64)?;
                    if host::huge_bytes(memory.address())? < SIZE as u64 {
                        break;
                    }
                }
            }
            check_eq!(host::huge_bytes(memory.address())?, (SIZE - LARGE_PAGE) as u64, "round {round}");
            running.sweeps(1)?;
            let left = large()?;
            // Unless khugepaged has made it whole again meanwhile.
            let mended = || host::huge_bytes(memory.address()).is_ok_and(|bytes| bytes == SIZE as u64);
            check!(!ours || left == whole - 1 || mended(), "large pages after a split: {left} of {whole}");
            check_eq!(collapse(&memory, offset), Ok(()), "round {round}: collapsing the page");
            check_eq!(host::huge_bytes(memory.address())?, SIZE as u64, "round {round}");
            running.sweeps(1)?;
            check!(!ours || large()? == whole, "large pages after a collapse: {}", large()?);
        }
        Ok(())
    })
}

/// Makes a huge page again. The host gives up when somebody else has one of its pages in hand.
fn collapse(memory: &Memory, offset: usize) -> Result<(), Errno> {
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..500 {
        result = memory.advise(offset, LARGE_PAGE, MADV_COLLAPSE);
        if result.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    result
}

/// Splits the huge page at an address, not only its mapping.
fn split(address: u64) -> Outcome {
    let pid = std::process::id();
    let range = format!("{pid},{address:#x},{:#x}", address + LARGE_PAGE as u64);
    match fs::write("/sys/kernel/debug/split_huge_pages", range) {
        Ok(()) => Ok(()),
        Err(error) => skip!("splitting huge pages: {error}"),
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Memory from the host's pool of huge pages is mapped in large pages, can be protected, given back and taken anew.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::verifier::Verifier;
use std::fs;

pub const TEST: Test = Test::new(120, run);

const LARGE: usize = 2;
const SIZE: usize = LARGE * LARGE_PAGE;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Huge pages in the pool until it is dropped.
struct Pool(String);

impl Pool {
    fn new() -> Result<Self, Failure> {
        let Ok(before) = fs::read_to_string(POOL) else {
            skip!("the kernel has no pool of huge pages");
        };
        let held: usize = before.trim().parse().unwrap_or(0);
        let this = Self(before);
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
        fs::write(POOL, (held + LARGE).to_string())?;
        let got: usize = fs::read_to_string(POOL)?.trim().parse().unwrap_or(0);
        if got < held + LARGE {
            skip!("the host has {got} huge pages");
        }
        Ok(this)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(POOL, &self.0);
    }
}

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let _pool = Pool::new()?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let memory = Memory::map(SIZE, flags, -1)?;
    let guest = Verifier::new(&device, &memory, 2)?;
    // Whoever has no such count is KVM. The machine's own memory may be one huge page, too.
    let ours = device.has_extensions();
    let vm = &guest.machine.vm;
    let large = || if ours { vm.stats().map(|stats| stats.mapped_2m) } else { Ok(0) };
    let all = libc::PROT_READ | libc::PROT_WRITE;
    guest.while_running(|running| {
        running.sweeps(1)?;
        check!(!ours || large()? >= LARGE as u64, "{} large pages", large()?);
        for index in 0..LARGE {
            memory.protect(index * LARGE_PAGE, LARGE_PAGE, libc::PROT_READ)?;
            let refused = running.wait_refused();
            memory.protect(index * LARGE_PAGE, LARGE_PAGE, all)?;
            refused?;
            running.sweeps(1)?;
        }
        Ok(())
    })?;
    let whole = large()?;
    let guest = guest.lossy()?;
    guest.while_running(|running| {
        for round in 0..t.repetitions(6) {
            let before = guest.losses();
            memory.advise(round as usize % LARGE * LARGE_PAGE, LARGE_PAGE, libc::MADV_DONTNEED)?;
            running.sweeps(1)?;
            let lost = guest.losses() - before;
            check!(lost >= (LARGE_PAGE / PAGE) as u64, "round {round}: {lost} words are new");
        }
        Ok(())
    })?;
    let vm = &guest.machine.vm;
    check!(!ours || vm.stats()?.mapped_2m == whole, "large pages, again");
    Ok(())
}

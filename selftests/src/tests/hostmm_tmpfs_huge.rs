// SPDX-License-Identifier: GPL-2.0

//! Huge pages of a file in tmpfs are mapped as large ones; around a hole in the file as the host has them.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::verifier::Verifier;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};

pub const TEST: Test = Test::new(120, run);

const LARGE: usize = 2;
const SIZE: usize = LARGE * LARGE_PAGE;
const DIRECTORY: &str = "/run/rusthv-tmpfs";

/// A file system of the test's own, gone when it is dropped.
struct Mounted;

impl Mounted {
    fn new() -> Result<Self, Failure> {
        fs::create_dir_all(DIRECTORY)?;
        // SAFETY: C strings.
        let mounted = Errno::check(unsafe {
            let options = c"huge=always,size=64M".as_ptr().cast();
            libc::mount(c"guest".as_ptr(), c"/run/rusthv-tmpfs".as_ptr(), c"tmpfs".as_ptr(), 0, options)
        });
        match mounted {
            Ok(_) => Ok(Self),
            Err(errno) => skip!("mounting a tmpfs of huge pages: {errno}"),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // SAFETY: a C string.
        unsafe { libc::umount2(c"/run/rusthv-tmpfs".as_ptr(), libc::MNT_DETACH) };
        let _ = fs::remove_dir(DIRECTORY);
    }
}

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let _mounted = Mounted::new()?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(format!("{DIRECTORY}/guest"))
        .map(OwnedFd::from)?;
    host::set_size(&file, SIZE)?;
    // A shared mapping of a file is where the kernel likes: as a rule where its huge pages fit.
    let memory = Memory::map(SIZE, libc::MAP_SHARED, file.as_raw_fd())?;
    if memory.address() % LARGE_PAGE as u64 != 0 {
        skip!("the mapping is at {:#x}: no huge page fits", memory.address());
    }
    let guest = Verifier::new(&device, &memory, 2)?.lossy()?;
    // Whoever has no such count is KVM. The machine's own memory may be one huge page, too.
    let ours = device.has_extensions();
    let vm = &guest.machine.vm;
    let large = || if ours { vm.stats().map(|stats| stats.mapped_2m) } else { Ok(0) };
    let in_host = || host::huge_file_bytes(memory.address()).map(|bytes| bytes / LARGE_PAGE as u64);
    guest.while_running(|running| {
        running.sweeps(1)?;
        let others = if ours { large()? - in_host()? } else { 0 };
        let whole = large()?;
        check!(!ours || whole >= LARGE as u64, "{whole} large pages");
        for round in 0..t.repetitions(4) {
            let offset = round as usize % LARGE * LARGE_PAGE;
            let before = guest.losses();
            host::punch_hole(&file, offset + 5 * PAGE, 3 * PAGE)?;
            running.sweeps(1)?;
            check!(guest.losses() >= before + 3, "round {round}: three pages are new");
            check!(!ours || large()? == others + in_host()?, "large pages around a hole: {}", large()?);
            // The whole page goes, and comes back as the host has one.
            host::punch_hole(&file, offset, LARGE_PAGE)?;
            running.sweeps(1)?;
            check!(!ours || large()? == others + in_host()?, "large pages after it: {}", large()?);
        }
        Ok(())
    })
}

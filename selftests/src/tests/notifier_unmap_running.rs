// SPDX-License-Identifier: GPL-2.0

//! Once munmap() has returned, a running guest writes no more to the page that was there.

use crate::memory::PAGE;
use crate::prelude::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(unmap_running, code64, "2: inc qword ptr [0x400000]", "cmp byte ptr [0x20000], 0", "je 2b", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, unmap_running())?;
    // Shared memory with a second mapping, through which the page can be watched.
    // SAFETY: a C string; the descriptor is new.
    let file = unsafe {
        let fd = Errno::check(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC))?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: no memory is involved.
    Errno::check(unsafe { libc::ftruncate(file.as_raw_fd(), PAGE as i64) })?;
    let memory = Memory::map(PAGE, libc::MAP_SHARED, file.as_raw_fd())?;
    let watched = Memory::map(PAGE, libc::MAP_SHARED, file.as_raw_fd())?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    let rounds = t.repetitions(100);
    let done = AtomicBool::new(false);
    let exit = thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let guest = scope.spawn(move || loop {
            match machine.run() {
                Err(Errno::EFAULT) => thread::yield_now(),
                other => {
                    done.store(true, Ordering::Release);
                    return other;
                }
            }
        });
        let outcome = (0..rounds).try_for_each(|round| one(&memory, &watched, &file, round, done));
        machine.memory.write(layout::DATA, &[1]);
        let exit = guest.join().unwrap_or(Err(Errno::EIO));
        outcome.map(|()| exit)
    })?;
    check_eq!(exit, Ok(Exit::Hlt));
    Ok(())
}

fn one(memory: &Memory, watched: &Memory, file: &OwnedFd, round: u64, done: &AtomicBool) -> Outcome {
    let start = watched.read_u64(0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while watched.read_u64(0) == start && Instant::now() < deadline && !done.load(Ordering::Acquire) {
        thread::yield_now();
    }
    check!(watched.read_u64(0) != start, "round {round}: the guest stands still");
    // SAFETY: our mapping, which is put back below before anything else looks for a free place.
    unsafe { libc::munmap(memory.at(0, PAGE).cast(), PAGE) };
    let frozen = watched.read_u64(0);
    for _ in 0..20 {
        thread::yield_now();
        if watched.read_u64(0) != frozen {
            break;
        }
    }
    let last = watched.read_u64(0);
    let (flags, access) = (libc::MAP_SHARED | libc::MAP_FIXED, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the place of the mapping that was just removed.
    let again = unsafe { libc::mmap(memory.address() as *mut _, PAGE, access, flags, file.as_raw_fd(), 0) };
    check_eq!(again as u64, memory.address());
    check_eq!(last, frozen, "round {round}, behind munmap()");
    Ok(())
}

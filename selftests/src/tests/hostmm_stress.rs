// SPDX-License-Identifier: GPL-2.0

//! The host does all it can to the memory of three VMs at once, for as long as one likes, while they check every word.

use crate::host;
use crate::ksm::{self, Merging};
use crate::memory::{LARGE_PAGE, PAGE};
use crate::numa::migrate;
use crate::prelude::*;
use crate::random::Random;
use crate::stress::{pause, Work};
use crate::userfault::{Faults, MISSING, WRITE_PROTECT};
use crate::verifier::{Running, Verifier, GPA, SLOT};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(240, run).with_several_cpus();

const SIZE: usize = 2 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;
const WORDS: usize = PAGE / 8;
/// Of the guest whose pages are alike, and where its slot is at times.
const ALIKE_PAGES: usize = 64;
const ELSEWHERE: u64 = 0x5000_0000;
const ALL: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const MADV_COLLAPSE: libc::c_int = 25;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

/// What is done.
const KINDS: [&str; 16] = [
    "protect",
    "move away",
    "collapse",
    "cut",
    "migrate",
    "log",
    "read",
    "clear",
    "take away",
    "map anew",
    "settle",
    "fork",
    "move the slot",
    "snapshot",
    "merge",
    "take apart",
];

/// What the host may have its reasons to refuse, or none of the means for.
const MAY_FAIL: [&str; 7] = ["collapse", "move away", "migrate", "settle", "snapshot", "merge", "take apart"];

/// Its end to read, and its end to write.
type Pipe = (File, OwnedFd);

/// Random numbers of a thread's own.
fn random(thread: u64) -> Random {
    Random::new(0x5EED ^ thread)
}

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let (kept, lost) = (large()?, large()?);
    let alike = Memory::new(ALIKE_PAGES * PAGE)?;
    alike.advise(0, ALIKE_PAGES * PAGE, libc::MADV_NOHUGEPAGE)?;
    // One whose memory must stay as it is, one that may lose any of it at any time, and one whose pages can
    // be merged, and whose slot comes and goes.
    let keeper = Verifier::new(&device, &kept, 2)?;
    let loser = Verifier::new(&device, &lost, 2)?.lossy()?;
    let mover = Verifier::new(&device, &alike, 1)?.alike()?.movable();
    let merging = if t.is_exclusive() && ksm::is_there() {
        alike.advise(0, ALIKE_PAGES * PAGE, libc::MADV_MERGEABLE)?;
        Some(Merging::new()?)
    } else {
        None
    };
    let end = Instant::now() + t.duration().unwrap_or(Duration::from_millis(t.repetitions(2800)));
    let work = &Work::new(&KINDS);
    let mut copy = vec![0; PAGES * WORDS];
    let disturbed = work.all(vec![
        Box::new(|| {
            work.end_at(end);
            Ok(())
        }),
        Box::new(|| {
            loser.run(|running| {
                work.all(vec![
                    Box::new(|| drop_pages(running, &loser, work, random(1))),
                    Box::new(|| log(&loser, None, work, random(2))),
                ])
            })
        }),
        Box::new(|| {
            keeper.run(|running| {
                let outcome = work.all(vec![
                    Box::new(|| disturb(running, &keeper, work, random(3))),
                    Box::new(|| log(&keeper, Some(&mut copy), work, random(4))),
                    Box::new(|| fork(running, &kept, work, random(5))),
                ]);
                // Everything is in place again: the guest goes on for a whole sweep.
                outcome.and(running.sweeps(1))
            })
        }),
        Box::new(|| mover.run(|running| rearrange(running, &mover, merging.as_ref(), work, random(6)))),
    ]);
    let done = work.done();
    println!("# {done:?}; {} words were found lost", loser.losses());
    disturbed?;
    // The guests have stopped: what they wrote since the last reading makes the copy whole.
    take(&keeper, &mut copy, false)?;
    let mut now = [0; WORDS];
    for page in 0..PAGES {
        kept.copy_words(page * PAGE, &mut now);
        check!(now[..] == copy[page * WORDS..][..WORDS], "page {page} is not what the copy has");
    }
    for guest in [&keeper, &loser, &mover] {
        guest.verify()?;
    }
    for (kind, count) in done {
        check!(count > 0 || MAY_FAIL.contains(&kind), "{kind}: not once");
    }
    check!(loser.losses() > 0, "nothing was ever lost");
    Ok(())
}

fn large() -> Result<Memory, Errno> {
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    Ok(memory)
}

fn part(random: &mut Random, most: u64) -> (usize, usize) {
    let first = random.below(PAGES as u64);
    let count = 1 + random.below(most.min(PAGES as u64 - first));
    (first as usize * PAGE, count as usize * PAGE)
}

/// Half of it becomes a large page. It may be busy, or the kernel may have no large page for it.
fn collapse(memory: &Memory, work: &Work, random: &mut Random) {
    let start = random.below(2) as usize * LARGE_PAGE;
    if memory.advise(start, LARGE_PAGE, MADV_COLLAPSE).is_ok() {
        work.did("collapse");
    }
}

/// What leaves every word as it is.
fn disturb(running: &Running<'_>, guest: &Verifier<'_>, work: &Work, mut random: Random) -> Outcome {
    let memory = guest.memory;
    let away = Memory::aligned(SIZE, LARGE_PAGE)?;
    let nodes = 1 + u64::from(Path::new("/sys/devices/system/node/node1").exists());
    for turn in 0.. {
        match work.next(turn, 5, &mut random) {
            Some(0) => {
                let (start, length) = part(&mut random, 100);
                memory.protect(start, length, random.pick(&[libc::PROT_READ, libc::PROT_NONE]))?;
                pause(&mut random, 300);
                memory.protect(start, length, ALL)?;
                work.did("protect");
            }
            Some(1) => {
                let most = random.pick(&[20, 1024]);
                let (start, length) = part(&mut random, most);
                // What the guest finds meanwhile is out of its reach.
                memory.protect(start, length, libc::PROT_NONE)?;
                // Only a part that is one mapping of the host's: what was done to it before may have cut it.
                if memory.exchange(start, length, &away, start).is_ok() {
                    pause(&mut random, 300);
                    away.exchange(start, length, memory, start)?;
                    work.did("move away");
                }
                memory.protect(start, length, ALL)?;
            }
            Some(2) => collapse(memory, work, &mut random),
            Some(3) => {
                let (start, _) = part(&mut random, 1);
                memory.protect(start, PAGE, libc::PROT_READ)?;
                memory.protect(start, PAGE, ALL)?;
                work.did("cut");
            }
            Some(4) => {
                let (start, length) = part(&mut random, 100);
                let pages: Vec<usize> = (start / PAGE..(start + length) / PAGE).collect();
                let node = random.below(nodes) as i32;
                if nodes > 1 && !migrate(memory, &pages, node)?.is_empty() {
                    work.did("migrate");
                }
            }
            // The guest is to come to something, too.
            Some(_) => running.sweeps(1)?,
            None => break,
        }
    }
    Ok(())
}

/// What takes pages away, and puts fresh ones there.
fn drop_pages(running: &Running<'_>, guest: &Verifier<'_>, work: &Work, mut random: Random) -> Outcome {
    let memory = guest.memory;
    for turn in 0.. {
        match work.next(turn, 4, &mut random) {
            Some(0) => {
                let (start, length) = part(&mut random, 100);
                memory.advise(start, length, libc::MADV_DONTNEED)?;
                work.did("take away");
            }
            Some(1) => {
                let (start, length) = part(&mut random, 200);
                memory.map_anew(start, length, libc::PROT_NONE)?;
                pause(&mut random, 300);
                memory.map_anew(start, length, ALL)?;
                work.did("map anew");
            }
            Some(2) => collapse(memory, work, &mut random),
            Some(3) => {
                let Ok(faults) = Faults::of(memory, MISSING) else { continue };
                let (start, length) = part(&mut random, 100);
                memory.advise(start, length, libc::MADV_DONTNEED)?;
                let settled = settle(&faults, |page| faults.fill(page, &[]).map(drop))?;
                if settled > 0 {
                    work.did("settle");
                }
            }
            Some(_) => running.sweeps(1)?,
            None => break,
        }
    }
    Ok(())
}

/// Settles faults for a moment. How many there were.
fn settle(faults: &Faults<'_>, mut each: impl FnMut(usize) -> Result<(), Errno>) -> Result<usize, Errno> {
    let end = Instant::now() + Duration::from_millis(30);
    let mut settled = 0;
    while settled < 30 && Instant::now() < end {
        match faults.poll() {
            Some(address) => {
                each(faults.page_of(address))?;
                settled += 1;
            }
            None => thread::yield_now(),
        }
    }
    Ok(settled)
}

/// Moves the slot, merges its pages, takes them apart, and write-protects them.
fn rearrange(
    running: &Running<'_>,
    guest: &Verifier<'_>,
    merging: Option<&Merging>,
    work: &Work,
    mut random: Random,
) -> Outcome {
    let memory = guest.memory;
    let place = |gpa, size| guest.machine.vm.set_slot(SLOT, 0, gpa, size, memory.address());
    for turn in 0.. {
        match work.next(turn, 4, &mut random) {
            Some(0) => {
                place(ELSEWHERE, memory.size() as u64)?;
                pause(&mut random, 300);
                place(0, 0)?;
                pause(&mut random, 300);
                place(GPA, memory.size() as u64)?;
                work.did("move the slot");
            }
            Some(1) => snapshot(memory, work)?,
            Some(2) => {
                let Some(merging) = merging else { continue };
                // Pages are merged while nobody writes to them.
                running.look_only(true)?;
                let merged = merging.merge(ALIKE_PAGES as u64 - 1)?;
                running.look_only(false)?;
                if merged > 0 {
                    work.did("merge");
                }
            }
            Some(3) => {
                let Some(merging) = merging else { continue };
                merging.unmerge()?;
                work.did("take apart");
            }
            Some(_) => running.sweeps(1)?,
            None => break,
        }
    }
    Ok(())
}

/// Write-protects all pages by userfaultfd, and lets some be written: none has changed before.
fn snapshot(memory: &Memory, work: &Work) -> Outcome {
    let Ok(faults) = Faults::of(memory, WRITE_PROTECT) else { return Ok(()) };
    faults.protect(0, ALIKE_PAGES, true)?;
    let mut moment = vec![0; ALIKE_PAGES * WORDS];
    memory.copy_words(0, &mut moment);
    let (mut now, mut seen, mut changed) = ([0; WORDS], [false; ALIKE_PAGES], None);
    let settled = settle(&faults, |page| {
        memory.copy_words(page * PAGE, &mut now);
        // The same once more is a fault that was repeated.
        if !seen[page] && now[..] != moment[page * WORDS..][..WORDS] {
            changed = Some(page);
        }
        seen[page] = true;
        faults.protect(page, 1, false)
    });
    // However it went, nobody is to be left waiting.
    faults.protect(0, ALIKE_PAGES, false)?;
    if settled? > 0 {
        work.did("snapshot");
    }
    check!(changed.is_none(), "page {changed:?} was written behind the protection");
    Ok(())
}

/// Forks, again and again: what the child has of the memory stays as it is.
fn fork(running: &Running<'_>, memory: &Memory, work: &Work, mut random: Random) -> Outcome {
    for turn in 0.. {
        match work.next(turn, 1, &mut random) {
            Some(0) => {
                let pages = [(); LOOKED_AT].map(|()| random.below(PAGES as u64) as usize);
                let mut pipe = host::pipe().map(|(reader, writer)| (File::from(reader), writer))?;
                // SAFETY: the child reads memory, by a pipe of its own, and leaves; it allocates nothing.
                let pid = Errno::check(unsafe { libc::fork() })?;
                if pid == 0 {
                    let stays = stays(memory, &pages, &mut pipe);
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(i32::from(!stays)) };
                }
                check_eq!(host::wait(pid)?, 0, "the end of a child whose memory must stay");
                work.did("fork");
                // Every page has to be copied now, for every guest.
                running.sweeps(1)?;
            }
            Some(_) => pause(&mut random, 30_000),
            None => break,
        }
    }
    Ok(())
}

/// How many pages a child looks at.
const LOOKED_AT: usize = 8;

/// True when pages are after a moment what they were before.
fn stays(memory: &Memory, pages: &[usize; LOOKED_AT], pipe: &mut Pipe) -> bool {
    let mut before = [None; LOOKED_AT];
    for (page, place) in pages.iter().zip(&mut before) {
        *place = read_page(memory, *page, pipe);
    }
    thread::sleep(Duration::from_millis(3));
    pages.iter().zip(&before).all(|(page, before)| read_page(memory, *page, pipe) == *before)
}

/// A page, if it is within the process's own reach. Through a pipe: the kernel says where it cannot read.
fn read_page(memory: &Memory, page: usize, pipe: &mut Pipe) -> Option<[u8; PAGE]> {
    let from = memory.at(page * PAGE, PAGE);
    // SAFETY: the kernel does the reading, of memory that is ours.
    if unsafe { libc::write(pipe.1.as_raw_fd(), from.cast(), PAGE) } != PAGE as isize {
        return None;
    }
    let mut bytes = [0; PAGE];
    pipe.0.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Starts and stops the log, reads and clears it, and keeps a copy by it.
fn log(guest: &Verifier<'_>, mut copy: Option<&mut Vec<u64>>, work: &Work, mut random: Random) -> Outcome {
    let vm = &guest.machine.vm;
    let set = |flags| vm.set_slot(SLOT, flags, GPA, SIZE as u64, guest.memory.address());
    let mut first = true;
    loop {
        // The first is cleared by user space.
        let manual = if first { 3 } else { random.pick(&[0, 1, 3]) };
        first = false;
        vm.set_manual_log(manual)?;
        set(LOG)?;
        work.did("log");
        // From here on, what is written is in the log; what was before is copied now.
        let mut all = true;
        for _ in 0..3 + random.below(6) {
            pause(&mut random, 6000);
            match &mut copy {
                Some(copy) => take(guest, copy, all)?,
                None => drop(vm.dirty_pages(SLOT, PAGES)?),
            }
            work.did("read");
            if manual != 0 {
                work.did("clear");
            }
            all = false;
        }
        if !work.goes_on() {
            // The log stays on, for who makes the copy whole.
            return Ok(());
        }
        set(0)?;
        pause(&mut random, 6000);
    }
}

/// Copies what was written since the last time, or everything; in chunks that are cleared before.
fn take(guest: &Verifier<'_>, copy: &mut [u64], all: bool) -> Outcome {
    const CHUNK: usize = 256;
    let vm = &guest.machine.vm;
    let mut pipe = host::pipe().map(|(reader, writer)| (File::from(reader), writer))?;
    let mut bits = vec![0u64; PAGES / 64];
    vm.dirty_log_to(SLOT, bits.as_mut_ptr() as u64)?;
    for first in (0..PAGES).step_by(CHUNK) {
        let bits = &bits[first / 64..(first + CHUNK) / 64];
        // Has no effect where the reading has cleared them.
        vm.clear_log(SLOT, first as u64, CHUNK as u32, bits)?;
        for page in first..first + CHUNK {
            if all || bits[(page - first) / 64] >> (page % 64) & 1 != 0 {
                copy_page(guest.memory, page, &mut copy[page * WORDS..][..WORDS], &mut pipe)?;
            }
        }
    }
    Ok(())
}

/// The page as the host can read it; it may be out of reach for a moment.
fn copy_page(memory: &Memory, page: usize, to: &mut [u64], pipe: &mut Pipe) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(30);
    let bytes = loop {
        if let Some(bytes) = read_page(memory, page, pipe) {
            break bytes;
        }
        check_eq!(Errno::last(), Errno::EFAULT, "reading page {page}");
        check!(Instant::now() < deadline, "page {page} stays out of reach");
        thread::yield_now();
    };
    for (word, bytes) in to.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(())
}

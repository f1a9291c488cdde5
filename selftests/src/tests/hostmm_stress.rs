// SPDX-License-Identifier: GPL-2.0

//! The host does all it can to the memory of two VMs at once, for as long as one likes, while they check every word.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::random::Random;
use crate::verifier::{Running, Verifier, GPA, SLOT};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(240, run);

const SIZE: usize = 2 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;
const WORDS: usize = PAGE / 8;
const ALL: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const MADV_COLLAPSE: libc::c_int = 25;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

/// What is done, and how often it was.
const KINDS: [&str; 9] =
    ["protect", "move away", "collapse", "cut", "log", "read", "clear", "take away", "map anew"];

/// Its end to read, and its end to write.
type Pipe = (File, OwnedFd);

struct Work {
    over: AtomicBool,
    done: [AtomicU64; KINDS.len()],
}

impl Work {
    fn did(&self, kind: &str) {
        if let Some(index) = KINDS.iter().position(|name| *name == kind) {
            self.done[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }
}

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let kept = large()?;
    let lost = large()?;
    // One whose memory must stay as it is, and one that may lose any of it at any time.
    let keeper = Verifier::new(&device, &kept, 2)?;
    let loser = Verifier::new(&device, &lost, 2)?.lossy()?;
    let work = Work { over: AtomicBool::new(false), done: Default::default() };
    let end = Instant::now() + t.duration(Duration::from_secs(2));
    let random = |seed: u64| Random::new(0x5EED ^ seed);
    thread::scope(|scope| {
        let work = &work;
        let (keeper, loser) = (&keeper, &loser);
        let other = scope.spawn(move || {
            loser.run(|running| {
                both(
                    || drop_pages(running, loser, work, random(1)),
                    || log(loser, None, work, random(2)),
                    work,
                )
            })
        });
        let mut copy = vec![0; PAGES * WORDS];
        let result = keeper.run(|running| {
            running.sweeps(1)?;
            let clock = scope.spawn(move || {
                while Instant::now() < end && work.goes_on() {
                    thread::sleep(Duration::from_millis(10));
                }
                work.over.store(true, Ordering::Release);
            });
            let result = both(
                || disturb(running, keeper, work, random(3)),
                || log(keeper, Some(&mut copy), work, random(4)),
                work,
            );
            // Everything is in place again: the guest goes on for a whole sweep.
            let swept = running.sweeps(1);
            let _ = clock.join();
            result.and(swept)
        });
        work.over.store(true, Ordering::Release);
        let other = other.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked")));
        result.and(other)?;
        // The guests have stopped: what they wrote since the last reading makes the copy whole.
        take(keeper, &mut copy, false)?;
        let mut now = [0; WORDS];
        for page in 0..PAGES {
            kept.copy_words(page * PAGE, &mut now);
            check!(now[..] == copy[page * WORDS..][..WORDS], "page {page} is not what the copy has");
        }
        Ok::<_, Failure>(())
    })?;
    keeper.verify()?;
    loser.verify()?;
    let done: Vec<_> = work.done.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    println!("# {KINDS:?}: {done:?}; {} words were found lost", loser.losses());
    for (kind, count) in KINDS.iter().zip(&done) {
        // The host may have its reasons to refuse these.
        let may_fail = ["collapse", "move away"].contains(kind);
        check!(*count > 0 || may_fail, "{kind}: not once");
    }
    check!(loser.losses() > 0, "nothing was ever lost");
    Ok(())
}

fn large() -> Result<Memory, Errno> {
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    Ok(memory)
}

/// Both at the same time; when one fails, the other is to end, too.
fn both(
    one: impl FnOnce() -> Outcome + Send,
    other: impl FnOnce() -> Outcome + Send,
    work: &Work,
) -> Outcome {
    let guarded = |outcome: Outcome| {
        if outcome.is_err() {
            work.over.store(true, Ordering::Release);
        }
        outcome
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| guarded(other()));
        let one = guarded(one());
        one.and(other.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked"))))
    })
}

fn part(random: &mut Random, most: u64) -> (usize, usize) {
    let first = random.below(PAGES as u64);
    let count = 1 + random.below(most.min(PAGES as u64 - first));
    (first as usize * PAGE, count as usize * PAGE)
}

/// Each kind at first, then any; and now and then one more, which is to wait.
fn turn_kind(turn: u64, kinds: u64, random: &mut Random) -> u64 {
    if turn > 0 && turn % 16 == 0 {
        return kinds;
    }
    thread::sleep(Duration::from_micros(random.below(300)));
    if turn < kinds {
        turn
    } else {
        random.below(kinds)
    }
}

/// What leaves every word as it is.
fn disturb(running: &Running<'_>, guest: &Verifier<'_>, work: &Work, mut random: Random) -> Outcome {
    let memory = guest.memory;
    let away = Memory::aligned(SIZE, LARGE_PAGE)?;
    for turn in 0.. {
        // Each kind once, however short the time is.
        if turn >= 4 && !work.goes_on() {
            break;
        }
        match turn_kind(turn, 4, &mut random) {
            0 => {
                let (start, length) = part(&mut random, 100);
                memory.protect(start, length, random.pick(&[libc::PROT_READ, libc::PROT_NONE]))?;
                thread::sleep(Duration::from_micros(random.below(300)));
                memory.protect(start, length, ALL)?;
                work.did("protect");
            }
            1 => {
                let most = random.pick(&[20, 1024]);
                let (start, length) = part(&mut random, most);
                // What the guest finds meanwhile is out of its reach.
                memory.protect(start, length, libc::PROT_NONE)?;
                // Only a part that is one mapping of the host's: what was done to it before may have cut it.
                if memory.exchange(start, length, &away, start).is_ok() {
                    thread::sleep(Duration::from_micros(random.below(300)));
                    away.exchange(start, length, memory, start)?;
                    work.did("move away");
                }
                memory.protect(start, length, ALL)?;
            }
            2 => {
                let start = random.below(2) as usize * LARGE_PAGE;
                // It may be busy, or the kernel may have no large page for it.
                if memory.advise(start, LARGE_PAGE, MADV_COLLAPSE).is_ok() {
                    work.did("collapse");
                }
            }
            3 => {
                let (start, _) = part(&mut random, 1);
                memory.protect(start, PAGE, libc::PROT_READ)?;
                memory.protect(start, PAGE, ALL)?;
                work.did("cut");
            }
            // The guest is to come to something, too.
            _ => running.sweeps(1)?,
        }
    }
    Ok(())
}

/// What takes pages away, and puts fresh ones there.
fn drop_pages(running: &Running<'_>, guest: &Verifier<'_>, work: &Work, mut random: Random) -> Outcome {
    let memory = guest.memory;
    for turn in 0.. {
        if turn >= 3 && !work.goes_on() {
            break;
        }
        match turn_kind(turn, 3, &mut random) {
            0 => {
                let (start, length) = part(&mut random, 100);
                memory.advise(start, length, libc::MADV_DONTNEED)?;
                work.did("take away");
            }
            1 => {
                let (start, length) = part(&mut random, 200);
                memory.map_anew(start, length, libc::PROT_NONE)?;
                thread::sleep(Duration::from_micros(random.below(300)));
                memory.map_anew(start, length, ALL)?;
                work.did("map anew");
            }
            2 => {
                let start = random.below(2) as usize * LARGE_PAGE;
                if memory.advise(start, LARGE_PAGE, MADV_COLLAPSE).is_ok() {
                    work.did("collapse");
                }
            }
            _ => running.sweeps(1)?,
        }
    }
    Ok(())
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
            thread::sleep(Duration::from_micros(random.below(6000)));
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
        thread::sleep(Duration::from_micros(random.below(6000)));
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

/// The page as the host can read it; it may be out of reach for a moment. Through a pipe: the kernel
/// says where it cannot read.
fn copy_page(memory: &Memory, page: usize, to: &mut [u64], pipe: &mut Pipe) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(30);
    let from = memory.at(page * PAGE, PAGE);
    // SAFETY: the kernel does the reading, of memory that is ours.
    while unsafe { libc::write(pipe.1.as_raw_fd(), from.cast(), PAGE) } != PAGE as isize {
        check_eq!(Errno::last(), Errno::EFAULT, "reading page {page}");
        check!(Instant::now() < deadline, "page {page} stays out of reach");
        thread::yield_now();
    }
    let mut bytes = [0; PAGE];
    pipe.0.read_exact(&mut bytes)?;
    for (word, bytes) in to.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(())
}

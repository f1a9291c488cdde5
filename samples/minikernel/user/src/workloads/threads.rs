// SPDX-License-Identifier: GPL-2.0
//! Threads in one address space, on as many vCPUs as there are: when a call that changes a mapping
//! has returned, no thread may see the old one, wherever it runs. And no write may get lost in a
//! page that is moved from under the writer.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use minikernel_abi::call::prot;

use crate::calls::{self, expect};
use crate::memory::{atomic, read, Memory, PAGE, WORDS};
use crate::random::{word, Sum};
use crate::{scaled, seed, thread};

const THREADS: usize = 4;
/// How often a thread looks, or writes, before it lets others run. Long enough for it to be looking
/// most of the time, and short enough for those who wait for it to flush its TLB.
const LOOKS_AT_ONCE: u32 = 1000;
const WRITES_AT_ONCE: u32 = 64;

/// The memory that all of this is about.
static START: AtomicUsize = AtomicUsize::new(0);
/// The round that has begun; after the last, [`OVER`].
static ROUND: AtomicU32 = AtomicU32::new(0);
/// Threads that have seen it.
static SEEN: AtomicU32 = AtomicU32::new(0);
const OVER: u32 = u32::MAX;
/// How many times threads have looked at the memory.
static LOOKS: AtomicU32 = AtomicU32::new(0);

fn start() -> usize {
    START.load(Ordering::Relaxed)
}

fn round() -> u32 {
    ROUND.load(Ordering::SeqCst)
}

/// Starts the next round, and waits until all threads have seen the current one.
fn next_round(round: u32) {
    SEEN.store(0, Ordering::SeqCst);
    ROUND.store(round, Ordering::SeqCst);
    while round != OVER && SEEN.load(Ordering::SeqCst) != THREADS as u32 {
        calls::pause();
    }
}

/// Reads the first page again and again. Its content is the round's number: not less than the
/// round that had begun before, and not more than one ahead.
fn watch(_: usize) -> u64 {
    let mut last = 0;
    loop {
        for _ in 0..LOOKS_AT_ONCE {
            let before = round();
            let found = read(start());
            let after = round();
            if before == OVER || after == OVER {
                return 0;
            }
            if found < before || found > after + 1 {
                expect(found as usize, before as usize);
            }
            if before != last && found >= before {
                last = before;
                SEEN.fetch_add(1, Ordering::SeqCst);
            }
        }
        LOOKS.fetch_add(1, Ordering::SeqCst);
        calls::pause();
    }
}

/// Waits until threads have had the time to look at the memory, and to have it in their TLBs.
fn let_them_look() {
    let looks = LOOKS.load(Ordering::SeqCst);
    while LOOKS.load(Ordering::SeqCst).wrapping_sub(looks) < 2 * THREADS as u32 {
        calls::pause();
    }
}

/// Pages change places under threads that read them.
fn shoot_downs() -> u64 {
    let mut sum = Sum::default();
    let memory = Memory::new(2, 0);
    let copied = Memory::new(1, prot::SHARED);
    START.store(memory.start, Ordering::Relaxed);
    ROUND.store(0, Ordering::SeqCst);
    memory.write(0, 0);
    let threads: [_; THREADS] = core::array::from_fn(|i| thread::spawn(watch, i));
    let rounds = scaled(200) as u32;
    for round in 1..=rounds {
        // In turn: another frame, rights that go and come, a page that is new.
        memory.write(WORDS, round);
        let mut child = None;
        match round % 3 {
            0 => calls::exchange(memory.start, memory.start + PAGE),
            1 => {
                calls::exchange(memory.start, memory.start + PAGE);
                calls::protect(memory.start, PAGE, 0);
                calls::protect(memory.start, PAGE, prot::WRITE);
            }
            // Copied on write: a child keeps the old page until there is a new one.
            _ => {
                child = Some(calls::fork(|| {
                    while copied.read(0) < round {
                        calls::pause();
                    }
                    u64::from(memory.check(0, round - 1))
                }));
                let_them_look();
                memory.write(0, round);
                copied.write(0, round);
            }
        }
        next_round(round);
        if let Some(child) = child {
            sum.add(calls::wait(child));
        }
        sum.add(memory.check(0, round));
    }
    next_round(OVER);
    threads.into_iter().for_each(|thread| sum.add(thread.join()));
    memory.unmap();
    copied.unmap();
    sum.0
}

/// Counts in a word of its own on each page.
fn write(own: usize) -> u64 {
    let pages = scaled(16);
    let mut count = 0;
    while round() != OVER || count == 0 {
        for _ in 0..WRITES_AT_ONCE {
            count += 1;
            for page in 0..pages {
                let word = atomic(start() + page * PAGE + 4 * own);
                let before = word.load(Ordering::Relaxed);
                expect(before as usize, count as usize - 1);
                word.store(count, Ordering::Relaxed);
            }
        }
        calls::pause();
    }
    for page in 0..pages {
        expect(read(start() + page * PAGE + 4 * own) as usize, count as usize);
    }
    0
}

/// Pages are copied, for a child, under threads that write to them.
fn writes_under_fork(seed: u32) -> u64 {
    let mut sum = Sum::default();
    let memory = Memory::new(scaled(16), 0);
    START.store(memory.start, Ordering::Relaxed);
    ROUND.store(0, Ordering::SeqCst);
    let threads: [_; THREADS] = core::array::from_fn(|i| thread::spawn(write, i));
    for turn in 0..scaled(20) as u32 {
        let child = calls::fork(|| {
            // Nobody counts here: the threads are in the parent only.
            let sample = |i| memory.read(i / THREADS * WORDS + i % THREADS);
            let words = memory.size / PAGE * THREADS;
            let before = (0..words).fold(0u32, |sum, i| sum.rotate_left(1) ^ sample(i));
            (0..4).for_each(|_| calls::pause());
            let after = (0..words).fold(0u32, |sum, i| sum.rotate_left(1) ^ sample(i));
            expect(after as usize, before as usize);
            u64::from(word(seed, turn))
        });
        calls::pause();
        sum.add(calls::wait(child));
    }
    ROUND.store(OVER, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| sum.add(thread.join()));
    memory.unmap();
    sum.0
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    sum.add(shoot_downs());
    sum.add(writes_under_fork(seed()));
    sum.0
}

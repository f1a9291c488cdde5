// SPDX-License-Identifier: GPL-2.0

//! What the layout of hot structures and prefetching bring, by the clock, on the caches of the computer
//! at hand: an emulator has none. The inverted page table is the module's own code; what a vCPU's
//! faults keep (`mmu/mapper.rs`) and a chain of lines are the same words as there.

use crate::host;
use rusthv_model::arch::addr::{Gfn, Hpa};
use rusthv_model::memory::inverted::{Group, Inverted, Locks, Owner, Run, Spare, GROUPS};
use rusthv_model::paging::frames::{TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::PageSize;
use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
use std::hint::black_box;
use std::mem::size_of;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Instant;

/// A value, and how far from others of its kind it is.
macro_rules! placed {
    ($(#[$attribute:meta])* $name:ident $(, $behind:ty)?) => {
        #[derive(Default)]
        $(#[$attribute])*
        struct $name<T>(T $(, $behind)?);

        impl<T> Deref for $name<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0
            }
        }
    };
}

placed!(
    /// Beside others.
    Packed
);
placed!(
    /// As the kernel's allocator puts what has 65 to 96 bytes.
    #[repr(C)]
    Close,
    [u64; 3]
);
placed!(
    /// In a cache line of its own.
    #[repr(align(64))]
    Aligned
);

/// Nanoseconds that one of `times` calls takes when two processors make so many each.
fn side_by_side(cpus: [usize; 2], times: u64, work: impl Fn(usize, u64) + Sync) -> f64 {
    let barrier = Barrier::new(2);
    let taken = thread::scope(|scope| {
        let threads = [0, 1].map(|number| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                // Where that is refused the figures say so.
                let _ = host::pin(cpus[number]);
                barrier.wait();
                let start = Instant::now();
                (0..times).for_each(|turn| work(number, turn));
                start.elapsed().as_secs_f64()
            })
        });
        threads.map(|thread| thread.join().unwrap_or(f64::INFINITY))
    });
    taken[0].max(taken[1]) * 1e9 / times as f64
}

/// The locks of an inverted page table.
struct GroupLocks<G> {
    groups: [G; GROUPS],
    spare: Mutex<Spare>,
}

impl<G: Default + Deref<Target = Mutex<Group>>> GroupLocks<G> {
    fn new() -> Self {
        Self { groups: std::array::from_fn(|_| G::default()), spare: Mutex::default() }
    }
}

/// A lock that a panic has left is as good as any.
fn locked<T, R>(lock: &Mutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

impl<G: Deref<Target = Mutex<Group>>> Locks for GroupLocks<G> {
    fn group<R>(&self, index: usize, f: impl FnOnce(&mut Group) -> R) -> R {
        locked(&self.groups[index], f)
    }

    fn spare<R>(&self, f: impl FnOnce(&mut Spare) -> R) -> R {
        locked(&self.spare, f)
    }
}

const FRAMES: usize = 1 << 10;

/// Frames that two threads share. None is given back while they run.
struct Frames {
    frames: Vec<OnceLock<Box<[AtomicU64; ENTRIES]>>>,
    next: AtomicU64,
}

impl Frames {
    fn new() -> Self {
        Self { frames: (0..FRAMES).map(|_| OnceLock::new()).collect(), next: AtomicU64::new(0) }
    }
}

impl TableMemory for &Frames {
    fn alloc(&mut self) -> Option<TableFrame> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = self.frames.get(index as usize)?;
        frame.get_or_init(|| Box::new([const { AtomicU64::new(0) }; ENTRIES]));
        Some(TableFrame::new(Hpa::new((index + 1) << 12)))
    }

    fn free(&mut self, _frame: TableFrame) {}

    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        self.frames[(table.hpa().raw() >> 12) as usize - 1].get().expect("a frame that was taken")
    }
}

/// Adding a page to the inverted table and taking it away, on two processors.
fn inverted<G>(cpus: [usize; 2]) -> f64
where
    G: Default + Deref<Target = Mutex<Group>> + Sync,
{
    let (table, locks, frames) =
        (Inverted::new(0x9e37_79b9_7f4a_7c15), GroupLocks::<G>::new(), Frames::new());
    let mut memory = &frames;
    while table.is_short() || table.pages() < 16 {
        let before = table.pages();
        if table.grow(&mut memory, &locks).is_err() || table.pages() == before {
            break;
        }
    }
    side_by_side(cpus, 400_000, |number, turn| {
        let mut memory = &frames;
        // Frames of other clusters each time, and of no other thread's.
        let frame = (turn % 4096) << 5 | (number as u64) << 20;
        let run = Run::page(Gfn::new(frame), Hpa::new(frame << 12), PageSize::Size4K);
        let owner = Owner::new(number as u16);
        let added = table.add(&mut memory, &locks, owner, &run);
        debug_assert!(added.is_ok_and(|added| added.fresh == 1));
        black_box(table.remove(&memory, &locks, owner, &run));
    })
}

/// What a vCPU's faults keep: tables, leaves of three sizes, and a run of pages in three words; with
/// the count of its users before it, as it is allocated.
#[derive(Default)]
#[repr(C)]
struct Kept {
    _users: u64,
    counts: [AtomicU64; 4],
    run: [AtomicU64; 3],
    _log: u64,
}

impl Kept {
    /// As a fault that adds one page to the run.
    fn fault(&self, turn: u64) {
        let [shape, gfn, hpa] = &self.run;
        let count = shape.load(Ordering::Relaxed);
        black_box((gfn.load(Ordering::Relaxed), hpa.load(Ordering::Relaxed)));
        gfn.store(turn, Ordering::Relaxed);
        hpa.store(turn << 12, Ordering::Relaxed);
        shape.store(count.wrapping_add(8), Ordering::Relaxed);
        let leaves = &self.counts[1];
        leaves.store(leaves.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

fn faults<K: Default + Deref<Target = Kept> + Sync>(cpus: [usize; 2]) -> f64 {
    const { assert!(size_of::<Close<Kept>>() == 96) };
    let kept = [K::default(), K::default()];
    side_by_side(cpus, 20_000_000, |number, turn| kept[number].fault(turn))
}

/// A line of the inverted table: three entries and a link.
#[repr(align(64))]
struct Line([u64; 8]);

/// Lines: far more than a cache holds.
const LINES: usize = 1 << 20;
const LENGTH: usize = 4;

/// Chains of `LENGTH` lines, each somewhere else.
fn chains() -> Vec<Line> {
    // A permutation: the multiplier is odd, the count a power of two.
    let place = |number: usize| number.wrapping_mul(0x9e37_79b1) % LINES;
    let mut lines: Vec<Line> = (0..LINES).map(|_| Line([0; 8])).collect();
    for number in 0..LINES {
        let next = if number % LENGTH == LENGTH - 1 { u64::MAX } else { place(number + 1) as u64 };
        let words = &mut lines[place(number)].0;
        (words[0], words[2], words[4], words[7]) = (number as u64 | 1 << 40, 2 << 40, 3 << 40, next);
    }
    lines
}

fn walk(lines: &[Line], ahead: bool) -> f64 {
    let times = 1 << 20;
    let start = Instant::now();
    let mut found = 0;
    for turn in 0..times {
        let head = (turn * LENGTH).wrapping_mul(0x9e37_79b1) % LINES;
        let mut at = head as u64;
        while let Some(Line(words)) = lines.get(at as usize) {
            let next = words[7];
            if ahead {
                let there = lines.as_ptr().wrapping_add(next as usize % LINES);
                // SAFETY: a prefetch of any address has no effect but on caches.
                unsafe { _mm_prefetch(there.cast(), _MM_HINT_T0) };
            }
            for slot in [0, 2, 4] {
                if words[slot] ^ turn as u64 == 1 << 40 {
                    found += words[slot + 1];
                }
            }
            at = next;
        }
    }
    black_box(found);
    start.elapsed().as_secs_f64() * 1e9 / times as f64
}

/// The best of some rounds, without and with a technique, round by round in turn.
fn best(rounds: u32, mut without: impl FnMut() -> f64, mut with: impl FnMut() -> f64) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..rounds {
        best = [best[0].min(without()), best[1].min(with())];
    }
    best
}

/// Prints the table.
pub fn run(rounds: u32) -> Result<(), String> {
    println!("Nanoseconds for one operation, best of {rounds} rounds, on the caches of this computer");
    println!("{:<64} {:>8} {:>8} {:>6}", "technique", "without", "with", "ratio");
    let show = |name: &str, [without, with]: [f64; 2]| {
        println!("{name:<64} {without:>8.1} {with:>8.1} {:>6.2}", with / without);
    };
    match host::online_cpus()[..] {
        [first, second, ..] => {
            let cpus = [first, second];
            let figures = best(rounds, || inverted::<Packed<_>>(cpus), || inverted::<Aligned<_>>(cpus));
            show("a line for each group's lock: page added and taken away, 2 CPUs", figures);
            let figures = best(rounds, || faults::<Close<_>>(cpus), || faults::<Aligned<_>>(cpus));
            show("a line for what each vCPU's faults keep, 2 CPUs", figures);
        }
        _ => println!("(two processors are needed for what is shared between them)"),
    }
    let lines = chains();
    let figures = best(rounds, || walk(&lines, false), || walk(&lines, true));
    show("prefetch of the next line: chain of 4, not in any cache", figures);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! What several do at once to page tables, dirty logs and the states of CPUs, in every order that
//! their loads, stores and exchanges can come in. Hardware, which sets flags and walks the tables,
//! is one of the threads.
//!
//! Tables have two entries and trees two levels here: what is checked is who sees what of whom.

use std::collections::BTreeSet;

use loom::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gpa, Hpa};
use rusthv_model::memory::dirty::DirtyBitmap;
use rusthv_model::memory::write_log::Reader;
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::{Entry, Format, Leaf, Notice};
use rusthv_model::paging::frames::{Counts, TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::grow::{Grow, Grown};
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::{MapError, Table};
use rusthv_model::paging::tlb::{CpuState, Debt};
use rusthv_model::paging::track::Allowed;
use rusthv_model::paging::{Level, PageSize, Permissions};

const EPT: Ept = Ept {
    accessed_dirty: true,
    notice: Notice::Fault,
    execute_only: false,
    largest: PageSize::Size2M,
    five_level: false,
};

/// Frames for tables, which everybody can reach.
type Frames = Arc<Vec<[AtomicU64; ENTRIES]>>;

fn frames(count: usize) -> Frames {
    let frame = |_| std::array::from_fn(|_| AtomicU64::new(0));
    Arc::new((0..count).map(frame).collect())
}

/// A thread's view of them, and those that it has set aside.
struct Memory {
    frames: Frames,
    mine: Vec<u64>,
}

impl Memory {
    fn new(frames: &Frames, mine: &[u64]) -> Self {
        Self {
            frames: frames.clone(),
            mine: mine.to_vec(),
        }
    }
}

impl TableMemory for Memory {
    fn alloc(&mut self) -> Option<TableFrame> {
        let frame = self.mine.pop()?;
        Some(TableFrame::new(Hpa::new(frame << 12)))
    }

    fn free(&mut self, frame: TableFrame) {
        self.mine.push(frame.hpa().raw() >> 12);
    }

    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        &self.frames[(table.hpa().raw() >> 12) as usize]
    }
}

struct World {
    frames: Frames,
    table: Arc<Table<Ept>>,
}

/// A tree of two levels without a page in it; its root is frame 0, and `count` more are there.
fn world(count: usize) -> World {
    let frames = frames(count + 1);
    let mut memory = Memory::new(&frames, &[0]);
    let table = Table::new(&mut memory, EPT, Level::Pd).unwrap();
    World {
        frames,
        table: Arc::new(table),
    }
}

fn page(number: u64, perms: Permissions) -> Leaf {
    Leaf::new(Hpa::new((0x100 + number) << 12), PageSize::Size4K, perms)
}

fn gpa(number: u64) -> Gpa {
    Gpa::new(number << 12)
}

/// Adds to a tree; tells what became of it, and counts.
fn add<R>(world: &World, change: impl FnOnce(&mut Grow<'_, Ept>) -> R) -> (R, Counts) {
    let mut grow = world.table.grow();
    let result = change(&mut grow);
    (result, grow.finish())
}

/// A fault of somebody who has set these frames aside: what came of it, what is counted, and what is
/// left of the frames.
fn fault(
    world: &World,
    mine: &[u64],
    number: u64,
    leaf: Leaf,
) -> (Result<Grown, MapError>, Counts, Vec<u64>) {
    let mut memory = Memory::new(&world.frames, mine);
    let (result, counts) = add(world, |grow| grow.map(&mut memory, gpa(number), leaf));
    (result, counts, memory.mine)
}

impl Clone for World {
    fn clone(&self) -> Self {
        Self {
            frames: self.frames.clone(),
            table: self.table.clone(),
        }
    }
}

/// What the CPU does for an access: walks, checks the right, sets the flags. `None` is a fault.
fn hardware(world: &World, number: u64, write: bool) -> Option<Hpa> {
    let mut table = world.table.root().raw() >> 12;
    for level in [Level::Pd, Level::Pt] {
        let at = (number << 12 >> level.shift()) as usize % ENTRIES;
        let entry = &world.frames[table as usize][at];
        loop {
            let raw = entry.load(Ordering::Acquire);
            let leaf = match EPT.decode(raw, level) {
                Entry::Absent => return None,
                Entry::Table(next) => {
                    table = next.raw() >> 12;
                    break;
                }
                Entry::Leaf(leaf) => leaf,
            };
            if write && !leaf.perms.contains(Permissions::W) {
                return None;
            }
            let mut flags = EPT.accessed_mask();
            if write {
                flags |= EPT.dirty_mask();
            }
            let set = raw | flags;
            let done = raw == set
                || entry
                    .compare_exchange(raw, set, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok();
            if done {
                return Some(leaf.hpa);
            }
        }
    }
    unreachable!("a page table leads to another")
}

fn lookup(world: &World, number: u64) -> Option<Leaf> {
    let memory = Memory::new(&world.frames, &[]);
    world.table.lookup(&memory, gpa(number))
}

/// Every frame is in the tree or with a thread, and the counts say so.
fn balanced(world: &World, left: &[Vec<u64>], added: &[Counts]) {
    let mut sum = world.table.counts();
    added.iter().for_each(|counts| sum.merge(counts));
    let free: BTreeSet<u64> = left.iter().flatten().copied().collect();
    assert_eq!(free.len(), left.iter().map(Vec::len).sum::<usize>());
    assert_eq!(free.len() as u64 + sum.tables, world.frames.len() as u64);
    let mapped = (0..ENTRIES as u64).filter_map(|number| lookup(world, number));
    let small = mapped.filter(|leaf| leaf.size == PageSize::Size4K).count();
    assert_eq!(sum.leaves[0], small as u64);
    // What was not linked, or not any more, holds nothing.
    for frame in free {
        for entry in &world.frames[frame as usize] {
            assert_eq!(entry.load(Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn two_faults_map_one_page_once() {
    loom::model(|| {
        let world = world(2);
        let other = world.clone();
        let thread = thread::spawn(move || fault(&other, &[2], 1, page(1, Permissions::RW)));
        let (here, counts, mine) = fault(&world, &[1], 1, page(1, Permissions::RW));
        let (there, others, left) = thread.join().unwrap();
        let fresh = [here, there].map(|result| u32::from(result == Ok(Grown::Fresh)));
        let present = [here, there].map(|result| u32::from(result == Ok(Grown::Present)));
        assert_eq!((fresh.iter().sum::<u32>(), present.iter().sum()), (1, 1));
        balanced(&world, &[mine, left], &[counts, others]);
    });
}

#[test]
fn two_faults_in_one_region_share_the_table() {
    loom::model(|| {
        let world = world(2);
        let other = world.clone();
        let run = |first: u64| (0..2 - first).map(move |i| page(first + i, Permissions::RW).hpa);
        let thread = thread::spawn(move || {
            let mut memory = Memory::new(&other.frames, &[2]);
            let (filled, counts) = add(&other, |grow| {
                let mut region = grow.region(&mut memory, gpa(0)).unwrap();
                region.fill(gpa(0), page(0, Permissions::RW), run(0), |_| ())
            });
            (filled.unwrap(), counts, memory.mine)
        });
        let mut memory = Memory::new(&world.frames, &[1]);
        let (filled, counts) = add(&world, |grow| {
            let mut region = grow.region(&mut memory, gpa(1)).unwrap();
            region.fill(gpa(1), page(1, Permissions::RW), run(1), |_| ())
        });
        let (also, others, left) = thread.join().unwrap();
        assert_eq!(filled.unwrap() + also, 2);
        assert_eq!(lookup(&world, 0), Some(page(0, Permissions::RW)));
        assert_eq!(lookup(&world, 1), Some(page(1, Permissions::RW)));
        balanced(&world, &[memory.mine, left], &[counts, others]);
    });
}

#[test]
fn a_large_and_a_small_page_do_not_mix() {
    loom::model(|| {
        let world = world(2);
        let other = world.clone();
        let thread = thread::spawn(move || fault(&other, &[2], 1, page(1, Permissions::RW)));
        let large = Leaf::new(Hpa::new(0x4000_0000), PageSize::Size2M, Permissions::RW);
        let (here, counts, mine) = fault(&world, &[1], 0, large);
        let (there, others, left) = thread.join().unwrap();
        match (here, there) {
            (Ok(Grown::Fresh), Err(MapError::LargePage)) => {
                assert_eq!(lookup(&world, 1), Some(large));
                assert_eq!((counts.leaves, others.leaves), ([0, 1, 0], [0; 3]));
                assert_eq!((mine.len(), left.len()), (1, 1));
            }
            (Err(MapError::Occupied), Ok(Grown::Fresh)) => {
                balanced(&world, &[mine, left], &[counts, others]);
            }
            other => panic!("{other:?}"),
        }
    });
}

/// A CPU that walks while a page is mapped finds all of it or nothing.
#[test]
fn a_walk_finds_all_or_nothing() {
    loom::model(|| {
        let world = world(1);
        let other = world.clone();
        let cpu = thread::spawn(move || {
            let first = hardware(&other, 1, true);
            let neighbour = hardware(&other, 0, false);
            (first, neighbour)
        });
        let mut memory = Memory::new(&world.frames, &[1]);
        let (result, _) = add(&world, |grow| {
            grow.map(&mut memory, gpa(1), page(1, Permissions::RW))
        });
        assert_eq!(result, Ok(Grown::Fresh));
        let (first, neighbour) = cpu.join().unwrap();
        assert!(first.is_none_or(|hpa| hpa == page(1, Permissions::RW).hpa));
        assert_eq!(neighbour, None);
        let leaf = lookup(&world, 1).unwrap();
        assert_eq!(
            (leaf.dirty, leaf.accessed),
            (first.is_some(), first.is_some())
        );
    });
}

/// Maps page 1 before anybody else is there.
fn mapped(leaf: Leaf) -> World {
    let world = world(1);
    let mut memory = Memory::new(&world.frames, &[1]);
    let (result, _) = add(&world, |grow| grow.map(&mut memory, gpa(1), leaf));
    assert_eq!(result, Ok(Grown::Fresh));
    world
}

#[test]
fn a_new_right_loses_no_flag() {
    loom::model(|| {
        let world = mapped(page(1, Permissions::RW));
        let other = world.clone();
        let cpu = thread::spawn(move || hardware(&other, 1, true));
        let mut memory = Memory::new(&world.frames, &[]);
        let (result, counts) = add(&world, |grow| {
            grow.map(&mut memory, gpa(1), page(1, Permissions::RWX))
        });
        assert_eq!((result, counts.leaves), (Ok(Grown::Relaxed), [0; 3]));
        assert!(cpu.join().unwrap().is_some());
        let leaf = lookup(&world, 1).unwrap();
        assert_eq!((leaf.perms, leaf.dirty), (Permissions::RWX, true));
    });
}

fn allow_write(world: &World) -> Allowed {
    let memory = Memory::new(&world.frames, &[]);
    world.table.allow_write(&memory, gpa(1))
}

/// Two write faults on a page whose first write is to be noticed.
#[test]
fn a_noticed_write_is_allowed_to_both() {
    loom::model(|| {
        let world = mapped(page(1, Permissions::RW).to_be_noticed());
        let other = world.clone();
        let thread = thread::spawn(move || (allow_write(&other), hardware(&other, 1, true)));
        assert_eq!(allow_write(&world), Allowed::Yes);
        let (allowed, written) = thread.join().unwrap();
        assert!(allowed == Allowed::Yes && written.is_some());
        let leaf = lookup(&world, 1).unwrap();
        assert_eq!((leaf.perms, leaf.tracked), (Permissions::RW, false));
        assert!(leaf.dirty && leaf.accessed);
    });
}

/// A CPU reads the page, and sets its flag, while the write is allowed.
#[test]
fn a_noticed_write_loses_no_flag() {
    loom::model(|| {
        let mut leaf = page(1, Permissions::RW).to_be_noticed();
        leaf.accessed = false;
        let world = mapped(leaf);
        let other = world.clone();
        let cpu = thread::spawn(move || (hardware(&other, 1, false), hardware(&other, 1, true)));
        assert_eq!(allow_write(&world), Allowed::Yes);
        let (read, _) = cpu.join().unwrap();
        assert!(read.is_some());
        let leaf = lookup(&world, 1).unwrap();
        assert_eq!((leaf.perms, leaf.tracked), (Permissions::RW, false));
        assert!(leaf.dirty && leaf.accessed);
    });
}

/// A read fault that looked the page up when it could not be written yet comes late.
#[test]
fn a_late_read_takes_no_right_away() {
    loom::model(|| {
        let world = mapped(page(1, Permissions::R));
        let other = world.clone();
        let thread = thread::spawn(move || {
            let mut memory = Memory::new(&other.frames, &[]);
            let (result, _) = add(&other, |grow| {
                grow.map(&mut memory, gpa(1), page(1, Permissions::R))
            });
            result
        });
        let mut memory = Memory::new(&world.frames, &[]);
        let (result, _) = add(&world, |grow| {
            grow.map(&mut memory, gpa(1), page(1, Permissions::RW))
        });
        assert_eq!(result, Ok(Grown::Relaxed));
        assert_eq!(thread.join().unwrap(), Ok(Grown::Present));
        assert_eq!(lookup(&world, 1).unwrap().perms, Permissions::RW);
    });
}

/// Parts of a large page that is cut have the flag of a write that comes at any moment.
#[test]
fn a_cut_large_page_loses_no_flag() {
    loom::model(|| {
        let frames = frames(2);
        let mut memory = Memory::new(&frames, &[1, 0]);
        let mut table = Table::new(&mut memory, EPT, Level::Pd).unwrap();
        let large = Leaf::new(Hpa::new(0x4000_0000), PageSize::Size2M, Permissions::RW);
        let mut grow = table.grow();
        assert_eq!(grow.map(&mut memory, gpa(0), large), Ok(Grown::Fresh));
        let added = grow.finish();
        table.count(&added);
        // The CPU knows where the root is.
        let root = frames.clone();
        let cpu = thread::spawn(move || {
            let entry = &root[0][0];
            let raw = entry.load(Ordering::Acquire);
            let set = raw | EPT.accessed_mask() | EPT.dirty_mask();
            let is_large = matches!(EPT.decode(raw, Level::Pd), Entry::Leaf(_));
            is_large
                && entry
                    .compare_exchange(raw, set, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
        });
        assert_eq!(table.split(&mut memory, gpa(0)), Ok(true));
        let dirty = cpu.join().unwrap();
        for number in 0..ENTRIES as u64 {
            let leaf = table.lookup(&memory, gpa(number)).unwrap();
            assert_eq!((leaf.size, leaf.dirty), (PageSize::Size4K, dirty));
        }
    });
}

/// A bit that is set is taken once, by whoever takes bits at the same time or later.
#[test]
fn no_dirty_bit_is_lost() {
    loom::model(|| {
        let words: Box<[AtomicU64]> = Box::new([AtomicU64::new(0)]);
        let log = Arc::new(DirtyBitmap::new(words, 64).unwrap());
        let writes = [3, 5].map(|page| {
            let log = log.clone();
            thread::spawn(move || log.mark(page))
        });
        let early = log.take(0);
        let some = log.take_some(0, 1 << 3);
        for thread in writes {
            thread.join().unwrap();
        }
        let late = log.take(0);
        assert_eq!(early | some | late, 1 << 3 | 1 << 5);
        assert_eq!(early & some | early & late | some & late, 0);
    });
}

/// The TLB protocol: a guest that enters again and again, and a page that goes. The mutex is the
/// CPU with interrupts off: who interrupts it waits until the guest has left.
#[test]
fn no_translation_outlives_a_flush() {
    loom::model(|| {
        let entry = Arc::new(AtomicU64::new(1));
        let freed = Arc::new(AtomicBool::new(false));
        let state = Arc::new(CpuState::new());
        let cpu = Arc::new(Mutex::new(()));
        let guest = {
            let (entry, freed) = (entry.clone(), freed.clone());
            let (state, cpu) = (state.clone(), cpu.clone());
            thread::spawn(move || {
                let mut tlb = None;
                for _ in 0..2 {
                    let off = cpu.lock().unwrap();
                    if state.visit().stale {
                        tlb = None;
                    }
                    // The guest's access: from the TLB, or by a walk that fills it.
                    if tlb.is_none() && entry.load(Ordering::Acquire) != 0 {
                        tlb = Some(());
                    }
                    if tlb.is_some() {
                        assert!(!freed.load(Ordering::Acquire), "a freed page was used");
                    }
                    drop(off);
                }
            })
        };
        entry.store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        if state.make_stale() {
            drop(cpu.lock().unwrap());
        }
        freed.store(true, Ordering::Release);
        guest.join().unwrap();
    });
}

/// A page that goes, the CPU that may know it, and what changes have to say to each other.
struct Flushing {
    entry: AtomicU64,
    freed: AtomicBool,
    state: CpuState,
    debt: Debt,
    /// `Tlb::interrupting`.
    interrupting: Mutex<()>,
    /// The CPU with interrupts off, as above.
    cpu: Mutex<()>,
}

impl Flushing {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            entry: AtomicU64::new(1),
            freed: AtomicBool::new(false),
            state: CpuState::new(),
            debt: Debt::new(),
            interrupting: Mutex::new(()),
            cpu: Mutex::new(()),
        })
    }

    fn flush(&self) {
        let one_at_a_time = self.interrupting.lock().unwrap();
        let begun = self.debt.begin();
        fence(Ordering::SeqCst);
        if self.state.make_stale() {
            drop(self.cpu.lock().unwrap());
        }
        self.debt.end(begun);
        drop(one_at_a_time);
    }

    fn settle(&self) {
        if self.debt.is_due() {
            self.flush();
        }
    }

    /// An entry, and an access to the page if that is mapped.
    fn guest(&self) {
        let off = self.cpu.lock().unwrap();
        self.state.visit();
        if self.entry.load(Ordering::Acquire) != 0 {
            assert!(!self.freed.load(Ordering::Acquire), "a freed page was used");
        }
        drop(off);
    }

    fn free(&self) {
        self.freed.store(true, Ordering::Release);
    }
}

/// `what`, in a thread of its own.
fn beside(all: &Arc<Flushing>, what: impl FnOnce(&Flushing) + 'static) -> thread::JoinHandle<()> {
    let all = all.clone();
    thread::spawn(move || what(&all))
}

/// Two changes at once: the one that finds the CPU stale already must not go on before the other has
/// interrupted it.
#[test]
fn no_translation_outlives_a_flush_beside_another() {
    loom::model(|| {
        let all = Flushing::new();
        // Its own change is of no matter here.
        let other = beside(&all, Flushing::flush);
        let guest = beside(&all, Flushing::guest);
        all.entry.store(0, Ordering::Release);
        all.flush();
        all.free();
        guest.join().unwrap();
        other.join().unwrap();
    });
}

/// Every order in which no thread is interrupted more than three times: with three threads and four locks
/// all of them take a minute, and what the rules are there for comes with two.
fn with_few_preemptions(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// One change takes a page out, and comes to the flush later; another finds it gone, and gives the page
/// back: not before CPUs have forgotten it. The lock is `Mmu::state`.
#[test]
fn no_translation_outlives_a_flush_of_somebody_else() {
    with_few_preemptions(|| {
        let all = Flushing::new();
        let tables = Arc::new(Mutex::new(()));
        let take_out = |all: &Flushing, tables: &Mutex<()>| {
            let lock = tables.lock().unwrap();
            if all.entry.swap(0, Ordering::AcqRel) != 0 {
                all.debt.owe();
            }
            drop(lock);
            all.settle();
        };
        let first = {
            let tables = tables.clone();
            beside(&all, move |all| take_out(all, &tables))
        };
        let guest = beside(&all, Flushing::guest);
        take_out(&all, &tables);
        all.free();
        first.join().unwrap();
        guest.join().unwrap();
    });
}

/// One change takes out two pages, and another flush begins in between: that one has not paid for the
/// second page.
#[test]
fn no_translation_outlives_a_flush_that_began_before() {
    with_few_preemptions(|| {
        let all = Flushing::new();
        let other = beside(&all, Flushing::flush);
        let guest = beside(&all, Flushing::guest);
        // The first page, of which nobody knows anything.
        all.debt.owe();
        all.entry.store(0, Ordering::Release);
        all.debt.owe();
        all.settle();
        all.free();
        other.join().unwrap();
        guest.join().unwrap();
    });
}

/// A CPU that logs writes: the guest writes, and somebody reads the log and copies the page. What the
/// guest writes after the copy is in the log for the next one. The mutex is as above.
#[test]
fn no_logged_write_is_lost() {
    const LOGGING: Ept = Ept {
        notice: Notice::Log,
        ..EPT
    };
    loom::model(|| {
        let tracked = page(1, Permissions::RW).to_be_noticed();
        let entry = Arc::new(AtomicU64::new(LOGGING.leaf(&tracked).unwrap()));
        let words = Arc::new([AtomicU64::new(0)]);
        let data = Arc::new(AtomicU64::new(0));
        let cpu = Arc::new(Mutex::new(()));
        let mut reader = Reader::new(&*words);
        let guest = {
            let (entry, words) = (entry.clone(), words.clone());
            let (data, cpu) = (data.clone(), cpu.clone());
            thread::spawn(move || {
                let off = cpu.lock().unwrap();
                if entry.load(Ordering::Acquire) & LOGGING.dirty_mask() == 0 {
                    words[0].store(gpa(1).raw(), Ordering::Release);
                    entry.fetch_or(LOGGING.dirty_mask(), Ordering::AcqRel);
                }
                data.store(1, Ordering::Release);
                // The flag is known to be set now.
                data.store(2, Ordering::Release);
                drop(off);
            })
        };
        let flush = || drop(cpu.lock().unwrap());
        if reader.take(&*words, |_| ()) != 0 {
            // Not before the CPU has done with the page that it has logged.
            flush();
        }
        let withhold = |raw| LOGGING.withhold(raw, Level::Pt);
        let changed = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, withhold);
        if changed.is_ok() {
            flush();
        }
        let copied = data.load(Ordering::Acquire);
        guest.join().unwrap();
        let written = reader.take(&*words, |gfn| assert_eq!(gfn, gpa(1).gfn())) != 0;
        assert!(written || copied == 2, "lost, with {copied} copied");
    });
}

/// Brings the flags of the first pages into a log; true when CPUs have to be flushed.
fn take_flags(world: &World, log: &DirtyBitmap<Box<[AtomicU64]>>, pages: u64) -> bool {
    let memory = Memory::new(&world.frames, &[]);
    let mut sweep = Sweep::new(GfnRange::new(gpa(0).gfn(), gpa(pages).gfn()));
    let mut stale = false;
    let mark = |first: Gfn, bits| log.mark_run(first.raw(), bits);
    let table = &world.table;
    let done = table.take_written(&memory, &mut sweep, 512, &mut stale, mark);
    assert_eq!(done, Progress::Done);
    stale
}

/// A CPU that sets flags: the guest writes, and somebody reads the log, looking for flags before, and
/// copies the page. What the guest writes after the copy is in the log for the next one. The mutex is
/// as above.
#[test]
fn no_flagged_write_is_lost() {
    loom::model(|| {
        let world = mapped(page(1, Permissions::RW));
        let words: Box<[AtomicU64]> = Box::new([AtomicU64::new(0)]);
        let log = DirtyBitmap::new(words, 64).unwrap();
        let data = Arc::new(AtomicU64::new(0));
        let cpu = Arc::new(Mutex::new(()));
        let guest = {
            let (world, data, cpu) = (world.clone(), data.clone(), cpu.clone());
            thread::spawn(move || {
                let off = cpu.lock().unwrap();
                assert!(hardware(&world, 1, true).is_some());
                data.store(1, Ordering::Release);
                // The flag is known to be set now.
                data.store(2, Ordering::Release);
                drop(off);
            })
        };
        let look = || take_flags(&world, &log, 64);
        let flush = || drop(cpu.lock().unwrap());
        // The reading before.
        flush();
        data.load(Ordering::Acquire);
        if look() {
            flush();
        }
        log.take(0);
        let copied = data.load(Ordering::Acquire);
        guest.join().unwrap();
        look();
        assert!(
            log.take(0) == 2 || copied == 2,
            "lost, with {copied} copied"
        );
    });
}

/// The same with the table above, which the CPU has used before and knows: it does not set the flag of
/// that again until it has been flushed. The mutex has what it knows.
#[test]
fn no_write_behind_a_known_table_is_lost() {
    loom::model(|| {
        let world = mapped(page(1, Permissions::RW));
        let root = world.table.root().raw() >> 12;
        let link = move |world: &World| {
            let entry = &world.frames[root as usize][0];
            entry.fetch_or(EPT.accessed_mask(), Ordering::AcqRel);
        };
        link(&world);
        let words: Box<[AtomicU64]> = Box::new([AtomicU64::new(0)]);
        let log = DirtyBitmap::new(words, 64).unwrap();
        let data = Arc::new(AtomicU64::new(0));
        let known = Arc::new(Mutex::new(true));
        let guest = {
            let (world, data, known) = (world.clone(), data.clone(), known.clone());
            thread::spawn(move || {
                let mut known = known.lock().unwrap();
                if !*known {
                    link(&world);
                    *known = true;
                }
                assert!(hardware(&world, 1, true).is_some());
                data.store(1, Ordering::Release);
                drop(known);
            })
        };
        let read = || {
            if take_flags(&world, &log, 512) {
                *known.lock().unwrap() = false;
            }
            log.take(0) != 0
        };
        let mut known_to_reader = false;
        for _ in 0..2 {
            known_to_reader |= read();
        }
        guest.join().unwrap();
        known_to_reader |= read();
        assert!(known_to_reader, "lost");
    });
}

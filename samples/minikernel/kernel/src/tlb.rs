// SPDX-License-Identifier: GPL-2.0
//! What TLBs may still hold, and how it gets out of them.
//!
//! Each address space has a generation, which grows whenever one of its entries changes so that a
//! TLB may hold something false. Each vCPU remembers up to which generation it has flushed the
//! space. Where it runs the space, it is at the newest: the one who changes an entry flushes its own
//! TLB and has the others flush theirs before it goes on. Where it does not run it, it catches up
//! when it switches there; and only with PCIDs is there anything to catch up with, because without
//! them loading CR3 flushes anyway.
//!
//! No interrupts are there to call another vCPU with. So there is one request in shared memory, and
//! every vCPU looks for it on each entry to the kernel and wherever the kernel waits. Processes call
//! the kernel often enough.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use minikernel_abi::call::feature;
use minikernel_abi::report::{Value, Wait};
use minikernel_abi::MAX_VCPUS;

use crate::counters::count;
use crate::paging::PAGE_SIZE;
use crate::space::MAX_SPACES;
use crate::{cpu, params};

const VCPUS: usize = MAX_VCPUS as usize;
/// Up to so many pages are invalidated one by one.
const SINGLE_PAGES: usize = 16;
/// Runs no process.
const NONE: usize = usize::MAX;

struct VcpuTlb {
    /// The address space that CR3 has.
    space: AtomicUsize,
    /// Where its tables begin.
    root: AtomicUsize,
    seen: [AtomicU32; MAX_SPACES],
    /// The request is for this vCPU too, and not yet done.
    asked: AtomicBool,
}

static TLBS: [VcpuTlb; VCPUS] = [const {
    VcpuTlb {
        space: AtomicUsize::new(NONE),
        root: AtomicUsize::new(0),
        seen: [const { AtomicU32::new(0) }; MAX_SPACES],
        asked: AtomicBool::new(false),
    }
}; VCPUS];

static GENERATIONS: [AtomicU32; MAX_SPACES] = [const { AtomicU32::new(1) }; MAX_SPACES];

/// What to flush: there is one request at a time, since the kernel's lock is held.
static START: AtomicUsize = AtomicUsize::new(0);
static PAGES: AtomicUsize = AtomicUsize::new(0);

/// CR3 for an address space. PCID 0 is for the kernel's own tables.
fn cr3(space: usize, root: usize) -> usize {
    if cpu::has(feature::PCID) && space != NONE {
        root | (space + 1)
    } else {
        root
    }
}

fn flush(space: usize, root: usize, start: usize, pages: usize) {
    if pages <= SINGLE_PAGES {
        for page in 0..pages {
            cpu::invlpg(start + page * PAGE_SIZE);
            count(Value::PageFlushes);
        }
        return;
    }
    count(Value::SpaceFlushes);
    #[cfg(target_pointer_width = "64")]
    if cpu::has(feature::PCID) && cpu::has(feature::INVPCID) {
        cpu::invpcid_context(space + 1);
        return;
    }
    // SAFETY: it is the value that is there already.
    unsafe { cpu::set_cr3(cr3(space, root)) };
}

/// Entries for `pages` pages from `start` on have changed: nothing old is used after this. To be
/// called with the kernel's lock held.
pub fn changed(space: usize, start: usize, pages: usize) {
    let generation = GENERATIONS[space].fetch_add(1, Ordering::SeqCst) + 1;
    START.store(start, Ordering::Relaxed);
    PAGES.store(pages, Ordering::Relaxed);
    let own = cpu::index();
    let running = |tlb: &&VcpuTlb| tlb.space.load(Ordering::SeqCst) == space;
    let vcpus = &TLBS[..params::vcpus()];
    for (index, tlb) in vcpus.iter().enumerate().filter(|(_, tlb)| running(tlb)) {
        if index != own {
            count(Value::ShootDowns);
            tlb.asked.store(true, Ordering::SeqCst);
        }
    }
    let tlb = &TLBS[own];
    if running(&tlb) {
        flush(space, tlb.root.load(Ordering::Relaxed), start, pages);
        tlb.seen[space].store(generation, Ordering::Relaxed);
    }
    for tlb in vcpus {
        while tlb.asked.load(Ordering::SeqCst) {
            cpu::relax(Wait::Short);
        }
    }
}

/// Does what another vCPU asks for, if one does.
pub fn answer() {
    let tlb = &TLBS[cpu::index()];
    if tlb.asked.load(Ordering::SeqCst) {
        let space = tlb.space.load(Ordering::Relaxed);
        let (start, pages) = (START.load(Ordering::Relaxed), PAGES.load(Ordering::Relaxed));
        flush(space, tlb.root.load(Ordering::Relaxed), start, pages);
        tlb.seen[space].store(GENERATIONS[space].load(Ordering::SeqCst), Ordering::Relaxed);
        tlb.asked.store(false, Ordering::SeqCst);
    }
}

/// An address space gets a number that another one has had.
pub fn reused(space: usize) {
    GENERATIONS[space].fetch_add(1, Ordering::SeqCst);
}

/// This vCPU goes to another address space. To be called with the kernel's lock held.
pub fn switch_to(space: usize, root: usize) {
    let tlb = &TLBS[cpu::index()];
    if tlb.space.load(Ordering::Relaxed) == space {
        return;
    }
    count(Value::Switches);
    let generation = GENERATIONS[space].load(Ordering::SeqCst);
    let seen = tlb.seen[space].swap(generation, Ordering::Relaxed);
    let fresh = cpu::has(feature::PCID) && seen == generation;
    if !fresh {
        count(Value::SpaceFlushes);
    }
    load(tlb, space, root, fresh);
}

/// This vCPU runs no process: it keeps to the kernel's own tables, so that it need not be asked.
pub fn leave(kernel_root: usize) {
    let tlb = &TLBS[cpu::index()];
    if tlb.space.load(Ordering::Relaxed) != NONE {
        load(tlb, NONE, kernel_root, true);
    }
}

fn load(tlb: &VcpuTlb, space: usize, root: usize, keep: bool) {
    #[cfg(target_pointer_width = "64")]
    let keep = if keep && cpu::has(feature::PCID) { cpu::CR3_KEEP } else { 0 };
    #[cfg(target_pointer_width = "32")]
    let keep = {
        let _ = keep;
        0
    };
    // SAFETY: all tables map the kernel alike.
    unsafe { cpu::set_cr3(cr3(space, root) | keep) };
    tlb.root.store(root, Ordering::Relaxed);
    tlb.space.store(space, Ordering::SeqCst);
}

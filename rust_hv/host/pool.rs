// SPDX-License-Identifier: GPL-2.0

//! Pools of zeroed frames, one per NUMA node, and the reserves that are filled from them.
//!
//! Page tables need frames while a spinlock is held, where nothing may be allocated. They take
//! them from a [`Reserve`], which the fault path fills beforehand. Frames of dead tables go back
//! to their node's pool, zeroed, up to [`CAPACITY`]; the rest go back to the host.
//!
//! Under memory pressure the host takes what is in the pools ([`super::shrinker`]).
//!
//! Locks: a pool's spinlock is a leaf and protects the list of its free frames. Frames are allocated
//! and freed without it.

use super::cpu::{current_cpu, Cpu};
use super::debugfs::Content;
use super::frame::{max_nodes, nearest, Frame, NodeCounts, Place, Wipe, ALIVE, WIPED};
use super::global::Global;
use super::shrinker::Shrink;
use super::supply::Supply;
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::seq_print;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::sync::{new_spinlock, SpinLock};

/// Frames that one node's pool keeps at most.
pub const CAPACITY: usize = 128;
/// Frames that a fault can need: one table for each level below the root of five.
pub const RESERVE: usize = 4;

/// The pools of the machine, while the module is loaded.
pub static POOLS: Global<Pools> = Global::new();

/// Frames that wait in pools and reserves.
pub static POOLED: NodeCounts = NodeCounts::new();

/// All frames that wait.
pub fn pooled() -> u64 {
    POOLED.all()
}

/// Frames that the inverted page table is made of: it is nobody's, and stays.
pub static INVERTED: NodeCounts = NodeCounts::new();

/// Frames alive on a node that do not wait and are not the inverted page table's.
pub fn in_use_on(node: usize) -> u64 {
    let others = POOLED.on(node).saturating_add(INVERTED.on(node));
    ALIVE.on(node).saturating_sub(others)
}

/// The same on all nodes.
pub fn in_use() -> u64 {
    let others = POOLED.all().saturating_add(INVERTED.all());
    ALIVE.all().saturating_sub(others)
}

#[pin_data]
struct Pool {
    #[pin]
    free: SpinLock<KVec<Frame>>,
    hits: Atomic<u64>,
    misses: Atomic<u64>,
    shrunk: Atomic<u64>,
}

/// What a pool has been asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolCounts {
    /// Frames that it had.
    pub hits: u64,
    /// Frames that came from the host, as it had none.
    pub misses: u64,
    /// Frames that the host took back.
    pub shrunk: u64,
}

impl Pool {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // All the capacity at once: nothing grows under the lock.
            free <- new_spinlock!(KVec::with_capacity(CAPACITY, GFP_KERNEL)?),
            hits: Atomic::new(0),
            misses: Atomic::new(0),
            shrunk: Atomic::new(0),
        })
    }
}

/// The pools of all nodes.
pub struct Pools {
    nodes: KVec<Pin<KBox<Pool>>>,
}

impl Pools {
    /// Empty pools for every node of the machine.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let count = max_nodes();
        let mut nodes = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            nodes.push(KBox::pin_init(Pool::new(), GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self { nodes })
    }

    fn pool(&self, node: i32) -> Option<&Pool> {
        let index = usize::try_from(node).ok()?;
        self.nodes.get(index).map(|pool| pool.as_ref().get_ref())
    }

    fn take(&self, node: i32) -> Option<Frame> {
        let frame = self.pool(node)?.free.lock().pop()?;
        POOLED.add(frame.node(), -1);
        Some(frame)
    }

    /// A zeroed frame, and whether a pool had it: the wanted node's pool; the host, which knows the
    /// order of the nodes itself; then, before it is too late, the other nodes' pools. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn get(&self, place: Place) -> Result<(Frame, bool)> {
        let Place { node, among, .. } = place;
        let wanted = self.pool(node);
        if let Some(frame) = self.take(node) {
            wanted.inspect(|pool| pool.hits.add(1, Relaxed));
            return Ok((frame, true));
        }
        wanted.inspect(|pool| pool.misses.add(1, Relaxed));
        // Wiped by whoever gives it back, as the pools' are.
        let wipe = Wipe::Never;
        let error = match Frame::new(Place { wipe, ..place }) {
            Ok(frame) => return Ok((frame, false)),
            Err(error) => error,
        };
        let mut last = Some(node);
        while let Some(next) = nearest(node, among, last) {
            if let Some(frame) = self.take(next) {
                return Ok((frame, true));
            }
            last = Some(next);
        }
        Err(error)
    }

    /// Takes a frame that held a table; its contents are wiped before anyone else has it.
    pub fn give(&self, mut frame: Frame, wipe: Wipe) {
        if wipe == Wipe::Random {
            // A pool's frames are zero.
            frame.set_wipe(wipe);
            return;
        }
        frame.bytes_mut().fill(0);
        if wipe == Wipe::Zeros {
            WIPED.add(1, Relaxed);
        }
        self.keep(frame);
    }

    /// Takes a frame whose bytes are all zero.
    pub(super) fn keep(&self, frame: Frame) {
        let node = frame.node();
        let Some(pool) = self.pool(node) else {
            return;
        };
        let mut free = pool.free.lock();
        // Within the capacity from `Pool::new`: this allocates nothing. A frame for which there is
        // no room is freed behind the lock.
        if free.len() < CAPACITY && free.push_within_capacity(frame).is_ok() {
            POOLED.add(node, 1);
        }
    }

    /// What a node's pool has been asked for.
    pub fn counts(&self, node: usize) -> PoolCounts {
        self.nodes
            .get(node)
            .map_or_else(PoolCounts::default, |pool| PoolCounts {
                hits: pool.hits.load(Relaxed),
                misses: pool.misses.load(Relaxed),
                shrunk: pool.shrunk.load(Relaxed),
            })
    }
}

impl Shrink for Pools {
    fn count(&self, node: i32) -> usize {
        self.pool(node).map_or(0, |pool| pool.free.lock().len())
    }

    fn free(&self, node: i32, max: usize) -> usize {
        let freed = (0..max).map_while(|_| self.take(node)).count();
        if let Some(pool) = self.pool(node) {
            pool.shrunk.add(freed as u64, Relaxed);
        }
        freed
    }
}

/// The file `pools` in debugfs: a line for each node.
pub struct PoolsFile(pub &'static Pools);

impl Content for PoolsFile {
    fn records(&self) -> u64 {
        self.0.nodes.len() as u64
    }

    fn show(&self, record: u64, out: &SeqFile) {
        let node = record as usize;
        let PoolCounts {
            hits,
            misses,
            shrunk,
        } = self.0.counts(node);
        let free = self.0.count(node as i32);
        seq_print!(
            out,
            "node {node} free {free} of {CAPACITY} hits {hits} misses {misses} shrunk {shrunk}\n"
        );
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        for (node, pool) in self.nodes.iter().enumerate() {
            POOLED.add(node as i32, -(pool.free.lock().len() as i64));
        }
    }
}

/// Frames set aside for page tables, to be taken under a spinlock.
#[derive(Default)]
pub struct Reserve {
    frames: [Option<Frame>; RESERVE],
    have: usize,
    /// The CPU and the node where they are to be needed.
    cpu: Cpu,
    home: i32,
}

impl Reserve {
    /// Fills the reserve with frames for tables that are needed here. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; what was got stays in the reserve.
    #[inline]
    pub fn fill(&mut self, supply: &Supply) -> Result {
        let cpu = current_cpu();
        if self.have == RESERVE && self.cpu == cpu {
            return Ok(());
        }
        self.fill_on(cpu, supply)
    }

    #[inline(never)]
    fn fill_on(&mut self, cpu: Cpu, supply: &Supply) -> Result {
        let home = supply.home(cpu);
        if home != self.home {
            // The vCPU has come to another node, and its tables are to come there, too.
            self.give_back(supply);
        }
        (self.cpu, self.home) = (cpu, home);
        for slot in self.frames.iter_mut().filter(|slot| slot.is_none()) {
            let frame = supply.take(home)?;
            POOLED.add(frame.node(), 1);
            *slot = Some(frame);
            self.have += 1;
        }
        Ok(())
    }

    /// Gives all frames to the pools, for others.
    pub fn give_back(&mut self, supply: &Supply) {
        while let Some(frame) = self.take() {
            supply.give_unused(frame);
        }
    }

    /// Takes one frame; `None` when the reserve is empty.
    pub fn take(&mut self) -> Option<Frame> {
        let frame = self.frames.iter_mut().find_map(Option::take)?;
        self.have -= 1;
        POOLED.add(frame.node(), -1);
        Some(frame)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        while self.take().is_some() {}
    }
}

#[kunit_tests(rusthv_pool)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;
    use crate::host::frame::alive;

    /// From these pools, which outlive it.
    fn supply(pools: &Pools) -> Supply {
        // SAFETY: The tests drop it before the pools.
        Supply::new(unsafe { &*core::ptr::from_ref(pools) })
    }

    #[test]
    fn reserve_fills_and_empties() -> Result {
        let pools = Pools::new()?;
        let (frames, waiting) = (alive(), pooled());
        let supply = supply(&pools);
        let mut reserve = Reserve::default();
        assert!(reserve.take().is_none());
        reserve.fill(&supply)?;
        assert_eq!(alive(), frames + RESERVE as u64);
        assert_eq!(pooled(), waiting + RESERVE as u64);
        // A full one takes no more.
        reserve.fill(&supply)?;
        assert_eq!(alive(), frames + RESERVE as u64);
        for left in (0..RESERVE as u64).rev() {
            assert!(reserve.take().is_some());
            assert_eq!(pooled(), waiting + left);
        }
        assert!(reserve.take().is_none());
        assert_eq!(alive(), frames);
        Ok(())
    }

    #[test]
    fn reserve_frees_what_was_not_taken() -> Result {
        let pools = Pools::new()?;
        let (frames, waiting) = (alive(), pooled());
        let mut reserve = Reserve::default();
        reserve.fill(&supply(&pools))?;
        drop(reserve);
        assert_eq!((alive(), pooled()), (frames, waiting));
        Ok(())
    }

    #[test]
    fn give_wipes() -> Result {
        let pools = Pools::new()?;
        let mut frame = Frame::new(current_node())?;
        frame.bytes_mut().fill(0xa5);
        let (hpa, node) = (frame.hpa(), frame.node());
        pools.give(frame, Wipe::Never);
        let mut back = pools.take(node).ok_or(ENOENT)?;
        assert_eq!(back.hpa(), hpa);
        assert!(back.bytes_mut().iter().all(|&byte| byte == 0));
        assert!(pools.take(node).is_none());
        Ok(())
    }

    /// What has no room goes back to the host; what is left goes with the pools.
    #[test]
    fn capacity_is_a_bound() -> Result {
        let pools = Pools::new()?;
        let (frames, waiting) = (alive(), pooled());
        let mut given = KVec::with_capacity(CAPACITY + 3, GFP_KERNEL)?;
        let node = current_node();
        for _ in 0..CAPACITY + 3 {
            given.push(Frame::new(node)?, GFP_KERNEL)?;
        }
        // All of them on one node, or there are several bounds.
        assert!(given.iter().all(|frame| frame.node() == node));
        while let Some(frame) = given.pop() {
            pools.give(frame, Wipe::Never);
        }
        assert_eq!(alive(), frames + CAPACITY as u64);
        assert_eq!(pooled(), waiting + CAPACITY as u64);
        drop(pools);
        assert_eq!((alive(), pooled()), (frames, waiting));
        Ok(())
    }

    #[test]
    fn fill_takes_from_the_pool_first() -> Result {
        let pools = Pools::new()?;
        let frame = Frame::new(current_node())?;
        let (hpa, node) = (frame.hpa(), frame.node());
        pools.give(frame, Wipe::Never);
        let frames = alive();
        let mut reserve = Reserve::default();
        let supply = supply(&pools);
        reserve.fill(&supply)?;
        assert_eq!(alive(), frames + RESERVE as u64 - 1);
        assert_eq!(supply.hits_and_misses(), (1, RESERVE as u64 - 1));
        let counts = pools.counts(node as usize);
        assert_eq!((counts.hits, counts.misses), (1, RESERVE as u64 - 1));
        assert!(pools.take(node).is_none());
        let mut found = false;
        while let Some(frame) = reserve.take() {
            found |= frame.hpa() == hpa;
        }
        assert!(found);
        Ok(())
    }

    /// The host takes what it asks for, and no more than there is.
    #[test]
    fn the_host_shrinks_pools() -> Result {
        let pools = Pools::new()?;
        let (frames, node) = (alive(), current_node());
        let mut given = KVec::with_capacity(8, GFP_KERNEL)?;
        for _ in 0..8 {
            given.push(Frame::new(node)?, GFP_KERNEL)?;
        }
        let node = given.first().map_or(node, Frame::node);
        while let Some(frame) = given.pop() {
            pools.give(frame, Wipe::Never);
        }
        assert_eq!(pools.count(node), 8);
        assert_eq!(pools.free(node, 3), 3);
        assert_eq!((pools.count(node), alive()), (5, frames + 5));
        assert_eq!(pools.free(node, 100), 5);
        assert_eq!((pools.count(node), alive()), (0, frames));
        assert_eq!(pools.free(node, 1), 0);
        assert_eq!(pools.counts(node as usize).shrunk, 8);
        assert_eq!((pools.count(-1), pools.free(-1, 1)), (0, 0));
        assert_eq!(pools.count(i32::MAX), 0);
        Ok(())
    }

    /// Where frames are to be random afterwards, they do not wait in a pool.
    #[test]
    fn random_frames_are_not_pooled() -> Result {
        let pools = Pools::new()?;
        let frames = alive();
        let frame = Frame::new(current_node())?;
        let node = frame.node();
        pools.give(frame, Wipe::Random);
        assert_eq!((pools.count(node), alive()), (0, frames));
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Pools of zeroed frames, one per NUMA node, and the reserves that are filled from them.
//!
//! Page tables need frames while a spinlock is held, where nothing may be allocated. They take
//! them from a [`Reserve`], which the fault path fills beforehand. Frames of dead tables go back
//! to their node's pool, zeroed, up to [`CAPACITY`]; the rest go back to the host.
//!
//! Locks: a pool's spinlock is a leaf and protects the list of its free frames.

use super::frame::{max_nodes, Frame, NodeCounts, ALIVE};
use super::global::Global;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, SpinLock};

/// Frames that one node's pool keeps at most.
pub const CAPACITY: usize = 128;
/// Frames that a fault can need: one table for each level below the root of five, and two for the
/// inverted page table, which takes one for each 63 entries.
pub const RESERVE: usize = 6;

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
}

impl Pool {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // All the capacity at once: nothing grows under the lock.
            free <- new_spinlock!(KVec::with_capacity(CAPACITY, GFP_KERNEL)?),
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

    /// Takes a frame that held a table; its contents are wiped before anyone else has it.
    pub fn give(&self, mut frame: Frame) {
        frame.bytes_mut().fill(0);
        let node = frame.node();
        let Some(pool) = self.pool(node) else {
            return;
        };
        let mut free = pool.free.lock();
        // Within the capacity from `Pool::new`: this allocates nothing.
        if free.len() < CAPACITY && free.push_within_capacity(frame).is_ok() {
            POOLED.add(node, 1);
        }
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
}

impl Reserve {
    /// Fills the reserve from the node's pool, and from the host where the pool is empty. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; what was got stays in the reserve.
    pub fn fill(&mut self, pools: &Pools, node: i32) -> Result {
        for slot in self.frames.iter_mut().filter(|slot| slot.is_none()) {
            let frame = match pools.take(node) {
                Some(frame) => frame,
                None => Frame::new(node)?,
            };
            POOLED.add(frame.node(), 1);
            *slot = Some(frame);
        }
        Ok(())
    }

    /// Takes one frame; `None` when the reserve is empty.
    pub fn take(&mut self) -> Option<Frame> {
        let frame = self.frames.iter_mut().find_map(Option::take)?;
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

    #[test]
    fn reserve_fills_and_empties() -> Result {
        let (pools, node) = (Pools::new()?, current_node());
        let (frames, waiting) = (alive(), pooled());
        let mut reserve = Reserve::default();
        assert!(reserve.take().is_none());
        reserve.fill(&pools, node)?;
        assert_eq!(alive(), frames + RESERVE as u64);
        assert_eq!(pooled(), waiting + RESERVE as u64);
        // A full one takes no more.
        reserve.fill(&pools, node)?;
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
        reserve.fill(&pools, current_node())?;
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
        pools.give(frame);
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
            pools.give(frame);
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
        pools.give(frame);
        let frames = alive();
        let mut reserve = Reserve::default();
        reserve.fill(&pools, node)?;
        assert_eq!(alive(), frames + RESERVE as u64 - 1);
        assert!(pools.take(node).is_none());
        let mut found = false;
        while let Some(frame) = reserve.take() {
            found |= frame.hpa() == hpa;
        }
        assert!(found);
        Ok(())
    }
}

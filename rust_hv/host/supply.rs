// SPDX-License-Identifier: GPL-2.0

//! Where the frames of one VM come from, and what becomes of them: its NUMA policy, whether what
//! they held is wiped, and how often the pools had them.
//!
//! Both are settled before the VM's first vCPU. The frames that the VM has by then, those of its
//! root table, are wiped as the rest when they go.

use super::cpu::{current_node, node_of, Cpu};
use super::frame::{nearest, Frame, NodeSet, Place, Wipe};
use super::pool::Pools;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};

/// Which NUMA node is asked first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// That of the CPU which needs the frame; the others in the order of their distance.
    Local,
    /// As `Local`, of these nodes alone.
    Bind(NodeSet),
    /// These nodes in turn, and no others.
    Interleave(NodeSet),
}

const LOCAL: u32 = 0;
const BIND: u32 = 1;
const INTERLEAVE: u32 = 2;

const ZEROS: u32 = 1;
const RANDOM: u32 = 2;

/// The source of a VM's frames.
pub struct Supply {
    pools: &'static Pools,
    policy: Atomic<u32>,
    nodes: Atomic<u64>,
    /// Frames that were interleaved.
    turn: Atomic<u32>,
    wipe: Atomic<u32>,
    hits: Atomic<u64>,
    misses: Atomic<u64>,
}

impl Supply {
    /// Local frames, not wiped.
    pub fn new(pools: &'static Pools) -> Self {
        Self {
            pools,
            policy: Atomic::new(LOCAL),
            nodes: Atomic::new(NodeSet::ALL.bits()),
            turn: Atomic::new(0),
            wipe: Atomic::new(0),
            hits: Atomic::new(0),
            misses: Atomic::new(0),
        }
    }

    /// Another policy, for frames from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` for nodes of which none has memory.
    pub fn set_policy(&self, policy: Policy) -> Result {
        let (policy, nodes) = match policy {
            Policy::Local => (LOCAL, NodeSet::ALL),
            Policy::Bind(nodes) => (BIND, nodes),
            Policy::Interleave(nodes) => (INTERLEAVE, nodes),
        };
        nearest(current_node(), nodes, None).ok_or(EINVAL)?;
        self.nodes.store(nodes.bits(), Relaxed);
        self.policy.store(policy, Relaxed);
        Ok(())
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        let nodes = NodeSet::from_bits(self.nodes.load(Relaxed));
        match self.policy.load(Relaxed) {
            BIND => Policy::Bind(nodes),
            INTERLEAVE => Policy::Interleave(nodes),
            _ => Policy::Local,
        }
    }

    /// What becomes of frames that are freed from now on.
    pub fn set_wipe(&self, wipe: Wipe) {
        let wipe = match wipe {
            Wipe::Never => 0,
            Wipe::Zeros => ZEROS,
            Wipe::Random => RANDOM,
        };
        self.wipe.store(wipe, Relaxed);
    }

    /// What becomes of the VM's frames in the end.
    pub fn wipe(&self) -> Wipe {
        match self.wipe.load(Relaxed) {
            ZEROS => Wipe::Zeros,
            RANDOM => Wipe::Random,
            _ => Wipe::Never,
        }
    }

    /// The node of the CPU on which the next tables are needed; always the same where that is no
    /// matter.
    pub(super) fn home(&self, cpu: Cpu) -> i32 {
        match self.policy.load(Relaxed) {
            INTERLEAVE => 0,
            _ => node_of(cpu),
        }
    }

    /// Where a frame for the task at hand is to be.
    pub fn place(&self) -> Place {
        self.place_near(current_node())
    }

    /// Where the task at hand would rather have a frame that is on a node now.
    pub fn nearer(&self, now: i32) -> Option<Place> {
        if self.policy.load(Relaxed) == INTERLEAVE {
            return None;
        }
        let place = self.place();
        // Nowhere else: it would be no better off there.
        (place.node != now).then_some(Place {
            among: NodeSet::only(place.node),
            ..place
        })
    }

    pub(super) fn place_near(&self, home: i32) -> Place {
        let among = NodeSet::from_bits(self.nodes.load(Relaxed));
        let node = match self.policy.load(Relaxed) {
            INTERLEAVE => self.next_node(among),
            BIND if !among.contains(home) => nearest(home, among, None),
            _ => None,
        };
        Place {
            node: node.unwrap_or(home),
            among,
            wipe: self.wipe(),
        }
    }

    /// The nodes of a set one after the other. Two frames may come from the same one where two
    /// CPUs ask at once.
    fn next_node(&self, among: NodeSet) -> Option<i32> {
        // By number: distances from node 0 would put them in another order, and no better one.
        let all = || (0..super::frame::max_nodes() as i32).filter(|&node| among.contains(node));
        let with_memory = || all().filter(|&node| super::frame::node_has_memory(node));
        let count = with_memory().count();
        let turn = self.turn.fetch_add(1, Relaxed) as usize;
        with_memory().nth(turn.checked_rem(count)?)
    }

    /// A zeroed frame for a table: a pool's, or the host's. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn take(&self, home: i32) -> Result<Frame> {
        let place = self.place_near(home);
        let (frame, hit) = self.pools.get(place)?;
        let count = if hit { &self.hits } else { &self.misses };
        count.add(1, Relaxed);
        Ok(frame)
    }

    /// Takes back a frame that held a table.
    pub(super) fn give(&self, frame: Frame) {
        self.pools.give(frame, self.wipe());
    }

    /// Takes back a frame that was not used.
    pub(super) fn give_unused(&self, frame: Frame) {
        self.pools.keep(frame);
    }

    /// How many frames for tables came from pools, and how many from the host.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Relaxed), self.misses.load(Relaxed))
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Giving up tables: for want of room, or since they are none of the guest's any more.

use super::chain::{Node, TableId};
use super::{Census, List, Shadow, Slot};
use crate::model::paging::frames::{Gather, TableMemory};
use core::ops::DerefMut;

/// Tables that one change gives up at most; others wait for the next.
const REAPED: u64 = 4;
/// Writes in a row to a table that no vCPU can use, before it is taken for something else.
const IDLE_WRITES: u8 = 3;
/// Tables above one that are looked at to find out whether a vCPU can use it.
const ABOVE: u32 = 64;

impl<S, W, C> Shadow<S, W, C>
where
    S: DerefMut<Target = [Slot]>,
    W: DerefMut<Target = [u32]>,
    C: Census,
{
    /// The guest writes to a watched frame: gives up the tables there that seem to be none any more.
    /// True when the frame is watched for others.
    pub(super) fn keep<M: TableMemory, G: Gather>(
        &mut self,
        memory: &M,
        gather: &mut G,
        gfn: u64,
    ) -> bool {
        let (mut next, mut kept) = (self.first_of(gfn), false);
        while let Some(id) = next {
            let following = self.slot(id).next;
            if self.is_done_with(memory, id) {
                self.give_up(memory, gather, id);
                self.counts.released = self.counts.released.wrapping_add(1);
            } else {
                let slot = self.slot(id);
                kept |= !slot.loose || slot.watched;
            }
            next = self.next_of(gfn, following);
        }
        kept
    }

    /// Whether a table that the guest writes to has had its time.
    fn is_done_with<M: TableMemory>(&mut self, memory: &M, id: TableId) -> bool {
        if self.slot(id).orphan {
            return true;
        }
        let in_use = self.is_in_use(memory, id, &mut { ABOVE });
        let slot = self.slot_mut(id);
        slot.idle_writes = match in_use {
            true => 0,
            false => slot.idle_writes.saturating_add(1),
        };
        slot.idle_writes >= IDLE_WRITES
    }

    /// A root that a vCPU runs on leads to a table; true as well where that takes too long to find
    /// out. Each table is of a lower level than those that refer to it.
    fn is_in_use<M: TableMemory>(&self, memory: &M, id: TableId, left: &mut u32) -> bool {
        let slot = self.slot(id);
        if slot.users != 0 {
            return true;
        }
        let mut next = slot.parents;
        while let Some(at) = next.get() {
            if *left == 0 {
                return true;
            }
            *left -= 1;
            if self.is_in_use(memory, at.table(), left) {
                return true;
            }
            next = self.read_links(memory, at).next;
        }
        false
    }

    /// Gives up a table that no vCPU runs on, whatever refers to it.
    fn give_up<M: TableMemory, G: Gather>(&mut self, memory: &M, gather: &mut G, id: TableId) {
        while let Some(at) = self.slot(id).parents.get() {
            self.drop_entry(memory, at);
        }
        self.slot_mut(id).root = false;
        self.judge(id);
        self.empty(memory, id);
        self.discard(gather, id);
    }

    /// The same for some of those that nothing refers to.
    pub(super) fn release_orphans<M: TableMemory, G: Gather>(
        &mut self,
        memory: &M,
        gather: &mut G,
    ) {
        let released = self.reap(memory, gather);
        self.counts.released = self.counts.released.wrapping_add(released);
    }

    /// Drops the entries of some tables that nothing refers to, and gives up these: how many.
    pub(super) fn reap<M: TableMemory, G: Gather>(&mut self, memory: &M, gather: &mut G) -> u64 {
        for reaped in 0..REAPED {
            let Some(id) = self.heads[List::Orphans as usize].get() else {
                return reaped;
            };
            self.empty(memory, id);
            self.discard(gather, id);
        }
        REAPED
    }

    /// Drops all entries of a table.
    pub(super) fn empty<M: TableMemory>(&mut self, memory: &M, id: TableId) {
        while let Some(index) = self.slot(id).next_entry(0) {
            self.drop_entry(memory, Node::new(id, index));
        }
    }

    /// Makes room for tables; false when there is nothing left to give up.
    pub fn evict<M: TableMemory, G: Gather>(&mut self, memory: &M, gather: &mut G) -> bool {
        self.counts.evictions = self.counts.evictions.wrapping_add(1);
        if self.heads[List::Orphans as usize].get().is_none() {
            let roots = self.slots.iter().enumerate();
            let roots = roots.filter(|(_, slot)| slot.root && slot.frames.is_some());
            // Those in use are emptied, but stay.
            let rank = |slot: &Slot| (slot.users != 0, slot.users != 0 && slot.entries == 0);
            let oldest = roots.min_by_key(|(_, slot)| (rank(slot), slot.used));
            let Some((number, slot)) = oldest else {
                return false;
            };
            if slot.users != 0 && slot.entries == 0 {
                return false;
            }
            let (id, idle) = (TableId(number as u16), slot.users == 0);
            self.empty(memory, id);
            if idle {
                self.slot_mut(id).root = false;
                self.judge(id);
            }
        }
        self.reap(memory, gather);
        true
    }
}

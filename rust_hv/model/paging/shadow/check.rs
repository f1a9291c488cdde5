// SPDX-License-Identifier: GPL-2.0

//! Whether the shadow tables are consistent: for tests, and for whoever has doubts.

use super::chain::{Node, TableId};
use super::entry;
use super::{Census, Shadow, Slot};
use crate::model::arch::addr::Hpa;
use crate::model::paging::frames::TableMemory;
use crate::model::paging::state::PRESENT;
use core::ops::DerefMut;

impl<S, W, C> Shadow<S, W, C>
where
    S: DerefMut<Target = [Slot]>,
    W: DerefMut<Target = [u32]>,
    C: Census,
{
    /// What is wrong, if anything is. `page` tells where the host has a frame of the guest's, as far
    /// as it can be known.
    pub fn check<M: TableMemory>(
        &mut self,
        memory: &M,
        mut page: impl FnMut(u64) -> Option<Hpa>,
    ) -> Result<(), &'static str> {
        let (mut leaves, mut tables) = ([0; 2], 0);
        for number in 0..self.slots.len() {
            let id = TableId(number as u16);
            let slot = self.slot(id);
            if slot.frames.is_none() {
                continue;
            }
            tables += 1;
            let (entries, gfn, role) = (slot.entries, slot.gfn, slot.role);
            let present = slot.present;
            if !role.direct && self.first_of(gfn).is_none() {
                return Err("a table is not found by its frame");
            }
            let mut found = 0;
            for index in 0..512 {
                let at = Node::new(id, index);
                let raw = self.raw(memory, at);
                if (raw != 0) != (present[index / 64] >> (index % 64) & 1 != 0) {
                    return Err("a table's entries are not where it says");
                }
                if raw == 0 {
                    continue;
                }
                found += 1;
                if raw & PRESENT == 0 {
                    // What such an entry says could be used by speculation (L1TF).
                    return Err("an entry that is absent is not zero");
                }
                let links = self.read_links(memory, at);
                let hpa = raw & 0x000f_ffff_ffff_f000;
                let head = match links.child.get() {
                    Some(child) => {
                        if self.root(child) != Some(Hpa::new(hpa)) {
                            return Err("an entry refers to another table than it says");
                        }
                        self.slot(child).parents
                    }
                    None => {
                        let (frame, large) = self.mapped(memory, at);
                        leaves[usize::from(large)] += 1;
                        if page(frame).is_some_and(|page| page.raw() != hpa) {
                            return Err("an entry maps another page than the guest's");
                        }
                        let pages = if large { 512 } else { 1 };
                        let watched = (frame..frame + pages).any(|gfn| self.is_watched(gfn));
                        if watched && entry::is_writable(raw) {
                            return Err("a watched table can be written");
                        }
                        Node::from_raw(*self.chain_of(frame))
                    }
                };
                let first = links.prev == Node::NONE;
                if first != (head == at) {
                    return Err("a chain does not begin where it says");
                }
                if let Some(next) = links.next.get() {
                    if self.read_links(memory, next).prev != at {
                        return Err("a chain is broken");
                    }
                }
            }
            if found != entries {
                return Err("a table's entries are counted wrong");
            }
        }
        if leaves != self.counts.leaves || tables != self.counts.tables {
            return Err("the totals are counted wrong");
        }
        Ok(())
    }
}

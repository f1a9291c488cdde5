// SPDX-License-Identifier: GPL-2.0

//! Which of the guest's pages are mapped, by however many entries: for the inverted page table.
//!
//! A page is told of when its first entry comes, and when its last one goes. A *page* is a frame of
//! the guest's, where it is in the host, and 4 KiB or 2 MiB of it: a frame may be mapped in both
//! sizes, and for a moment, while a slot moves, at two places.
//!
//! Entries of one page are beside each other in their chain. So an entry that goes was the last one
//! when neither of its neighbours is one of the page, and only for one that comes the chain is looked
//! through. A chain that is longer than anything but malice makes it is cut then.

use super::chain::{Node, TableId};
use super::entry;
use super::follow::{Cursor, CHAIN};
use super::route;
use super::{Shadow, Slot};
use crate::model::arch::addr::{Gfn, Gva, Hpa};
use crate::model::paging::format::Leaf;
use crate::model::paging::frames::TableMemory;
use crate::model::paging::sweep::Progress;
use crate::model::paging::{Level, PageSize};
use core::ops::DerefMut;

/// Hears which pages are mapped.
pub trait Census {
    /// A page has its first entry.
    fn mapped(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize);

    /// A page has lost its last entry. CPUs may use it until they are flushed.
    fn unmapped(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize);
}

/// Where in its chain an entry goes.
pub(super) enum Place {
    /// Behind another one of the same page.
    Behind(Node),
    /// Before the first: it is the only one of its page.
    First(Node),
    /// Nobody knows: from here on the chain was not looked at.
    TooFar(Node),
}

const fn size_of(large: bool) -> PageSize {
    match large {
        true => PageSize::Size2M,
        false => PageSize::Size4K,
    }
}

impl<S, W, C> Shadow<S, W, C>
where
    S: DerefMut<Target = [Slot]>,
    W: DerefMut<Target = [u32]>,
    C: Census,
{
    /// An entry maps the same page as another, which is `raw` and maps a frame (`true`: 2 MiB of
    /// them).
    #[inline]
    fn is_of<M: TableMemory>(&self, memory: &M, at: Node, raw: u64, page: (u64, bool)) -> bool {
        entry::is_same_page(self.raw(memory, at), raw) && self.mapped(memory, at) == page
    }

    /// Where the entry `raw` for a frame goes.
    pub(super) fn place<M: TableMemory>(&self, memory: &M, raw: u64, page: (u64, bool)) -> Place {
        let first = self.first_in_chain(page.0);
        let (mut next, mut left) = (first, CHAIN);
        while let Some(at) = next.get() {
            if left == 0 {
                return Place::TooFar(at);
            }
            left -= 1;
            if self.is_of(memory, at, raw, page) {
                return Place::Behind(at);
            }
            next = self.read_links(memory, at).next;
        }
        Place::First(first)
    }

    /// Drops some entries of a chain from one on.
    #[cold]
    pub(super) fn cut_chain<M: TableMemory>(&mut self, memory: &M, from: Node) {
        let mut next = from;
        for _ in 0..CHAIN {
            let Some(at) = next.get() else { return };
            next = self.read_links(memory, at).next;
            self.drop_entry(memory, at);
        }
    }

    /// Neither of an entry's neighbours maps the same page.
    #[inline]
    pub(super) fn is_alone<M: TableMemory>(
        &self,
        memory: &M,
        (prev, next): (Node, Node),
        raw: u64,
        page: (u64, bool),
    ) -> bool {
        let beside = [prev, next].into_iter().filter_map(Node::get);
        beside
            .into_iter()
            .all(|at| !self.is_of(memory, at, raw, page))
    }

    #[inline]
    pub(super) fn tell_mapped(&mut self, raw: u64, (frame, large): (u64, bool)) {
        let (hpa, size) = (entry::page(raw), size_of(large));
        self.census.mapped(Gfn::new(frame), hpa, size);
    }

    #[inline]
    pub(super) fn tell_unmapped(&mut self, raw: u64, (frame, large): (u64, bool)) {
        let (hpa, size) = (entry::page(raw), size_of(large));
        self.census.unmapped(Gfn::new(frame), hpa, size);
    }

    /// Calls `f` for each page that a frame is in, with what all of its entries together allow and
    /// say: small ones first.
    pub fn for_each_mapping<M: TableMemory>(
        &self,
        memory: &M,
        gfn: Gfn,
        mut f: impl FnMut(Gfn, Leaf),
    ) {
        for page in [(gfn.raw(), false), (gfn.raw() & !511, true)] {
            let mut found: Option<Leaf> = None;
            let mut next = self.first_in_chain(page.0);
            while let Some(at) = next.get() {
                next = self.read_links(memory, at).next;
                let raw = self.raw(memory, at);
                if self.mapped(memory, at) != page {
                    continue;
                }
                let leaf = entry::leaf_of(raw, size_of(page.1));
                match &mut found {
                    Some(sum) if sum.hpa == leaf.hpa => {
                        sum.perms = sum.perms.union(leaf.perms);
                        sum.accessed |= leaf.accessed;
                        sum.dirty |= leaf.dirty;
                    }
                    _ => {
                        if let Some(done) = found.replace(leaf) {
                            f(Gfn::new(page.0), done);
                        }
                    }
                }
            }
            if let Some(done) = found {
                f(Gfn::new(page.0), done);
            }
        }
    }

    /// The page that the CPU finds for an address from a root on, and the entries on the way there, by
    /// level, address and contents.
    pub fn path<M: TableMemory>(
        &self,
        memory: &M,
        root: TableId,
        gva: Gva,
        mut on_entry: impl FnMut(Level, Hpa, u64),
    ) -> Option<Leaf> {
        let mut id = root;
        loop {
            let role = self.slot(id).role;
            let pointers = role.regime.has_pointers();
            let at = Node::new(id, route::index(gva.raw(), role.level, pointers));
            let raw = self.raw(memory, at);
            let place = self.root(id)?.wrapping_add(at.index() as u64 * 8);
            on_entry(role.level, place, raw);
            if raw == 0 {
                return None;
            }
            match self.read_links(memory, at).child.get() {
                Some(child) => id = child,
                None => return Some(entry::leaf_of(raw, size_of(role.level > Level::Pt))),
            }
        }
    }

    /// Calls `f` for every entry that maps a page, a table at a time; `true` for one of the entries of
    /// each page.
    pub fn for_each_leaf<M: TableMemory>(
        &self,
        memory: &M,
        cursor: &mut Cursor,
        mut f: impl FnMut(Gfn, Leaf, bool),
    ) -> Progress {
        while let Some(slot) = self.slots.get(cursor.0) {
            let id = TableId(cursor.0 as u16);
            cursor.0 += 1;
            if slot.entries == 0 || slot.role.level > Level::Pd {
                continue;
            }
            let mut next = 0;
            while let Some(index) = slot.next_entry(next) {
                next = index + 1;
                let at = Node::new(id, index);
                let links = self.read_links(memory, at);
                if links.child != TableId::NONE {
                    continue;
                }
                let (raw, page) = (self.raw(memory, at), self.mapped(memory, at));
                let first = self.is_alone(memory, (links.prev, Node::NONE), raw, page);
                f(
                    Gfn::new(page.0),
                    entry::leaf_of(raw, size_of(page.1)),
                    first,
                );
            }
            return Progress::More(Gfn::new(0));
        }
        Progress::Done
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Making and dropping entries.

use super::census::Place;
use super::chain::{Links, Node, TableId};
use super::entry::{self, Cause, Grant};
use super::route::{self, Role, Route, Target};
use super::{Census, Lack, Policy, Shadow, Slot};
use crate::model::arch::addr::{Gfn, Gpa, Gva, Hpa};
use crate::model::paging::frames::{Gather, TableMemory};
use crate::model::paging::state::{PagingState, Rights, ACCESSED, DIRTY, PRESENT};
use crate::model::paging::Level;
use core::ops::DerefMut;
use core::sync::atomic::Ordering;

/// Where a page was mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    pub(super) table: TableId,
    pub(super) index: usize,
}

/// What came of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Installed {
    /// The page is mapped here.
    Done(Spot),
    /// The guest has changed something since the walk.
    Obsolete,
    /// There are new tables, which must be in step first: see [`Shadow::begin_sync`].
    Loose,
    /// The write is one to a watched table, and is to be executed in software.
    Watched,
    /// There is no room for a table.
    Lacking(Lack),
}

/// The host's page behind a guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPage {
    /// Where the 4 KiB page is.
    pub hpa: Hpa,
    /// It may be written.
    pub writable: bool,
    /// It is part of 2 MiB in one piece, as is the guest's memory there.
    pub large: bool,
}

impl<S, W, C> Shadow<S, W, C>
where
    S: DerefMut<Target = [Slot]>,
    W: DerefMut<Target = [u32]>,
    C: Census,
{
    /// The frame that an entry maps, and whether it maps 2 MiB from there on.
    pub(super) fn mapped<M: TableMemory>(&self, memory: &M, at: Node) -> (u64, bool) {
        let slot = self.slot(at.table());
        let large = slot.role.level != Level::Pt;
        let step = slot.role.level.pages();
        if slot.role.direct {
            return (slot.gfn.wrapping_add(at.index() as u64 * step), large);
        }
        let source = self.source(memory, at);
        let source = source.map_or(0, |source| source.load(Ordering::Relaxed));
        let frame = route::frame_of(&slot.role, source);
        if !large {
            return (frame, false);
        }
        (route::piece(&slot.role, source, at.index()), true)
    }

    /// Puts an entry into a chain, between two others.
    fn chain_in<M: TableMemory>(&self, memory: &M, at: Node, new: Links) {
        if let Some(links) = self.links(memory, at) {
            links.store(new.pack(), Ordering::Relaxed);
        }
        if let Some(prev) = new.prev.get() {
            self.relink(memory, prev, |links| links.next = at);
        }
        if let Some(next) = new.next.get() {
            self.relink(memory, next, |links| links.prev = at);
        }
    }

    fn relink<M: TableMemory>(&self, memory: &M, at: Node, change: impl FnOnce(&mut Links)) {
        if let Some(word) = self.links(memory, at) {
            let mut links = Links::unpack(word.load(Ordering::Relaxed));
            change(&mut links);
            word.store(links.pack(), Ordering::Relaxed);
        }
    }

    pub(super) fn read_links<M: TableMemory>(&self, memory: &M, at: Node) -> Links {
        let word = self.links(memory, at);
        Links::unpack(word.map_or(u64::MAX, |word| word.load(Ordering::Relaxed)))
    }

    /// Takes an entry out of its chain; true when it was the first.
    fn chain_out<M: TableMemory>(&self, memory: &M, links: &Links) -> bool {
        if let Some(next) = links.next.get() {
            self.relink(memory, next, |other| other.prev = links.prev);
        }
        match links.prev.get() {
            Some(prev) => self.relink(memory, prev, |other| other.next = links.next),
            None => return true,
        }
        false
    }

    /// Makes an entry absent. CPUs may use it until they are flushed.
    pub(super) fn drop_entry<M: TableMemory>(&mut self, memory: &M, at: Node) {
        let Some(entry) = self.entry(memory, at) else {
            return;
        };
        let raw = entry.swap(0, Ordering::AcqRel);
        if raw == 0 {
            return;
        }
        self.stale = self.stale.wrapping_add(1);
        let links = self.read_links(memory, at);
        let first = self.chain_out(memory, &links);
        match links.child.get() {
            Some(child) => {
                if first {
                    self.slot_mut(child).parents = links.next;
                }
                self.judge(child);
            }
            None => {
                let (frame, large) = self.mapped(memory, at);
                let beside = (links.prev, links.next);
                if self.is_alone(memory, beside, raw, (frame, large)) {
                    self.tell_unmapped(raw, (frame, large));
                }
                if first {
                    *self.chain_of(frame) = links.next.raw();
                }
                let count = &mut self.counts.leaves[usize::from(large)];
                *count = count.wrapping_sub(1);
            }
        }
        self.slot_mut(at.table()).note(at.index(), false);
    }

    pub(super) fn set_source<M: TableMemory>(&self, memory: &M, at: Node, source: u64) {
        if let Some(place) = self.source(memory, at) {
            place.store(source, Ordering::Relaxed);
        }
    }

    fn put<M: TableMemory>(&mut self, memory: &M, at: Node, raw: u64) {
        if let Some(entry) = self.entry(memory, at) {
            // Release: whoever sees the entry sees what it leads to.
            entry.store(raw, Ordering::Release);
        }
        self.slot_mut(at.table()).note(at.index(), true);
    }

    /// Makes an entry refer to a table.
    fn link<M: TableMemory>(&mut self, memory: &M, at: Node, child: TableId, source: u64) {
        let Some(hpa) = self.root(child) else {
            return;
        };
        self.drop_entry(memory, at);
        self.set_source(memory, at, source);
        let links = Links {
            next: self.slot(child).parents,
            prev: Node::NONE,
            child,
        };
        self.chain_in(memory, at, links);
        self.slot_mut(child).parents = at;
        self.judge(child);
        let role = self.slot(at.table()).role;
        let pointer = role.regime.has_pointers() && role.level == Level::Pdpt;
        self.put(memory, at, entry::table(hpa, pointer));
    }

    /// Makes an entry map a page. It does not where the page is in a chain that is too long; the
    /// chain is shorter then, and an access that needs the page comes again.
    pub(super) fn map<M: TableMemory>(&mut self, memory: &M, at: Node, raw: u64, source: u64) {
        let old = self.raw(memory, at);
        let is_page = self.read_links(memory, at).child == TableId::NONE;
        if old != 0 && is_page {
            let before = self.mapped(memory, at);
            let kept = self.source(memory, at);
            let kept = kept.map_or(0, |kept| kept.load(Ordering::Relaxed));
            self.set_source(memory, at, source);
            if self.mapped(memory, at) == before && entry::is_same_page(old, raw) {
                // The same page: it stays in its chain.
                if entry::weakens(old, raw) {
                    self.stale = self.stale.wrapping_add(1);
                }
                if let Some(entry) = self.entry(memory, at) {
                    entry.store(raw, Ordering::Release);
                }
                return;
            }
            self.set_source(memory, at, kept);
        }
        self.drop_entry(memory, at);
        self.set_source(memory, at, source);
        let (frame, large) = self.mapped(memory, at);
        let (prev, next) = match self.place(memory, raw, (frame, large)) {
            // Entries of the same page are beside each other.
            Place::Behind(node) => (node, self.read_links(memory, node).next),
            Place::First(first) => {
                *self.chain_of(frame) = at.raw();
                self.tell_mapped(raw, (frame, large));
                (Node::NONE, first)
            }
            Place::TooFar(node) => return self.cut_chain(memory, node),
        };
        let child = TableId::NONE;
        self.chain_in(memory, at, Links { next, prev, child });
        self.put(memory, at, raw);
        let count = &mut self.counts.leaves[usize::from(large)];
        *count = count.wrapping_add(1);
    }

    /// The table that an entry has to refer to, made if it is not there.
    fn child<M: TableMemory>(
        &mut self,
        memory: &mut M,
        at: Node,
        source: u64,
        (gfn, role): (u64, &Role),
    ) -> Result<TableId, Lack> {
        if self.raw(memory, at) != 0 {
            if let Some(child) = self.read_links(memory, at).child.get() {
                let slot = self.slot(child);
                if slot.gfn == gfn && slot.role == *role {
                    self.set_source(memory, at, source);
                    return Ok(child);
                }
            }
        }
        let child = match self.find(gfn, role) {
            Some(child) => child,
            None => self.create(memory, gfn, role, None)?,
        };
        self.link(memory, at, child, source);
        Ok(child)
    }

    /// Maps the page of a fault. `sequence` was [`Shadow::sequence`] before the walk.
    #[allow(clippy::too_many_arguments)]
    pub fn install<M: TableMemory, G: Gather>(
        &mut self,
        memory: &mut M,
        gather: &mut G,
        root: TableId,
        sequence: u64,
        route: &Route,
        page: HostPage,
        cause: Cause,
    ) -> Installed {
        if sequence != self.sequence {
            return Installed::Obsolete;
        }
        let gfn = route.page.gpa.raw() >> 12;
        if cause.write && self.is_watched(gfn) && self.keep(memory, gather, gfn) {
            if self.policy == Policy::Exact {
                return Installed::Watched;
            }
            self.loosen(gfn);
        }
        let large = page.large && route.largest() >= Level::Pd && self.is_free_of_tables(gfn);
        let last = if large { Level::Pd } else { Level::Pt };
        let mut rights = Rights::ALL;
        let mut level = route.key.regime.top();
        let mut table = root;
        while let Some(lower) = level.lower().filter(|_| level > last) {
            let hop = route.hop(level, last, rights);
            let Target::Table { gfn, role } = hop.target else {
                break;
            };
            let at = Node::new(table, hop.index);
            table = match self.child(memory, at, hop.source, (gfn, &role)) {
                Ok(child) => child,
                Err(lack) => return Installed::Lacking(lack),
            };
            rights = role.rights;
            level = lower;
        }
        if self.policy == Policy::Exact && self.fresh != 0 {
            self.release_orphans(memory, gather);
            return Installed::Loose;
        }
        let hop = route.hop(level, last, rights);
        let grant = Grant::new(route.key.regime, route.page.rights, route.is_dirty(), cause);
        let watched = !large && self.is_watched(gfn);
        let grant = Grant {
            write: grant.write && page.writable && !watched,
            ..grant
        };
        let mask = last.pages() * 4096 - 1;
        let raw = entry::leaf(Hpa::new(page.hpa.raw() & !mask), large, grant);
        self.map(memory, Node::new(table, hop.index), raw, hop.source);
        self.release_orphans(memory, gather);
        Installed::Done(Spot {
            table,
            index: hop.index,
        })
    }

    /// The frame that an entry for a small page maps.
    pub fn frame_at<M: TableMemory>(&self, memory: &M, spot: Spot) -> Option<u64> {
        let at = Node::new(spot.table, spot.index);
        match self.mapped(memory, at) {
            (frame, false) if self.raw(memory, at) != 0 => Some(frame),
            _ => None,
        }
    }

    /// The frame that an entry of the guest's refers to, in a table of small pages that has nothing
    /// there yet. The entry [`is_used`].
    pub fn candidate<M: TableMemory>(&self, memory: &M, spot: Spot, source: u64) -> Option<u64> {
        let slot = self.slot(spot.table);
        let free = self.raw(memory, Node::new(spot.table, spot.index)) == 0;
        let small = slot.shadows() && slot.role.level == Level::Pt;
        (free && small).then(|| route::frame_of(&slot.role, source))
    }

    /// Where the pages behind one that was mapped go, as far as they have the same rights without
    /// anything of the guest's beside them, and are not there yet: so many at most.
    pub fn room_behind(&self, spot: Spot, count: usize) -> usize {
        let slot = self.slot(spot.table);
        if !slot.role.direct || slot.role.level != Level::Pt {
            return 0;
        }
        let first = spot.index + 1;
        let next = slot.next_entry(first).unwrap_or(512);
        next.saturating_sub(first).min(count)
    }

    /// Maps such a page.
    pub fn fill_direct<M: TableMemory>(&mut self, memory: &M, spot: Spot, page: HostPage) {
        let slot = self.slot(spot.table);
        let role = slot.role;
        let frame = slot.gfn.wrapping_add(spot.index as u64);
        let grant = Grant::new(role.regime, role.rights, !role.clean, Cause::NONE);
        let watched = self.is_watched(frame);
        let grant = Grant {
            write: grant.write && page.writable && !watched,
            ..grant
        };
        let raw = entry::leaf(page.hpa, false, grant);
        self.map(memory, Node::new(spot.table, spot.index), raw, 0);
    }

    /// Maps the page of an entry of the guest's in a table of small pages. It must not be used where
    /// the guest's tables may have changed since `sequence`. A write to a table lets go of that, which
    /// is a change of [`Shadow::sequence`].
    pub fn fill<M: TableMemory>(
        &mut self,
        memory: &M,
        spot: Spot,
        sequence: u64,
        source: u64,
        page: HostPage,
        cause: Cause,
    ) -> Filled {
        let slot = self.slot(spot.table);
        if sequence != self.sequence || !slot.shadows() || slot.role.level != Level::Pt {
            return Filled::Obsolete;
        }
        let role = slot.role;
        let frame = route::frame_of(&role, source);
        let mut watched = self.is_watched(frame);
        if watched && cause.write {
            if self.policy == Policy::Exact {
                return Filled::Watched;
            }
            self.loosen(frame);
            watched = false;
        }
        let dirty = source & DIRTY != 0;
        let rights = route::rights_of(&role, source);
        let grant = Grant::new(role.regime, rights, dirty, cause);
        let grant = Grant {
            write: grant.write && page.writable && !watched,
            ..grant
        };
        let raw = entry::leaf(page.hpa, false, grant);
        self.map(memory, Node::new(spot.table, spot.index), raw, source);
        Filled::Done
    }

    /// The table of small pages that an address is translated by, as far as the guest's tables above
    /// it are known: they may be others by now, as a CPU may find that keeps them in a cache of its
    /// own until it is told to forget them.
    pub fn leaf_table<M: TableMemory>(
        &self,
        memory: &M,
        root: TableId,
        gva: Gva,
    ) -> Option<LeafTable> {
        let mut id = root;
        loop {
            let slot = self.slot(id);
            let level = slot.role.level;
            if level == Level::Pt {
                let size = route::entry_bytes(&slot.role) as u64;
                let first = u64::from(slot.role.quadrant) * 512 * size;
                return slot.shadows().then_some(LeafTable {
                    table: id,
                    region: gva.raw() >> Level::Pd.shift(),
                    gpa: Gpa::new((slot.gfn << 12) + first),
                    size,
                    rights: slot.role.rights,
                });
            }
            let pointers = slot.role.regime.has_pointers();
            let at = Node::new(id, route::index(gva.raw(), level, pointers));
            if self.raw(memory, at) == 0 {
                return None;
            }
            id = self.read_links(memory, at).child.get()?;
        }
    }

    /// The end of all tables. Nothing runs on them any more, and nothing is in a TLB. What was
    /// mapped is not, the census is told.
    pub fn destroy<M: TableMemory>(mut self, memory: &mut M) -> C {
        for number in 0..self.unused {
            self.empty(memory, TableId(number as u16));
        }
        for slot in self.slots.iter_mut() {
            if let Some(frames) = slot.frames.take() {
                for frame in [frames.table, frames.sources, frames.links] {
                    memory.free(frame);
                }
            }
        }
        self.census
    }
}

/// What came of [`Shadow::fill`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The page is mapped.
    Done,
    /// The guest has changed something.
    Obsolete,
    /// It is a table's, and the write is to be executed in software.
    Watched,
}

/// A table of small pages, and the guest's beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafTable {
    table: TableId,
    region: u64,
    /// Where the guest has the entry beside the first one.
    gpa: Gpa,
    size: u64,
    /// What the tables above allow.
    rights: Rights,
}

impl LeafTable {
    /// It is the one for this address, in the same address space.
    pub fn covers(&self, gva: Gva) -> bool {
        gva.raw() >> Level::Pd.shift() == self.region
    }

    /// Where the guest's entry for an address is, and where its shadow is.
    pub fn place(&self, gva: Gva) -> (Gpa, Spot) {
        let index = (gva.raw() >> 12) % 512;
        let spot = Spot {
            table: self.table,
            index: index as usize,
        };
        (self.gpa.wrapping_add(index * self.size), spot)
    }

    /// The frame that an entry of the table refers to, and what accesses may do there.
    pub fn look(&self, state: &PagingState, entry: u64) -> Option<(Gfn, Rights)> {
        let usable = entry & PRESENT != 0 && entry & state.reserved(12, true) == 0;
        let rights = Rights {
            key: 0,
            ..route::narrowed(self.rights, entry)
        };
        usable.then(|| (Gfn::new(state.frame(entry)), rights))
    }
}

/// True for an entry of the guest's that maps a page of 4 KiB and whose accessed flag need not be
/// set before that is used.
pub const fn is_used(source: u64, reserved: u64) -> bool {
    let used = PRESENT | ACCESSED;
    source & used == used && source & reserved == 0
}

impl Spot {
    /// The place so many entries further on, in the same table.
    pub fn plus(self, entries: usize) -> Self {
        Self {
            index: (self.index + entries) % 512,
            ..self
        }
    }
}

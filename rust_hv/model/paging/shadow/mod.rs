// SPDX-License-Identifier: GPL-2.0

//! Shadow page tables: what the CPU walks in place of a guest's own tables, from guest-linear to
//! host-physical addresses.
//!
//! | File | What it holds |
//! |---|---|
//! | `mod` | the tables, their numbers and lists |
//! | `route` | from a walk of the guest's tables to a way through these |
//! | `entry` | the bits of entries |
//! | `chain` | from frames and tables back to entries |
//! | `edit` | making and dropping entries |
//! | `release` | giving up tables that are none of the guest's any more |
//! | `follow` | following the guest's changes of its tables, and the host's of its memory |
//! | `census` | which frames are mapped: for the inverted page table |
//! | `check` | whether all of it is consistent |
//!
//! # A table of ours for each of the guest's
//!
//! Each guest table that a translation went through has a shadow, found by its frame and its
//! [`route::Role`]: processes whose tables share a part share its shadow, and a root that the guest
//! comes back to is there with everything below. Beside each entry stand the guest's entry that it
//! was made of (its *source*) and its neighbours in a chain (`chain`): of all entries that map a
//! frame, or of all that refer to a table.
//!
//! # When the guest changes a table
//!
//! A shadow is *in step* or *loose*. The frame of a table that is in step is *watched*: no entry
//! lets the guest write to it. A fault that wants to is how we hear of a change. What happens then
//! is the [`Policy`]:
//!
//! * [`Policy::Virtual`], a virtual TLB: the table becomes loose, and the write goes ahead. CPUs may
//!   use old translations until they are told otherwise, and so may we. When the guest invalidates
//!   (MOV to CR3), loose tables are watched again, compared with what the guest has written, and
//!   entries with another source are dropped, or keep what rights are left of the same page:
//!   [`Shadow::begin_sync`], [`Shadow::compare`]. INVLPG does that for one entry alone, where it is
//!   known which: [`Shadow::recall`], then [`Shadow::fill`] or [`Shadow::forget`]. A new shadow is
//!   loose, so that nobody waits for a TLB flush to make one.
//! * [`Policy::Exact`], brute force: the write is executed by the hypervisor, and the entries that
//!   are made of what it changed are replaced at once. Nothing is loose but what is new, until the
//!   fault is over, and what was *pardoned*, until the guest invalidates: a table that is written by
//!   an instruction which cannot be executed here.
//!
//! Dropping what is still valid is always right: the next access brings it back.
//!
//! # When a table stops being one
//!
//! The guest does not say so. It writes something else to the frame, perhaps a page at a time, and
//! each of these writes would be one to a table. So a write to a watched frame gives up what is left
//! of tables there (`release`): at once what no entry refers to and is no root, and after a
//! few writes in a row what can only be reached from roots that no vCPU runs on. Those of a process
//! that sleeps may be among them. They are made anew when it runs.
//!
//! # Races
//!
//! A walk reads the guest's tables without a lock. [`Shadow::sequence`] changes whenever something
//! that a walk may have seen could be obsolete; what was found with an older one is not used.
//!
//! Entries that were dropped or weakened may live on in TLBs. [`Shadow::stale`] counts that, and
//! [`Shadow::flushed`] says up to where CPUs have forgotten: whoever must be sure, for instance
//! since the host is about to take a page away, flushes when the two differ, even when it finds
//! nothing to drop.
//!
//! # Bounds
//!
//! There are as many tables as the caller has given room for. When none is left, those that
//! nothing refers to go first, then the least recently used root that no vCPU runs on, and in the
//! end what is below roots in use. No method loops over more than a few tables.

mod census;
mod chain;
mod check;
mod edit;
mod entry;
mod follow;
mod release;
pub mod route;

use super::frames::{Gather, TableFrame, TableMemory, TableRef};
use super::Level;
pub use census::Census;
use chain::Node;
pub use chain::TableId;
use core::ops::DerefMut;
use core::sync::atomic::{AtomicU64, Ordering};
pub use edit::{is_used, Filled, HostPage, Installed, LeafTable, Spot};
pub use entry::Cause;
pub use follow::{is_noted, Cursor, Syncing};
use route::{Role, RootKey};

/// What a write to a watched table does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// The table is let go until the next invalidation.
    Virtual,
    /// It is executed in software.
    Exact,
}

/// Frames of a shadow table: its own, one for the sources, one for the links.
pub const FRAMES: usize = 3;
/// Frames that one fault can need: the tables below the root of four levels.
pub const RESERVE: usize = 3 * FRAMES;

/// The lists that a table can be in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    /// Loose tables of small pages.
    LooseLeaves,
    /// Loose tables of other levels.
    LooseTables,
    /// Those that nothing refers to, and that are no roots.
    Orphans,
}

#[derive(Clone, Copy)]
struct Hook {
    next: TableId,
    prev: TableId,
}

impl Hook {
    const NONE: Self = Self {
        next: TableId::NONE,
        prev: TableId::NONE,
    };
}

struct Frames {
    table: TableFrame,
    sources: TableFrame,
    links: TableFrame,
}

/// A shadow table, or room for one.
pub struct Slot {
    /// Some in use.
    frames: Option<Frames>,
    role: Role,
    gfn: u64,
    /// The next of the same hash, or the next free one.
    next: TableId,
    /// First entry that refers to it.
    parents: Node,
    /// Entries that are there, a bit each, and how many.
    present: [u64; 8],
    entries: u16,
    /// vCPUs that run on it.
    users: u32,
    /// It was a root, and is kept as one.
    root: bool,
    /// When it became a vCPU's root last.
    used: u64,
    loose: bool,
    /// Loose, and watched again, to be in step when it has been compared.
    watched: bool,
    /// [`Shadow::sequence`] when it became loose.
    since: u64,
    /// Loose since the guest has to write to it by itself.
    pardoned: bool,
    orphan: bool,
    /// Writes to the guest's table in a row that came while no vCPU could use it.
    idle_writes: u8,
    loose_hook: Hook,
    orphan_hook: Hook,
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

impl Slot {
    /// Room for a table.
    pub const fn new() -> Self {
        Self {
            frames: None,
            role: Role {
                regime: route::Regime::NONE,
                level: Level::Pt,
                quadrant: 0,
                direct: true,
                clean: false,
                rights: super::state::Rights::ALL,
            },
            gfn: 0,
            next: TableId::NONE,
            parents: Node::NONE,
            present: [0; 8],
            entries: 0,
            users: 0,
            root: false,
            used: 0,
            loose: false,
            watched: false,
            since: 0,
            pardoned: false,
            orphan: false,
            idle_writes: 0,
            loose_hook: Hook::NONE,
            orphan_hook: Hook::NONE,
        }
    }

    fn note(&mut self, index: usize, present: bool) {
        let (word, bit) = (&mut self.present[index / 64 % 8], 1 << (index % 64));
        match present {
            true => *word |= bit,
            false => *word &= !bit,
        }
        self.entries = match present {
            true => self.entries.saturating_add(1),
            false => self.entries.saturating_sub(1),
        };
    }

    /// The first entry that is there from `index` on.
    fn next_entry(&self, index: usize) -> Option<usize> {
        let mut at = index / 64;
        let mut mask = u64::MAX.checked_shl(index as u32 % 64)?;
        while let Some(word) = self.present.get(at) {
            let found = word & mask;
            if found != 0 {
                return Some(at * 64 + found.trailing_zeros() as usize);
            }
            mask = u64::MAX;
            at += 1;
        }
        None
    }

    /// The guest has a table of which this is the shadow.
    const fn shadows(&self) -> bool {
        self.frames.is_some() && !self.role.direct
    }
}

/// How much there is, and what has happened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ShadowCounts {
    /// Tables.
    pub tables: u64,
    /// Entries that map small and large pages.
    pub leaves: [u64; 2],
    /// Roots that were there when the guest came to them.
    pub root_hits: u64,
    /// Roots that had to be made.
    pub root_misses: u64,
    /// Tables given up for want of room.
    pub evictions: u64,
    /// Writes of the guest that made a table loose.
    pub loosened: u64,
    /// Loose tables that were compared with the guest's.
    pub compared: u64,
    /// Entries that were dropped as the guest's had changed.
    pub changed: u64,
    /// Tables given up since the guest has no use for them any more.
    pub released: u64,
}

/// All shadow tables of a VM. Give it to [`Shadow::destroy`]: its frames are lost otherwise.
pub struct Shadow<S, W, C> {
    policy: Policy,
    slots: S,
    /// Heads of the chains of frames, heads of the hash of tables, and how many watched tables
    /// there are in a region of 2 MiB: three arrays whose sizes are powers of two.
    words: W,
    /// Slots from here on were never used.
    unused: usize,
    free: TableId,
    heads: [TableId; 3],
    /// Loose tables that are not pardoned.
    fresh: u32,
    clock: u64,
    /// Changes with everything that makes a walk obsolete.
    pub sequence: u64,
    stale: u64,
    flushed: u64,
    /// How much there is, and what has happened.
    pub counts: ShadowCounts,
    /// Hears which of the guest's frames are mapped.
    pub census: C,
}

/// No room, or no frames, for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lack {
    /// [`Shadow::evict`] makes room.
    Room,
    /// The memory has given no frame.
    Frames,
}

/// Words that hold tables' numbers: those that hash to one place are chained.
const fn hash_words(slots: usize) -> usize {
    slots.next_power_of_two()
}

const fn chain_words(slots: usize) -> usize {
    hash_words(slots) * 8
}

const REGION_WORDS: usize = 1024;

#[inline]
const fn scatter(key: u64, size: usize) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (size - 1)
}

impl<S, W, C> Shadow<S, W, C>
where
    S: DerefMut<Target = [Slot]>,
    W: DerefMut<Target = [u32]>,
    C: Census,
{
    /// What words are before they are used.
    pub const WORD: u32 = u32::MAX;

    /// Words that go with so many slots.
    pub const fn words(slots: usize) -> usize {
        chain_words(slots) + hash_words(slots) + REGION_WORDS
    }

    /// Without a table. The slots are [`Slot::new`], the words [`Shadow::WORD`], all of them.
    /// `None` for no slots, too many of them, or another number of words than [`Shadow::words`].
    pub fn new(policy: Policy, slots: S, words: W, census: C) -> Option<Self> {
        let count = slots.len();
        if count == 0 || count > TableId::LIMIT || words.len() != Self::words(count) {
            return None;
        }
        Some(Self {
            policy,
            slots,
            words,
            unused: 0,
            free: TableId::NONE,
            heads: [TableId::NONE; 3],
            fresh: 0,
            clock: 0,
            sequence: 0,
            stale: 0,
            flushed: 0,
            counts: ShadowCounts::default(),
            census,
        })
    }

    /// What a write to a watched table does.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Something that CPUs may still use was dropped or weakened. Flush, and say so with what this
    /// has returned.
    pub fn stale(&self) -> Option<u64> {
        (self.stale != self.flushed).then_some(self.stale)
    }

    /// CPUs have forgotten what was stale at a moment.
    pub fn flushed(&mut self, stale: u64) {
        self.flushed = self.flushed.max(stale);
    }

    #[inline]
    fn slot(&self, id: TableId) -> &Slot {
        &self.slots[usize::from(id.0)]
    }

    #[inline]
    fn slot_mut(&mut self, id: TableId) -> &mut Slot {
        &mut self.slots[usize::from(id.0)]
    }

    fn frame(&self, id: TableId, which: impl Fn(&Frames) -> &TableFrame) -> Option<TableRef> {
        self.slot(id).frames.as_ref().map(|f| which(f).table())
    }

    #[inline]
    fn entry<'m, M: TableMemory>(&self, memory: &'m M, at: Node) -> Option<&'m AtomicU64> {
        let table = self.frame(at.table(), |frames| &frames.table)?;
        Some(&memory.entries(table)[at.index()])
    }

    #[inline]
    fn source<'m, M: TableMemory>(&self, memory: &'m M, at: Node) -> Option<&'m AtomicU64> {
        let table = self.frame(at.table(), |frames| &frames.sources)?;
        Some(&memory.entries(table)[at.index()])
    }

    #[inline]
    fn links<'m, M: TableMemory>(&self, memory: &'m M, at: Node) -> Option<&'m AtomicU64> {
        let table = self.frame(at.table(), |frames| &frames.links)?;
        Some(&memory.entries(table)[at.index()])
    }

    fn raw<M: TableMemory>(&self, memory: &M, at: Node) -> u64 {
        let entry = self.entry(memory, at);
        entry.map_or(0, |entry| entry.load(Ordering::Relaxed))
    }

    // Where a chain or a list begins.

    fn chain_of(&mut self, frame: u64) -> &mut u32 {
        let size = chain_words(self.slots.len());
        &mut self.words[scatter(frame, size)]
    }

    fn first_in_chain(&self, frame: u64) -> Node {
        let size = chain_words(self.slots.len());
        Node::from_raw(self.words[scatter(frame, size)])
    }

    fn hash_place(&self, gfn: u64) -> usize {
        let count = self.slots.len();
        chain_words(count) + scatter(gfn, hash_words(count))
    }

    fn hash_of(&mut self, gfn: u64) -> &mut u32 {
        let place = self.hash_place(gfn);
        &mut self.words[place]
    }

    /// One less than there are.
    fn region_of(&mut self, gfn: u64) -> &mut u32 {
        let count = self.slots.len();
        let regions = chain_words(count) + hash_words(count);
        &mut self.words[regions + scatter(gfn >> 9, REGION_WORDS)]
    }

    /// No table is in a frame's 2 MiB, nor in others that share its count.
    fn is_free_of_tables(&mut self, gfn: u64) -> bool {
        *self.region_of(gfn) == Self::WORD
    }

    // Lists.

    fn hook(&mut self, list: List, id: TableId) -> &mut Hook {
        let slot = self.slot_mut(id);
        match list {
            List::Orphans => &mut slot.orphan_hook,
            List::LooseLeaves | List::LooseTables => &mut slot.loose_hook,
        }
    }

    fn push(&mut self, list: List, id: TableId) {
        let first = self.heads[list as usize];
        *self.hook(list, id) = Hook {
            next: first,
            prev: TableId::NONE,
        };
        if let Some(first) = first.get() {
            self.hook(list, first).prev = id;
        }
        self.heads[list as usize] = id;
    }

    fn remove(&mut self, list: List, id: TableId) {
        let Hook { next, prev } = core::mem::replace(self.hook(list, id), Hook::NONE);
        if let Some(next) = next.get() {
            self.hook(list, next).prev = prev;
        }
        match prev.get() {
            Some(prev) => self.hook(list, prev).next = next,
            None => self.heads[list as usize] = next,
        }
    }

    fn loose_list(&self, id: TableId) -> List {
        match self.slot(id).role.level {
            Level::Pt => List::LooseLeaves,
            _ => List::LooseTables,
        }
    }

    fn set_loose(&mut self, id: TableId, loose: bool) {
        if self.slot(id).loose != loose {
            let since = self.sequence;
            let slot = self.slot_mut(id);
            (slot.watched, slot.since) = (false, since);
            let pardoned = core::mem::take(&mut slot.pardoned);
            self.fresh = match loose {
                true => self.fresh.wrapping_add(1),
                false => self.fresh.wrapping_sub(u32::from(!pardoned)),
            };
            self.slot_mut(id).loose = loose;
            let list = self.loose_list(id);
            match loose {
                true => self.push(list, id),
                false => self.remove(list, id),
            }
        }
    }

    /// Puts a table on the list of those that can go, or takes it off, as it is now.
    fn judge(&mut self, id: TableId) {
        let slot = self.slot(id);
        let orphan =
            slot.parents == Node::NONE && slot.users == 0 && !slot.root && slot.frames.is_some();
        if slot.orphan != orphan {
            self.slot_mut(id).orphan = orphan;
            match orphan {
                true => self.push(List::Orphans, id),
                false => self.remove(List::Orphans, id),
            }
        }
    }

    // Tables.

    /// The tables of a frame, from one of them on.
    fn next_of(&self, gfn: u64, mut id: TableId) -> Option<TableId> {
        while let Some(found) = id.get() {
            let slot = self.slot(found);
            if slot.gfn == gfn && slot.shadows() {
                return Some(found);
            }
            id = slot.next;
        }
        None
    }

    fn first_of(&mut self, gfn: u64) -> Option<TableId> {
        let first = TableId(*self.hash_of(gfn) as u16);
        self.next_of(gfn, first)
    }

    fn find(&mut self, gfn: u64, role: &Role) -> Option<TableId> {
        let mut id = TableId(*self.hash_of(gfn) as u16);
        while let Some(found) = id.get() {
            let slot = self.slot(found);
            if slot.gfn == gfn && slot.role == *role {
                return Some(found);
            }
            id = slot.next;
        }
        None
    }

    /// A new table, with the frame for the table itself if it must be a special one.
    fn create<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gfn: u64,
        role: &Role,
        special: Option<TableFrame>,
    ) -> Result<TableId, Lack> {
        let room = self.free.get().or_else(|| {
            let never_used = self.unused < self.slots.len();
            never_used.then_some(TableId(self.unused as u16))
        });
        let take = |memory: &mut M| memory.alloc();
        let frames = match room {
            None => [special, None, None],
            Some(_) => [special.or_else(|| take(memory)), take(memory), take(memory)],
        };
        let frames = match frames {
            [Some(table), Some(sources), Some(links)] => Frames {
                table,
                sources,
                links,
            },
            some => {
                some.into_iter().flatten().for_each(|f| memory.free(f));
                return Err(match room {
                    None => Lack::Room,
                    Some(_) => Lack::Frames,
                });
            }
        };
        let id = room.ok_or(Lack::Room)?;
        match self.free.get() {
            Some(_) => self.free = self.slot(id).next,
            None => self.unused += 1,
        }
        let head = self.hash_of(gfn);
        let next = TableId(*head as u16);
        *head = id.0.into();
        *self.slot_mut(id) = Slot {
            frames: Some(frames),
            role: *role,
            gfn,
            next,
            ..Slot::new()
        };
        self.counts.tables = self.counts.tables.wrapping_add(1);
        if !role.direct {
            // Until it is watched for the first time.
            self.set_loose(id, true);
            let region = self.region_of(gfn);
            *region = region.wrapping_add(1);
        }
        self.judge(id);
        Ok(id)
    }

    /// Gives up a table without entries to which nothing refers.
    fn discard<G: Gather>(&mut self, gather: &mut G, id: TableId) {
        // Its number may become another's.
        self.sequence = self.sequence.wrapping_add(1);
        let gfn = self.slot(id).gfn;
        self.set_loose(id, false);
        if self.slot(id).shadows() {
            let region = self.region_of(gfn);
            *region = region.wrapping_sub(1);
        }
        let next = self.slot(id).next;
        let head = self.hash_of(gfn);
        if *head == u32::from(id.0) {
            *head = next.0.into();
        } else {
            let mut at = TableId(*head as u16);
            while let Some(other) = at.get() {
                at = self.slot(other).next;
                if at == id {
                    self.slot_mut(other).next = next;
                    break;
                }
            }
        }
        if let Some(frames) = self.slot_mut(id).frames.take() {
            for frame in [frames.table, frames.sources, frames.links] {
                gather.table(frame);
            }
        }
        // No frames: this takes it off the list.
        self.judge(id);
        self.slot_mut(id).next = self.free;
        self.free = id;
        self.counts.tables = self.counts.tables.wrapping_sub(1);
    }

    // Roots.

    /// A root that is there. Other pointers may have been loaded from one place: then these are
    /// other roots.
    fn find_root<M: TableMemory>(&self, memory: &M, key: &RootKey, role: &Role) -> Option<TableId> {
        let mut id = TableId(self.words[self.hash_place(key.gfn)] as u16);
        while let Some(found) = id.get() {
            let slot = self.slot(found);
            let same_pointer = |(index, pointer): (usize, &u64)| {
                let source = self.source(memory, Node::new(found, index));
                source.map_or(0, |source| source.load(Ordering::Relaxed)) == *pointer
            };
            if slot.gfn == key.gfn
                && slot.role == *role
                && (!role.direct || key.pointers.iter().enumerate().all(same_pointer))
            {
                return Some(found);
            }
            id = slot.next;
        }
        None
    }

    /// The root for a vCPU, which uses it until [`Shadow::leave`]. `pointers` is a frame below 4 GiB
    /// for a root that the CPU takes for pointers; it is left where the root is there already.
    pub fn enter<M: TableMemory>(
        &mut self,
        memory: &mut M,
        key: &RootKey,
        pointers: &mut Option<TableFrame>,
    ) -> Result<TableId, Lack> {
        let role = key.role();
        let id = match self.find_root(memory, key, &role) {
            Some(id) => {
                self.counts.root_hits = self.counts.root_hits.wrapping_add(1);
                id
            }
            None => {
                let id = match key.regime.has_pointers() {
                    false => self.create(memory, key.gfn, &role, None)?,
                    true => {
                        let id = self.create(memory, key.gfn, &role, pointers.take())?;
                        for (index, pointer) in key.pointers.into_iter().enumerate() {
                            self.set_source(memory, Node::new(id, index), pointer);
                        }
                        id
                    }
                };
                self.counts.root_misses = self.counts.root_misses.wrapping_add(1);
                id
            }
        };
        self.clock = self.clock.wrapping_add(1);
        let clock = self.clock;
        let slot = self.slot_mut(id);
        slot.users = slot.users.saturating_add(1);
        slot.root = true;
        slot.idle_writes = 0;
        slot.used = clock;
        self.judge(id);
        Ok(id)
    }

    /// A vCPU does not use a root any more.
    pub fn leave(&mut self, id: TableId) {
        let slot = self.slot_mut(id);
        slot.users = slot.users.saturating_sub(1);
    }

    /// Where a root is, for CR3.
    pub fn root(&self, id: TableId) -> Option<crate::model::arch::addr::Hpa> {
        self.frame(id, |frames| &frames.table).map(TableRef::hpa)
    }
}

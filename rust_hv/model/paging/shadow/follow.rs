// SPDX-License-Identifier: GPL-2.0

//! Following the guest's changes of its tables, and the host's of its memory.

use super::chain::{Node, TableId};
use super::entry::{self, Cause, Grant};
use super::route;
use super::{Census, List, Policy, Shadow, Slot, Spot};
use crate::model::arch::addr::{Gfn, GfnRange, Gva};
use crate::model::paging::frames::TableMemory;
use crate::model::paging::state::{ACCESSED, DIRTY};
use crate::model::paging::sweep::Progress;
use crate::model::paging::Level;
use core::ops::DerefMut;
use core::sync::atomic::Ordering;

/// Entries of a chain that are looked at in one step.
pub(super) const CHAIN: usize = 4096;

/// What is done with the entries that map a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Drop,
    Protect,
}

/// Frames, and tables, of one step of a long change.
const STEP_FRAMES: usize = 512;
const STEP_TABLES: usize = 8;
/// Words of a table that are better read one by one than all together.
const FEW: u16 = 48;

/// Only flags more, which give no right by themselves.
pub const fn is_noted(old: u64, now: u64) -> bool {
    let flags = ACCESSED | DIRTY;
    now & !flags == old & !flags && now & old & flags == old & flags
}

/// Where a long change stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor(pub(super) usize);

/// A table that is being compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syncing {
    id: TableId,
    gfn: u64,
    since: u64,
    words: Option<[u64; 8]>,
}

impl Syncing {
    /// Frame of the guest's table.
    pub fn gfn(&self) -> Gfn {
        Gfn::new(self.gfn)
    }

    /// The words of it that are looked at, a bit each, where that is known and not many.
    pub fn words(&self) -> Option<[u64; 8]> {
        self.words
    }
}

impl<S, W, C> Shadow<S, W, C>
where
    S: DerefMut<Target = [Slot]>,
    W: DerefMut<Target = [u32]>,
    C: Census,
{
    fn obsolete(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// A table that is in step is in the frame: the guest does not write to it unnoticed.
    pub fn is_watched(&mut self, gfn: u64) -> bool {
        let mut next = self.first_of(gfn);
        while let Some(id) = next {
            let slot = self.slot(id);
            if !slot.loose || slot.watched {
                return true;
            }
            next = self.next_of(gfn, slot.next);
        }
        false
    }

    /// The guest may write to a frame, whatever tables are in it, until they are compared.
    pub fn loosen(&mut self, gfn: u64) {
        let mut next = self.first_of(gfn);
        let mut any = false;
        while let Some(id) = next {
            let following = self.slot(id).next;
            if self.slot(id).watched {
                // Whoever is comparing it comes too late.
                any = true;
                let since = self.sequence.wrapping_add(1);
                let slot = self.slot_mut(id);
                (slot.watched, slot.since) = (false, since);
            } else if !self.slot(id).loose {
                any = true;
                self.set_loose(id, true);
                let since = self.sequence.wrapping_add(1);
                let slot = self.slot_mut(id);
                (slot.pardoned, slot.since) = (true, since);
                self.fresh = self.fresh.wrapping_sub(1);
            }
            next = self.next_of(gfn, following);
        }
        if any {
            self.counts.loosened = self.counts.loosened.wrapping_add(1);
            self.obsolete();
        }
    }

    /// Some table that refers to others is not in step.
    pub fn has_loose_tables(&self) -> bool {
        self.heads[List::LooseTables as usize].get().is_some()
    }

    /// Watches a loose table that became so until `since`, leaving out so many: first those that
    /// refer to others, then, if `leaves`, those of small pages. When [`Shadow::stale`] says so, CPUs
    /// must be flushed before the guest's table is read for [`Shadow::compare`].
    ///
    /// It stays loose until it has been compared: another vCPU that has to have it in step meanwhile
    /// compares it as well.
    pub fn begin_sync<M: TableMemory>(
        &mut self,
        memory: &M,
        leaves: bool,
        since: u64,
        skip: usize,
    ) -> Option<Syncing> {
        let tables = self.nth_loose(List::LooseTables, since, skip);
        let id = match tables {
            Ok(id) => id,
            Err(left) if leaves => self.nth_loose(List::LooseLeaves, since, left).ok()?,
            Err(_) => return None,
        };
        let gfn = self.slot(id).gfn;
        self.slot_mut(id).watched = true;
        self.act_on(memory, gfn, Act::Protect);
        Some(Syncing {
            id,
            gfn,
            since: self.slot(id).since,
            words: self.sources_of(id),
        })
    }

    /// The words of the guest's table that the entries of its shadow are made of, if they are few.
    fn sources_of(&self, id: TableId) -> Option<[u64; 8]> {
        let slot = self.slot(id);
        if slot.entries > FEW {
            return None;
        }
        if route::entry_bytes(&slot.role) == 8 {
            return Some(slot.present);
        }
        let mut words = [0; 8];
        let mut next = 0;
        while let Some(index) = slot.next_entry(next) {
            next = index + 1;
            let (word, _) = route::source_at(&slot.role, index);
            words[word / 64 % 8] |= 1 << (word % 64);
        }
        Some(words)
    }

    /// One of a list that became loose until `since`, after so many others; or how many are left to
    /// be passed over.
    fn nth_loose(&self, list: List, since: u64, mut skip: usize) -> Result<TableId, usize> {
        let mut next = self.heads[list as usize];
        while let Some(id) = next.get() {
            let slot = self.slot(id);
            next = slot.loose_hook.next;
            if slot.since > since {
                continue;
            }
            if skip == 0 {
                return Ok(id);
            }
            skip -= 1;
        }
        Err(skip)
    }

    /// Drops the entries that were made of others than those in `words`, the guest's table as it was
    /// read since [`Shadow::begin_sync`]. Without words, all.
    pub fn compare<M: TableMemory>(
        &mut self,
        memory: &M,
        syncing: &Syncing,
        words: Option<&[u64; 512]>,
    ) {
        let slot = self.slot(syncing.id);
        if slot.gfn != syncing.gfn || !slot.shadows() {
            // Given up meanwhile.
            return;
        }
        let in_step = slot.watched && slot.since == syncing.since;
        self.counts.compared = self.counts.compared.wrapping_add(1);
        self.obsolete();
        match words {
            Some(words) => self.compare_some(memory, syncing.id, (0, words), 0..512),
            None => self.empty(memory, syncing.id),
        }
        if in_step {
            self.set_loose(syncing.id, false);
        }
    }

    /// Drops entries of a table whose sources are others by now, in the words of the guest's table
    /// from `first` on.
    fn compare_some<M: TableMemory>(
        &mut self,
        memory: &M,
        id: TableId,
        (first, words): (usize, &[u64]),
        range: core::ops::Range<usize>,
    ) {
        let role = self.slot(id).role;
        let Some(sources) = self.frame(id, |frames| &frames.sources) else {
            return;
        };
        let sources = memory.entries(sources);
        let mut next = range.start;
        while let Some(index) = self.slot(id).next_entry(next) {
            if index >= range.end {
                break;
            }
            next = index + 1;
            let (word, bit) = route::source_at(&role, index);
            let Some(word) = words.get(word.wrapping_sub(first)) else {
                continue;
            };
            let now = route::source_in(&role, *word, bit);
            let source = &sources[index % 512];
            let old = source.load(Ordering::Relaxed);
            if now == old {
                continue;
            }
            let at = Node::new(id, index);
            if is_noted(old, now) {
                source.store(now, Ordering::Relaxed);
            } else if !self.keep_page(memory, at, old, now) {
                self.drop_entry(memory, at);
                self.counts.changed = self.counts.changed.wrapping_add(1);
            }
        }
    }

    /// Keeps the entry of a small page whose source still maps that page for everybody to use, with
    /// the rights that it gives now, but for writing where the entry did not allow that.
    fn keep_page<M: TableMemory>(&mut self, memory: &M, at: Node, old: u64, now: u64) -> bool {
        let role = self.slot(at.table()).role;
        let small = role.level == Level::Pt && !role.direct;
        if !small || !role.regime.write_protect || !route::is_same_page(&role, old, now) {
            return false;
        }
        let raw = self.raw(memory, at);
        let rights = route::rights_of(&role, now);
        let grant = Grant::new(role.regime, rights, now & DIRTY != 0, Cause::NONE);
        let writable = entry::is_writable(raw);
        if grant.write && !writable && self.policy == Policy::Exact {
            // It is mapped anew at once, by someone who knows whether it may be written.
            return false;
        }
        let grant = Grant {
            write: grant.write && writable,
            ..grant
        };
        self.map(memory, at, entry::granting(raw, grant), now);
        true
    }

    /// The hypervisor has written to a frame on behalf of the guest: entries that are made of its
    /// 8-byte words from `first` on are dropped where they are others by now.
    pub fn written<M: TableMemory>(&mut self, memory: &M, gfn: u64, first: usize, words: &[u64]) {
        let mut next = self.first_of(gfn);
        if next.is_some() {
            self.obsolete();
        }
        while let Some(id) = next {
            let (role, following) = (self.slot(id).role, self.slot(id).next);
            for word in first..first + words.len() {
                let made = route::made_of(&role, word);
                self.compare_some(memory, id, (first, words), made);
            }
            next = self.next_of(gfn, following);
        }
    }

    /// The places of small pages that are made of a word of a frame's table, and what the entry of
    /// the guest's is there.
    pub fn spots(&mut self, gfn: u64, word: usize, value: u64, mut f: impl FnMut(Spot, u64)) {
        let mut next = self.first_of(gfn);
        while let Some(id) = next {
            let (role, following) = (self.slot(id).role, self.slot(id).next);
            if role.level == Level::Pt {
                for index in route::made_of(&role, word) {
                    let (_, bit) = route::source_at(&role, index);
                    f(
                        Spot { table: id, index },
                        route::source_in(&role, value, bit),
                    );
                }
            }
            next = self.next_of(gfn, following);
        }
    }

    /// INVLPG for an address whose place among the small pages is known, with no loose table that
    /// refers to others: what the entry there was made of. The guest's is to be read after this.
    pub fn recall<M: TableMemory>(&mut self, memory: &M, spot: Spot) -> Option<u64> {
        self.obsolete();
        let at = Node::new(spot.table, spot.index);
        let source = self.source(memory, at)?.load(Ordering::Relaxed);
        (self.raw(memory, at) != 0).then_some(source)
    }

    /// Drops the entry at a place, if that is still what it was at a [`Shadow::sequence`].
    pub fn forget<M: TableMemory>(&mut self, memory: &M, spot: Spot, sequence: u64) -> bool {
        let same = sequence == self.sequence;
        if same {
            self.drop_entry(memory, Node::new(spot.table, spot.index));
        }
        same
    }

    /// INVLPG, for a vCPU that runs on `root`; true when a small page was dropped, and nothing else
    /// can be in the CPU for the address. Loose tables that refer to others have to be synced, too,
    /// as their entries may be anything but leaves.
    pub fn invalidate<M: TableMemory>(&mut self, memory: &M, root: TableId, gva: Gva) -> bool {
        self.obsolete();
        let mut id = root;
        loop {
            let slot = self.slot(id);
            let role = slot.role;
            let pointers = role.regime.has_pointers();
            let at = Node::new(id, route::index(gva.raw(), role.level, pointers));
            if self.raw(memory, at) == 0 {
                self.drop_other_half(memory, at);
                return false;
            }
            let Some(child) = self.read_links(memory, at).child.get() else {
                self.drop_entry(memory, at);
                self.drop_other_half(memory, at);
                return role.level == Level::Pt && !role.direct;
            };
            // A large page in pieces goes as a whole.
            if self.slot(child).role.direct && !role.direct {
                self.drop_entry(memory, at);
                self.drop_other_half(memory, at);
                return false;
            }
            id = child;
        }
    }

    /// A large page of 32-bit paging has two entries side by side.
    fn drop_other_half<M: TableMemory>(&mut self, memory: &M, at: Node) {
        let role = self.slot(at.table()).role;
        if role.level == Level::Pd && !role.direct && route::entry_bytes(&role) == 4 {
            let other = Node::new(at.table(), at.index() ^ 1);
            if self.raw(memory, other) != 0 && self.is_large(memory, other) {
                self.drop_entry(memory, other);
            }
        }
    }

    /// The entry was made of one for a large page.
    fn is_large<M: TableMemory>(&self, memory: &M, at: Node) -> bool {
        match self.read_links(memory, at).child.get() {
            Some(child) => self.slot(child).role.direct,
            None => true,
        }
    }

    /// Does something to the entries that map a frame, by itself or in a large page.
    fn act_on<M: TableMemory>(&mut self, memory: &M, gfn: u64, act: Act) {
        self.act_on_chain(memory, gfn, false, act);
        self.act_on_chain(memory, gfn & !511, true, act);
    }

    fn act_on_chain<M: TableMemory>(&mut self, memory: &M, frame: u64, large: bool, act: Act) {
        let mut next = Node::from_raw(*self.chain_of(frame));
        let mut left = CHAIN;
        while let Some(at) = next.get() {
            // A chain that is longer than anything but malice makes it is cut: what it maps comes
            // back as it is needed.
            let act = if left == 0 { Act::Drop } else { act };
            left = left.saturating_sub(1);
            next = self.read_links(memory, at).next;
            if self.mapped(memory, at) == (frame, large) {
                self.act(memory, at, act);
            }
        }
    }

    fn act<M: TableMemory>(&mut self, memory: &M, at: Node, act: Act) {
        let raw = self.raw(memory, at);
        match act {
            Act::Drop => self.drop_entry(memory, at),
            Act::Protect if entry::is_writable(raw) => {
                if let Some(entry) = self.entry(memory, at) {
                    entry.store(entry::read_only(raw), Ordering::Release);
                }
                self.stale = self.stale.wrapping_add(1);
            }
            Act::Protect => {}
        }
    }

    /// Does something to all entries that map frames of a range, some tables at a time.
    fn sweep<M: TableMemory>(
        &mut self,
        memory: &M,
        range: GfnRange,
        act: Act,
        cursor: &mut Cursor,
    ) -> Progress {
        for _ in 0..STEP_TABLES {
            let Some(slot) = self.slots.get(cursor.0) else {
                return Progress::Done;
            };
            let id = TableId(cursor.0 as u16);
            let (level, entries) = (slot.role.level, slot.entries);
            cursor.0 += 1;
            if entries == 0 || level > Level::Pd {
                continue;
            }
            let mut next = 0;
            while let Some(index) = self.slot(id).next_entry(next) {
                next = index + 1;
                let at = Node::new(id, index);
                if self.read_links(memory, at).child != TableId::NONE {
                    continue;
                }
                let (frame, large) = self.mapped(memory, at);
                let pages = if large { 512 } else { 1 };
                if frame < range.end.raw() && range.start.raw() < frame.saturating_add(pages) {
                    self.act(memory, at, act);
                }
            }
        }
        Progress::More(Gfn::new(0))
    }

    /// Unmaps the frames of a range, in steps.
    pub fn unmap<M: TableMemory>(
        &mut self,
        memory: &M,
        range: GfnRange,
        cursor: &mut Cursor,
    ) -> Progress {
        self.over(memory, range, Act::Drop, cursor)
    }

    /// Takes the right to write from every entry that maps a frame of a range, in steps.
    pub fn protect<M: TableMemory>(
        &mut self,
        memory: &M,
        range: GfnRange,
        cursor: &mut Cursor,
    ) -> Progress {
        self.over(memory, range, Act::Protect, cursor)
    }

    /// By frames where these are fewer, by tables otherwise.
    fn over<M: TableMemory>(
        &mut self,
        memory: &M,
        range: GfnRange,
        act: Act,
        cursor: &mut Cursor,
    ) -> Progress {
        if range.len() > self.slots.len() as u64 * 64 {
            return self.sweep(memory, range, act, cursor);
        }
        self.each_frame(range, cursor, |shadow, gfn| shadow.act_on(memory, gfn, act))
    }

    /// Whether a frame of a range was used since the last time, if `clear`.
    pub fn young<M: TableMemory>(
        &mut self,
        memory: &M,
        range: GfnRange,
        cursor: &mut Cursor,
        clear: bool,
    ) -> (Progress, bool) {
        let mut young = false;
        let progress = self.each_frame(range, cursor, |shadow, gfn| {
            for (frame, large) in [(gfn, false), (gfn & !511, true)] {
                let mut at = Node::from_raw(*shadow.chain_of(frame));
                let mut left = CHAIN;
                while let (Some(node), true) = (at.get(), left > 0) {
                    left -= 1;
                    let raw = shadow.raw(memory, node);
                    if shadow.mapped(memory, node) == (frame, large) {
                        young |= raw & ACCESSED != 0;
                        if let (true, Some(entry)) = (clear, shadow.entry(memory, node)) {
                            entry.fetch_and(!ACCESSED, Ordering::Relaxed);
                        }
                    }
                    at = shadow.read_links(memory, node).next;
                }
            }
        });
        (progress, young)
    }

    /// Some of the guest's 2 MiB around a frame are mapped in small pages though a table of the guest's
    /// maps them in one piece.
    pub fn is_in_pieces(&self, gfn: Gfn) -> bool {
        let first = gfn.raw() & !511;
        let mut id = TableId(self.words[self.hash_place(first)] as u16);
        while let Some(found) = id.get() {
            let slot = self.slot(found);
            let pieces = slot.role.direct && slot.role.level == Level::Pt;
            if slot.gfn == first && pieces && slot.entries != 0 {
                return true;
            }
            id = slot.next;
        }
        false
    }

    fn each_frame(
        &mut self,
        range: GfnRange,
        cursor: &mut Cursor,
        mut f: impl FnMut(&mut Self, u64),
    ) -> Progress {
        for _ in 0..STEP_FRAMES {
            let gfn = range.start.raw().saturating_add(cursor.0 as u64);
            if gfn >= range.end.raw() || self.counts.leaves == [0; 2] {
                return Progress::Done;
            }
            f(self, gfn);
            cursor.0 += 1;
        }
        Progress::More(Gfn::new(0))
    }

    /// Drops everything, some tables at a time: all entries of roots in use, and all other tables.
    /// True when it is done.
    pub fn clear<M: TableMemory, G: super::Gather>(
        &mut self,
        memory: &M,
        gather: &mut G,
        cursor: &mut Cursor,
    ) -> bool {
        self.obsolete();
        for _ in 0..STEP_TABLES {
            let Some(slot) = self.slots.get(cursor.0) else {
                break;
            };
            let (id, used) = (TableId(cursor.0 as u16), slot.frames.is_some());
            cursor.0 += 1;
            if used {
                self.empty(memory, id);
                if self.slot(id).users == 0 {
                    self.slot_mut(id).root = false;
                    self.judge(id);
                }
            }
        }
        self.reap(memory, gather);
        cursor.0 >= self.slots.len() && self.heads[List::Orphans as usize].get().is_none()
    }
}

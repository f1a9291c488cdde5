// SPDX-License-Identifier: GPL-2.0

//! A tree of tables that hardware walks: one editor for every entry format.
//!
//! [`super::frames`] says who may free what, and when; [`super::grow`] what several may do at once.

use super::format::{Entry, Format, Leaf};
use super::frames::{Counts, Gather, TableFrame, TableMemory, TableRef, ENTRIES};
use super::Level;
use crate::model::arch::addr::{Gfn, Gpa, Hpa};
use crate::model::sync::{AtomicU64, Ordering};

/// Why a page was not mapped. The tree may have grown tables, but maps what it mapped before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// A table frame is needed and the memory gave none.
    NoTable,
    /// A guest or host address is not aligned to the size of the page.
    Misaligned,
    /// An address is wider than the tables, or outside of the region at hand.
    OutOfRange,
    /// The entry format cannot express the rights or the page size.
    Unsupported,
    /// A larger page is mapped here; see [`Table::split`].
    LargePage,
    /// Something else is mapped here, which only [`Table::map`] may replace; see [`super::grow`].
    Occupied,
}

/// What mapping a page did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapped {
    /// Nothing was mapped there.
    Fresh,
    /// The same page was already mapped with these rights.
    Unchanged,
    /// The page has got more rights. TLBs may hold the old ones; a fault on one drops it.
    Relaxed,
    /// Something else, or a mapping with other rights, went to the [`Gather`]: TLBs must be flushed.
    Replaced,
}

/// What [`Table::drain`] finds.
pub(super) enum Removed {
    Leaf(Gfn, Leaf),
    Table(TableFrame),
}

/// A tree of tables. Give it to [`Table::destroy`]: its frames are lost otherwise.
#[derive(Debug)]
pub struct Table<F: Format> {
    pub(super) format: F,
    pub(super) top: Level,
    root: TableFrame,
    pub(super) counts: Counts,
}

#[inline]
pub(super) const fn index(gpa: u64, level: Level) -> usize {
    (gpa >> level.shift()) as usize % ENTRIES
}

impl<F: Format> Table<F> {
    /// An empty tree whose root is a table of level `top`; `None` without a frame for it.
    pub fn new<M: TableMemory>(memory: &mut M, format: F, top: Level) -> Option<Self> {
        let counts = Counts {
            tables: 1,
            leaves: [0; 3],
        };
        Some(Self {
            format,
            top,
            root: memory.alloc()?,
            counts,
        })
    }

    /// Where the root table is, for the EPT pointer or CR3.
    #[inline]
    pub const fn root(&self) -> Hpa {
        self.root.hpa()
    }

    /// The entry format.
    #[inline]
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// Level of the root table.
    #[inline]
    pub const fn top(&self) -> Level {
        self.top
    }

    /// How much is mapped, and with how many tables.
    #[inline]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    #[inline]
    pub(super) const fn root_ref(&self) -> TableRef {
        self.root.table()
    }

    /// First frame number that the tree cannot map.
    #[inline]
    pub(super) const fn limit(&self) -> u64 {
        // Nine more bits than one entry of the root covers: 57 - 12 at most.
        self.top.pages() << 9
    }

    /// The mapping of the page that holds `gpa`.
    pub fn lookup<M: TableMemory>(&self, memory: &M, gpa: Gpa) -> Option<Leaf> {
        if gpa.gfn().raw() >= self.limit() {
            return None;
        }
        let mut table = self.root_ref();
        let mut level = self.top;
        loop {
            let raw = memory.entries(table)[index(gpa.raw(), level)].load(Ordering::Acquire);
            match self.format.decode(raw, level) {
                Entry::Absent => return None,
                Entry::Leaf(leaf) => return Some(leaf),
                Entry::Table(next) => table = TableRef::linked(next),
            }
            level = level.lower()?;
        }
    }

    /// [`Table::lookup`], which shows each entry on the way: level, address and what it says.
    pub fn path<M: TableMemory>(
        &self,
        memory: &M,
        gpa: Gpa,
        mut on_entry: impl FnMut(Level, Hpa, u64),
    ) -> Option<Leaf> {
        if gpa.gfn().raw() >= self.limit() {
            return None;
        }
        let mut table = self.root_ref();
        let mut level = self.top;
        loop {
            let at = index(gpa.raw(), level);
            let raw = memory.entries(table)[at].load(Ordering::Acquire);
            on_entry(level, table.hpa().wrapping_add(at as u64 * 8), raw);
            match self.format.decode(raw, level) {
                Entry::Absent => return None,
                Entry::Leaf(leaf) => return Some(leaf),
                Entry::Table(next) => table = TableRef::linked(next),
            }
            level = level.lower()?;
        }
    }

    /// Walks to the table of level `target` that has the entry for `gpa`, making what is missing.
    #[inline]
    pub(super) fn descend<M: TableMemory>(
        &self,
        memory: &mut M,
        gpa: Gpa,
        target: Level,
        added: &mut Counts,
    ) -> Result<TableRef, MapError> {
        if gpa.gfn().raw() >= self.limit() || target > self.top {
            return Err(MapError::OutOfRange);
        }
        let mut table = self.root_ref();
        let mut level = self.top;
        while level > target {
            let at = index(gpa.raw(), level);
            let raw = memory.entries(table)[at].load(Ordering::Acquire);
            table = match self.format.decode(raw, level) {
                Entry::Table(next) => TableRef::linked(next),
                Entry::Leaf(_) => return Err(MapError::LargePage),
                Entry::Absent => {
                    let frame = memory.alloc().ok_or(MapError::NoTable)?;
                    let next = frame.table();
                    // Release: whoever sees the link sees the zeroes behind it.
                    let linked = memory.entries(table)[at].compare_exchange(
                        raw,
                        self.format.table(frame.hpa()),
                        Ordering::AcqRel,
                        Ordering::Acquire,
                    );
                    if linked.is_err() {
                        // Somebody was faster. Nothing has seen the frame.
                        memory.free(frame);
                        continue;
                    }
                    added.add_table();
                    next
                }
            };
            match level.lower() {
                Some(lower) => level = lower,
                None => break,
            }
        }
        Ok(table)
    }

    /// Maps one page, in place of whatever smaller or equal pages are mapped there.
    ///
    /// Replacing tables by a large page clears them entry by entry: at most 512 for 2 MiB, at most
    /// 512 * 512 for 1 GiB.
    pub fn map<M: TableMemory, G: Gather>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        leaf: Leaf,
        gather: &mut G,
    ) -> Result<Mapped, MapError> {
        let raw = encode(self.format, gpa, &leaf)?;
        let level = leaf.size.level();
        let table = self.with_counts(|table, added| table.descend(memory, gpa, level, added))?;
        let entry = &memory.entries(table)[index(gpa.raw(), level)];
        let (mapped, detached) = install(
            self.format,
            entry,
            &leaf,
            raw,
            gpa.gfn(),
            &mut self.counts,
            gather,
        );
        if let (Some(table), Some(lower)) = (detached, level.lower()) {
            self.drain(memory, table, lower, gpa.gfn(), &mut |_, removed| {
                match removed {
                    Removed::Leaf(gfn, leaf) => gather.leaf(gfn, leaf),
                    Removed::Table(frame) => gather.table(frame),
                };
            });
            self.counts.remove_table();
            gather.table(TableFrame::unlinked(table));
        }
        Ok(mapped)
    }

    /// What shares the tree counts on its own; here it is added at once.
    #[inline]
    fn with_counts<R>(&mut self, f: impl FnOnce(&Self, &mut Counts) -> R) -> R {
        let mut counts = self.counts;
        let result = f(self, &mut counts);
        self.counts = counts;
        result
    }

    /// Cuts the large page that holds `gpa` into pages of the next smaller size, with the same
    /// rights and flags. Returns false when no large page is there.
    ///
    /// TLBs may go on using the large page: flush them before the small entries are changed, or
    /// two CPUs will see different mappings.
    pub fn split<M: TableMemory>(&mut self, memory: &mut M, gpa: Gpa) -> Result<bool, MapError> {
        let mut table = self.root_ref();
        let mut level = self.top;
        if gpa.gfn().raw() >= self.limit() {
            return Err(MapError::OutOfRange);
        }
        loop {
            let at = index(gpa.raw(), level);
            let raw = memory.entries(table)[at].load(Ordering::Acquire);
            let Some(lower) = level.lower() else {
                return Ok(false);
            };
            match self.format.decode(raw, level) {
                Entry::Absent => return Ok(false),
                Entry::Table(next) => {
                    table = TableRef::linked(next);
                    level = lower;
                }
                Entry::Leaf(leaf) => return self.split_entry(memory, table, at, raw, leaf),
            }
        }
    }

    fn split_entry<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: TableRef,
        at: usize,
        mut raw: u64,
        mut leaf: Leaf,
    ) -> Result<bool, MapError> {
        let level = leaf.size.level();
        let Some(size) = leaf.size.smaller() else {
            return Ok(false);
        };
        let frame = memory.alloc().ok_or(MapError::NoTable)?;
        loop {
            for (i, entry) in (0u64..).zip(memory.entries(frame.table())) {
                let part = Leaf {
                    hpa: leaf.hpa.wrapping_add(i.wrapping_mul(size.bytes())),
                    size,
                    ..leaf
                };
                // What a large page could say, a small one can.
                entry.store(self.format.leaf(&part).unwrap_or(0), Ordering::Relaxed);
            }
            // Used, if it was: the parts have the flags of the whole.
            let link = self.format.table(frame.hpa()) | raw & self.format.accessed_mask();
            let linked = memory.entries(table)[at].compare_exchange(
                raw,
                link,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            let Err(now) = linked else { break };
            // Hardware has set a flag: the parts inherit it.
            raw = now;
            leaf = match self.format.decode(now, level) {
                Entry::Leaf(leaf) => leaf,
                Entry::Absent | Entry::Table(_) => {
                    memory.free(frame);
                    return Ok(false);
                }
            };
        }
        self.counts.add_table();
        self.counts.remove_leaf(leaf.size);
        self.counts.add_leaves(size, ENTRIES as u64);
        Ok(true)
    }

    /// Clears a table and everything below it. The table itself stays with the caller.
    pub(super) fn drain<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: TableRef,
        level: Level,
        base: Gfn,
        out: &mut impl FnMut(&mut M, Removed),
    ) {
        for at in 0..ENTRIES {
            let entry = &memory.entries(table)[at];
            if entry.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let raw = entry.swap(0, Ordering::AcqRel);
            let gfn = Gfn::new(base.raw() | (at as u64) << (level.shift() - 12));
            match (self.format.decode(raw, level), level.lower()) {
                (Entry::Absent, _) => {}
                (Entry::Leaf(leaf), _) => {
                    self.counts.remove_leaf(leaf.size);
                    out(memory, Removed::Leaf(gfn, leaf));
                }
                (Entry::Table(child), Some(lower)) => {
                    self.drain(memory, TableRef::linked(child), lower, gfn, out);
                    self.counts.remove_table();
                    out(
                        memory,
                        Removed::Table(TableFrame::unlinked(TableRef::linked(child))),
                    );
                }
                (Entry::Table(_), None) => {}
            }
        }
    }

    /// Frees every table, and tells which pages were mapped.
    ///
    /// No CPU may be able to use the tree any more, and TLBs must be flushed. Long work on a large
    /// tree: a [`Table::zap`] with a budget before it leaves little to do here.
    pub fn destroy<M: TableMemory>(mut self, memory: &mut M, mut on_leaf: impl FnMut(Gfn, Leaf)) {
        let (root, top) = (self.root_ref(), self.top);
        self.drain(memory, root, top, Gfn::new(0), &mut |memory, removed| {
            match removed {
                Removed::Leaf(gfn, leaf) => on_leaf(gfn, leaf),
                Removed::Table(frame) => memory.free(frame),
            };
        });
        memory.free(self.root);
    }
}

/// Checks a mapping and encodes it.
// As a call it is a tenth of what a lone fault costs in here.
#[inline(always)]
pub(super) fn encode<F: Format>(format: F, gpa: Gpa, leaf: &Leaf) -> Result<u64, MapError> {
    let low = leaf.size.bytes() - 1;
    if (gpa.raw() | leaf.hpa.raw()) & low != 0 {
        return Err(MapError::Misaligned);
    }
    if leaf.hpa.raw() & !format.address_mask() != 0 {
        return Err(MapError::OutOfRange);
    }
    format.leaf(leaf).ok_or(MapError::Unsupported)
}

/// The entries of pages that differ in their addresses alone: what they have in common is worked out
/// once.
#[derive(Clone, Copy)]
pub(super) struct Stencil {
    raw: u64,
    /// Bits that an address may have.
    address: u64,
    low: u64,
}

impl Stencil {
    /// For pages like one, wherever that is itself.
    pub(super) fn new<F: Format>(format: F, like: &Leaf) -> Result<Self, MapError> {
        let low = like.size.bytes() - 1;
        let like = Leaf {
            hpa: Hpa::new(0),
            ..*like
        };
        Ok(Self {
            raw: encode(format, Gpa::new(0), &like)?,
            address: format.address_mask() & !low,
            low,
        })
    }

    /// What [`encode`] says of the page at `hpa`.
    #[inline]
    pub(super) fn at(&self, hpa: Hpa) -> Result<u64, MapError> {
        let bits = hpa.raw();
        match bits & !self.address {
            0 => Ok(self.raw | bits),
            wrong if wrong & self.low != 0 => Err(MapError::Misaligned),
            _ => Err(MapError::OutOfRange),
        }
    }
}

/// Writes a leaf entry. A table that it replaces is returned, unlinked but not drained.
#[inline]
fn install<F: Format, G: Gather>(
    format: F,
    entry: &AtomicU64,
    leaf: &Leaf,
    new: u64,
    gfn: Gfn,
    counts: &mut Counts,
    gather: &mut G,
) -> (Mapped, Option<TableRef>) {
    let level = leaf.size.level();
    let mut old = entry.load(Ordering::Acquire);
    loop {
        let found = format.decode(old, level);
        let (raw, mapped) = match &found {
            Entry::Absent => (new, Mapped::Fresh),
            // Whoever made it writable has told of the write.
            Entry::Leaf(was)
                if leaf.tracked && was.same_memory(leaf) && was.perms.contains(leaf.perms) =>
            {
                return (Mapped::Unchanged, None);
            }
            Entry::Leaf(was) if was.same_memory(leaf) && leaf.perms.contains(was.perms) => {
                let raw = new | old & format.kept_flags(leaf);
                if raw == old {
                    return (Mapped::Unchanged, None);
                }
                (raw, Mapped::Relaxed)
            }
            Entry::Leaf(_) | Entry::Table(_) => (new, Mapped::Replaced),
        };
        match entry.compare_exchange(old, raw, Ordering::AcqRel, Ordering::Acquire) {
            Err(now) => old = now,
            Ok(_) => {
                let detached = match found {
                    Entry::Table(table) => Some(TableRef::linked(table)),
                    Entry::Leaf(was) => {
                        counts.remove_leaf(was.size);
                        if mapped == Mapped::Replaced {
                            gather.leaf(gfn, was);
                        }
                        None
                    }
                    Entry::Absent => None,
                };
                counts.add_leaves(leaf.size, 1);
                return (mapped, detached);
            }
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The inverted page table: from a host frame to the guests that have it mapped.
//!
//! One table for all VMs. It grows with the frames that guests use, and not with the size of
//! anybody's address space.
//!
//! # What an entry says
//!
//! An entry is 16 bytes: a *cluster* of 16 neighbouring pages of one size, aligned to their sum; one
//! bit for each of them that is mapped; who maps it (the *owner*, a number for a VM); and how far
//! guest and host frame number are apart. Pages that are neighbours in the host and in the guest
//! share an entry; any other has one of its own. A large page is one page of its size, so that an
//! inner frame is found by asking for each size in turn.
//!
//! Rights, accessed and dirty flags are not repeated here. Hardware changes them without telling
//! anyone, so the forward table is the only place where they are right; and an entry leads there.
//!
//! # How it is hashed
//!
//! A *line* is a cache line: four entries, or three and a link to the next line of a chain. A *page*
//! is 64 lines. The hash of a cluster gives a line number in its page (its *group*), and the page.
//! Aliases (mappings of a frame by another owner or at another guest frame) hash to the same chain.
//! Chains have no holes but in their last line.
//!
//! Each group grows on its own, by linear hashing: it uses its line in the first `pages` pages, and
//! takes one page more, which splits one chain in two, when it has more than [`LOAD`] entries for
//! two pages. It gives one back when there is next to nothing left in them. Splitting allocates
//! nothing: what the two chains need was in the one.
//!
//! # Locks and memory
//!
//! A lock for each group ([`Locks::group`]), under which lines are read and written, and a leaf
//! ([`Locks::spare`]) for the lines that no chain uses. Frames for those come from
//! [`TableMemory::alloc`] under a group's lock, from what the caller has set aside: at most one for
//! each [`LINES`] entries that a call of [`Inverted::add`] makes. Pages are added
//! ([`Inverted::grow`]) and given back ([`Inverted::trim`]) with no lock held, by one caller at a
//! time.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::model::arch::addr::{Gfn, Hpa, PAGE_SHIFT};
use crate::model::paging::frames::{TableFrame, TableMemory, TableRef, ENTRIES};
use crate::model::paging::PageSize;

mod lines;
use lines::{
    close, each_entry, free_chain_frames, give_lines, is_entry, take_line, Line, Lines, Tail,
    SLOTS, WORDS,
};
pub use lines::{Spare, LINES};

/// Groups, each with a lock: as many as there are lines in a page.
pub const GROUPS: usize = 64;
/// Entries of a group for each two pages, above which it grows.
pub const LOAD: u32 = 6;
/// Pages that an entry can cover.
pub const CLUSTER: u64 = 16;
/// Owners are below this.
pub const MAX_OWNERS: usize = 1 << 16;

/// The bits of a first word that say which pages of the cluster are mapped.
const MASK: u64 = 0xffff;
const SIZE_SHIFT: u32 = 62;
/// In the first word of every entry: the cluster at 0 is one, too.
const USED: u64 = 1 << 61;
/// Bits of a frame number, the guest's or the host's.
const FRAME_BITS: u32 = 52 - PAGE_SHIFT;
const FRAME_MASK: u64 = (1 << FRAME_BITS) - 1;
const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

/// A number for a VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner(u16);

impl Owner {
    /// The owner of a number.
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    #[inline]
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// A page that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Alias {
    /// By whom.
    pub owner: Owner,
    /// First guest frame.
    pub gfn: Gfn,
    /// First byte in the host.
    pub hpa: Hpa,
    /// Size of the page.
    pub size: PageSize,
}

/// Consecutive pages of one size: consecutive in the host and in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First guest frame.
    pub gfn: Gfn,
    /// First byte in the host.
    pub hpa: Hpa,
    /// Size of each page.
    pub size: PageSize,
    /// How many.
    pub count: u64,
}

impl Run {
    /// One page.
    #[inline]
    pub const fn page(gfn: Gfn, hpa: Hpa, size: PageSize) -> Self {
        Self {
            gfn,
            hpa,
            size,
            count: 1,
        }
    }

    /// Takes in a page that continues the run; false if it does not.
    #[inline]
    pub fn extend(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize) -> bool {
        let pages = self.count << (size.level().shift() - PAGE_SHIFT);
        let next = self.size == size
            && hpa.raw() == self.hpa.raw().wrapping_add(pages << PAGE_SHIFT)
            && gfn.raw() == self.gfn.raw().wrapping_add(pages);
        self.count += u64::from(next);
        next
    }
}

/// What adding found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Added {
    /// Pages that were not in the table before.
    pub fresh: u64,
    /// Another owner has one of the pages mapped, too.
    pub shared: bool,
}

/// No frame for another line was to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoFrame;

/// What a group's lock protects beside the group's lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// Pages whose line it uses.
    pages: u32,
    /// Entries in them.
    entries: u32,
    /// Lines beyond the first in chains.
    links: u32,
    /// Mapped pages of each size.
    mapped: [u64; 3],
}

/// The locks of a table.
pub trait Locks {
    /// Calls `f` with a group's lock held; `index` is below [`GROUPS`].
    fn group<R>(&self, index: usize, f: impl FnOnce(&mut Group) -> R) -> R;

    /// Calls `f` with the lock of the free lines held, inside of a group's lock.
    fn spare<R>(&self, f: impl FnOnce(&mut Spare) -> R) -> R;
}

/// A cluster: page size and number, as the first word of its entries has them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(u64);

impl Key {
    #[inline]
    fn of(hpa: Hpa, size: PageSize) -> Self {
        let cluster = (hpa.raw() >> size.level().shift()) / CLUSTER;
        Self((size as u64) << SIZE_SHIFT | USED | cluster << MASK.count_ones())
    }

    fn size(self) -> PageSize {
        match self.0 >> SIZE_SHIFT {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    /// First byte of a page of the cluster.
    fn hpa(self, page: u32) -> Hpa {
        let cluster = (self.0 & (USED - 1)) >> MASK.count_ones();
        let number = cluster * CLUSTER + u64::from(page);
        Hpa::new(number << self.size().level().shift())
    }
}

/// The second word of an entry: owner, and what the guest's frame number is above the host's.
#[inline]
const fn meaning(owner: Owner, gfn: Gfn, hpa: Hpa) -> u64 {
    let distance = gfn.raw().wrapping_sub(hpa.raw() >> PAGE_SHIFT) & FRAME_MASK;
    (owner.0 as u64) << FRAME_BITS | distance
}

#[inline]
const fn owner_of(second: u64) -> Owner {
    Owner((second >> FRAME_BITS) as u16)
}

/// The page of an entry.
fn alias(first: u64, second: u64, page: u32) -> Alias {
    let key = Key(first & !MASK);
    let hpa = key.hpa(page);
    let gfn = (hpa.raw() >> PAGE_SHIFT).wrapping_add(second) & FRAME_MASK;
    Alias {
        owner: owner_of(second),
        gfn: Gfn::new(gfn),
        hpa,
        size: key.size(),
    }
}

/// A cluster's place: group, and what the page is computed from.
#[derive(Clone, Copy)]
struct Place {
    group: usize,
    hash: u32,
}

impl Place {
    /// The page among so many, at least one. (W. Litwin, "Linear hashing", VLDB 1980.)
    #[inline]
    fn page(self, pages: u32) -> u32 {
        // Below the next power of two, or of half of that where it is not there yet.
        let mask = u32::MAX.wrapping_shr(pages.leading_zeros());
        match self.hash & mask {
            page if page < pages => page,
            page => page & (mask >> 1),
        }
    }
}

/// How much is in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Mapped pages of each size, aliases counted each.
    pub mapped: [u64; 3],
    /// Entries.
    pub entries: u64,
    /// Lines beyond the first in chains.
    pub links: u64,
    /// Frames that the table is made of.
    pub frames: u64,
}

/// The table. Give it to [`Inverted::destroy`]: its frames are lost otherwise.
pub struct Inverted {
    /// Multiplier of the hash.
    seed: u64,
    /// Addresses of frames with addresses of pages.
    root: [AtomicU64; ENTRIES],
    /// Pages there are.
    pages: AtomicU32,
    /// A group would like one more.
    wanted: AtomicBool,
    /// Somebody adds pages or takes some away.
    resizing: AtomicBool,
    /// Sizes of pages that were ever added: a bit each.
    sizes: AtomicU32,
}

impl Inverted {
    /// An empty table. The seed should be nobody's to know: who knows it can choose frames that
    /// hash to the same place.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed: seed | 1,
            root: [const { AtomicU64::new(0) }; ENTRIES],
            pages: AtomicU32::new(0),
            wanted: AtomicBool::new(false),
            resizing: AtomicBool::new(false),
            sizes: AtomicU32::new(0),
        }
    }

    #[inline]
    fn place(&self, key: Key) -> Place {
        let product = u128::from(key.0 >> MASK.count_ones()) * u128::from(self.seed);
        let hash = (product >> 64) as u64 ^ product as u64;
        Place {
            group: (hash >> 58) as usize % GROUPS,
            hash: (hash >> 16) as u32,
        }
    }

    /// The line of a group in a page that is there.
    #[inline]
    fn line<'a, M: TableMemory>(&self, memory: &'a M, group: usize, page: u32) -> Line<'a> {
        let (upper, lower) = (page as usize / ENTRIES, page as usize % ENTRIES);
        let directory = Hpa::new(self.root[upper % ENTRIES].load(Ordering::Acquire));
        let page = memory.entries(TableRef::linked(directory))[lower].load(Ordering::Acquire);
        Line {
            words: memory.entries(TableRef::linked(Hpa::new(page))),
            at: group * WORDS,
            address: page + (group * WORDS * 8) as u64,
        }
    }

    /// Pages there are: no group has more chains.
    #[inline]
    pub fn pages(&self) -> u32 {
        self.pages.load(Ordering::Acquire)
    }

    /// True when [`Inverted::grow`] should be called soon.
    #[inline]
    pub fn is_short(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Adds the pages of a run; those that are there already stay as they are.
    pub fn add<M: TableMemory, L: Locks>(
        &self,
        memory: &mut M,
        locks: &L,
        owner: Owner,
        run: &Run,
    ) -> Result<Added, NoFrame> {
        let mut added = Added::default();
        let mut own = Lines::default();
        let seen = 1 << run.size as u32;
        if self.sizes.load(Ordering::Relaxed) & seen == 0 {
            self.sizes.fetch_or(seen, Ordering::Relaxed);
        }
        let result = pieces(run).try_for_each(|(key, mask)| {
            let entry = (key.0 | mask, meaning(owner, run.gfn, run.hpa));
            let here = self.add_entry(memory, locks, &mut own, entry)?;
            added.fresh += here.fresh;
            added.shared |= here.shared;
            Ok(())
        });
        give_lines(memory, locks, own);
        result.map(|()| added)
    }

    fn add_entry<M: TableMemory, L: Locks>(
        &self,
        memory: &mut M,
        locks: &L,
        own: &mut Lines,
        (first, second): (u64, u64),
    ) -> Result<Added, NoFrame> {
        let (key, mask) = (Key(first & !MASK), first & MASK);
        let place = self.place(key);
        locks.group(place.group, |group| {
            if group.pages == 0 {
                group.pages = self.pages.load(Ordering::Acquire).min(1);
                if group.pages == 0 {
                    return Err(NoFrame);
                }
            }
            let (mut shared, mut found) = (false, None);
            let mut line = self.line(memory, place.group, place.page(group.pages));
            loop {
                for slot in 0..SLOTS {
                    let (word, says) = line.get(slot);
                    if word & !MASK != key.0 {
                        continue;
                    }
                    if says == second {
                        found = Some(word);
                        line.set(slot, (word | mask, says));
                    } else if owner_of(says) != owner_of(second) {
                        shared |= word & mask != 0;
                    }
                }
                match line.link() {
                    Some(next) => line = Line::at(memory, next),
                    None => break,
                }
            }
            let fresh = mask & !found.unwrap_or(0);
            if found.is_none() {
                // Only the last line has room, if any.
                if let Some(slot) = line.free_slot() {
                    line.set(slot, (first, second));
                } else {
                    let address = line.address;
                    let more = take_line(memory, locks, own)?;
                    let more = Line::at(memory, more);
                    Tail(Line::at(memory, address)).put((first, second), || Some(more));
                    group.links += 1;
                }
                group.entries += 1;
                self.widen(memory, locks, place.group, group);
            }
            let fresh = u64::from(fresh.count_ones());
            group.mapped[key.size() as usize] += fresh;
            Ok(Added { fresh, shared })
        })
    }

    /// Takes the pages of a run away; tells how many of them were there.
    pub fn remove<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        owner: Owner,
        run: &Run,
    ) -> u64 {
        let second = meaning(owner, run.gfn, run.hpa);
        let mut own = Lines::default();
        let mut removed = 0;
        for (key, mask) in pieces(run) {
            removed += self.remove_entry(memory, locks, &mut own, (key.0 | mask, second));
        }
        give_lines(memory, locks, own);
        removed
    }

    fn remove_entry<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        own: &mut Lines,
        (first, second): (u64, u64),
    ) -> u64 {
        let (key, mask) = (Key(first & !MASK), first & MASK);
        let place = self.place(key);
        locks.group(place.group, |group| {
            if group.pages == 0 {
                return 0;
            }
            let mut line = self.line(memory, place.group, place.page(group.pages));
            let mut before = None;
            let (hole, gone) = loop {
                let same = |&slot: &usize| {
                    let (word, says) = line.get(slot);
                    word & !MASK == key.0 && says == second
                };
                if let Some(slot) = (0..SLOTS).find(same) {
                    let word = line.get(slot).0;
                    let left = word & !mask;
                    let entry = if left & MASK == 0 {
                        (0, 0)
                    } else {
                        (left, second)
                    };
                    line.set(slot, entry);
                    break ((entry.0 == 0).then_some((line, slot)), word & mask);
                }
                let Some(next) = line.link() else { return 0 };
                before = Some(line);
                line = Line::at(memory, next);
            };
            if let Some((line, slot)) = hole {
                group.entries = group.entries.saturating_sub(1);
                if close(memory, before, line, slot, own) {
                    group.links = group.links.saturating_sub(1);
                }
                self.narrow(memory, place.group, group);
            }
            let gone = u64::from(gone.count_ones());
            let mapped = &mut group.mapped[key.size() as usize];
            *mapped = mapped.saturating_sub(gone);
            gone
        })
    }

    /// Calls `f` for each mapping of the frame that holds a host address. A group's lock is held
    /// meanwhile: `f` may take no lock that others hold while they change the table.
    pub fn for_each_alias<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        hpa: Hpa,
        mut f: impl FnMut(Alias),
    ) {
        let sizes = self.sizes.load(Ordering::Relaxed);
        for size in SIZES {
            if sizes & 1 << size as u32 == 0 {
                continue;
            }
            let key = Key::of(hpa, size);
            let place = self.place(key);
            let page = ((hpa.raw() >> size.level().shift()) % CLUSTER) as u32;
            locks.group(place.group, |group| {
                if group.pages == 0 {
                    return;
                }
                let start = self.line(memory, place.group, place.page(group.pages));
                each_entry(memory, start, |first, second| {
                    if first & !MASK == key.0 && first & 1 << page != 0 {
                        f(alias(first, second, page));
                    }
                });
            });
        }
    }

    /// True when this very mapping is in the table.
    pub fn contains<M: TableMemory, L: Locks>(&self, memory: &M, locks: &L, what: &Alias) -> bool {
        let key = Key::of(what.hpa, what.size);
        let place = self.place(key);
        let second = meaning(what.owner, what.gfn, what.hpa);
        let bit = 1 << ((what.hpa.raw() >> what.size.level().shift()) % CLUSTER);
        let mut there = false;
        locks.group(place.group, |group| {
            if group.pages > 0 {
                let start = self.line(memory, place.group, place.page(group.pages));
                each_entry(memory, start, |first, says| {
                    there |= first & !MASK == key.0 && says == second && first & bit != 0;
                });
            }
        });
        there
    }

    /// Calls `f` for the mappings in one chain of a group, as a step through all of the table;
    /// false when the group has no such chain. A group's lock is held meanwhile. The table may
    /// change between two steps: what a chain that is split then holds may be seen twice or not.
    pub fn for_each_in<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        group: usize,
        chain: u32,
        mut f: impl FnMut(Alias),
    ) -> bool {
        let index = group % GROUPS;
        locks.group(index, |group| {
            if chain >= group.pages {
                return false;
            }
            each_entry(memory, self.line(memory, index, chain), |first, second| {
                let mut pages = first & MASK;
                while pages != 0 {
                    f(alias(first, second, pages.trailing_zeros()));
                    pages &= pages - 1;
                }
            });
            true
        })
    }

    /// How much is in the table.
    pub fn usage<L: Locks>(&self, locks: &L) -> Usage {
        let mut usage = Usage::default();
        for index in 0..GROUPS {
            let group = locks.group(index, |group| *group);
            usage.entries += u64::from(group.entries);
            usage.links += u64::from(group.links);
            for (sum, pages) in usage.mapped.iter_mut().zip(group.mapped) {
                *sum += pages;
            }
        }
        let pages = u64::from(self.pages.load(Ordering::Relaxed));
        let frames = locks.spare(|spare| spare.frames);
        usage.frames = pages + pages.div_ceil(ENTRIES as u64) + frames;
        usage
    }

    /// Uses one page more in a group that is full, if there is one.
    fn widen<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        index: usize,
        group: &mut Group,
    ) {
        if group.entries.saturating_mul(2) <= group.pages.saturating_mul(LOAD) {
            return;
        }
        if group.pages >= self.pages.load(Ordering::Acquire) {
            // Written by many: not when it is so already.
            if !self.is_short() {
                self.wanted.store(true, Ordering::Relaxed);
            }
            return;
        }
        let fresh = group.pages;
        group.pages += 1;
        let new = self.line(memory, index, fresh);
        let old = self.line(memory, index, fresh - (1 << fresh.ilog2()));
        let mut spare = Lines::default();
        let mut tails = [Tail(old), Tail(new)];
        let mut next = Some(old);
        while let Some(line) = next {
            let entries: [_; SLOTS] = core::array::from_fn(|slot| line.get(slot));
            next = line.link().map(|address| Line::at(memory, address));
            if line.address == old.address {
                line.wipe();
            } else {
                spare.push(line);
            }
            for entry in entries.into_iter().filter(|&(word, _)| is_entry(word)) {
                let moves = self.place(Key(entry.0 & !MASK)).page(group.pages) == fresh;
                // n entries take no more lines in two chains than in one, beside the second's first.
                tails[usize::from(moves)].put(entry, || spare.pop(memory));
            }
        }
        group.links = group.links.saturating_sub(spare.count as u32);
        give_lines(memory, locks, spare);
    }

    /// Stops using pages of a group that has next to nothing in them.
    fn narrow<M: TableMemory>(&self, memory: &M, index: usize, group: &mut Group) {
        while group.pages > 1 && group.entries.saturating_mul(2) < group.pages {
            let last = group.pages - 1;
            let from = self.line(memory, index, last);
            let to = self.line(memory, index, last - (1 << last.ilog2()));
            // Nothing can be allocated here: chains of more lines stay until they are shorter.
            let used = |line: &Line<'_>| (0..SLOTS).filter(|&slot| line.get(slot).0 != 0).count();
            if from.link().or(to.link()).is_some() || used(&from) + used(&to) > SLOTS {
                return;
            }
            for slot in 0..SLOTS {
                let entry = from.get(slot);
                if entry.0 != 0 {
                    Tail(to).put(entry, || None);
                }
            }
            from.wipe();
            group.pages = last;
        }
    }

    fn begin_resizing(&self) -> bool {
        !self.resizing.swap(true, Ordering::Acquire)
    }

    fn end_resizing(&self) {
        self.resizing.store(false, Ordering::Release);
    }

    /// Adds a page. Does nothing where somebody else is about to, or where there can be no more;
    /// chains get longer then.
    pub fn grow<M: TableMemory>(&self, memory: &mut M) -> Result<(), NoFrame> {
        if !self.begin_resizing() {
            return Ok(());
        }
        let result = self.add_page(memory);
        self.end_resizing();
        result
    }

    fn add_page<M: TableMemory>(&self, memory: &mut M) -> Result<(), NoFrame> {
        self.wanted.store(false, Ordering::Relaxed);
        let number = self.pages.load(Ordering::Relaxed);
        let (upper, lower) = (number as usize / ENTRIES, number as usize % ENTRIES);
        let Some(root) = self.root.get(upper) else {
            return Ok(());
        };
        let page = memory.alloc().ok_or(NoFrame)?;
        if root.load(Ordering::Relaxed) == 0 {
            let Some(directory) = memory.alloc() else {
                memory.free(page);
                return Err(NoFrame);
            };
            root.store(directory.hpa().raw(), Ordering::Release);
        }
        let directory = TableRef::linked(Hpa::new(root.load(Ordering::Relaxed)));
        memory.entries(directory)[lower].store(page.hpa().raw(), Ordering::Release);
        self.pages.store(number + 1, Ordering::Release);
        Ok(())
    }

    /// Frees pages that no group uses any more, all but one, and the lines of chains when no chain
    /// uses any.
    pub fn trim<M: TableMemory, L: Locks>(&self, memory: &mut M, locks: &L) {
        if !self.begin_resizing() {
            return;
        }
        loop {
            let pages = self.pages.load(Ordering::Relaxed);
            let Some(last) = pages.checked_sub(1).filter(|&last| last > 0) else {
                break;
            };
            // From here on no group takes the page; what had it before is seen under its lock.
            self.pages.store(last, Ordering::Release);
            if (0..GROUPS).any(|index| locks.group(index, |group| group.pages > last)) {
                self.pages.store(pages, Ordering::Release);
                break;
            }
            self.free_page(memory, last as usize);
        }
        self.end_resizing();
        let idle = locks.spare(|spare| {
            let all = spare.free.count == spare.frames * LINES as u64;
            all.then(|| core::mem::take(spare))
        });
        if let Some(idle) = idle {
            free_chain_frames(memory, idle);
        }
    }

    fn free_page<M: TableMemory>(&self, memory: &mut M, number: usize) {
        let (root, lower) = (&self.root[number / ENTRIES % ENTRIES], number % ENTRIES);
        let directory = TableRef::linked(Hpa::new(root.load(Ordering::Relaxed)));
        let page = memory.entries(directory)[lower].swap(0, Ordering::Relaxed);
        memory.free(TableFrame::unlinked(TableRef::linked(Hpa::new(page))));
        if lower == 0 {
            root.store(0, Ordering::Relaxed);
            memory.free(TableFrame::unlinked(directory));
        }
    }

    /// Frees everything, whatever is in the table. It is as new then; nobody may use it meanwhile.
    pub fn destroy<M: TableMemory, L: Locks>(&mut self, memory: &mut M, locks: &L) {
        for number in (0..self.pages.swap(0, Ordering::Relaxed) as usize).rev() {
            self.free_page(memory, number);
        }
        let spare = locks.spare(core::mem::take);
        free_chain_frames(memory, spare);
        (0..GROUPS).for_each(|index| locks.group(index, |group| *group = Group::default()));
    }
}

/// The clusters of a run, and which of their pages are in it.
fn pieces(run: &Run) -> impl Iterator<Item = (Key, u64)> {
    let Run {
        mut hpa,
        size,
        count: mut left,
        ..
    } = *run;
    core::iter::from_fn(move || {
        let first = (hpa.raw() >> size.level().shift()) % CLUSTER;
        let pages = left.min(CLUSTER - first);
        if pages == 0 {
            return None;
        }
        let piece = (Key::of(hpa, size), (MASK >> (CLUSTER - pages)) << first);
        hpa = hpa.wrapping_add(pages << size.level().shift());
        left -= pages;
        Some(piece)
    })
}

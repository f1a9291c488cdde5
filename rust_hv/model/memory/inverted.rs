// SPDX-License-Identifier: GPL-2.0

//! The inverted page table: from a host frame to the guests that have it mapped.
//!
//! One table for all VMs. It grows with the frames that guests use, and not with the size of
//! anybody's address space.
//!
//! # What an entry says
//!
//! An entry is 16 bytes: a *cluster* of 16 neighbouring pages of one size, aligned to their sum; one
//! bit for each of them that is mapped; who maps it (the *owner*, a number for a VM); and which guest
//! frames they are. These go up with the host's, and then the entry has the difference of the two,
//! or they go down, and then it has their sum: the host hands out free pages in the order in which
//! they were freed or in the opposite one. Pages that are neighbours in the host and in the guest so
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

mod entry;
mod lines;
use entry::{ones, pieces, shift_of, Key, Likeness, Meaning, Piece, Sought, MASK, PHYS_BITS};
use lines::{
    add_lines, close, each_entry, free_chain_frames, give_lines, is_entry, only_key, release_lines,
    take_line, Line, Lines, Tail, SLOTS, WORDS,
};
pub use lines::{Spare, LINES};

/// Groups, each with a lock: as many as there are lines in a page.
pub const GROUPS: usize = 64;
/// Entries of a group for each two pages, above which it grows.
pub const LOAD: u32 = 4;
/// Pages that an entry can cover.
pub const CLUSTER: u64 = 16;
/// With fewer lines for chains, [`Inverted::grow`] adds some: a fault makes at most as many entries.
const FEW_LINES: u64 = 64;
/// Owners are below this.
pub const MAX_OWNERS: usize = 1 << 16;

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

/// Consecutive pages of one size: consecutive in the guest, and up or down in the host.
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
    /// Where each is one higher in the guest, it is one lower in the host. Never so for one page.
    pub down: bool,
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
            down: false,
        }
    }

    /// Takes in a page that continues the run; false if it does not.
    #[inline]
    pub fn extend(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize) -> bool {
        let pages = self.count << (shift_of(size) - PAGE_SHIFT);
        if self.size != size || gfn.raw() != self.gfn.raw().wrapping_add(pages) {
            return false;
        }
        let (bytes, away) = (pages << PAGE_SHIFT, hpa.raw().wrapping_sub(self.hpa.raw()));
        // The second page tells the direction.
        if !self.down && away == bytes {
            self.count += 1;
        } else if (self.down || self.count == 1) && away == bytes.wrapping_neg() {
            self.down = true;
            self.count += 1;
        } else {
            return false;
        }
        true
    }
}

impl Run {
    /// A guest frame is among those of the run.
    #[inline]
    pub const fn is_about(&self, gfn: Gfn) -> bool {
        let pages = self.count << (shift_of(self.size) - PAGE_SHIFT);
        gfn.raw().wrapping_sub(self.gfn.raw()) < pages
    }

    /// Takes in a run that continues this one, in the same direction; false if it does not.
    #[inline]
    pub fn append(&mut self, other: &Self) -> bool {
        if other.count == 1 {
            return self.extend(other.gfn, other.hpa, other.size);
        }
        // The first page tells all but the direction.
        let same = self.count == 1 || self.down == other.down;
        let mut with = *self;
        if !same || !with.extend(other.gfn, other.hpa, other.size) || with.down != other.down {
            return false;
        }
        with.count = self.count + other.count;
        *self = with;
        true
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

impl Group {
    /// A group of a new table.
    pub const EMPTY: Self = Self {
        pages: 0,
        entries: 0,
        links: 0,
        mapped: [0; 3],
    };
}

/// The locks of a table.
pub trait Locks {
    /// Calls `f` with a group's lock held; `index` is below [`GROUPS`].
    fn group<R>(&self, index: usize, f: impl FnOnce(&mut Group) -> R) -> R;

    /// Calls `f` with the lock of the free lines held, inside of a group's lock.
    fn spare<R>(&self, f: impl FnOnce(&mut Spare) -> R) -> R;
}

/// What a chain has of a piece that is being added.
struct Found<'a> {
    /// Pages that are not there yet.
    fresh: u64,
    /// Another owner has one of the pages.
    shared: bool,
    /// The entry that can take them in, and what it says then.
    home: Option<(Line<'a>, usize, Meaning)>,
}

impl<'a> Found<'a> {
    /// At the entries of a line. Clusters whose pages are all over the guest have many, and nearly
    /// all of them have nothing to do with the piece: these are told apart first.
    #[inline(always)]
    fn look(&mut self, line: Line<'a>, sought: &Sought) {
        // By hand: this is where most of the time goes, and a loop takes twice as long.
        self.look_at(line, 0, sought);
        self.look_at(line, 1, sought);
        self.look_at(line, 2, sought);
        self.look_at(line, 3, sought);
    }

    #[inline(always)]
    fn look_at(&mut self, line: Line<'a>, slot: usize, sought: &Sought) {
        let (first, second) = line.get(slot);
        if !sought.is_beside(first) {
            return;
        }
        match sought.compare(second) {
            Likeness::Same => self.is_home(line, slot),
            Likeness::Far => {}
            Likeness::Near => self.look_closer(line, slot, &sought.piece),
            Likeness::Other => self.look_across(line, slot, sought),
        }
    }

    /// An entry is on a line that the piece is on.
    #[inline(always)]
    fn is_home(&mut self, line: Line<'a>, slot: usize) {
        let (first, second) = line.get(slot);
        self.fresh &= !first;
        self.home = Some((line, slot, Meaning(second)));
    }

    /// At an entry of another owner or direction.
    #[inline(never)]
    fn look_across(&mut self, line: Line<'a>, slot: usize, sought: &Sought) {
        let (first, second) = line.get(slot);
        if sought.is_other(second) {
            self.is_home(line, slot);
        } else if sought.may_meet(first, second) {
            self.look_closer(line, slot, &sought.piece);
        }
    }

    /// At an entry that is of another owner or on another line.
    #[cold]
    fn look_closer(&mut self, line: Line<'a>, slot: usize, piece: &Piece) {
        let entry = Piece::of(line.get(slot));
        if entry.meaning.owner() != piece.meaning.owner() {
            self.shared |= entry.mask & piece.mask != 0;
            return;
        }
        self.fresh &= !entry.common(piece);
        if self.home.is_none() {
            let joined = entry.joined(piece);
            self.home = joined.map(|meaning| (line, slot, meaning));
        }
    }
}

const _: () = assert!(SLOTS == 4, "see Found::look");

/// Takes what it has of a piece from the first entry that has some: which pages, and if it is empty
/// now, whether a line went with it.
#[inline]
fn take_from<M: TableMemory>(
    memory: &M,
    start: Line<'_>,
    piece: &Piece,
    own: &mut Lines,
) -> Option<(u64, Option<bool>)> {
    let (mut line, mut before) = (start, None);
    loop {
        for slot in 0..SLOTS {
            let words = line.get(slot);
            // Of the same cluster, with one of the pages.
            if (words.0 ^ piece.key.0) & !MASK != 0 || words.0 & piece.mask == 0 {
                continue;
            }
            let entry = Piece::of(words);
            if !entry.is_beside(piece) {
                continue;
            }
            let gone = entry.common(piece);
            if gone == 0 {
                continue;
            }
            if gone != entry.mask {
                line.set(slot, (words.0 & !gone, words.1));
                return Some((gone, None));
            }
            line.set(slot, (0, 0));
            return Some((gone, Some(close(memory, before, line, slot, own))));
        }
        let next = line.link()?;
        before = Some(line);
        line = Line::at(memory, next);
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
    /// Few lines for chains are left.
    scarce: AtomicBool,
    /// Somebody adds pages or takes some away.
    resizing: AtomicBool,
    /// Lines that those may need at once who have not told of their pages yet.
    expected: AtomicU64,
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
            scarce: AtomicBool::new(false),
            resizing: AtomicBool::new(false),
            expected: AtomicU64::new(0),
            sizes: AtomicU32::new(0),
        }
    }

    /// Somebody may add pages for which nothing can be set aside any more when they come, or, with a
    /// negative number, will not any more: so many lines are kept for them, [`Inverted::grow`] permitting.
    pub fn expect(&self, lines: i64) {
        self.expected.fetch_add(lines as u64, Ordering::Relaxed);
    }

    /// Lines that there should be for chains to come.
    #[inline]
    fn few_lines(&self) -> u64 {
        FEW_LINES.saturating_add(self.expected.load(Ordering::Relaxed))
    }

    /// True when there are fewer lines than are expected to be needed.
    pub fn lacks_lines<L: Locks>(&self, locks: &L) -> bool {
        locks.spare(|spare| spare.free.count) < self.few_lines()
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
        Line::at(memory, page | (group % GROUPS * WORDS * 8) as u64)
    }

    /// Pages there are: no group has more chains.
    #[inline]
    pub fn pages(&self) -> u32 {
        self.pages.load(Ordering::Acquire)
    }

    /// True when [`Inverted::grow`] should be called soon.
    #[inline]
    pub fn is_short(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) || self.scarce.load(Ordering::Relaxed)
    }

    /// Adds the pages of a run; those that are there already stay as they are.
    pub fn add<M: TableMemory, L: Locks>(
        &self,
        memory: &mut M,
        locks: &L,
        owner: Owner,
        run: &Run,
    ) -> Result<Added, NoFrame> {
        let seen = 1 << run.size as u32;
        if self.sizes.load(Ordering::Relaxed) & seen == 0 {
            self.sizes.fetch_or(seen, Ordering::Relaxed);
        }
        let mut own = Lines::default();
        if run.count == 1 {
            let sought = Sought::page(owner, run);
            let added = self.add_piece(memory, locks, &mut own, &sought);
            if own.count != 0 {
                give_lines(memory, locks, own);
            }
            return added;
        }
        let mut added = Added::default();
        let result = pieces(owner, run).try_for_each(|piece| {
            let here = self.add_piece(memory, locks, &mut own, &Sought::part(piece))?;
            added.fresh += here.fresh;
            added.shared |= here.shared;
            Ok(())
        });
        if own.count != 0 {
            give_lines(memory, locks, own);
        }
        result.map(|()| added)
    }

    #[inline(never)]
    fn add_piece<M: TableMemory, L: Locks>(
        &self,
        memory: &mut M,
        locks: &L,
        own: &mut Lines,
        sought: &Sought,
    ) -> Result<Added, NoFrame> {
        let piece = &sought.piece;
        let place = self.place(piece.key);
        locks.group(place.group, |group| {
            if group.pages == 0 {
                group.pages = self.pages.load(Ordering::Acquire).min(1);
                if group.pages == 0 {
                    return Err(NoFrame);
                }
            }
            let mut line = self.line(memory, place.group, place.page(group.pages));
            let mut found = Found {
                fresh: piece.mask,
                shared: false,
                home: None,
            };
            loop {
                found.look(line, sought);
                match line.link() {
                    Some(next) => line = Line::at(memory, next),
                    None => break,
                }
            }
            let Found {
                fresh,
                shared,
                home,
            } = found;
            if fresh != 0 {
                if let Some((line, slot, meaning)) = home {
                    line.set(slot, (line.get(slot).0 | fresh, meaning.0));
                } else {
                    let entry = (piece.key.0 | fresh, piece.meaning.0);
                    let address = line.address;
                    self.put_entry(memory, locks, own, (place.group, group), address, entry)?;
                }
            }
            let fresh = ones(fresh);
            group.mapped[piece.key.size() as usize] += fresh;
            Ok(Added { fresh, shared })
        })
    }

    /// Adds an entry to a chain whose last line is known.
    #[inline(never)]
    fn put_entry<M: TableMemory, L: Locks>(
        &self,
        memory: &mut M,
        locks: &L,
        own: &mut Lines,
        (index, group): (usize, &mut Group),
        last: u64,
        entry: (u64, u64),
    ) -> Result<(), NoFrame> {
        let line = Line::at(memory, last);
        // Only the last line has room, if any.
        if let Some(slot) = line.free_slot() {
            line.set(slot, entry);
        } else {
            let (more, left) = take_line(memory, locks, own)?;
            if left < self.few_lines() && !self.scarce.load(Ordering::Relaxed) {
                self.scarce.store(true, Ordering::Relaxed);
            }
            let more = Line::at(memory, more);
            Tail(Line::at(memory, last)).put(entry, || Some(more));
            group.links += 1;
        }
        group.entries += 1;
        if group.entries.saturating_mul(2) > group.pages.saturating_mul(LOAD) {
            self.widen(memory, locks, index, group);
        }
        Ok(())
    }

    /// Takes the pages of a run away; tells how many of them were there.
    pub fn remove<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        owner: Owner,
        run: &Run,
    ) -> u64 {
        let mut own = Lines::default();
        let removed = if run.count == 1 {
            self.remove_piece(memory, locks, &mut own, Piece::page(owner, run))
        } else {
            let gone = |piece| self.remove_piece(memory, locks, &mut own, piece);
            pieces(owner, run).map(gone).sum()
        };
        if own.count != 0 {
            give_lines(memory, locks, own);
        }
        removed
    }

    #[inline(never)]
    fn remove_piece<M: TableMemory, L: Locks>(
        &self,
        memory: &M,
        locks: &L,
        own: &mut Lines,
        mut piece: Piece,
    ) -> u64 {
        let place = self.place(piece.key);
        locks.group(place.group, |group| {
            if group.pages == 0 {
                return 0;
            }
            let mut removed = 0;
            let start = self.line(memory, place.group, place.page(group.pages));
            // Most are all in one entry.
            while piece.mask != 0 {
                let Some((gone, emptied)) = take_from(memory, start, &piece, own) else {
                    break;
                };
                piece.mask &= !gone;
                removed += ones(gone);
                if let Some(unlinked) = emptied {
                    group.entries = group.entries.saturating_sub(1);
                    group.links = group.links.saturating_sub(u32::from(unlinked));
                }
            }
            if group.entries.saturating_mul(2) < group.pages {
                self.narrow(memory, place.group, group);
            }
            let mapped = &mut group.mapped[piece.key.size() as usize];
            *mapped = mapped.saturating_sub(removed);
            removed
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
        if hpa.raw() >> PHYS_BITS != 0 {
            // Its key would be another one's.
            return;
        }
        let sizes = self.sizes.load(Ordering::Relaxed);
        for size in SIZES {
            if sizes & 1 << size as u32 == 0 {
                continue;
            }
            let key = Key::of(hpa, size);
            let place = self.place(key);
            let page = ((hpa.raw() >> shift_of(size)) % CLUSTER) as u32;
            locks.group(place.group, |group| {
                if group.pages == 0 {
                    return;
                }
                let start = self.line(memory, place.group, place.page(group.pages));
                each_entry(memory, start, |first, second| {
                    if first & !MASK == key.0 && first & 1 << page != 0 {
                        f(Piece::of((first, second)).alias(page));
                    }
                });
            });
        }
    }

    /// True when this very mapping is in the table.
    pub fn contains<M: TableMemory, L: Locks>(&self, memory: &M, locks: &L, what: &Alias) -> bool {
        let run = Run::page(what.gfn, what.hpa, what.size);
        let mut there = false;
        for piece in pieces(what.owner, &run) {
            let place = self.place(piece.key);
            locks.group(place.group, |group| {
                if group.pages == 0 {
                    return;
                }
                let start = self.line(memory, place.group, place.page(group.pages));
                each_entry(memory, start, |first, second| {
                    let entry = Piece::of((first, second));
                    there |= entry.is_beside(&piece) && entry.common(&piece) != 0;
                });
            });
        }
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
                let entry = Piece::of((first, second));
                let mut pages = entry.mask;
                while pages != 0 {
                    f(entry.alias(pages.trailing_zeros()));
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
        if group.pages >= self.pages.load(Ordering::Acquire) {
            // Written by many: not when it is so already.
            if !self.wanted.load(Ordering::Relaxed) {
                self.wanted.store(true, Ordering::Relaxed);
            }
            return;
        }
        let fresh = group.pages;
        group.pages += 1;
        let new = self.line(memory, index, fresh);
        let old = self.line(memory, index, fresh - (1 << fresh.ilog2()));
        let moves = |first: u64| self.place(Key(first & !MASK)).page(group.pages) == fresh;
        if old.link().is_none() {
            // The last line of its chain may have holes.
            let mut to = 0;
            for slot in 0..SLOTS {
                let entry = old.get(slot);
                if entry.0 != 0 && moves(entry.0) {
                    new.set(to, entry);
                    old.set(slot, (0, 0));
                    to += 1;
                }
            }
            return;
        }
        if let Some(key) = only_key(memory, old) {
            // Scattered pages of one cluster: all of the chain goes, or nothing.
            if moves(key.0) {
                (0..SLOTS).for_each(|slot| new.set(slot, old.get(slot)));
                old.wipe();
            }
            return;
        }
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
                // n entries take no more lines in two chains than in one, beside the second's first.
                tails[usize::from(moves(entry.0))].put(entry, || spare.pop(memory));
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

    /// Adds a page, and lines for chains where these are few. Does nothing where somebody else is
    /// about to, or where there can be no more pages; chains get longer then.
    pub fn grow<M: TableMemory, L: Locks>(&self, memory: &mut M, locks: &L) -> Result<(), NoFrame> {
        if !self.begin_resizing() {
            return Ok(());
        }
        let mut result = Ok(());
        self.scarce.store(false, Ordering::Relaxed);
        if self.lacks_lines(locks) {
            let mut own = Lines::default();
            result = add_lines(memory, locks, &mut own);
            give_lines(memory, locks, own);
        }
        if result.is_ok() && (self.wanted.load(Ordering::Relaxed) || self.pages() == 0) {
            result = self.add_page(memory);
        }
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

    /// Frees pages that no group uses any more, all but one, and when no chain uses lines, and nobody is
    /// expected to, all of these but a frame's.
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
        if self.expected.load(Ordering::Relaxed) == 0 {
            let idle = locks.spare(|spare| release_lines(memory, spare));
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
        free_chain_frames(memory, spare.last);
        (0..GROUPS).for_each(|index| locks.group(index, |group| *group = Group::default()));
    }
}

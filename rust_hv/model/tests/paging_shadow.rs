// SPDX-License-Identifier: GPL-2.0

//! Shadow tables: any sequence of accesses, changes of the guest's tables, invalidations and changes
//! of the host's memory, against a walk of the guest's own tables.
//!
//! The CPU here walks the shadow tables the way that the SDM describes, not by the code under test.
//! And after each step the pages that the census was told of are those that entries map.

#[path = "paging_support/guest.rs"]
mod guest;
#[allow(unused_macros)]
mod paging_support;

use guest::*;
use paging_support::{Arena, Gathered};
use proptest::prelude::*;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gva, Hpa};
use rusthv_model::arch::regs::{Cr0, Cr4, Efer};
use rusthv_model::paging::format::Leaf;
use rusthv_model::paging::frames::TableMemory;
use rusthv_model::paging::shadow::route::{RootKey, Route};
use rusthv_model::paging::shadow::{
    is_noted, is_used, Cause, Census, Cursor, Filled, HostPage, Installed, Lack, Policy, Shadow,
    Slot, TableId,
};
use rusthv_model::paging::state::{Access, AccessKind, Mode, Privilege};
use rusthv_model::paging::sweep::Progress;
use rusthv_model::paging::walk::{mark_used, walk, walk_traced, EntrySize, WalkError};
use rusthv_model::paging::PageSize;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Guest frame, host address, size in bytes.
type Page = (u64, u64, u64);

/// The pages that the shadow tables have told of.
#[derive(Default, PartialEq, Debug)]
struct Told(BTreeSet<Page>);

fn page(gfn: Gfn, hpa: Hpa, size: PageSize) -> Page {
    (gfn.raw(), hpa.raw(), size.bytes())
}

impl Census for Told {
    fn mapped(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize) {
        assert!(self.0.insert(page(gfn, hpa, size)), "told twice");
    }

    fn unmapped(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize) {
        assert!(self.0.remove(&page(gfn, hpa, size)), "gone twice");
    }
}

type Tables = Shadow<Vec<Slot>, Vec<u32>, Told>;

/// Where the host has the guest's frame 0: all of it in one piece.
const HOST: u64 = 0x40_0000_0000;

struct Vm {
    guest: Guest,
    shadow: Tables,
    arena: Arena,
    root: Option<TableId>,
    /// Frames that the host lets the guest read only.
    read_only: BTreeSet<u64>,
    /// The host has large pages.
    large: bool,
    /// Where the host has the guest's frame 0.
    host: u64,
    faults: usize,
    /// The last fault or INVLPG went the short way, if it could.
    quick: bool,
}

impl Vm {
    fn new(guest: Guest, policy: Policy, slots: usize) -> Self {
        let room = (0..slots).map(|_| Slot::new()).collect();
        let words = vec![Tables::WORD; Tables::words(slots)];
        let shadow = Shadow::new(policy, room, words, Told::default()).unwrap();
        Self {
            guest,
            shadow,
            arena: Arena::new(),
            root: None,
            read_only: BTreeSet::new(),
            large: false,
            host: HOST,
            faults: 0,
            quick: false,
        }
    }

    fn key(&self) -> RootKey {
        let pointers = self.guest.pdptes.unwrap_or_default();
        RootKey::of(&self.guest.state(), pointers).unwrap()
    }

    /// Something that gathers frames, and what the kernel does with them.
    fn gathering<R>(&mut self, f: impl FnOnce(&mut Tables, &mut Arena, &mut Gathered) -> R) -> R {
        let mut gathered = Gathered::default();
        let result = f(&mut self.shadow, &mut self.arena, &mut gathered);
        if let Some(stale) = self.shadow.stale() {
            self.shadow.flushed(stale);
        }
        for frame in gathered.tables {
            self.arena.free(frame);
        }
        result
    }

    fn sync(&mut self, leaves: bool) {
        let since = self.shadow.sequence;
        while let Some(syncing) = self.shadow.begin_sync(&self.arena, leaves, since, 0) {
            let words = self.frame(syncing.gfn().raw());
            self.shadow.compare(&self.arena, &syncing, Some(&words));
        }
    }

    fn frame(&self, gfn: u64) -> [u64; 512] {
        core::array::from_fn(|word| {
            self.guest
                .memory
                .get((gfn << 12) + word as u64 * 8, EntrySize::Eight)
        })
    }

    /// MOV to CR3, or anything else that flushes everything.
    fn reload(&mut self) {
        if self.guest.state().mode() == Mode::Pae {
            let cr3 = self.guest.registers.cr3;
            let word = |n: u64| self.guest.memory.get(cr3 + n * 8, EntrySize::Eight);
            self.guest.pdptes = Some([word(0), word(1), word(2), word(3)]);
        }
        self.sync(true);
        if let Some(root) = self.root.take() {
            self.shadow.leave(root);
        }
        let key = self.key();
        for _ in 0..100 {
            let mut pointers = None;
            if key.has_pointers() {
                pointers = self.arena.alloc();
            }
            let entered = self.shadow.enter(&mut self.arena, &key, &mut pointers);
            if let Some(left) = pointers {
                self.arena.free(left);
            }
            match entered {
                Ok(root) => {
                    self.root = Some(root);
                    return;
                }
                Err(Lack::Room) => {
                    assert!(self.gathering(|shadow, arena, gather| shadow.evict(arena, gather)));
                }
                Err(Lack::Frames) => panic!("the arena has frames"),
            }
        }
        panic!("no room for a root");
    }

    fn invlpg(&mut self, gva: u64) {
        self.quick = !self.quick;
        if self.quick && self.renew_page(Gva::new(gva)) {
            return;
        }
        self.sync(false);
        let root = self.root.unwrap();
        self.shadow.invalidate(&self.arena, root, Gva::new(gva));
    }

    /// INVLPG the long way: the entry is dropped.
    fn drop_page(&mut self, gva: u64) {
        self.quick = true;
        self.invlpg(gva);
    }

    /// INVLPG where the way to the guest's entry is known.
    fn renew_page(&mut self, gva: Gva) -> bool {
        if self.shadow.has_loose_tables() {
            return false;
        }
        let root = self.root.unwrap();
        let Some(leaf) = self.shadow.leaf_table(&self.arena, root, gva) else {
            return false;
        };
        let (at, spot) = leaf.place(gva);
        let old = self.shadow.recall(&self.arena, spot);
        let now = self.guest.memory.get(at.raw(), self.guest.size());
        if old.is_some_and(|old| is_noted(old, now)) {
            return true;
        }
        let (state, sequence) = (self.guest.state(), self.shadow.sequence);
        let gfn = state.frame(now);
        // The host takes its time, now and then.
        if is_used(now, state.reserved_in_small()) && !self.read_only.contains(&gfn) && gfn % 3 != 0
        {
            let host = HostPage {
                hpa: Hpa::new(self.host + (gfn << 12)),
                writable: true,
                large: false,
            };
            let cause = Cause::NONE;
            let filled = self
                .shadow
                .fill(&self.arena, spot, sequence, now, host, cause);
            assert_eq!(filled, Filled::Done);
        } else {
            assert!(self.shadow.forget(&self.arena, spot, sequence));
        }
        true
    }

    /// What the CPU makes of the shadow tables: an address, or nothing for a fault.
    fn cpu(&self, gva: u64, access: Access) -> Option<u64> {
        let state = self.guest.state();
        let four = state.mode() == Mode::FourLevel;
        let paged = state.mode() != Mode::Unpaged;
        let registers = self.guest.registers;
        let gva = if four { gva } else { gva & 0xffff_ffff };
        let mut table = self.shadow.root(self.root.unwrap()).unwrap().raw();
        let (mut user, mut write, mut execute) = (true, true, true);
        for level in (1..=if four { 4 } else { 3 }).rev() {
            let shift = 3 + 9 * level;
            let index = (gva >> shift) as usize % if four || level < 3 { 512 } else { 4 };
            let entry = self.arena.at(table)[index].load(Ordering::Relaxed);
            if entry & P == 0 {
                return None;
            }
            let pointer = level == 3 && !four;
            if pointer {
                assert_eq!(
                    entry & !0x000f_ffff_ffff_f000,
                    P,
                    "reserved bits of a pointer"
                );
            } else {
                user &= entry & U != 0;
                write &= entry & W != 0;
                execute &= entry & NX == 0;
            }
            if level == 1 || (level == 2 && entry & PS != 0) {
                let (is_user, ac) = match access.privilege {
                    Privilege::User => (true, false),
                    Privilege::Supervisor { ac } => (false, ac),
                    Privilege::Implicit => (false, false),
                };
                let fetch = access.kind == AccessKind::Fetch;
                let smep = paged && registers.cr4.contains(Cr4::SMEP);
                let smap = paged && registers.cr4.contains(Cr4::SMAP);
                let allowed = match (is_user, user) {
                    (true, false) => false,
                    (false, true) if fetch => !smep,
                    (false, true) => !smap || ac,
                    _ => true,
                } && match access.kind {
                    AccessKind::Read => true,
                    // CR0.WP is always on.
                    AccessKind::Write => write,
                    AccessKind::Fetch => execute,
                };
                let mask = (1u64 << shift) - 1;
                return allowed.then_some(entry & 0x000f_ffff_ffff_f000 & !mask | gva & mask);
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        unreachable!()
    }

    /// A fault where the way to the guest's entry is known.
    fn map_page(&mut self, gva: Gva, access: Access) -> bool {
        let root = self.root.unwrap();
        let Some(leaf) = self.shadow.leaf_table(&self.arena, root, gva) else {
            return false;
        };
        let (at, spot) = leaf.place(gva);
        let (state, sequence) = (self.guest.state(), self.shadow.sequence);
        let entry = self.guest.memory.get(at.raw(), self.guest.size());
        let Some((gfn, rights)) = leaf.look(&state, entry) else {
            return false;
        };
        if state.check(&rights, access).is_err() || self.read_only.contains(&gfn.raw()) {
            return false;
        }
        let source = mark_used(&mut self.guest.memory, &state, at, entry, access);
        let host = HostPage {
            hpa: Hpa::new(self.host + (gfn.raw() << 12)),
            writable: true,
            large: false,
        };
        let cause = Cause {
            write: access.kind == AccessKind::Write,
            user: access.privilege == Privilege::User,
        };
        let source = source.unwrap().unwrap();
        let filled = self
            .shadow
            .fill(&self.arena, spot, sequence, source, host, cause);
        assert_ne!(filled, Filled::Obsolete);
        filled == Filled::Done
    }

    /// An access by the guest: where it went, or the error code of its fault.
    fn access(&mut self, gva: u64, access: Access) -> Result<u64, Option<u32>> {
        for _ in 0..200 {
            if let Some(hpa) = self.cpu(gva, access) {
                return Ok(hpa);
            }
            self.faults += 1;
            self.quick = !self.quick;
            if self.quick && self.map_page(Gva::new(gva), access) {
                continue;
            }
            let state = self.guest.state();
            let sequence = self.shadow.sequence;
            let walked = walk_traced(&mut self.guest.memory, &state, Gva::new(gva), access);
            let (page, path) = match walked {
                Ok(found) => found,
                Err(WalkError::Fault(code)) => return Err(Some(code.raw())),
                Err(_) => return Err(None),
            };
            let write = access.kind == AccessKind::Write;
            let gfn = page.gpa.gfn().raw();
            if write && self.read_only.contains(&gfn) {
                // A device's business: nothing is mapped for it.
                return Ok(self.host + page.gpa.raw());
            }
            let route = Route::new(self.key(), Gva::new(gva), page, path);
            let host = HostPage {
                hpa: Hpa::new(self.host + (gfn << 12)),
                writable: !self.read_only.contains(&gfn),
                large: self.large && self.read_only.is_empty(),
            };
            let cause = Cause {
                write,
                user: access.privilege == Privilege::User,
            };
            let root = self.root.unwrap();
            let installed = self.gathering(|shadow, arena, gather| {
                shadow.install(arena, gather, root, sequence, &route, host, cause)
            });
            match installed {
                Installed::Done(_) => {}
                Installed::Obsolete => panic!("nothing has changed"),
                Installed::Loose => self.sync(true),
                // Executed by the hypervisor.
                Installed::Watched => return Ok(self.host + page.gpa.raw()),
                Installed::Lacking(Lack::Room) => {
                    assert!(self.gathering(|shadow, arena, gather| shadow.evict(arena, gather)));
                }
                Installed::Lacking(Lack::Frames) => panic!("the arena has frames"),
            }
        }
        panic!("an access that never succeeds");
    }

    /// The access, and what it should come to.
    fn check_access(&mut self, gva: u64, access: Access) {
        let state = self.guest.state();
        let mut memory = self.guest.memory.clone();
        let wanted = match walk(&mut memory, &state, Gva::new(gva), access) {
            Ok(found) => Ok(HOST + found.gpa.raw()),
            Err(WalkError::Fault(code)) => Err(Some(code.raw())),
            Err(_) => Err(None),
        };
        let found = self.access(gva, access);
        assert_eq!(found, wanted, "{gva:#x} {access:?}");
        // Accessed and dirty flags are as the CPU would have set them.
        assert_eq!(self.guest.memory.words, memory.words);
        self.check();
    }

    fn check(&mut self) {
        let page = |gfn: u64| Some(Hpa::new(HOST + (gfn << 12)));
        self.shadow.check(&self.arena, page).unwrap();
        self.check_census();
    }

    /// The census knows the pages of all entries, and no others.
    fn check_census(&self) {
        let (mut all, mut once) = (BTreeSet::new(), Vec::new());
        let mut cursor = Cursor::default();
        let mut each = |gfn, leaf: Leaf, first: bool| {
            let page = page(gfn, leaf.hpa, leaf.size);
            all.insert(page);
            once.extend(first.then_some(page));
        };
        while self
            .shadow
            .for_each_leaf(&self.arena, &mut cursor, &mut each)
            != Progress::Done
        {}
        assert_eq!(all, self.shadow.census.0);
        once.sort_unstable();
        assert!(once.iter().eq(&all), "each page once");
        for &(gfn, hpa, bytes) in &all {
            assert!(self.mappings(gfn).contains(&(gfn, hpa, bytes)));
        }
    }

    /// The pages that a frame is in.
    fn mappings(&self, gfn: u64) -> Vec<Page> {
        let mut pages = Vec::new();
        let found = |gfn, leaf: Leaf| pages.push(page(gfn, leaf.hpa, leaf.size));
        self.shadow
            .for_each_mapping(&self.arena, Gfn::new(gfn), found);
        pages
    }

    /// The guest writes an entry of its tables, by an address that it may write to.
    fn guest_writes(&mut self, at: u64, value: u64) {
        let (gfn, size) = (at >> 12, self.guest.size());
        match self.shadow.policy() {
            Policy::Virtual => {
                if self.shadow.is_watched(gfn) {
                    self.shadow.loosen(gfn);
                }
                self.guest.memory.set(at, size, value);
            }
            Policy::Exact => {
                self.guest.memory.set(at, size, value);
                let word = (at as usize & 0xfff) / 8;
                let words = self.frame(gfn);
                let arena = &self.arena;
                self.shadow
                    .written(arena, gfn, word, &words[word..word + 1]);
            }
        }
    }

    fn end(mut self) {
        if let Some(root) = self.root.take() {
            self.shadow.leave(root);
        }
        let mut cursor = Cursor::default();
        while !self.gathering(|shadow, arena, gather| shadow.clear(arena, gather, &mut cursor)) {}
        self.check();
        assert_eq!((self.shadow.counts.tables, self.arena.live), (0, 0));
        assert_eq!(self.shadow.destroy(&mut self.arena), Told::default());
    }
}

/// What happens to a VM.
#[derive(Clone, Debug)]
pub enum Op {
    Access(u64, AccessKind, Privilege),
    /// Entry at a level, for an address, with a table or page and flags; then INVLPG or a reload.
    Write {
        level: u64,
        gva: u64,
        target: u64,
        flags: u64,
        reload: bool,
    },
    Switch(u64),
    Registers(u8),
    Unmap(u64, u64),
    Protect(u64, u64),
    ReadOnly(u64),
    Large(bool),
}

/// Roots, tables and pages are in the first frames: all of them can be each.
const FRAMES: u64 = 24;

fn addresses() -> impl Strategy<Value = u64> {
    // Few, so that they meet; some in the same tables, some only in the same directory.
    (0..2u64, 0..3u64, 0..3u64, 0..2u64).prop_map(|(top, giga, two, page)| {
        let high = if top == 1 { 0xffff_8000_0000_0000 } else { 0 };
        high | giga << 30 | two << 21 | (page * 3) << 12 | 0x123
    })
}

/// What the fuzzer has from here, too (`fuzz/`).
pub fn ops() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        Just(AccessKind::Read),
        Just(AccessKind::Write),
        Just(AccessKind::Fetch)
    ];
    let privilege = prop_oneof![
        Just(Privilege::User),
        Just(Privilege::Supervisor { ac: false }),
        Just(Privilege::Supervisor { ac: true })
    ];
    let flags = (0..8u64, any::<bool>(), any::<bool>(), any::<bool>(), 0..6u8).prop_map(
        |(low, accessed, dirty, large, rare)| {
            let mut flags = low | P;
            flags |= if accessed { A } else { 0 };
            flags |= if dirty { D } else { 0 };
            flags |= if large { PS } else { 0 };
            match rare {
                0 => flags & !P,
                1 => flags | NX,
                _ => flags,
            }
        },
    );
    prop_oneof![
        8 => (addresses(), kind, privilege).prop_map(|(gva, kind, by)| Op::Access(gva, kind, by)),
        5 => (1..5u64, addresses(), 0..FRAMES, flags, any::<bool>()).prop_map(
            |(level, gva, target, flags, reload)| Op::Write { level, gva, target, flags, reload }
        ),
        1 => (0..3u64).prop_map(Op::Switch),
        1 => (0..16u8).prop_map(Op::Registers),
        1 => (0..FRAMES, 0..40u64).prop_map(|(start, len)| Op::Unmap(start, len)),
        1 => (0..FRAMES, 0..40u64).prop_map(|(start, len)| Op::Protect(start, len)),
        1 => (0..FRAMES).prop_map(Op::ReadOnly),
        1 => any::<bool>().prop_map(Op::Large),
    ]
}

/// Where the entry of a level is for an address, as the tables are now.
fn entry_at(guest: &Guest, gva: u64, level: u64) -> Option<u64> {
    let mode = guest.state().mode();
    let top = guest.levels();
    let mut table = guest.registers.cr3 & !0xfff;
    let mut at = None;
    for here in (level..=top).rev() {
        let (index, size) = match mode {
            Mode::Bits32 => (gva >> (2 + 10 * here) & 0x3ff, 4),
            Mode::Pae if here == 3 => (gva >> 30 & 3, 8),
            _ => (gva >> (3 + 9 * here) & 0x1ff, 8),
        };
        at = Some(table + index * size);
        if here > level {
            let entry = guest.memory.get(table + index * size, guest.size());
            let large = entry & PS != 0 && here < 4 && !(mode == Mode::Pae && here == 3);
            if entry & P == 0 || large {
                return None;
            }
            table = entry & 0xff_f000;
        }
    }
    at
}

fn registers(guest: &mut Guest, bits: u8) {
    let on = |bit: u8| bits & 1 << bit != 0;
    guest.registers.cr0 = guest.registers.cr0.with(Cr0::WP, on(0));
    guest.registers.cr4 = guest.registers.cr4.with(Cr4::SMEP, on(1));
    guest.registers.cr4 = guest.registers.cr4.with(Cr4::SMAP, on(2) && on(0));
    guest.registers.cr4 = guest.registers.cr4.with(Cr4::PSE, true);
    guest.registers.efer = guest.registers.efer.with(Efer::NXE, on(3));
}

pub fn run(mode: Mode, policy: Policy, slots: usize, ops: &[Op]) {
    let mut guest = Guest::new(mode);
    registers(&mut guest, 0xf);
    let mut vm = Vm::new(guest, policy, slots);
    vm.reload();
    let mut known: Option<u64> = None;
    for op in ops {
        match *op {
            Op::Access(gva, kind, privilege) => {
                let gva = match mode {
                    Mode::FourLevel => gva,
                    _ => gva & 0xffff_ffff,
                };
                // INVLPG says nothing about other pages.
                if known.is_none_or(|page| page == gva >> 12) {
                    vm.check_access(gva, Access { kind, privilege });
                }
            }
            Op::Write {
                level,
                gva,
                target,
                flags,
                reload,
            } => {
                let level = level.min(vm.guest.levels());
                let Some(at) = entry_at(&vm.guest, gva, level).filter(|_| level > 0) else {
                    continue;
                };
                let large =
                    flags & PS != 0 && (level == 2 || (level == 3 && mode == Mode::FourLevel));
                let target = match (large, level) {
                    // Within the first frames again, for the small pieces of it.
                    (true, _) => 0,
                    _ => target << 12,
                };
                let mut flags = flags;
                if mode == Mode::Bits32 {
                    flags &= !NX;
                }
                if mode == Mode::Pae && level == 3 {
                    flags &= P;
                }
                if level == 4 || level == 1 {
                    flags &= !PS;
                }
                let size = vm.guest.size();
                let old = vm.guest.memory.get(at, size);
                vm.guest_writes(at, target | flags);
                let pointer = mode == Mode::Pae && level == 3;
                let was_large = old & PS != 0 && level == 2;
                if reload || pointer || (level > 1 && old & P != 0 && !was_large) {
                    vm.reload();
                    known = None;
                } else if was_large && old & P != 0 {
                    vm.invlpg(
                        gva ^ if mode == Mode::Bits32 {
                            0x20_5000
                        } else {
                            0x5000
                        },
                    );
                    known = Some(gva >> 12);
                } else if old & P != 0 {
                    vm.invlpg(gva);
                    known = Some(gva >> 12);
                }
            }
            Op::Switch(root) => {
                vm.guest.registers.cr3 = (root + 2) << 12;
                vm.reload();
                known = None;
            }
            Op::Registers(bits) => {
                registers(&mut vm.guest, bits);
                vm.reload();
                known = None;
            }
            Op::Unmap(start, len) => {
                let range = GfnRange::new(Gfn::new(start), Gfn::new(start + len));
                let mut cursor = Cursor::default();
                while vm.shadow.unmap(&vm.arena, range, &mut cursor) != Progress::Done {}
                // Now the host could take the frames: no entry maps one of them.
                let none = |gfn: u64| range.contains(Gfn::new(gfn)).then_some(Hpa::new(1));
                vm.shadow.check(&vm.arena, none).unwrap();
            }
            Op::Protect(start, len) => {
                let range = GfnRange::new(Gfn::new(start), Gfn::new(start + len));
                let mut cursor = Cursor::default();
                while vm.shadow.protect(&vm.arena, range, &mut cursor) != Progress::Done {}
            }
            Op::ReadOnly(gfn) => {
                vm.read_only.insert(gfn);
                let range = GfnRange::new(Gfn::new(gfn), Gfn::new(gfn + 1));
                let mut cursor = Cursor::default();
                while vm.shadow.unmap(&vm.arena, range, &mut cursor) != Progress::Done {}
            }
            Op::Large(large) => vm.large = large,
        }
        vm.check();
    }
    vm.end();
}

macro_rules! sequences {
    ($($name:ident: $mode:expr, $policy:expr, $slots:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(96))]
            $(
                #[test]
                fn $name(ops in prop::collection::vec(ops(), 1..80)) {
                    run($mode, $policy, $slots, &ops);
                }
            )*
        }
    };
}

sequences! {
    four_levels: Mode::FourLevel, Policy::Virtual, 64;
    four_levels_exact: Mode::FourLevel, Policy::Exact, 64;
    four_levels_without_room: Mode::FourLevel, Policy::Virtual, 5;
    four_levels_exact_without_room: Mode::FourLevel, Policy::Exact, 5;
    pae: Mode::Pae, Policy::Virtual, 64;
    pae_exact: Mode::Pae, Policy::Exact, 64;
    two_levels: Mode::Bits32, Policy::Virtual, 64;
    two_levels_exact: Mode::Bits32, Policy::Exact, 64;
    two_levels_without_room: Mode::Bits32, Policy::Virtual, 4;
    unpaged: Mode::Unpaged, Policy::Virtual, 16;
}

fn paged_by(mode: Mode, flags: u64, policy: Policy) -> Vm {
    let mut guest = Guest::with(mode, flags);
    registers(&mut guest, 0xf);
    let mut vm = Vm::new(guest, policy, 64);
    vm.reload();
    vm
}

fn paged(mode: Mode, flags: u64) -> Vm {
    paged_by(mode, flags, Policy::Virtual)
}

fn by(kind: AccessKind, privilege: Privilege) -> Access {
    Access { kind, privilege }
}

/// A supervisor that writes to a read-only page of a user's, as CR0.WP lets it, must not come to
/// execute it: SMEP looks at the guest's flag, and the CPU sees ours.
#[test]
fn smep_without_write_protection() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        for wp in [0, 1] {
            for smep in [0, 2] {
                let mut vm = paged(mode, P | U);
                registers(&mut vm.guest, 8 | wp | smep);
                vm.reload();
                for _ in 0..2 {
                    vm.check_access(LINEAR, by(AccessKind::Write, KERNEL));
                    vm.check_access(LINEAR, by(AccessKind::Fetch, KERNEL));
                    vm.check_access(LINEAR, by(AccessKind::Write, USER));
                    vm.check_access(LINEAR, by(AccessKind::Fetch, USER));
                    vm.check_access(LINEAR, by(AccessKind::Read, USER));
                }
                vm.end();
            }
        }
    }
}

/// Two large pages of the guest's with the same memory behind them, in small pieces: each entry has
/// a dirty flag of its own. Without CR0.WP a kernel writes to what is read-only, too.
#[test]
fn aliases_of_a_large_page_have_their_own_dirty_flags() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        for (wp, rights) in [(0, 0), (0, W), (1, W)] {
            let mut vm = paged(mode, P | U);
            registers(&mut vm.guest, wp);
            let size = vm.guest.size();
            let first = vm.guest.at(2);
            let other = first + if mode == Mode::Bits32 { 4 } else { 16 };
            for at in [first, other] {
                vm.guest.memory.set(at, size, P | PS | rights);
            }
            vm.reload();
            for gva in [LINEAR, LINEAR + 0x40_0000] {
                vm.check_access(gva, by(AccessKind::Read, KERNEL));
            }
            for (at, gva) in [(first, LINEAR), (other, LINEAR + 0x40_0000)] {
                assert_eq!(vm.guest.memory.get(at, size) & D, 0);
                vm.check_access(gva, by(AccessKind::Write, KERNEL));
                assert_ne!(vm.guest.memory.get(at, size) & D, 0);
            }
            vm.end();
        }
    }
}

/// A root that the guest comes back to is as it was left: no fault.
#[test]
fn roots_are_kept() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        let mut vm = paged(mode, P | W | U | A | D);
        vm.check_access(LINEAR, by(AccessKind::Write, USER));
        let (first, faults) = (vm.guest.registers.cr3, vm.faults);
        for _ in 0..3 {
            vm.guest.registers.cr3 = 0x20_0000;
            vm.reload();
            vm.guest.registers.cr3 = first;
            vm.reload();
            vm.check_access(LINEAR, by(AccessKind::Write, USER));
        }
        assert_eq!(vm.faults, faults);
        let counts = vm.shadow.counts;
        assert_eq!((counts.root_misses, counts.root_hits), (2, 5));
        vm.end();
    }
}

/// What INVLPG is for: another page behind an address.
#[test]
fn invlpg_brings_the_new_page() {
    let mut vm = paged(Mode::FourLevel, P | W | A | D);
    vm.check_access(LINEAR, by(AccessKind::Write, KERNEL));
    let at = vm.guest.at(1);
    // The table is loose until the first flush, and watched from then on.
    for turn in 0..3u64 {
        vm.guest_writes(at, (PAGE + (turn << 12)) | P | W | A | D);
        vm.invlpg(LINEAR);
        vm.check_access(LINEAR, by(AccessKind::Write, KERNEL));
        vm.reload();
        assert!(vm.shadow.is_watched(at >> 12));
    }
    vm.end();
}

/// Pages that the guest has used before are mapped when it says that they have changed places: that
/// costs no fault.
#[test]
fn invlpg_maps_what_was_used() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        let mut vm = paged(mode, P | W | U | A | D);
        let (access, at) = (by(AccessKind::Write, USER), vm.guest.at(1));
        vm.check_access(LINEAR, access);
        vm.reload();
        for turn in 1..5u64 {
            // A frame that `renew_page` does not refuse.
            vm.guest_writes(at, (PAGE + ((3 * turn + 1) << 12)) | P | W | U | A | D);
            let faults = vm.faults;
            assert!(vm.renew_page(Gva::new(LINEAR)));
            vm.check_access(LINEAR, access);
            assert_eq!(vm.faults, faults);
            // Nor does an INVLPG without a change take anything away.
            assert!(vm.renew_page(Gva::new(LINEAR)));
            vm.check_access(LINEAR, access);
            assert_eq!(vm.faults, faults);
        }
        vm.end();
    }
}

/// What a fork does: pages that can only be read any more can still be read without a fault. Where a
/// page was only read, the right to write is not given away unseen.
#[test]
fn pages_stay_when_their_rights_change() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        let mut vm = paged(mode, P | W | U | A | D);
        let (read, write) = (by(AccessKind::Read, USER), by(AccessKind::Write, USER));
        let (at, size) = (vm.guest.at(1), vm.guest.size());
        let entry = vm.guest.memory.get(at, size);
        vm.check_access(LINEAR, write);
        vm.reload();
        vm.guest_writes(at, entry & !W);
        vm.reload();
        let faults = vm.faults;
        vm.check_access(LINEAR, read);
        assert_eq!(vm.faults, faults);
        // It is the guest's own fault.
        vm.check_access(LINEAR, write);
        assert_ne!(vm.faults, faults);
        vm.guest_writes(at, entry);
        vm.reload();
        let faults = vm.faults;
        vm.check_access(LINEAR, read);
        assert_eq!(vm.faults, faults);
        vm.check_access(LINEAR, write);
        assert_eq!(vm.faults, faults + 1);
        // Without the accessed flag, only an access makes it a mapping.
        vm.guest_writes(at, entry & !A);
        vm.reload();
        vm.check_access(LINEAR, read);
        assert_eq!(vm.faults, faults + 2);
        vm.end();
    }
}

/// A host page of 2 MiB behind a guest's is mapped in one piece, unless a table is in it.
#[test]
fn large_pages_stay_large() {
    let mut vm = paged(Mode::FourLevel, 0);
    vm.large = true;
    let directory = vm.guest.at(2);
    vm.guest.memory.set(
        directory,
        EntrySize::Eight,
        0x4000_0000 | P | W | U | A | D | PS,
    );
    vm.reload();
    vm.check_access(LINEAR, by(AccessKind::Write, USER));
    assert_eq!(vm.shadow.counts.leaves, [0, 1]);
    let faults = vm.faults;
    for page in 0..512 {
        vm.check_access(
            LINEAR & !0x1f_f000 | page << 12,
            by(AccessKind::Write, USER),
        );
    }
    assert_eq!(vm.faults, faults);
    // The host gives up a page in the middle of it.
    let gone = GfnRange::new(Gfn::new(0x4_0007), Gfn::new(0x4_0008));
    let mut cursor = Cursor::default();
    while vm.shadow.unmap(&vm.arena, gone, &mut cursor) != Progress::Done {}
    assert_eq!(vm.shadow.counts.leaves, [0, 0]);
    vm.end();
}

/// Pieces of a large page are told from pages that the guest has small.
#[test]
fn pieces_are_known() {
    let mut vm = paged(Mode::FourLevel, P | W | U | A | D);
    vm.check_access(LINEAR, by(AccessKind::Write, USER));
    assert!(!vm.shadow.is_in_pieces(Gfn::new(PAGE >> 12)));
    let directory = vm.guest.at(2);
    let large = 0x4000_0000 | P | W | U | A | D | PS;
    vm.guest.memory.set(directory, EntrySize::Eight, large);
    vm.reload();
    let (inside, behind) = (Gfn::new(0x4_01ff), Gfn::new(0x4_0200));
    assert!(!vm.shadow.is_in_pieces(inside));
    vm.check_access(LINEAR, by(AccessKind::Write, USER));
    assert!(vm.shadow.is_in_pieces(inside));
    assert!(!vm.shadow.is_in_pieces(behind));
    // In one piece again, once the host has it so.
    vm.large = true;
    let range = GfnRange::new(Gfn::new(0x4_0000), behind);
    let mut cursor = Cursor::default();
    while vm.shadow.unmap(&vm.arena, range, &mut cursor) != Progress::Done {}
    assert!(!vm.shadow.is_in_pieces(inside));
    vm.check_access(LINEAR, by(AccessKind::Read, USER));
    assert_eq!(vm.shadow.counts.leaves, [0, 1]);
    vm.end();
}

/// A root beside the first one, which shares the tables below.
fn second_root(vm: &mut Vm, at: u64) {
    let (first, size) = (vm.guest.registers.cr3, vm.guest.size());
    for index in 0..4096 / u64::from(size.bytes()) {
        let offset = index * u64::from(size.bytes());
        let entry = vm.guest.memory.get(first + offset, size);
        if entry != 0 {
            vm.guest.memory.set(at + offset, size, entry);
        }
    }
}

/// Makes the page after that of [`LINEAR`] one of these.
fn map_next(vm: &mut Vm, gfn: u64) {
    let (at, size) = (vm.guest.at(1), vm.guest.size());
    let at = at + u64::from(size.bytes());
    vm.guest.memory.set(at, size, gfn << 12 | P | W | U | A | D);
}

const NEXT: u64 = LINEAR + 0x1000;

/// Faults of so many writes to the page after that of [`LINEAR`].
fn faults_of_writes(vm: &mut Vm, count: usize) -> usize {
    let before = vm.faults;
    for _ in 0..count {
        vm.check_access(NEXT, by(AccessKind::Write, USER));
    }
    vm.faults - before
}

/// Roots go in the order in which they were used last; one that a vCPU runs on is the last of all.
#[test]
fn the_least_recently_used_root_goes_first() {
    for policy in [Policy::Virtual, Policy::Exact] {
        let mut vm = paged_by(Mode::FourLevel, P | W | U | A | D, policy);
        let first = vm.guest.registers.cr3;
        let roots = [first, 0x20_0000, 0x20_1000, 0x20_2000, 0x20_3000];
        for root in &roots[1..] {
            second_root(&mut vm, *root);
        }
        // Made in order, used in another, the third one last; and once more, to have it in step.
        for index in [0, 1, 2, 3, 4, 1, 4, 0, 3, 2, 2] {
            vm.guest.registers.cr3 = roots[index];
            vm.reload();
            vm.check_access(LINEAR, by(AccessKind::Write, USER));
        }
        vm.reload();
        let watched = |vm: &mut Vm| -> Vec<usize> {
            let is = |index: &usize| vm.shadow.is_watched(roots[*index] >> 12);
            (0..roots.len()).filter(is).collect()
        };
        assert_eq!(watched(&mut vm), [0, 1, 2, 3, 4]);
        let evict = |vm: &mut Vm| {
            let more = vm.gathering(|shadow, arena, gather| shadow.evict(arena, gather));
            vm.check();
            more
        };
        for left in [&[0, 2, 3, 4][..], &[0, 2, 3], &[2, 3], &[2]] {
            assert!(evict(&mut vm));
            assert_eq!(watched(&mut vm), left);
        }
        assert_eq!(vm.shadow.counts.evictions, 4);
        assert_eq!(vm.shadow.counts.released, 0);
        // The one in use stays, without anything below.
        assert!(evict(&mut vm));
        assert_eq!(
            (watched(&mut vm), vm.shadow.counts.leaves),
            (vec![2], [0, 0])
        );
        while evict(&mut vm) {}
        assert_eq!((watched(&mut vm), vm.shadow.counts.tables), (vec![2], 1));
        vm.check_access(LINEAR, by(AccessKind::Write, USER));
        vm.end();
    }
}

/// The root of a process that has ended, used as a page of data: a few writes, and it is one.
#[test]
fn roots_that_are_data_are_released() {
    for policy in [Policy::Virtual, Policy::Exact] {
        let mut vm = paged_by(Mode::FourLevel, P | W | U | A | D, policy);
        vm.check_access(LINEAR, by(AccessKind::Write, USER));
        let dead = vm.guest.registers.cr3;
        second_root(&mut vm, 0x20_0000);
        map_next(&mut vm, dead >> 12);
        vm.guest.registers.cr3 = 0x20_0000;
        vm.reload();
        vm.reload();
        vm.check_access(NEXT, by(AccessKind::Read, USER));
        assert!(vm.shadow.is_watched(dead >> 12));
        let faults: Vec<usize> = match policy {
            Policy::Exact => (0..100).map(|_| faults_of_writes(&mut vm, 1)).collect(),
            // Noticed anew after each flush, or each second one: a table that was written is not
            // watched again at once.
            Policy::Virtual => (0..100)
                .map(|_| {
                    vm.reload();
                    faults_of_writes(&mut vm, 1)
                })
                .collect(),
        };
        let most = match policy {
            Policy::Exact => 4,
            Policy::Virtual => 6,
        };
        assert!((1..=most).contains(&faults.iter().sum()), "{faults:?}");
        // And then none any more.
        assert!(
            faults[most..].iter().all(|&faults| faults == 0),
            "{faults:?}"
        );
        assert!(!vm.shadow.is_watched(dead >> 12));
        assert_eq!(vm.shadow.counts.released, 1);
        // It is still one that can be run on.
        vm.guest.registers.cr3 = dead;
        vm.reload();
        vm.check_access(LINEAR, by(AccessKind::Write, USER));
        vm.end();
    }
}

/// What a vCPU may use is followed however often it is written.
#[test]
fn tables_in_use_are_not_released() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        let mut vm = paged_by(mode, P | W | U | A | D, Policy::Exact);
        vm.check_access(LINEAR, by(AccessKind::Write, USER));
        let tables: &[u64] = if mode == Mode::FourLevel {
            &[1, 2, 3, 4]
        } else {
            &[1, 2]
        };
        for &level in tables {
            // One after the other is mapped there, and so written to.
            map_next(&mut vm, level);
            vm.reload();
            assert_eq!(faults_of_writes(&mut vm, 20), 20, "level {level}");
            assert!(vm.shadow.is_watched(level), "level {level}");
        }
        assert_eq!(vm.shadow.counts.released, 0);
        vm.end();
    }
}

/// A table whose last reference the guest has cleared is a page like any other, at once; so are those
/// that only roots refer to which nobody runs on, after a few writes.
#[test]
fn tables_that_are_data_are_released() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        for cleared in [true, false] {
            let mut vm = paged_by(mode, P | W | U | A | D, Policy::Exact);
            vm.check_access(LINEAR, by(AccessKind::Write, USER));
            let (size, table, spare) = (vm.guest.size(), vm.guest.at(1) >> 12, 0x30);
            // Another process has its own tables below the root, and the old ones as a page.
            let top = vm.guest.levels();
            let new = 0x20_0000;
            second_root(&mut vm, new);
            let mut at = new + (vm.guest.at(top) & 0xfff);
            for level in (1..top).rev() {
                let own = (spare + level) << 12;
                let pointer = mode == Mode::Pae && level == 2;
                vm.guest
                    .memory
                    .set(at, size, own | if pointer { P } else { P | W | U });
                at = own + (vm.guest.at(level) & 0xfff);
            }
            vm.guest.memory.set(at, size, PAGE | P | W | U | A | D);
            let next = at + u64::from(size.bytes());
            vm.guest
                .memory
                .set(next, size, table << 12 | P | W | U | A | D);
            if cleared {
                let above = vm.guest.at(2);
                vm.guest_writes(above, 0);
                vm.reload();
            }
            vm.guest.registers.cr3 = new;
            vm.reload();
            vm.reload();
            let faults = faults_of_writes(&mut vm, 50);
            assert!(
                faults <= if cleared { 2 } else { 4 },
                "{mode:?} {cleared}: {faults}"
            );
            assert!(!vm.shadow.is_watched(table), "{mode:?} {cleared}");
            assert!(vm.shadow.counts.released >= 1, "{mode:?} {cleared}");
            vm.end();
        }
    }
}

/// Frames that cannot be had leave everything consistent.
#[test]
fn nothing_breaks_for_want_of_frames() {
    for left in 0..16 {
        let mut vm = paged(Mode::FourLevel, P | W | U);
        vm.arena.left = left;
        let state = vm.guest.state();
        let access = by(AccessKind::Read, USER);
        let gva = Gva::new(LINEAR);
        let (page, path) = walk_traced(&mut vm.guest.memory, &state, gva, access).unwrap();
        let route = Route::new(vm.key(), gva, page, path);
        let host = HostPage {
            hpa: Hpa::new(HOST + page.gpa.page_base().raw()),
            writable: true,
            large: false,
        };
        let (root, sequence) = (vm.root.unwrap(), vm.shadow.sequence);
        let installed = vm.gathering(|shadow, arena, gather| {
            shadow.install(arena, gather, root, sequence, &route, host, Cause::NONE)
        });
        match installed {
            Installed::Done(_) => assert!(left >= 9),
            Installed::Lacking(Lack::Frames) => assert!(left < 9),
            other => panic!("{other:?}"),
        }
        vm.check();
        vm.end();
    }
}

/// A page that two processes have is one page until both have lost it.
#[test]
fn pages_are_told_of_once() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        let mut vm = paged(mode, P | W | U | A | D);
        vm.check_access(LINEAR, by(AccessKind::Write, USER));
        let told: Vec<Page> = vm.shadow.census.0.iter().copied().collect();
        assert_eq!(told, [(PAGE >> 12, HOST + PAGE, 0x1000)], "{mode:?}");
        // A second entry for it, in the same table.
        let (at, size) = (vm.guest.at(1), vm.guest.size());
        let entry = vm.guest.memory.get(at, size);
        let bytes = if mode == Mode::Bits32 { 4 } else { 8 };
        vm.guest.memory.set(at ^ bytes, size, entry);
        vm.reload();
        vm.check_access(LINEAR ^ 0x1000, by(AccessKind::Write, USER));
        assert_eq!(vm.shadow.counts.leaves, [2, 0]);
        assert!(vm.shadow.census.0.iter().eq(&told));
        vm.drop_page(LINEAR);
        assert_eq!(vm.shadow.counts.leaves, [1, 0]);
        assert!(vm.shadow.census.0.iter().eq(&told));
        vm.drop_page(LINEAR ^ 0x1000);
        assert!(vm.shadow.census.0.is_empty());
        vm.end();
    }
}

/// While a slot moves, a frame of the guest's can be at two places: each is a page of its own.
#[test]
fn a_frame_at_two_places_is_two_pages() {
    let mut vm = paged(Mode::FourLevel, P | W | U | A | D);
    let (at, size) = (vm.guest.at(1), vm.guest.size());
    let entry = vm.guest.memory.get(at, size);
    vm.guest.memory.set(at ^ 8, size, entry);
    vm.check_access(LINEAR, by(AccessKind::Write, USER));
    vm.host = HOST << 1;
    let access = by(AccessKind::Write, USER);
    assert!(vm.access(LINEAR ^ 0x1000, access).is_ok());
    vm.check_census();
    let gfn = PAGE >> 12;
    let both = [
        (gfn, HOST + PAGE, 0x1000),
        (gfn, (HOST << 1) + PAGE, 0x1000),
    ];
    assert!(vm.shadow.census.0.iter().eq(&both));
    assert_eq!(vm.mappings(gfn).len(), 2);
    // The first entry follows.
    vm.drop_page(LINEAR);
    assert!(vm.access(LINEAR, access).is_ok());
    vm.check_census();
    assert!(vm.shadow.census.0.iter().eq(&both[1..]));
    assert_eq!(vm.shadow.counts.leaves, [2, 0]);
    let range = GfnRange::new(Gfn::new(gfn), Gfn::new(gfn + 1));
    let mut cursor = Cursor::default();
    while vm.shadow.unmap(&vm.arena, range, &mut cursor) != Progress::Done {}
    vm.end();
}

/// An entry that a fault finds with another place of the host's is another page.
#[test]
fn an_entry_changes_its_place() {
    let mut vm = paged(Mode::FourLevel, P | U | A);
    vm.check_access(LINEAR, by(AccessKind::Read, USER));
    vm.host = HOST << 1;
    // A supervisor may write without CR0.WP: the entry is replaced where it is.
    registers(&mut vm.guest, 0);
    let access = by(AccessKind::Write, KERNEL);
    vm.reload();
    assert!(vm.access(LINEAR, by(AccessKind::Read, KERNEL)).is_ok());
    vm.host = HOST << 2;
    assert!(vm.access(LINEAR, access).is_ok());
    vm.check_census();
    let gfn = PAGE >> 12;
    let both = [
        (gfn, HOST + PAGE, 0x1000),
        (gfn, (HOST << 2) + PAGE, 0x1000),
    ];
    assert!(
        vm.shadow.census.0.iter().eq(&both),
        "{:x?}",
        vm.shadow.census.0
    );
    vm.end();
}

/// A chain that is too long is cut: nothing of it is looked at in one step but its beginning.
#[test]
fn long_chains_are_cut() {
    let mut vm = paged(Mode::FourLevel, P | W | U | A | D);
    let size = vm.guest.size();
    let directory = vm.guest.at(2) & !0xfff;
    let (first, last) = (vm.guest.memory.get(vm.guest.at(1), size), 12u64);
    // Tables that map one page in all of their entries; they are in frames of their own.
    let own = 0x100_0000;
    for number in 0..last {
        for index in 0..512 {
            vm.guest
                .memory
                .set(own + (number << 12) + index * 8, size, first);
        }
        vm.guest.memory.set(
            directory + number * 8,
            size,
            (own + (number << 12)) | P | W | U | A | D,
        );
    }
    vm.reload();
    let base = LINEAR & !0x3fff_ffff;
    for page in 0..last * 512 {
        assert!(vm
            .access(base + (page << 12), by(AccessKind::Read, USER))
            .is_ok());
    }
    assert_eq!(vm.shadow.counts.leaves, [last * 512, 0]);
    assert_eq!(vm.shadow.census.0.len(), 1);
    // Another page of the same chain: found by trying.
    let before = vm.shadow.counts.leaves[0];
    let mut cut = None;
    for gfn in 0x10_0000..0x12_0000u64 {
        let at = own + ((last - 1) << 12);
        vm.guest_writes(at, gfn << 12 | P | W | U | A | D);
        let gva = base + ((last - 1) << 21);
        vm.reload();
        assert!(vm.access(gva, by(AccessKind::Read, USER)).is_ok());
        if vm.shadow.counts.leaves[0] < before {
            cut = Some(gfn);
            break;
        }
    }
    assert!(cut.is_some(), "no other page is in the chain");
    vm.check();
    assert_eq!(vm.shadow.census.0.len(), 2);
    assert!(
        vm.shadow.counts.leaves[0] <= 4096 + 1,
        "{:?}",
        vm.shadow.counts
    );
    vm.end();
}

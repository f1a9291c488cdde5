// SPDX-License-Identifier: GPL-2.0

//! A VM on shadow tables, for their tests: the guest, the host's memory, and a CPU.
//!
//! The CPU here walks the shadow tables the way that the SDM describes, not by the code under test.
//! And after each step the pages that the census was told of are those that entries map.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::guest::*;
use super::paging_support::{Arena, Gathered};
use rusthv_model::arch::addr::{Gfn, Gva, Hpa};
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

/// Guest frame, host address, size in bytes.
pub type Page = (u64, u64, u64);

/// The pages that the shadow tables have told of.
#[derive(Default, PartialEq, Debug)]
pub struct Told(pub BTreeSet<Page>);

pub fn page(gfn: Gfn, hpa: Hpa, size: PageSize) -> Page {
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

pub type Tables = Shadow<Vec<Slot>, Vec<u32>, Told>;

/// Where the host has the guest's frame 0: all of it in one piece.
pub const HOST: u64 = 0x40_0000_0000;

pub struct Vm {
    pub guest: Guest,
    pub shadow: Tables,
    pub arena: Arena,
    pub root: Option<TableId>,
    /// Frames that the host lets the guest read only.
    pub read_only: BTreeSet<u64>,
    /// The host has large pages.
    pub large: bool,
    /// Where the host has the guest's frame 0.
    pub host: u64,
    pub faults: usize,
    /// The last fault or INVLPG went the short way, if it could.
    pub quick: bool,
}

impl Vm {
    pub fn new(guest: Guest, policy: Policy, slots: usize) -> Self {
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

    pub fn key(&self) -> RootKey {
        let pointers = self.guest.pdptes.unwrap_or_default();
        RootKey::of(&self.guest.state(), pointers).unwrap()
    }

    /// Something that gathers frames, and what the kernel does with them.
    pub fn gathering<R>(
        &mut self,
        f: impl FnOnce(&mut Tables, &mut Arena, &mut Gathered) -> R,
    ) -> R {
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

    pub fn sync(&mut self, leaves: bool) {
        let since = self.shadow.sequence;
        while let Some(syncing) = self.shadow.begin_sync(&self.arena, leaves, since, 0) {
            let words = self.frame(syncing.gfn().raw());
            self.shadow.compare(&self.arena, &syncing, Some(&words));
        }
    }

    pub fn frame(&self, gfn: u64) -> [u64; 512] {
        core::array::from_fn(|word| {
            self.guest
                .memory
                .get((gfn << 12) + word as u64 * 8, EntrySize::Eight)
        })
    }

    /// MOV to CR3, or anything else that flushes everything.
    pub fn reload(&mut self) {
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

    pub fn invlpg(&mut self, gva: u64) {
        self.quick = !self.quick;
        if self.quick && self.renew_page(Gva::new(gva)) {
            return;
        }
        self.sync(false);
        let root = self.root.unwrap();
        self.shadow.invalidate(&self.arena, root, Gva::new(gva));
    }

    /// INVLPG the long way: the entry is dropped.
    pub fn drop_page(&mut self, gva: u64) {
        self.quick = true;
        self.invlpg(gva);
    }

    /// INVLPG where the way to the guest's entry is known.
    pub fn renew_page(&mut self, gva: Gva) -> bool {
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
    pub fn cpu(&self, gva: u64, access: Access) -> Option<u64> {
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
    pub fn map_page(&mut self, gva: Gva, access: Access) -> bool {
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
    pub fn access(&mut self, gva: u64, access: Access) -> Result<u64, Option<u32>> {
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
    pub fn check_access(&mut self, gva: u64, access: Access) {
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

    pub fn check(&mut self) {
        let page = |gfn: u64| Some(Hpa::new(HOST + (gfn << 12)));
        self.shadow.check(&self.arena, page).unwrap();
        self.check_census();
    }

    /// The census knows the pages of all entries, and no others.
    pub fn check_census(&self) {
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
    pub fn mappings(&self, gfn: u64) -> Vec<Page> {
        let mut pages = Vec::new();
        let found = |gfn, leaf: Leaf| pages.push(page(gfn, leaf.hpa, leaf.size));
        self.shadow
            .for_each_mapping(&self.arena, Gfn::new(gfn), found);
        pages
    }

    /// The guest writes an entry of its tables, by an address that it may write to.
    pub fn guest_writes(&mut self, at: u64, value: u64) {
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

    pub fn end(mut self) {
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

pub fn registers(guest: &mut Guest, bits: u8) {
    let on = |bit: u8| bits & 1 << bit != 0;
    guest.registers.cr0 = guest.registers.cr0.with(Cr0::WP, on(0));
    guest.registers.cr4 = guest.registers.cr4.with(Cr4::SMEP, on(1));
    guest.registers.cr4 = guest.registers.cr4.with(Cr4::SMAP, on(2) && on(0));
    guest.registers.cr4 = guest.registers.cr4.with(Cr4::PSE, true);
    guest.registers.efer = guest.registers.efer.with(Efer::NXE, on(3));
}

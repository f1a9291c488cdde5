// SPDX-License-Identifier: GPL-2.0

//! Shadow tables, case by case: what they keep, share, give up, and owe to the guest's flags.

#[path = "paging_support/guest.rs"]
mod guest;
#[allow(unused_macros)]
mod paging_support;
#[path = "paging_support/shadow.rs"]
mod vm;

use guest::*;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gva, Hpa};
use rusthv_model::arch::regs::Cr4;
use rusthv_model::paging::shadow::route::Route;
use rusthv_model::paging::shadow::{Cause, Cursor, HostPage, Installed, Lack, Policy};
use rusthv_model::paging::state::{Access, AccessKind, Mode, Privilege};
use rusthv_model::paging::sweep::Progress;
use rusthv_model::paging::walk::{walk_traced, EntrySize};
use vm::{registers, Page, Vm, HOST};

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

/// What such a write leaves behind is a page of supervisor mode, which SMAP does not look at: once the guest
/// sets that, tables from before are not used.
#[test]
fn smap_without_write_protection_has_tables_of_its_own() {
    for mode in [Mode::FourLevel, Mode::Pae, Mode::Bits32] {
        let mut vm = paged(mode, P | U);
        registers(&mut vm.guest, 8);
        for smap in [false, true, false, true] {
            vm.guest.registers.cr4 = vm.guest.registers.cr4.with(Cr4::SMAP, smap);
            vm.reload();
            vm.check_access(LINEAR, by(AccessKind::Read, KERNEL));
            vm.check_access(LINEAR, by(AccessKind::Write, KERNEL));
        }
        vm.end();
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

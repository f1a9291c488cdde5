// SPDX-License-Identifier: GPL-2.0

//! Shadow tables: any sequence of accesses, changes of the guest's tables, invalidations and changes
//! of the host's memory, against a walk of the guest's own tables.

#[path = "paging_support/guest.rs"]
mod guest;
#[allow(unused_macros)]
mod paging_support;
#[path = "paging_support/shadow.rs"]
mod vm;

use guest::*;
use proptest::prelude::*;
use rusthv_model::arch::addr::{Gfn, GfnRange, Hpa};
use rusthv_model::paging::shadow::{Cursor, Policy};
use rusthv_model::paging::state::{Access, AccessKind, Mode, Privilege};
use rusthv_model::paging::sweep::Progress;
use vm::{registers, Vm};

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

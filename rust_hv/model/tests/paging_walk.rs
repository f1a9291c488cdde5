// SPDX-License-Identifier: GPL-2.0

//! The walk of the guest's tables: modes, entries, flags.

#[path = "paging_support/guest.rs"]
mod guest;

use guest::*;
use rusthv_model::arch::addr::{Gpa, Gva};
use rusthv_model::arch::regs::Cr4;
use rusthv_model::paging::state::{Access, AccessKind, Mode};
use rusthv_model::paging::walk::{load_pdptes, probe, walk, EntrySize, PdpteError, WalkError};
use rusthv_model::paging::Permissions;
use AccessKind::{Read, Write};

#[test]
fn modes_follow_the_registers() {
    for mode in PAGED.into_iter().chain([Mode::Unpaged]) {
        assert_eq!(Guest::new(mode).state().mode(), mode);
    }
}

#[test]
fn without_paging_addresses_are_physical() {
    let state = Guest::new(Mode::Unpaged).state();
    let mut memory = Memory::new();
    let access = Access {
        kind: Write,
        privilege: USER,
    };
    let found = walk(&mut memory, &state, Gva::new(0x1_1234_5678), access).unwrap();
    assert_eq!(found.gpa, Gpa::new(0x1234_5678));
    let all = state.permissions(&found.rights, USER);
    assert_eq!(all, Permissions::RWX);
}

#[test]
fn small_pages_in_every_mode() {
    for mode in PAGED {
        let mut guest = Guest::with(mode, P | W | U);
        assert_eq!(guest.gpa(), (PAGE + 0xabc, 12), "{mode:?}");
        for level in 1..=guest.levels() {
            let mut hole = guest.clone();
            hole.put(level, 0xffff_fffe);
            assert_eq!(hole.fault(Read, KERNEL), Some(0), "{mode:?} level {level}");
            assert_eq!(hole.fault(Write, USER), Some(6), "{mode:?} level {level}");
        }
    }
}

#[test]
fn linear_addresses_wrap_outside_of_64_bit_mode() {
    for mode in [Mode::Bits32, Mode::Pae] {
        let mut guest = Guest::with(mode, P);
        let access = Access {
            kind: Read,
            privilege: KERNEL,
        };
        let state = guest.state();
        let high = Gva::new(0xffff_0001_0000_0000 | LINEAR);
        let found = walk(&mut guest.memory, &state, high, access).unwrap();
        assert_eq!(found.gpa.raw(), PAGE + 0xabc);
    }
}

#[test]
fn canonical_addresses() {
    for (mode, bits) in [(Mode::FourLevel, 48), (Mode::FiveLevel, 57)] {
        let state = Guest::new(mode).state();
        let half = 1u64 << (bits - 1);
        for good in [0, half - 1, half.wrapping_neg(), u64::MAX] {
            assert!(state.is_canonical(Gva::new(good)), "{mode:?} {good:#x}");
        }
        for bad in [half, half.wrapping_neg() - 1, 1 << 63] {
            assert!(!state.is_canonical(Gva::new(bad)), "{mode:?} {bad:#x}");
            let access = Access {
                kind: Read,
                privilege: KERNEL,
            };
            let result = walk(&mut Memory::new(), &state, Gva::new(bad), access);
            assert_eq!(result, Err(WalkError::NonCanonical));
        }
    }
}

#[test]
fn large_pages() {
    let mut guest = Guest::with(Mode::Pae, P);
    guest.put(2, 0x12_3460_0000 | PS | P);
    assert_eq!(guest.gpa(), (0x12_3460_3abc, 21));

    let mut guest = Guest::with(Mode::FourLevel, P);
    guest.put(2, 0x12_3460_0000 | PS | P);
    assert_eq!(guest.gpa(), (0x12_3460_3abc, 21));
    guest.put(3, 0x12_4000_0000 | PS | P);
    assert_eq!(guest.gpa(), (0x12_4040_3abc, 30));
    // A CPU without 1 GiB pages.
    guest.features.pages_1g = false;
    assert_eq!(guest.fault(Read, KERNEL), Some(9));
    // The upper levels have none in any case.
    for level in [4, 5] {
        let mut guest = Guest::with(Mode::FiveLevel, P);
        let entry = guest.entry(level);
        guest.put(level, entry | PS);
        assert_eq!(guest.fault(Write, USER), Some(0xf), "level {level}");
    }
}

#[test]
fn large_pages_of_32_bit_paging() {
    let mut guest = Guest::with(Mode::Bits32, P);
    // Without CR4.PSE, bit 7 means nothing.
    guest.put(2, 0x1000 | PS | P);
    assert_eq!(guest.gpa(), (PAGE + 0xabc, 12));
    let mut guest = guest.cr4(Cr4::PSE);
    guest.put(2, 0xabc0_0000 | PS | P);
    assert_eq!(guest.gpa(), (0xabc0_3abc, 22));
    // Bits 20:13 are address bits 39:32.
    guest.put(2, 0xabc0_0000 | 0x5a << 13 | PS | P);
    assert_eq!(guest.gpa(), (0x5a_abc0_3abc, 22));
    guest.features.phys_bits = 36;
    assert_eq!(guest.fault(Read, KERNEL), Some(9));
    guest.put(2, 0xabc0_0000 | 0xa << 13 | PS | P);
    assert_eq!(guest.gpa(), (0xa_abc0_3abc, 22));
    guest.features.phys_bits = 52;
    guest.put(2, 0xabc0_0000 | 0xff << 13 | PS | P);
    assert_eq!(guest.gpa(), (0xff_abc0_3abc, 22));
    guest.put(2, 0xabc0_0000 | 1 << 21 | PS | P);
    assert_eq!(guest.fault(Read, KERNEL), Some(9));
    guest.features.pse36 = false;
    for bit in 13..=21 {
        guest.put(2, 0xabc0_0000 | 1 << bit | PS | P);
        assert_eq!(guest.fault(Read, KERNEL), Some(9), "bit {bit}");
    }
}

/// The bits of the entry at `level` that fault with RSVD when they are set alone.
fn reserved_bits(guest: &Guest, level: u64) -> Vec<u32> {
    let found = |bit: &u32| {
        let mut guest = guest.clone();
        let entry = guest.entry(level);
        guest.put(level, entry | 1 << bit);
        entry >> bit & 1 == 0 && guest.fault(Read, KERNEL).is_some_and(|code| code & 8 != 0)
    };
    let top = if guest.size() == EntrySize::Four {
        32
    } else {
        64
    };
    (0..top).filter(found).collect()
}

#[test]
fn reserved_bits_in_every_entry() {
    let list = |ranges: &[std::ops::RangeInclusive<u32>]| -> Vec<u32> {
        ranges.iter().cloned().flatten().collect()
    };
    for level in [1, 2] {
        assert_eq!(reserved_bits(&Guest::with(Mode::Bits32, P), level), []);
    }
    // PAE: MAXPHYADDR to 62, and XD while it is off.
    let pae = Guest::with(Mode::Pae, P);
    for level in [1, 2] {
        assert_eq!(reserved_bits(&pae, level), list(&[40..=63]));
        assert_eq!(reserved_bits(&pae.clone().nxe(), level), list(&[40..=62]));
    }
    // A CPU that reads the pointer at each walk may have set bit 5.
    assert_eq!(
        reserved_bits(&pae.clone().nxe(), 3),
        list(&[1..=2, 6..=8, 40..=63])
    );

    for mode in [Mode::FourLevel, Mode::FiveLevel] {
        let guest = Guest::with(mode, P);
        for level in 1..=guest.levels() {
            // The upper levels have no large pages.
            let large: &[u32] = if level > 3 { &[7] } else { &[] };
            let off = [large, &list(&[40..=51, 63..=63])].concat();
            let on = [large, &list(&[40..=51])].concat();
            // Setting PS below makes a page whose address has low bits.
            let guest = guest.clone();
            let strip = |mut bits: Vec<u32>| {
                bits.retain(|&bit| bit != 7 || level > 3);
                bits
            };
            assert_eq!(strip(reserved_bits(&guest, level)), off, "{mode:?} {level}");
            assert_eq!(
                strip(reserved_bits(&guest.nxe(), level)),
                on,
                "{mode:?} {level}"
            );
        }
    }

    let mut guest = Guest::with(Mode::FourLevel, P).nxe();
    guest.put(2, PS | P);
    assert_eq!(reserved_bits(&guest, 2), list(&[13..=20, 40..=51]));
    guest.put(3, PS | P);
    assert_eq!(reserved_bits(&guest, 3), list(&[13..=29, 40..=51]));
    let mut guest = Guest::with(Mode::Pae, P).nxe();
    guest.put(2, PS | P);
    assert_eq!(reserved_bits(&guest, 2), list(&[13..=20, 40..=62]));
    guest.features.phys_bits = 52;
    assert_eq!(reserved_bits(&guest, 2), list(&[13..=20, 52..=62]));
}

#[test]
fn an_absent_entry_hides_reserved_bits() {
    let mut guest = Guest::with(Mode::FourLevel, P);
    guest.put(1, !P);
    assert_eq!(guest.fault(Write, KERNEL), Some(2));
}

#[test]
fn page_directory_pointers_may_be_loaded_or_read() {
    let mut guest = Guest::with(Mode::Pae, P | W);
    let loaded = load_pdptes(&mut guest.memory, 0x3000, 40).unwrap();
    assert_eq!(loaded, [0x2001, 0, 0, 0]);
    // What is loaded counts, not what is in memory by now.
    guest.pdptes = Some(loaded);
    guest.put(3, 0);
    assert_eq!(guest.gpa(), (PAGE + 0xabc, 12));
    guest.pdptes = None;
    assert_eq!(guest.fault(Write, KERNEL), Some(2));
    guest.pdptes = Some([0, 0x2001, 0x2001, 0x2001]);
    assert_eq!(guest.fault(Write, KERNEL), Some(2));
    for index in 0..4u64 {
        let mut pdptes = [0; 4];
        pdptes[index as usize] = 0x2001;
        guest.pdptes = Some(pdptes);
        let state = guest.state();
        let access = Access {
            kind: Read,
            privilege: KERNEL,
        };
        let gva = Gva::new(index << 30 | LINEAR);
        assert!(walk(&mut guest.memory, &state, gva, access).is_ok());
    }
}

#[test]
fn loading_page_directory_pointers_checks_them() {
    let mut memory = Memory::new();
    memory.set(0x1_0fe8, EntrySize::Eight, 0x7001);
    // The low five bits of CR3 are flags; a pointer that is absent may hold anything.
    memory.set(0x1_0ff0, EntrySize::Eight, !1);
    let load = |memory: &mut Memory, phys| load_pdptes(memory, 0xffff_0000_0001_0ff8, phys);
    assert_eq!(load(&mut memory, 40), Ok([0, 0x7001, !1, 0]));
    for bit in [1, 2, 5, 6, 7, 8, 40, 52, 63] {
        memory.set(0x1_0ff8, EntrySize::Eight, 1 | 1 << bit);
        assert_eq!(
            load(&mut memory, 40),
            Err(PdpteError::Reserved),
            "bit {bit}"
        );
    }
    memory.set(0x1_0ff8, EntrySize::Eight, 1 | 1 << 40);
    assert!(load(&mut memory, 41).is_ok());
    memory.limit = 0x1_0ff8;
    assert_eq!(load(&mut memory, 41), Err(PdpteError::Memory(NoMemory)));
}

#[test]
fn accessed_and_dirty_flags() {
    for mode in PAGED {
        let clean = Guest::with(mode, P | W | U);
        let paged = if mode == Mode::Pae { 2 } else { clean.levels() };

        let mut guest = clean.clone();
        guest.walk(Read, USER).unwrap();
        for level in 1..=guest.levels() {
            let flag = if level <= paged { A } else { 0 };
            assert_eq!(
                guest.entry(level),
                clean.entry(level) | flag,
                "{mode:?} {level}"
            );
        }
        guest.walk(Write, USER).unwrap();
        assert_eq!(guest.entry(1), clean.entry(1) | A | D);
        assert_eq!(guest.entry(2), clean.entry(2) | A);
        // Once they are set, memory is only read.
        let before = guest.memory.exchanges;
        guest.walk(Write, USER).unwrap();
        assert_eq!(guest.memory.exchanges, before);

        // No flag for an access that faults, nor for a look.
        let mut guest = Guest::with(mode, P);
        let before = guest.memory.clone();
        assert!(guest.fault(Write, USER).is_some());
        assert_eq!(guest.memory, before);
        let (state, access) = (
            guest.state(),
            Access {
                kind: Read,
                privilege: KERNEL,
            },
        );
        let found = probe(&mut guest.memory, &state, Gva::new(LINEAR), access).unwrap();
        assert_eq!(found.gpa.raw(), PAGE + 0xabc);
        assert_eq!(guest.memory, before);
    }
}

#[test]
fn a_large_page_has_its_flags_in_its_own_entry() {
    let mut guest = Guest::with(Mode::FourLevel, P);
    guest.put(2, PS | P | W);
    guest.walk(Write, KERNEL).unwrap();
    assert_eq!(guest.entry(2), PS | P | W | A | D);
    assert_eq!(guest.entry(3) & (A | D), A);
    assert_eq!(guest.entry(1) & (A | D), 0);
}

#[test]
fn entries_that_change_meanwhile_are_read_again() {
    // Somebody else sets the dirty flag of the first entry that the walk marks.
    let mut guest = Guest::with(Mode::FourLevel, P | W | U);
    guest.memory.rivals = vec![D];
    guest.walk(Write, USER).unwrap();
    assert_eq!(guest.entry(4) & (A | D), A | D);
    assert_eq!(guest.entry(1) & (A | D), A | D);

    // Somebody takes the page away between the look and the mark.
    let mut guest = Guest::with(Mode::FourLevel, P | W | U);
    for level in 2..=4 {
        let entry = guest.entry(level);
        guest.put(level, entry | A);
    }
    guest.memory.rivals = vec![P];
    assert_eq!(guest.fault(Write, USER), Some(6));

    // Without end: the walk gives up.
    guest.put(1, PAGE | P | W | U);
    guest.memory.rivals = vec![1 << 9; 1000];
    assert_eq!(guest.walk(Write, USER), Err(WalkError::Contended));
}

#[test]
fn tables_without_memory() {
    for mode in PAGED {
        let mut guest = Guest::with(mode, P);
        guest.memory.limit = guest.at(1);
        let error = WalkError::Memory {
            at: Gpa::new(guest.at(guest.levels())),
            error: NoMemory,
        };
        assert_eq!(guest.walk(Read, KERNEL), Err(error));
        guest.put(2, 0x7000 | P);
        guest.memory.limit = 0x7000;
        let error = WalkError::Memory {
            at: Gpa::new(0x6000 + guest.at(1)),
            error: NoMemory,
        };
        assert_eq!(guest.walk(Read, KERNEL), Err(error));
    }
}

#[test]
fn cr3_holds_more_than_an_address() {
    let mut guest = Guest::with(Mode::FourLevel, P);
    guest.registers.cr3 |= 0x8000_0000_0000_0fff;
    assert_eq!(guest.gpa().0, PAGE + 0xabc);
    let mut guest = Guest::with(Mode::Bits32, P);
    guest.registers.cr3 |= 0xffff_ffff_0000_0fff;
    assert_eq!(guest.gpa().0, PAGE + 0xabc);
}

#[test]
fn an_entry_that_is_used_at_every_level() {
    for (mode, bytes) in [
        (Mode::Bits32, 4),
        (Mode::FourLevel, 8),
        (Mode::FiveLevel, 8),
    ] {
        let mut guest = Guest::new(mode);
        let (root, index) = (guest.registers.cr3, 5);
        let shift = if bytes == 4 { 10 } else { 9 };
        let linear = (0..guest.levels()).fold(0x123, |linear, level| {
            linear | index << (12 + shift * level as u32)
        });
        let at = root + index * bytes;
        for (kind, flags) in [(Read, A), (Write, A | D)] {
            guest.memory.set(at, guest.size(), root | P | W | U);
            let (state, size) = (guest.state(), guest.size());
            let access = Access {
                kind,
                privilege: USER,
            };
            let found = walk(&mut guest.memory, &state, Gva::new(linear), access).unwrap();
            assert_eq!(found.gpa.raw(), root + 0x123, "{mode:?}");
            assert_eq!(
                guest.memory.get(at, size),
                root | P | W | U | flags,
                "{mode:?}"
            );
        }
    }
}

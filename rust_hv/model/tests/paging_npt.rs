// SPDX-License-Identifier: GPL-2.0

//! NPT entries bit by bit, as the figures of APM Vol. 2, "Long-Mode Page Translation", have them;
//! and the format that is one of two.

use rusthv_model::arch::addr::Hpa;
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::{Entry, Format, Leaf, Notice};
use rusthv_model::paging::nested::Nested;
use rusthv_model::paging::npt::Npt;
use rusthv_model::paging::{Level, MemoryType, PageSize, Permissions};

const NPT: Npt = Npt {
    largest: PageSize::Size1G,
    five_level: false,
    notice: Notice::Fault,
};
const EPT: Ept = Ept {
    accessed_dirty: true,
    notice: Notice::Fault,
    execute_only: true,
    largest: PageSize::Size2M,
    five_level: false,
};
const LEVELS: [Level; 5] = [Level::Pt, Level::Pd, Level::Pdpt, Level::Pml4, Level::Pml5];
const NX: u64 = 1 << 63;

fn leaf(hpa: u64, size: PageSize, perms: Permissions) -> Leaf {
    Leaf::new(Hpa::new(hpa), size, perms)
}

#[test]
fn pages_have_these_words() {
    let (r, rw, rx, rwx) = (
        Permissions::R,
        Permissions::RW,
        Permissions::RX,
        Permissions::RWX,
    );
    let (k4, m2, g1) = (PageSize::Size4K, PageSize::Size2M, PageSize::Size1G);
    let used = |leaf| Leaf {
        accessed: true,
        ..leaf
    };
    let written = |leaf| Leaf {
        dirty: true,
        ..used(leaf)
    };
    let uncacheable = |leaf: Leaf| leaf.with_memory_type(MemoryType::Uncacheable, false);
    for (page, word) in [
        // P and U/S; R/W; NX.
        (leaf(0x1000, k4, rx), 0x1005),
        (leaf(0x1000, k4, rwx), 0x1007),
        (leaf(0x1000, k4, r), NX | 0x1005),
        (leaf(0x1000, k4, rw), NX | 0x1007),
        // A; A and D.
        (used(leaf(0x1000, k4, rwx)), 0x1027),
        (written(leaf(0x1000, k4, rwx)), 0x1067),
        // PWT and PCD.
        (uncacheable(leaf(0x1000, k4, rwx)), 0x101f),
        // All the address bits that there are.
        (leaf(0x000f_ffff_ffff_f000, k4, rx), 0x000f_ffff_ffff_f005),
        // PS.
        (leaf(0x4020_0000, m2, rwx), 0x4020_0087),
        (leaf(0x8000_0000, g1, rw), NX | 0x8000_0087),
        (
            written(uncacheable(leaf(0x8000_0000, g1, rw))),
            NX | 0x8000_00ff,
        ),
    ] {
        assert_eq!(NPT.leaf(&page), Some(word), "{page:?}");
        let read = NPT.decode(word, page.size.level());
        assert_eq!(read, Entry::Leaf(page), "{word:#x}");
    }
}

#[test]
fn tables_have_every_right() {
    let word = NPT.table(Hpa::new(0x000a_bcde_f123_4000));
    assert_eq!(word, 0x000a_bcde_f123_4007);
    for level in LEVELS {
        if level != Level::Pt {
            // The CPU sets A in it.
            for word in [word, word | 1 << 5] {
                let next = Hpa::new(0x000a_bcde_f123_4000);
                assert_eq!(NPT.decode(word, level), Entry::Table(next));
            }
        }
    }
}

#[test]
fn only_the_present_bit_makes_an_entry() {
    for level in LEVELS {
        assert_eq!(NPT.decode(0, level), Entry::Absent);
        assert_eq!(NPT.decode(!1, level), Entry::Absent);
        assert_ne!(NPT.decode(1, level), Entry::Absent);
    }
}

#[test]
fn software_bits_and_keys_do_not_matter() {
    // Bits 11:9, 58:53 and 62:59; and G, which has no meaning for a guest. Bit 52 is ours.
    let free = 0x7fe0_0000_0000_0f00;
    for (word, level) in [
        (0x1027, Level::Pt),
        (0x4020_0087, Level::Pd),
        (0x1007, Level::Pd),
    ] {
        assert_eq!(NPT.decode(word | free, level), NPT.decode(word, level));
    }
}

#[test]
fn other_places_of_the_pat_are_not_cached() {
    let expect = |word, level, hpa| match NPT.decode(word, level) {
        Entry::Leaf(leaf) => {
            assert_eq!(leaf.memory_type, MemoryType::Uncacheable, "{word:#x}");
            assert_eq!(leaf.hpa, Hpa::new(hpa), "{word:#x}");
        }
        other => panic!("{word:#x} is {other:?}"),
    };
    for bits in [0x08, 0x10, 0x18] {
        expect(0x1007 | bits, Level::Pt, 0x1000);
        expect(0x4020_0087 | bits, Level::Pd, 0x4020_0000);
    }
    // PAT is bit 7 in the entry of a 4 KiB page, and bit 12 in the others: no address bit there.
    expect(0x1087, Level::Pt, 0x1000);
    expect(0x4020_1087, Level::Pd, 0x4020_0000);
    expect(0x8000_1087, Level::Pdpt, 0x8000_0000);
    // Without PAT, bit 12 of a small page is address.
    let small = leaf(0x4020_1000, PageSize::Size4K, Permissions::RWX);
    assert_eq!(NPT.decode(0x4020_1007, Level::Pt), Entry::Leaf(small));
}

#[test]
fn what_cannot_be_said_is_refused() {
    for bits in 0..8 {
        let perms = Permissions::from_bits(bits);
        let word = NPT.leaf(&leaf(0x1000, PageSize::Size4K, perms));
        assert_eq!(word.is_some(), perms.contains(Permissions::R), "{perms:?}");
    }
    for raw in 0..8 {
        let Some(memory_type) = MemoryType::from_raw(raw) else {
            continue;
        };
        let page = leaf(0x1000, PageSize::Size4K, Permissions::RW);
        let word = NPT.leaf(&page.with_memory_type(memory_type, false));
        let known = [MemoryType::WriteBack, MemoryType::Uncacheable].contains(&memory_type);
        assert_eq!(word.is_some(), known, "{memory_type:?}");
    }
    for largest in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        let poor = Npt { largest, ..NPT };
        for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
            let word = poor.leaf(&leaf(0, size, Permissions::RWX));
            assert_eq!(word.is_some(), size <= largest, "{size:?} of {largest:?}");
        }
    }
}

#[test]
fn the_guests_pat_always_counts() {
    let page = leaf(0x1000, PageSize::Size4K, Permissions::RWX);
    let overruling = page.with_memory_type(MemoryType::WriteBack, true);
    let word = NPT.leaf(&overruling).unwrap();
    assert_eq!(word, NPT.leaf(&page).unwrap());
    assert_eq!(NPT.decode(word, Level::Pt), Entry::Leaf(page));
    assert!(!Nested::Npt(NPT).overrules_pat());

    let ept = Nested::Ept(EPT);
    assert!(ept.overrules_pat());
    let word = ept.leaf(&overruling).unwrap();
    assert_eq!(ept.decode(word, Level::Pt), Entry::Leaf(overruling));
}

#[test]
fn the_walk_starts_where_the_host_does() {
    let five = Npt {
        five_level: true,
        ..NPT
    };
    assert_eq!(Nested::Npt(NPT).levels(), Level::Pml4);
    assert_eq!(Nested::Npt(five).levels(), Level::Pml5);
    assert_eq!(Nested::Ept(EPT).levels(), Level::Pml4);
    let five = Ept {
        five_level: true,
        ..EPT
    };
    assert_eq!(Nested::Ept(five).levels(), Level::Pml5);
    assert_eq!(Nested::Ept(EPT).address_bits(), 48);
    assert_eq!(Nested::Ept(five).address_bits(), 57);
    assert_eq!(Nested::Npt(NPT).largest(), PageSize::Size1G);
    assert_eq!(Nested::Ept(EPT).largest(), PageSize::Size2M);
}

/// What a format says about a number of words and pages.
fn sayings(format: impl Format) -> Vec<String> {
    let mut said = vec![
        format!("{:#x}", format.accessed_mask()),
        format!("{:#x}", format.dirty_mask()),
        format!("{:#x}", format.address_mask()),
        format!("{:#x}", format.table(Hpa::new(0x7000))),
    ];
    for bits in 0..8 {
        for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
            let page = leaf(0x4000_0000, size, Permissions::from_bits(bits));
            said.push(format!("{:x?}", format.leaf(&page)));
        }
    }
    for level in LEVELS {
        for bit in 0..64 {
            for word in [1 << bit, 7 | 1 << bit, 0x87 | 1 << bit] {
                said.push(format!("{:x?}", format.decode(word, level)));
                said.push(format!("{:x?}", format.withhold(word, level)));
                said.push(format!("{:x?}", format.give_back(word, level)));
            }
        }
    }
    said
}

#[test]
fn either_format_speaks_for_itself() {
    assert_eq!(sayings(Nested::Ept(EPT)), sayings(EPT));
    assert_eq!(sayings(Nested::Npt(NPT)), sayings(NPT));
    assert_ne!(sayings(EPT), sayings(NPT));
}

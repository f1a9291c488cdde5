// SPDX-License-Identifier: GPL-2.0

//! The walk of the guest's tables against a second reading of the SDM, on random tables.
//!
//! The second reading shares nothing with the first: it names each structure of the SDM's figures,
//! lists reserved bits one by one, collects all entries before it judges any right, and says the
//! rights in the SDM's own order (Vol. 3A, "Determination of Access Rights").

#[path = "paging_support/guest.rs"]
mod guest;

use std::ops::RangeInclusive;

use guest::Memory;
use proptest::prelude::*;
use rusthv_model::arch::addr::Gva;
use rusthv_model::arch::regs::{Cr0, Cr4, Efer};
use rusthv_model::paging::state::{
    Access, AccessKind, Features, PagingState, Privilege, Registers,
};
use rusthv_model::paging::walk::{probe, walk, EntrySize, WalkError};

#[derive(Debug, PartialEq)]
enum Outcome {
    Page { gpa: u64, shift: u32 },
    Fault(u32),
    NonCanonical,
}

/// The paging structures of the SDM's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Pde32,
    Pde4M,
    Pte32,
    PdptePae,
    PdePae,
    Pde2MPae,
    PtePae,
    Pml5e,
    Pml4e,
    Pdpte,
    Pdpte1G,
    Pde,
    Pde2M,
    Pte,
}

fn bit(value: u64, at: u32) -> bool {
    value / 2u64.pow(at) % 2 == 1
}

/// The number in bits `low..=high`.
fn field(value: u64, bits: RangeInclusive<u32>) -> u64 {
    bits.rev()
        .fold(0, |sum, at| sum * 2 + u64::from(bit(value, at)))
}

struct Oracle<'a> {
    memory: &'a mut Memory,
    regs: Registers,
    cpu: Features,
    pdptes: Option<[u64; 4]>,
    gva: u64,
    access: Access,
    /// Entries used, with their kinds and places.
    used: Vec<(Kind, u64, u64)>,
}

impl Oracle<'_> {
    fn reserved(&self, kind: Kind, entry: u64) -> bool {
        let phys = u32::from(self.cpu.phys_bits);
        let xd = !self.regs.efer.contains(Efer::NXE);
        let mut must_be_zero: Vec<u32> = Vec::new();
        let above = |end: u32| phys..=end;
        match kind {
            Kind::Pde32 | Kind::Pte32 => {}
            Kind::Pde4M => {
                must_be_zero.push(21);
                must_be_zero.extend((13..=20).filter(|b| !self.cpu.pse36 || b - 13 + 32 >= phys));
            }
            Kind::PdptePae => {
                must_be_zero.extend([1, 2, 5, 6, 7, 8]);
                must_be_zero.extend(above(63));
            }
            Kind::PdePae | Kind::PtePae => must_be_zero.extend(above(62)),
            Kind::Pde2MPae => must_be_zero.extend((13..=20).chain(above(62))),
            Kind::Pml5e | Kind::Pml4e => {
                must_be_zero.push(7);
                must_be_zero.extend(above(51));
            }
            Kind::Pdpte => {
                must_be_zero.extend(above(51));
                if !self.cpu.pages_1g {
                    must_be_zero.push(7);
                }
            }
            Kind::Pde | Kind::Pte => must_be_zero.extend(above(51)),
            Kind::Pdpte1G => must_be_zero.extend((13..=29).chain(above(51))),
            Kind::Pde2M => must_be_zero.extend((13..=20).chain(above(51))),
        }
        let four_bytes = matches!(kind, Kind::Pde32 | Kind::Pte32 | Kind::Pde4M);
        if xd && !four_bytes {
            must_be_zero.push(63);
        }
        must_be_zero.iter().any(|&at| bit(entry, at))
    }

    fn code(&self, present: bool, reserved: bool, key: bool) -> u32 {
        let Registers { cr4, efer, .. } = self.regs;
        let fetch = self.access.kind == AccessKind::Fetch
            && (cr4.contains(Cr4::SMEP) || (cr4.contains(Cr4::PAE) && efer.contains(Efer::NXE)));
        [
            present,
            self.access.kind == AccessKind::Write,
            self.access.privilege == Privilege::User,
            reserved,
            fetch,
            key,
        ]
        .iter()
        .rev()
        .fold(0, |code, &set| code * 2 + u32::from(set))
    }

    /// Looks at one entry; `kind` decides from its contents what it is.
    fn look(
        &mut self,
        at: u64,
        size: EntrySize,
        kind: impl Fn(u64) -> Kind,
    ) -> Result<(Kind, u64), Outcome> {
        let entry = self.memory.get(at, size);
        self.judge(at, entry, kind(entry))
    }

    fn judge(&mut self, at: u64, entry: u64, kind: Kind) -> Result<(Kind, u64), Outcome> {
        if !bit(entry, 0) {
            return Err(Outcome::Fault(self.code(false, false, false)));
        }
        if self.reserved(kind, entry) {
            return Err(Outcome::Fault(self.code(true, true, false)));
        }
        self.used.push((kind, at, entry));
        Ok((kind, entry))
    }

    /// Physical address and page size, before any right is looked at.
    fn locate(&mut self) -> Result<(u64, u32), Outcome> {
        let Registers {
            cr0,
            cr3,
            cr4,
            efer,
            ..
        } = self.regs;
        let gva = self.gva;
        let four = EntrySize::Four;
        let eight = EntrySize::Eight;
        let large = |entry| bit(entry, 7);
        if !cr0.contains(Cr0::PG) {
            return Ok((field(gva, 0..=31), 12));
        }
        if !cr4.contains(Cr4::PAE) {
            let pse = cr4.contains(Cr4::PSE);
            let at = field(cr3, 12..=31) * 4096 + field(gva, 22..=31) * 4;
            let kind = |entry| {
                if pse && large(entry) {
                    Kind::Pde4M
                } else {
                    Kind::Pde32
                }
            };
            let (kind, pde) = self.look(at, four, kind)?;
            if kind == Kind::Pde4M {
                let high = field(pde, 13..=20) << 32;
                return Ok((
                    high + field(pde, 22..=31) * (1 << 22) + field(gva, 0..=21),
                    22,
                ));
            }
            let at = field(pde, 12..=31) * 4096 + field(gva, 12..=21) * 4;
            let (_, pte) = self.look(at, four, |_| Kind::Pte32)?;
            return Ok((field(pte, 12..=31) * 4096 + field(gva, 0..=11), 12));
        }
        let frame = |entry: u64| field(entry, 12..=51) * 4096;
        if !efer.contains(Efer::LMA) {
            let index = field(gva, 30..=31);
            let at = field(cr3, 5..=31) * 32 + index * 8;
            let pdpte = match self.pdptes {
                Some(loaded) => loaded[index as usize],
                // The CPU may have marked it as accessed.
                None => self.memory.get(at, eight) & !(1 << 5),
            };
            self.judge(at, pdpte, Kind::PdptePae)?;
            let at = frame(pdpte) + field(gva, 21..=29) * 8;
            let kind = |entry| {
                if large(entry) {
                    Kind::Pde2MPae
                } else {
                    Kind::PdePae
                }
            };
            let (kind, pde) = self.look(at, eight, kind)?;
            if kind == Kind::Pde2MPae {
                return Ok((field(pde, 21..=51) * (1 << 21) + field(gva, 0..=20), 21));
            }
            let (_, pte) = self.look(frame(pde) + field(gva, 12..=20) * 8, eight, |_| {
                Kind::PtePae
            })?;
            return Ok((frame(pte) + field(gva, 0..=11), 12));
        }
        let la57 = cr4.contains(Cr4::LA57);
        let sign = field(gva, if la57 { 56..=63 } else { 47..=63 });
        if sign != 0 && sign != (if la57 { 0xff } else { 0x1_ffff }) {
            return Err(Outcome::NonCanonical);
        }
        let mut table = field(cr3, 12..=u32::from(self.cpu.phys_bits) - 1) * 4096;
        if la57 {
            let (_, entry) = self.look(table + field(gva, 48..=56) * 8, eight, |_| Kind::Pml5e)?;
            table = frame(entry);
        }
        let (_, pml4e) = self.look(table + field(gva, 39..=47) * 8, eight, |_| Kind::Pml4e)?;
        let giant = self.cpu.pages_1g;
        let kind = |entry| {
            if giant && large(entry) {
                Kind::Pdpte1G
            } else {
                Kind::Pdpte
            }
        };
        let (kind, pdpte) = self.look(frame(pml4e) + field(gva, 30..=38) * 8, eight, kind)?;
        if kind == Kind::Pdpte1G {
            return Ok((field(pdpte, 30..=51) * (1 << 30) + field(gva, 0..=29), 30));
        }
        let kind = |entry| if large(entry) { Kind::Pde2M } else { Kind::Pde };
        let (kind, pde) = self.look(frame(pdpte) + field(gva, 21..=29) * 8, eight, kind)?;
        if kind == Kind::Pde2M {
            return Ok((field(pde, 21..=51) * (1 << 21) + field(gva, 0..=20), 21));
        }
        let (_, pte) = self.look(frame(pde) + field(gva, 12..=20) * 8, eight, |_| Kind::Pte)?;
        Ok((frame(pte) + field(gva, 0..=11), 12))
    }

    fn run(&mut self) -> Outcome {
        let (gpa, shift) = match self.locate() {
            Ok(found) => found,
            Err(outcome) => return outcome,
        };
        let Registers { cr0, cr4, pkru, .. } = self.regs;
        if self.used.is_empty() {
            return Outcome::Page { gpa, shift };
        }
        // A page-directory pointer of PAE has no rights in it.
        let judges = || {
            self.used
                .iter()
                .filter(|(kind, ..)| *kind != Kind::PdptePae)
        };
        let user_page = judges().all(|&(_, _, entry)| bit(entry, 2));
        let writable = judges().all(|&(_, _, entry)| bit(entry, 1));
        let xd = judges().any(|&(_, _, entry)| bit(entry, 63));
        let (leaf_kind, _, leaf) = *self.used.last().unwrap();
        let wp = cr0.contains(Cr0::WP);
        let smap = cr4.contains(Cr4::SMAP);

        let keyed = matches!(leaf_kind, Kind::Pdpte1G | Kind::Pde2M | Kind::Pte)
            && cr4.contains(Cr4::PKE)
            && user_page;
        let key = field(leaf, 59..=62) as u32;
        let ad = keyed && bit(u64::from(pkru), 2 * key);
        let wd = keyed && bit(u64::from(pkru), 2 * key + 1);

        let user = self.access.privilege == Privilege::User;
        let smap_allows = match self.access.privilege {
            Privilege::User => true,
            Privilege::Supervisor { ac } => !smap || ac,
            Privilege::Implicit => !smap,
        };
        let allowed = match (self.access.kind, user, user_page) {
            (AccessKind::Read, false, true) => smap_allows && !ad,
            (AccessKind::Read, false, false) => true,
            (AccessKind::Write, false, false) => !wp || writable,
            (AccessKind::Write, false, true) if wp => writable && smap_allows && !ad && !wd,
            (AccessKind::Write, false, true) => smap_allows && !ad,
            (AccessKind::Fetch, false, false) => !xd,
            (AccessKind::Fetch, false, true) => !cr4.contains(Cr4::SMEP) && !xd,
            (_, true, false) => false,
            (AccessKind::Read, true, true) => !ad,
            (AccessKind::Write, true, true) => writable && !ad && !wd,
            (AccessKind::Fetch, true, true) => !xd,
        };
        if allowed {
            return Outcome::Page { gpa, shift };
        }
        let data = self.access.kind != AccessKind::Fetch;
        let write = self.access.kind == AccessKind::Write;
        let by_key = data && (ad || (wd && write && (user || wp)));
        Outcome::Fault(self.code(true, false, by_key))
    }

    /// What memory must look like after a successful access.
    fn marked(&self) -> Memory {
        let mut after = self.memory.clone();
        let last = self.used.len().saturating_sub(1);
        for (i, &(kind, at, entry)) in self.used.iter().enumerate() {
            let size = match kind {
                Kind::Pde32 | Kind::Pde4M | Kind::Pte32 => EntrySize::Four,
                Kind::PdptePae => continue,
                _ => EntrySize::Eight,
            };
            let dirty = i == last && self.access.kind == AccessKind::Write;
            after.set(at, size, entry | 0x20 | if dirty { 0x40 } else { 0 });
        }
        after
    }
}

/// One entry: mostly sound, now and then with a bit turned over.
#[derive(Clone, Debug)]
struct Raw {
    flags: u64,
    page: u64,
    key: u64,
    flip: Option<u32>,
}

fn raw() -> impl Strategy<Value = Raw> {
    let often =
        |p: f64, mask: u64| prop::bool::weighted(p).prop_map(move |on| if on { mask } else { 0 });
    let flags = (
        often(0.97, 1),
        often(0.8, 2),
        often(0.8, 4),
        often(0.5, 0x20),
        often(0.5, 0x40),
        often(0.3, 0x80),
        often(0.15, 1 << 63),
        (0..8u64).prop_map(|free| free << 9),
    )
        .prop_map(|(a, b, c, d, e, f, g, h)| a | b | c | d | e | f | g | h);
    let flip = prop::option::weighted(0.12, 0..64u32);
    (flags, any::<u64>(), 0..16u64, flip).prop_map(|(flags, page, key, flip)| Raw {
        flags,
        page,
        key,
        flip,
    })
}

#[derive(Clone, Debug)]
struct Case {
    regs: Registers,
    cpu: Features,
    entries: Vec<Raw>,
    loaded: bool,
    gva: u64,
    access: Access,
}

fn case() -> impl Strategy<Value = Case> {
    let modes = prop_oneof![
        1 => Just((false, false, false, false)),
        6 => Just((true, false, false, false)),
        6 => Just((true, true, false, false)),
        8 => Just((true, true, true, false)),
        8 => Just((true, true, true, true)),
    ];
    let toggles = prop::array::uniform7(any::<bool>());
    let phys = prop::sample::select(vec![32u8, 36, 39, 40, 46, 52]);
    let kind = prop::sample::select(vec![AccessKind::Read, AccessKind::Write, AccessKind::Fetch]);
    let privilege = prop::sample::select(vec![
        Privilege::User,
        Privilege::Supervisor { ac: false },
        Privilege::Supervisor { ac: true },
        Privilege::Implicit,
    ]);
    let gva = (any::<u64>(), 0..10u8).prop_map(|(raw, shape)| match shape {
        0 => raw,
        1..=4 => raw >> 17,
        5..=6 => !(raw >> 17),
        7..=8 => raw >> 8,
        _ => !(raw >> 8),
    });
    let entries = prop::collection::vec(raw(), 5);
    (
        modes,
        toggles,
        phys,
        (kind, privilege),
        gva,
        entries,
        any::<(u32, bool, bool, bool)>(),
    )
        .prop_map(
            |(
                mode,
                on,
                phys_bits,
                (kind, privilege),
                gva,
                entries,
                (pkru, pages_1g, pse36, loaded),
            )| {
                let (pg, pae, lma, la57) = mode;
                let [wp, pse, smep, smap, pke, nxe, _] = on;
                let regs = Registers {
                    cr0: Cr0::PE.with(Cr0::PG, pg).with(Cr0::WP, wp),
                    cr3: 0x1000 | u64::from(pkru & 0xfff & !0x7e7),
                    cr4: Cr4::NONE
                        .with(Cr4::PAE, pae)
                        .with(Cr4::LA57, la57)
                        .with(Cr4::PSE, pse)
                        .with(Cr4::SMEP, smep)
                        .with(Cr4::SMAP, smap)
                        .with(Cr4::PKE, pke),
                    efer: Efer::NONE
                        .with(Efer::LMA, lma)
                        .with(Efer::LME, lma)
                        .with(Efer::NXE, nxe),
                    pkru,
                };
                let cpu = Features {
                    phys_bits,
                    pages_1g,
                    pse36,
                };
                Case {
                    regs,
                    cpu,
                    entries,
                    loaded,
                    gva,
                    access: Access { kind, privilege },
                }
            },
        )
}

impl Case {
    /// Lays the entries out along the path of the address; table `n` is at `n << 12`.
    fn build(&self) -> (Memory, Option<[u64; 4]>) {
        let mut memory = Memory::new();
        let mut pdptes = None;
        let (cr4, long) = (self.regs.cr4, self.regs.efer.contains(Efer::LMA));
        let shifts: &[u32] = match (cr4.contains(Cr4::PAE), long, cr4.contains(Cr4::LA57)) {
            (false, ..) => &[22, 12],
            (true, false, _) => &[30, 21, 12],
            (true, true, false) => &[39, 30, 21, 12],
            (true, true, true) => &[48, 39, 30, 21, 12],
        };
        let phys = (1u64 << self.cpu.phys_bits) - 1;
        for (n, (&shift, raw)) in (1u64..).zip(shifts.iter().zip(&self.entries)) {
            let pointer = shift == 30 && !long;
            // In the levels without large pages, PS would end most walks.
            let top = pointer || shift > 30;
            let mut flags = if top { raw.flags & !0x80 } else { raw.flags };
            if !self.regs.efer.contains(Efer::NXE) {
                flags &= !(1 << 63);
            }
            let large = flags & 0x80 != 0 && shift > 12;
            let address = match shift {
                12 => raw.page & phys & !0xfff,
                22 if large => raw.page & 0xffc0_0000 | raw.page & 0xf << 13,
                _ if large => raw.page & phys & !((1 << shift) - 1) | raw.page & 0x1000,
                _ => (n + 1) << 12,
            };
            let mut entry = flags | address;
            if pointer {
                entry &= !0x8000_0000_0000_01e6;
            } else if long {
                entry |= raw.key << 59;
            }
            if let Some(at) = raw.flip {
                entry ^= 1 << at;
            }
            if !cr4.contains(Cr4::PAE) {
                let at = n << 12 | (self.gva >> shift & 0x3ff) << 2;
                memory.set(at, EntrySize::Four, entry & 0xffff_ffff);
            } else if pointer {
                let index = self.gva >> 30 & 3;
                let base = self.regs.cr3 & 0xffff_ffe0;
                memory.set(base | index << 3, EntrySize::Eight, entry);
                if self.loaded {
                    pdptes = Some([0; 4]);
                    pdptes.as_mut().unwrap()[index as usize] = entry;
                }
            } else {
                let at = n << 12 | (self.gva >> shift & 0x1ff) << 3;
                memory.set(at, EntrySize::Eight, entry);
            }
        }
        (memory, pdptes)
    }

    fn check(&self) -> Outcome {
        let (mut memory, pdptes) = self.build();
        let mut untouched = memory.clone();
        let mut oracle = Oracle {
            memory: &mut untouched,
            regs: self.regs,
            cpu: self.cpu,
            pdptes,
            gva: self.gva,
            access: self.access,
            used: Vec::new(),
        };
        let expected = oracle.run();
        let marked = oracle.marked();

        let state = PagingState::new(self.regs, self.cpu, pdptes);
        let gva = Gva::new(self.gva);
        let before = memory.clone();
        let looked = probe(&mut memory, &state, gva, self.access);
        assert_eq!(memory, before);
        let walked = walk(&mut memory, &state, gva, self.access);
        assert_eq!(looked, walked);
        let found = match walked {
            Ok(found) => Outcome::Page {
                gpa: found.gpa.raw(),
                shift: found.page_shift,
            },
            Err(WalkError::Fault(code)) => Outcome::Fault(code.raw()),
            Err(WalkError::NonCanonical) => Outcome::NonCanonical,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(found, expected);
        let after = if matches!(found, Outcome::Page { .. }) {
            marked
        } else {
            before
        };
        assert_eq!(memory.words, after.words);
        found
    }
}

#[test]
fn random_tables_agree_with_the_second_reading() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let seen = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let result = runner.run(&case(), |case| {
        let name = match case.check() {
            Outcome::Page { shift, .. } => format!("page {shift}"),
            Outcome::Fault(code) => format!("fault {code:#x}"),
            Outcome::NonCanonical => "not canonical".to_string(),
        };
        *seen.borrow_mut().entry(name).or_insert(0u32) += 1;
        Ok(())
    });
    result.unwrap();
    // The cases reach what they are for.
    let seen = seen.into_inner();
    let kinds = [
        "page 12",
        "page 21",
        "page 22",
        "page 30",
        "not canonical",
        "fault 0x0",
        "fault 0x3",
        "fault 0x9",
        "fault 0x11",
        "fault 0x15",
        "fault 0x1d",
        "fault 0x25",
        "fault 0x27",
    ];
    for kind in kinds {
        assert!(
            seen.get(kind).is_some_and(|&times| times > 10),
            "{kind}: {seen:?}"
        );
    }
}

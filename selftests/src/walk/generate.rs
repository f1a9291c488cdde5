// SPDX-License-Identifier: GPL-2.0

//! Cases from a seed: what the registers are, what the tables hold, what is accessed.
//!
//! Nearly every case is one in which the access is permitted, with one thing changed that may
//! forbid it: random entries alone would hardly ever get below the first level.

use super::guest::{layout, CASES, POOL_PAGES};
use super::{levels, shift, Features, KINDS};
use crate::random::Random;
use rusthv_model::arch::regs::{Cr0, Cr4, Efer};
use rusthv_model::paging::state::{Access, AccessKind, Mode, Privilege, Registers};

pub const PRESENT: u64 = 1 << 0;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
pub const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// In a large page's entry, where a small one's has LARGE.
const PAT_OF_LARGE: u64 = 1 << 12;
pub const NO_EXECUTE: u64 = 1 << 63;

/// What the CPU, as it is, cannot be asked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reserved bits of page-directory pointers that it does not check.
    pub unchecked_pdpte_bits: u64,
    /// AMD's CPUs reserve the global bit in the entries of the upper levels, Intel's ignore it.
    pub upper_global: bool,
}

impl Limits {
    /// Those of a CPU that loads page-directory pointers or not, has the global bit in all levels or not, and leaves
    /// some reserved bits of pointers unchecked.
    pub fn new(loads_pointers: bool, upper_global: bool, unchecked_pdpte_bits: u64) -> Self {
        // A CPU that reads the pointers in each walk may set this flag in them; so the model, too, must
        // let it pass.
        let flag = if loads_pointers { 0 } else { ACCESSED };
        Self { unchecked_pdpte_bits: unchecked_pdpte_bits | flag, upper_global }
    }
}

/// The registers of all cases of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub mode: Mode,
    pub registers: Registers,
}

impl Setting {
    fn new(random: &mut Random, features: &Features, mode: Mode) -> Self {
        let mut flag = |possible: bool| random.one_in(2) && possible;
        let cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::PG;
        let long = matches!(mode, Mode::FourLevel | Mode::FiveLevel);
        let cr4 = Cr4::default()
            .with(Cr4::PAE, mode != Mode::Bits32)
            .with(Cr4::LA57, mode == Mode::FiveLevel)
            .with(Cr4::PSE, flag(true))
            .with(Cr4::SMEP, flag(features.smep))
            .with(Cr4::SMAP, flag(features.smap))
            .with(Cr4::PKE, long && flag(features.keys));
        let efer =
            Efer::default().with(Efer::LME, long).with(Efer::LMA, long).with(Efer::NXE, flag(features.nx));
        let registers =
            Registers { cr0: cr0.with(Cr0::WP, flag(true)), cr3: 0, cr4, efer, pkru: random.word() as u32 };
        Self { mode, registers }
    }

    pub fn has(&self, bit: Cr4) -> bool {
        self.registers.cr4.contains(bit)
    }

    pub fn wp(&self) -> bool {
        self.registers.cr0.contains(Cr0::WP)
    }

    pub fn nxe(&self) -> bool {
        self.registers.efer.contains(Efer::NXE)
    }
}

/// A table entry on the way to the address.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub at: u64,
    pub value: u64,
    pub level: u32,
    pub leaf: bool,
    /// A reserved bit was set on purpose.
    pub reserved: bool,
}

/// One access through tables of its own.
#[derive(Clone, Debug)]
pub struct Case {
    pub cr3: u64,
    pub address: u64,
    pub access: Access,
    /// RFLAGS.AC, which means nothing for SMAP at CPL 3.
    pub ac: bool,
    pub canonical: bool,
    /// The only entry refers to its own table, and is used at every level.
    pub self_mapped: bool,
    /// From the top to the page's.
    pub entries: Vec<Entry>,
}

impl Case {
    pub fn is_user(&self) -> bool {
        self.access.privilege == Privilege::User
    }

    /// Number of entries before the one that ends the walk, by what was generated.
    pub fn passed(&self) -> usize {
        let ends = |entry: &Entry| entry.leaf || entry.reserved || entry.value & PRESENT == 0;
        self.entries.iter().position(ends).unwrap_or(self.entries.len())
    }

    /// The entry that maps the page, if the walk gets that far.
    pub fn leaf(&self) -> Option<&Entry> {
        let last = match self.self_mapped {
            true => &self.entries[0],
            false => self.entries.get(self.passed()).filter(|entry| entry.leaf)?,
        };
        (!last.reserved && last.value & PRESENT != 0).then_some(last)
    }
}

/// Cases with the same registers; each has its own place in the list and in its page.
pub struct Batch {
    pub setting: Setting,
    pub cases: Vec<Case>,
}

/// What is changed about a case in which the access would be permitted.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Nothing,
    NotPresent,
    Reserved,
    ReadOnly,
    Supervisor,
    NoExecute,
    NonCanonical,
    /// The rights of all entries at random.
    Rights,
}

const CHANGES: [Change; 10] = [
    Change::Nothing,
    Change::Nothing,
    Change::NotPresent,
    Change::Reserved,
    Change::ReadOnly,
    Change::ReadOnly,
    Change::Supervisor,
    Change::NoExecute,
    Change::NonCanonical,
    Change::Rights,
];

pub struct Generator {
    random: Random,
    features: Features,
    limits: Limits,
    /// The pages that accesses go to, by guest-physical address.
    pages: Vec<u64>,
}

impl Generator {
    pub fn new(seed: u64, features: Features, limits: Limits, pages: Vec<u64>) -> Self {
        Self { random: Random::new(seed), features, limits, pages }
    }

    pub fn batch(&mut self, mode: Mode) -> Batch {
        let setting = Setting::new(&mut self.random, &self.features, mode);
        let cases = (0..CASES).map(|index| self.case(&setting, index)).collect();
        Batch { setting, cases }
    }

    fn case(&mut self, setting: &Setting, index: usize) -> Case {
        let mode = setting.mode;
        let kind = self.random.pick(&KINDS);
        let ac = self.random.one_in(2);
        let privilege = if self.random.one_in(2) { Privilege::User } else { Privilege::Supervisor { ac } };
        // Page-directory pointers and directories have different formats.
        if mode != Mode::Pae && index > 0 && self.random.one_in(16) {
            return self.self_mapped(setting, index, Access { kind, privilege }, ac);
        }
        let leaf_level = self.leaf_level(setting);
        let page = self.page(setting, leaf_level);
        let address = self.address(mode, leaf_level, page) | (index * layout::SLOT) as u64;
        let top = levels(mode);
        let table = |level: u32| table(index, level);
        let mut cr3 = table(top);
        if mode == Mode::Pae {
            cr3 |= 32 * self.random.below(128);
        }

        let mut entries: Vec<Entry> = (leaf_level..=top)
            .rev()
            .map(|level| {
                let (leaf, base) = (level == leaf_level, if level == top { cr3 } else { table(level) });
                let next = match leaf {
                    true => page >> shift(mode, level) << shift(mode, level),
                    false => table(level - 1),
                };
                let index = address >> shift(mode, level) & index_mask(mode, level);
                let size = if mode == Mode::Bits32 { 4 } else { 8 };
                let value = self.value(setting, level, leaf, next);
                Entry { at: base + index * size, value, level, leaf, reserved: false }
            })
            .collect();
        // Bits that MOV to CR3 ignores, or that are about caching.
        cr3 |= self.random.word() & if mode == Mode::Pae { 0x1F } else { 0xFFF };

        // A user's page is in reach of all; the supervisor's own begins at any level.
        if privilege != Privilege::User && self.random.one_in(2) {
            self.change(setting, Change::Supervisor, &mut entries);
        }
        let mut canonical = true;
        let mut address = address;
        for _ in 0..if self.random.one_in(6) { 2 } else { 1 } {
            let change = self.random.pick(&CHANGES);
            if change == Change::NonCanonical {
                let unused = match mode {
                    Mode::FourLevel => 48,
                    Mode::FiveLevel => 57,
                    _ => continue,
                };
                // Rare, as it does not get to the tables.
                if self.random.one_in(3) && canonical {
                    address ^= (1 + self.random.below((1 << (64 - unused)) - 1)) << unused;
                    canonical = false;
                }
            } else {
                self.change(setting, change, &mut entries);
            }
        }
        let access = Access { kind, privilege };
        Case { cr3, address, access, ac, canonical, self_mapped: false, entries }
    }

    /// A case whose first table is also its last, through one entry, and the page as well.
    fn self_mapped(&mut self, setting: &Setting, index: usize, access: Access, ac: bool) -> Case {
        let (mode, top) = (setting.mode, levels(setting.mode));
        let (mask, size) = (index_mask(mode, top), if mode == Mode::Bits32 { 4 } else { 8 });
        let slot = (index * layout::SLOT) as u64;
        let own = loop {
            let own = 1 + self.random.below(mask);
            // Elsewhere than what is accessed.
            if own * size / layout::SLOT as u64 != index as u64 {
                break own;
            }
        };
        let root = table(index, top);
        let mut address = (1..=top).fold(slot, |address, level| address | own << shift(mode, level));
        let unused = 64 - (shift(mode, top) + mask.count_ones());
        if mode != Mode::Bits32 {
            address = ((address << unused) as i64 >> unused) as u64;
        }
        // It means the same at every level.
        let value = self.value(setting, top, false, root) & !LARGE;
        let mut entries =
            vec![Entry { at: root + own * size, value, level: top, leaf: false, reserved: false }];
        let change = self.random.pick(&CHANGES);
        self.change(setting, change, &mut entries);
        Case { cr3: root, address, access, ac, canonical: true, self_mapped: true, entries }
    }

    fn leaf_level(&mut self, setting: &Setting) -> u32 {
        let largest = match setting.mode {
            Mode::Bits32 if !setting.has(Cr4::PSE) => 1,
            Mode::FourLevel | Mode::FiveLevel if self.features.pages_1g => 3,
            _ => 2,
        };
        1 + self.random.below(largest) as u32
    }

    /// A page that an entry of this level can lead to.
    fn page(&mut self, setting: &Setting, leaf_level: u32) -> u64 {
        let width = match (setting.mode, leaf_level) {
            (Mode::Bits32, 2) if self.features.pse36 => self.features.phys_bits.min(40),
            (Mode::Bits32, _) => 32,
            _ => 52,
        };
        loop {
            let page = self.random.pick(&self.pages);
            if page >> width == 0 {
                return page;
            }
        }
    }

    /// A canonical address whose bits below the page's size are those of `page`, and whose index at
    /// the top is not 0: there is the guest's own code.
    fn address(&mut self, mode: Mode, leaf_level: u32, page: u64) -> u64 {
        let size = shift(mode, leaf_level);
        let mut address = page & ((1 << size) - 1) & !0xFFF;
        for level in leaf_level..=levels(mode) {
            let mask = index_mask(mode, level);
            let index = match self.random.below(4) {
                0 => mask,
                1 => self.random.pick(&[mask / 2, mask / 2 + 1]),
                _ => self.random.word() & mask,
            };
            let lowest = u64::from(level == levels(mode));
            address |= index.max(lowest) << shift(mode, level);
        }
        let unused = match mode {
            Mode::FourLevel => 16,
            Mode::FiveLevel => 7,
            _ => return address,
        };
        ((address << unused) as i64 >> unused) as u64
    }

    /// An entry that permits everything, with the bits that do not matter at random.
    fn value(&mut self, setting: &Setting, level: u32, leaf: bool, next: u64) -> u64 {
        let mode = setting.mode;
        let long = matches!(mode, Mode::FourLevel | Mode::FiveLevel);
        let pointer = mode == Mode::Pae && level == 3;
        // Caching, and what is left to software.
        let mut any = 3 << 3 | 7 << 9;
        if !pointer {
            any |= ACCESSED | DIRTY;
            if level < 3 || leaf || self.limits.upper_global {
                any |= GLOBAL;
            }
        }
        if long {
            // Software's, and the protection key.
            any |= 0x7FF << 52;
        }
        let mut value = PRESENT;
        if !pointer {
            value |= WRITABLE | USER;
        }
        match (leaf, level) {
            (true, 1) => any |= LARGE,
            (true, _) => {
                any |= PAT_OF_LARGE;
                value |= LARGE;
            }
            // Without CR4.PSE the bit means nothing.
            (false, 2) if mode == Mode::Bits32 && !setting.has(Cr4::PSE) => any |= LARGE,
            (false, _) => {}
        }
        value |= match (mode, leaf, level) {
            (Mode::Bits32, true, 2) => next & 0xFFC0_0000 | (next >> 32 & 0xFF) << 13,
            _ => next,
        };
        value | self.random.word() & any
    }

    /// Changes the rights at one level.
    fn change(&mut self, setting: &Setting, change: Change, entries: &mut [Entry]) {
        let pointers = setting.mode == Mode::Pae;
        // Page-directory pointers have no rights.
        let first = usize::from(pointers && !matches!(change, Change::NotPresent | Change::Reserved));
        let which = first + self.random.below((entries.len() - first) as u64) as usize;
        let word = self.random.word();
        match change {
            Change::Nothing | Change::NonCanonical => {}
            Change::NotPresent => {
                let width = if setting.mode == Mode::Bits32 { 32 } else { 64 };
                entries[which].value = word >> (64 - width) & !PRESENT;
            }
            Change::Reserved => {
                let bits = self.reserved(setting, &entries[which]);
                if !bits.is_empty() {
                    entries[which].value |= 1 << self.random.pick(&bits);
                    if self.random.one_in(4) {
                        entries[which].value |= 1 << self.random.pick(&bits);
                    }
                    entries[which].reserved = true;
                }
            }
            Change::ReadOnly => entries[which].value &= !WRITABLE,
            Change::Supervisor => entries[which].value &= !USER,
            Change::NoExecute => {
                if setting.nxe() && setting.mode != Mode::Bits32 {
                    entries[which].value |= NO_EXECUTE;
                }
            }
            Change::Rights => {
                for entry in &mut entries[first..] {
                    entry.value ^= self.random.word() & self.random.word() & (WRITABLE | USER);
                    if setting.nxe() && setting.mode != Mode::Bits32 && self.random.one_in(4) {
                        entry.value |= NO_EXECUTE;
                    }
                }
            }
        }
    }

    /// The bits that are reserved in a present entry, by the SDM's figures.
    fn reserved(&self, setting: &Setting, entry: &Entry) -> Vec<u32> {
        let phys_bits = u32::from(self.features.phys_bits);
        let large = entry.leaf && entry.level > 1;
        let mut bits = Vec::new();
        if setting.mode == Mode::Bits32 {
            if large {
                let width = if self.features.pse36 { phys_bits.min(40) } else { 32 };
                bits.extend(width - 32 + 13..22);
            }
            return bits;
        }
        bits.extend(phys_bits..52);
        if setting.mode == Mode::Pae {
            bits.extend(52..63);
        }
        if setting.mode == Mode::Pae && entry.level == 3 {
            bits.extend([1, 2, 5, 6, 7, 8, 63]);
            bits.retain(|bit| self.limits.unchecked_pdpte_bits >> bit & 1 == 0);
            return bits;
        }
        if !setting.nxe() {
            bits.push(63);
        }
        if large {
            bits.extend(13..shift(setting.mode, entry.level));
        }
        if entry.level > 3 || (entry.level == 3 && !self.features.pages_1g) {
            bits.push(7);
        }
        bits
    }
}

/// The table of a level that a case has to itself.
fn table(index: usize, level: u32) -> u64 {
    let page = index * layout::TABLES_PER_CASE + level as usize - 1;
    layout::TABLES + page as u64 * 0x1000
}

fn index_mask(mode: Mode, level: u32) -> u64 {
    match (mode, level) {
        (Mode::Bits32, _) => 0x3FF,
        (Mode::Pae, 3) => 3,
        _ => 0x1FF,
    }
}

/// Pages to access, in each of the pools: the first, the last, and some between.
pub fn choose_pages(random: &mut Random, pools: &[u64]) -> Vec<u64> {
    let mut pages = Vec::new();
    for pool in pools {
        let mut offsets: Vec<u64> = vec![0, POOL_PAGES - 1];
        while offsets.len() < 24 {
            let page = random.below(POOL_PAGES);
            if !offsets.contains(&page) {
                offsets.push(page);
            }
        }
        pages.extend(offsets.iter().map(|page| pool + page * 0x1000));
    }
    pages
}

/// The kind of an access, in a letter.
pub fn letter(kind: AccessKind) -> char {
    match kind {
        AccessKind::Read => 'r',
        AccessKind::Write => 'w',
        AccessKind::Fetch => 'x',
    }
}

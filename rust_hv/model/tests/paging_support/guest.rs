// SPDX-License-Identifier: GPL-2.0

//! A guest for the tests of the walk: its physical memory, its registers, its tables.
#![allow(dead_code)]

use std::collections::BTreeMap;

use rusthv_model::arch::addr::{Gpa, Gva};
use rusthv_model::arch::regs::{Cr0, Cr4, Efer};
use rusthv_model::paging::state::{
    Access, AccessKind, Features, Mode, PagingState, Privilege, Registers,
};
use rusthv_model::paging::walk::{walk, EntrySize, GuestPhys, Translation, WalkError};
use AccessKind::Read;

/// Words of eight bytes; what was never written is 0, and from `limit` on there is nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    pub words: BTreeMap<u64, u64>,
    pub limit: u64,
    /// Before each of the next exchanges, another CPU flips this bit of the entry.
    pub rivals: Vec<u64>,
    pub exchanges: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl Memory {
    pub fn new() -> Self {
        Self {
            words: BTreeMap::new(),
            limit: u64::MAX,
            rivals: Vec::new(),
            exchanges: 0,
        }
    }

    pub fn get(&self, at: u64, size: EntrySize) -> u64 {
        let word = self.words.get(&(at & !7)).copied().unwrap_or(0);
        match size {
            EntrySize::Eight => {
                assert_eq!(at & 7, 0, "misaligned entry");
                word
            }
            EntrySize::Four => {
                assert_eq!(at & 3, 0, "misaligned entry");
                word >> ((at & 4) * 8) & 0xffff_ffff
            }
        }
    }

    pub fn set(&mut self, at: u64, size: EntrySize, value: u64) {
        let word = self.words.entry(at & !7).or_insert(0);
        match size {
            EntrySize::Eight => *word = value,
            EntrySize::Four => {
                assert_eq!(value >> 32, 0, "a four-byte entry");
                let shift = (at & 4) * 8;
                *word = *word & !(0xffff_ffff << shift) | value << shift;
            }
        }
    }
}

impl GuestPhys for Memory {
    type Error = NoMemory;

    fn read_entry(&mut self, at: Gpa, size: EntrySize) -> Result<u64, NoMemory> {
        if at.raw() >= self.limit {
            return Err(NoMemory);
        }
        Ok(self.get(at.raw(), size))
    }

    fn cmpxchg_entry(
        &mut self,
        at: Gpa,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<bool, NoMemory> {
        self.exchanges += 1;
        if let Some(bits) = self.rivals.pop() {
            let value = self.get(at.raw(), size);
            self.set(at.raw(), size, value ^ bits);
        }
        if self.get(at.raw(), size) != old {
            return Ok(false);
        }
        self.set(at.raw(), size, new);
        Ok(true)
    }
}

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 0x20;
pub const D: u64 = 0x40;
pub const PS: u64 = 0x80;
pub const NX: u64 = 1 << 63;
pub const KERNEL: Privilege = Privilege::Supervisor { ac: false };
pub const KERNEL_AC: Privilege = Privilege::Supervisor { ac: true };
pub const USER: Privilege = Privilege::User;

/// A guest whose tables are at fixed places: level `n` (1 is the lowest) at `n << 12`.
#[derive(Clone)]
pub struct Guest {
    pub registers: Registers,
    pub features: Features,
    pub pdptes: Option<[u64; 4]>,
    pub memory: Memory,
}

/// Where the page of [`Guest::with`] is, and a linear address in it for all modes.
pub const PAGE: u64 = 0x5_5000;
pub const LINEAR: u64 = 0x0040_3abc;

impl Guest {
    pub fn new(mode: Mode) -> Self {
        let mut registers = Registers {
            cr0: Cr0::PE | Cr0::WP,
            cr3: 0x2000,
            ..Registers::default()
        };
        registers.cr0 = registers.cr0.with(Cr0::PG, mode != Mode::Unpaged);
        registers.cr4 = registers.cr4.with(Cr4::PAE, mode != Mode::Bits32);
        if matches!(mode, Mode::FourLevel | Mode::FiveLevel) {
            registers.efer = Efer::LME | Efer::LMA;
            registers.cr3 = 0x4000;
        }
        if mode == Mode::FiveLevel {
            registers.cr4 |= Cr4::LA57;
            registers.cr3 = 0x5000;
        }
        if mode == Mode::Pae {
            registers.cr3 = 0x3000;
        }
        let features = Features {
            phys_bits: 40,
            pages_1g: true,
            pse36: true,
        };
        Self {
            registers,
            features,
            pdptes: None,
            memory: Memory::new(),
        }
    }

    pub fn state(&self) -> PagingState {
        PagingState::new(self.registers, self.features, self.pdptes)
    }

    pub fn size(&self) -> EntrySize {
        match self.state().mode() {
            Mode::Bits32 => EntrySize::Four,
            _ => EntrySize::Eight,
        }
    }

    /// Where the entry of a level is, for [`LINEAR`].
    pub fn at(&self, level: u64) -> u64 {
        let (table, long) = (level << 12, LINEAR >> (3 + 9 * level));
        match self.size() {
            EntrySize::Eight => table + (long & 0x1ff) * 8,
            EntrySize::Four => table + (LINEAR >> (2 + 10 * level) & 0x3ff) * 4,
        }
    }

    pub fn put(&mut self, level: u64, entry: u64) {
        let (at, size) = (self.at(level), self.size());
        self.memory.set(at, size, entry);
    }

    pub fn entry(&self, level: u64) -> u64 {
        self.memory.get(self.at(level), self.size())
    }

    pub fn levels(&self) -> u64 {
        match self.state().mode() {
            Mode::Unpaged => 0,
            Mode::Bits32 => 2,
            Mode::Pae => 3,
            Mode::FourLevel => 4,
            Mode::FiveLevel => 5,
        }
    }

    /// Tables for [`LINEAR`]: every right above, `flags` in the page's entry.
    pub fn with(mode: Mode, flags: u64) -> Self {
        let mut guest = Self::new(mode);
        for level in 2..=guest.levels() {
            let pointer = mode == Mode::Pae && level == 3;
            let rights = if pointer { P } else { P | W | U };
            guest.put(level, (level - 1) << 12 | rights);
        }
        guest.put(1, PAGE | flags);
        guest
    }

    pub fn cr4(mut self, bits: Cr4) -> Self {
        self.registers.cr4 |= bits;
        self
    }

    pub fn nxe(mut self) -> Self {
        self.registers.efer |= Efer::NXE;
        self
    }

    pub fn walk(
        &mut self,
        kind: AccessKind,
        privilege: Privilege,
    ) -> Result<Translation, WalkError<NoMemory>> {
        let state = self.state();
        walk(
            &mut self.memory,
            &state,
            Gva::new(LINEAR),
            Access { kind, privilege },
        )
    }

    /// 0 for an access that works, else the error code.
    pub fn fault(&mut self, kind: AccessKind, privilege: Privilege) -> Option<u32> {
        match self.walk(kind, privilege) {
            Ok(_) => None,
            Err(WalkError::Fault(code)) => Some(code.raw()),
            Err(other) => panic!("{other:?}"),
        }
    }

    pub fn gpa(&mut self) -> (u64, u32) {
        let found = self.walk(Read, KERNEL).unwrap();
        (found.gpa.raw(), found.page_shift)
    }
}

pub const PAGED: [Mode; 4] = [Mode::Bits32, Mode::Pae, Mode::FourLevel, Mode::FiveLevel];

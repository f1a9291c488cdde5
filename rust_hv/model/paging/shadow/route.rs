// SPDX-License-Identifier: GPL-2.0

//! From a walk of the guest's tables to a way through the shadow tables.
//!
//! Shadow tables have 512 entries of 8 bytes, whatever the guest's have: the CPU walks four levels
//! for a guest in long mode, and the three of PAE paging for all others. A guest table of 32-bit
//! paging has 1024 entries that map twice as much each, so that its directory is shadowed by four
//! tables and each of its page tables by two; the *quadrant* says which.
//!
//! Where the guest has a large page and the shadow tables have small ones, and where the guest does
//! not page at all, a shadow table has no table of the guest's beside it. It is *direct*: its
//! entries map consecutive frames.

use super::super::state::{
    bits, Mode, PagingState, Rights, ACCESSED, DIRTY, NO_EXECUTE, USER, WRITABLE,
};
use super::super::walk::{Path, Step, Translation};
use super::super::Level;
use crate::model::arch::addr::Gva;
use crate::model::arch::regs::{Cr0, Cr4, Efer};

/// Everything but the tables themselves that decides what a table entry means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regime {
    mode: Mode,
    /// CR4.PSE.
    large: bool,
    /// IA32_EFER.NXE.
    no_execute: bool,
    /// CR0.WP.
    pub(super) write_protect: bool,
    /// CR4.SMEP, as far as the tables have to see to it: without CR0.WP.
    pub(super) smep: bool,
    /// CR4.SMAP, likewise: it would forbid what [`Grant`](super::entry::Grant) gives to supervisor mode
    /// alone.
    smap: bool,
}

impl Regime {
    /// Of no table.
    pub(super) const NONE: Self = Self {
        mode: Mode::Unpaged,
        large: false,
        no_execute: false,
        write_protect: true,
        smep: false,
        smap: false,
    };

    /// That of a vCPU's registers; `None` for 5-level paging, which has no shadow.
    pub fn of(state: &PagingState) -> Option<Self> {
        let registers = &state.registers;
        let mode = state.mode();
        let unpaged = mode == Mode::Unpaged;
        if mode == Mode::FiveLevel {
            return None;
        }
        let write_protect = unpaged || registers.cr0.contains(Cr0::WP);
        Some(Self {
            mode,
            large: mode == Mode::Bits32 && registers.cr4.contains(Cr4::PSE),
            no_execute: !unpaged && registers.efer.contains(Efer::NXE),
            write_protect,
            smep: !write_protect && registers.cr4.contains(Cr4::SMEP),
            smap: !write_protect && registers.cr4.contains(Cr4::SMAP),
        })
    }

    /// Level of the root that the CPU walks.
    pub(super) const fn top(self) -> Level {
        match self.mode {
            Mode::FourLevel | Mode::FiveLevel => Level::Pml4,
            _ => Level::Pdpt,
        }
    }

    /// The CPU takes the root for the four pointers of PAE paging.
    #[inline]
    pub(super) const fn has_pointers(self) -> bool {
        matches!(self.top(), Level::Pdpt)
    }

    pub(super) const fn mode(self) -> Mode {
        self.mode
    }
}

/// What a shadow table is for. Two that differ in it are different tables, even of one guest table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Role {
    pub(super) regime: Regime,
    pub(super) level: Level,
    pub(super) quadrant: u8,
    pub(super) direct: bool,
    /// Of a direct table: the entry of the guest's has no dirty flag, so that nothing of it can be
    /// written. Another entry for the same page may have one, and then a table of its own.
    pub(super) clean: bool,
    /// What the guest's tables above allow. It is in the lowest entries of the shadow tables alone;
    /// those above allow everything.
    pub(super) rights: Rights,
}

/// What names a root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootKey {
    pub(super) regime: Regime,
    pub(super) gfn: u64,
    pub(super) pointers: [u64; 4],
}

impl RootKey {
    /// That of a vCPU's registers; in PAE mode with the pointers that were loaded with CR3.
    pub fn of(state: &PagingState, pointers: [u64; 4]) -> Option<Self> {
        let regime = Regime::of(state)?;
        let cr3 = state.registers.cr3;
        Some(match regime.mode {
            Mode::Unpaged | Mode::FiveLevel => Self {
                regime,
                gfn: 0,
                pointers: [0; 4],
            },
            Mode::Bits32 => Self {
                regime,
                gfn: (cr3 & bits(31, 12)) >> 12,
                pointers: [0; 4],
            },
            // Aligned to 32 bytes: there can be many in a frame.
            Mode::Pae => Self {
                regime,
                gfn: (cr3 & bits(31, 5)) >> 5,
                pointers,
            },
            Mode::FourLevel => Self {
                regime,
                gfn: (cr3 & state.physical) >> 12,
                pointers: [0; 4],
            },
        })
    }

    /// The root is a table of pointers, which the CPU wants below 4 GiB.
    pub const fn has_pointers(&self) -> bool {
        self.regime.has_pointers()
    }

    /// Roots of pointers are no tables of the guest's: their frames are not watched.
    pub(super) const fn role(&self) -> Role {
        Role {
            regime: self.regime,
            level: self.regime.top(),
            quadrant: 0,
            direct: self.regime.has_pointers(),
            clean: false,
            rights: Rights::ALL,
        }
    }
}

/// Where an entry of a shadow table leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// To the shadow of a table, or to a direct one from a frame on.
    Table { gfn: u64, role: Role },
    /// To the page.
    Page,
}

/// One level of the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hop {
    pub(super) index: usize,
    /// The guest's entry that it was made of; 0 where there is none.
    pub(super) source: u64,
    pub(super) target: Target,
}

/// The way of an address through the tables, as the guest's tables were at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub(super) key: RootKey,
    pub(super) gva: u64,
    path: Path,
    pub(super) page: Translation,
}

/// Index of an address in a shadow table.
#[inline]
pub(super) const fn index(gva: u64, level: Level, pointers: bool) -> usize {
    let index = (gva >> level.shift()) as usize;
    if pointers && matches!(level, Level::Pdpt) {
        index % 4
    } else {
        index % 512
    }
}

impl Route {
    /// From what a walk found.
    pub fn new(key: RootKey, gva: Gva, page: Translation, path: Path) -> Self {
        Self {
            key,
            gva: gva.raw(),
            path,
            page,
        }
    }

    /// Where the walk went.
    pub fn page(&self) -> &Translation {
        &self.page
    }

    /// The guest's entry at the level of a shadow table.
    fn step(&self, level: Level) -> Option<&Step> {
        let top = match self.key.regime.mode {
            Mode::FourLevel => Level::Pml4,
            Mode::Pae | Mode::Bits32 => Level::Pd,
            Mode::Unpaged | Mode::FiveLevel => return None,
        };
        let depth = (top as usize).checked_sub(level as usize)?;
        self.path.steps().get(depth)
    }

    /// The entry that maps the page in the guest's tables.
    pub(super) fn leaf(&self) -> Option<&Step> {
        self.path.steps().last()
    }

    /// The page may be written as far as its dirty flag goes: only a write sets it.
    pub(super) fn is_dirty(&self) -> bool {
        self.leaf().is_none_or(|step| step.entry & DIRTY != 0)
    }

    /// The largest level whose entries can map the guest's page in one piece.
    pub(super) const fn largest(&self) -> Level {
        if self.page.page_shift >= Level::Pd.shift()
            || matches!(self.key.regime.mode, Mode::Unpaged)
        {
            Level::Pd
        } else {
            Level::Pt
        }
    }

    /// First frame of the part of the page that one entry of a level covers.
    pub(super) const fn frame(&self, level: Level) -> u64 {
        let shift = level.shift();
        (self.page.gpa.raw() >> shift) << (shift - 12)
    }

    /// What stands at a level, below tables that allow `rights`.
    pub(super) fn hop(&self, level: Level, last: Level, rights: Rights) -> Hop {
        let regime = self.key.regime;
        let index = index(self.gva, level, regime.has_pointers());
        let step = self.step(level);
        let source = step.map_or(0, |step| step.entry);
        let lower = match level.lower() {
            Some(lower) if level > last => lower,
            _ => {
                return Hop {
                    index,
                    source,
                    target: Target::Page,
                }
            }
        };
        let table = |gfn, quadrant, direct, rights| Target::Table {
            gfn,
            role: Role {
                regime,
                level: lower,
                quadrant,
                direct,
                clean: direct && !self.is_dirty(),
                rights,
            },
        };
        let (source, target) = match (step, regime.mode) {
            (Some(step), mode) if !step.leaf => {
                let (address, quadrant) = match mode {
                    Mode::Bits32 => (bits(31, 12), (self.gva >> 21 & 1) as u8),
                    _ => (bits(51, 12), 0),
                };
                let gfn = (step.entry & address) >> 12;
                (
                    source,
                    table(gfn, quadrant, false, narrowed(rights, step.entry)),
                )
            }
            // A large page in small pieces.
            (Some(_), _) => (source, table(self.frame(level), 0, true, self.page.rights)),
            (None, Mode::Pae) if level == Level::Pdpt => {
                let pointer = self.key.pointers[index % 4];
                let gfn = (pointer & bits(51, 12)) >> 12;
                (pointer, table(gfn, 0, false, rights))
            }
            (None, Mode::Bits32) if level == Level::Pdpt => {
                (0, table(self.key.gfn, index as u8, false, rights))
            }
            (None, _) => (0, table(self.frame(level), 0, true, rights)),
        };
        Hop {
            index,
            source,
            target,
        }
    }
}

/// The rights that are left below an entry.
pub(super) const fn narrowed(rights: Rights, entry: u64) -> Rights {
    Rights {
        user: rights.user && entry & USER != 0,
        writable: rights.writable && entry & WRITABLE != 0,
        executable: rights.executable && entry & NO_EXECUTE == 0,
        key: 0,
    }
}

/// The entry of a guest table that an entry of its shadow was made of: the word of the table that
/// has it, and its lowest bit there.
pub(super) fn source_at(role: &Role, index: usize) -> (usize, u32) {
    if role.regime.mode() != Mode::Bits32 {
        return (index, 0);
    }
    let quadrant = usize::from(role.quadrant);
    let place = match role.level {
        Level::Pt => quadrant * 512 + index,
        // Two halves of 2 MiB to each of the guest's entries.
        _ => quadrant * 256 + index / 2,
    };
    (place / 2, (place % 2) as u32 * 32)
}

/// That entry, out of the word.
pub(super) fn source_in(role: &Role, word: u64, bit: u32) -> u64 {
    match role.regime.mode() {
        Mode::Bits32 => word.wrapping_shr(bit) & 0xffff_ffff,
        _ => word,
    }
}

/// The entries of a shadow that are made of the guest's entries in a word of its table.
pub(super) fn made_of(role: &Role, word: usize) -> core::ops::Range<usize> {
    if role.regime.mode() != Mode::Bits32 {
        return word..word + 1;
    }
    let quadrant = usize::from(role.quadrant);
    let (per_quadrant, per_entry) = match role.level {
        Level::Pt => (512, 1),
        _ => (256, 2),
    };
    let first = (word * 2).wrapping_sub(quadrant * per_quadrant);
    if first < per_quadrant {
        first * per_entry..(first + 2) * per_entry
    } else {
        0..0
    }
}

/// What a page of a leaf table would be translated to: for entries beside the one of a fault.
pub(super) fn frame_of(role: &Role, source: u64) -> u64 {
    let address = match role.regime.mode() {
        Mode::Bits32 => bits(31, 12),
        _ => bits(51, 12),
    };
    (source & address) >> 12
}

/// Two entries of a table of small pages map the same page, if one of them is valid, and the second
/// one's accessed flag need not be set before that is used.
pub(super) fn is_same_page(role: &Role, old: u64, new: u64) -> bool {
    let mut rights = WRITABLE | USER | ACCESSED | DIRTY;
    if role.regime.no_execute {
        rights |= NO_EXECUTE;
    }
    (old ^ new) & !(rights | bits(11, 8)) == 0 && new & ACCESSED != 0
}

/// Rights of an entry of a table of small pages.
pub(super) const fn rights_of(role: &Role, source: u64) -> Rights {
    narrowed(role.rights, source)
}

/// First frame of the 2 MiB that an entry maps which was made of an entry for a large page.
pub(super) fn piece(role: &Role, source: u64, index: usize) -> u64 {
    match role.regime.mode() {
        Mode::Bits32 => {
            let base = (source & bits(31, 22)) | (source & bits(20, 13)) << 19;
            (base >> 12) + (index as u64 % 2) * 512
        }
        _ => (source & bits(51, 21)) >> 12,
    }
}

/// Bytes of an entry of the guest's table.
pub(super) fn entry_bytes(role: &Role) -> usize {
    match role.regime.mode() {
        Mode::Bits32 => 4,
        _ => 8,
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What the model says about a case, on a copy of the tables.

use super::generate::{Case, Setting};
use super::guest::{data_offset, layout, TABLES_END};
use super::Features;
use rusthv_model::arch::addr::{Gpa, Gva};
use rusthv_model::paging::state::{Access, AccessKind, Mode, PagingState, Privilege};
use rusthv_model::paging::walk::{load_pdptes, probe, walk, EntrySize, GuestPhys, PdpteError, WalkError};

/// The tables of the cases, as the model sees and changes them.
struct Tables(Vec<u64>);

/// An entry is where there are no tables.
#[derive(Debug)]
struct NoTable;

impl Tables {
    fn new() -> Self {
        Self(vec![0; (TABLES_END - layout::TABLES) as usize / 8])
    }

    fn word(&mut self, at: u64) -> Option<&mut u64> {
        self.0.get_mut((at.checked_sub(layout::TABLES)? / 8) as usize)
    }

    fn read(&mut self, at: u64, size: EntrySize) -> Option<u64> {
        let word = *self.word(at)?;
        Some(match size {
            EntrySize::Eight => word,
            EntrySize::Four => word >> (8 * (at & 4)) & 0xFFFF_FFFF,
        })
    }

    fn write(&mut self, at: u64, size: EntrySize, value: u64) -> Option<()> {
        let word = self.word(at)?;
        match size {
            EntrySize::Eight => *word = value,
            EntrySize::Four => {
                let shift = 8 * (at & 4);
                *word = *word & !(0xFFFF_FFFF << shift) | (value & 0xFFFF_FFFF) << shift;
            }
        }
        Some(())
    }
}

impl GuestPhys for Tables {
    type Error = NoTable;

    fn read_entry(&mut self, at: Gpa, size: EntrySize) -> Result<u64, NoTable> {
        self.read(at.raw(), size).ok_or(NoTable)
    }

    fn cmpxchg_entry(&mut self, at: Gpa, size: EntrySize, old: u64, new: u64) -> Result<bool, NoTable> {
        let same = self.read(at.raw(), size).ok_or(NoTable)? == old;
        if same {
            self.write(at.raw(), size, new).ok_or(NoTable)?;
        }
        Ok(same)
    }
}

pub fn entry_size(mode: Mode) -> EntrySize {
    match mode {
        Mode::Bits32 => EntrySize::Four,
        _ => EntrySize::Eight,
    }
}

/// How an access must end, by the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// It reaches this guest-physical address.
    Reaches(u64),
    /// A page fault with this error code.
    PageFault(u32),
    /// A general-protection fault.
    NonCanonical,
    /// MOV to CR3 faults already.
    BadPointers,
}

/// The walk of `rust_hv/model`, and the tables that it walks.
pub struct Model {
    pub features: Features,
    tables: Tables,
    /// Intel's CPUs load the page-directory pointers with CR3, AMD's read them in each walk.
    loads_pointers: bool,
}

impl Model {
    pub fn new(features: Features, loads_pointers: bool) -> Self {
        Self { features, tables: Tables::new(), loads_pointers }
    }

    pub fn set_entry(&mut self, mode: Mode, at: u64, value: u64) {
        let written = self.tables.write(at, entry_size(mode), value);
        assert!(written.is_some(), "no table at {at:#x}");
    }

    pub fn entry(&mut self, mode: Mode, at: u64) -> u64 {
        self.tables.read(at, entry_size(mode)).unwrap_or_default()
    }

    /// Where a load by the supervisor would go; nothing changes. The pointers of PAE are fine.
    pub fn translate(&mut self, setting: &Setting, case: &Case) -> Option<u64> {
        let state = self.state(setting, case, None);
        let privilege = Privilege::Supervisor { ac: case.ac };
        let access = Access { kind: AccessKind::Read, privilege };
        probe(&mut self.tables, &state, Gva::new(case.address), access).ok().map(|found| found.gpa.raw())
    }

    fn state(&self, setting: &Setting, case: &Case, pdptes: Option<[u64; 4]>) -> PagingState {
        let mut registers = setting.registers;
        registers.cr3 = case.cr3;
        PagingState::new(registers, self.features.model(), pdptes)
    }

    /// Makes an access: says how it ends, and sets the flags.
    pub fn access(&mut self, setting: &Setting, case: &Case) -> Result<Expected, String> {
        let mut pdptes = None;
        if setting.mode == Mode::Pae && self.loads_pointers {
            pdptes = match load_pdptes(&mut self.tables, case.cr3, self.features.phys_bits) {
                Ok(pdptes) => Some(pdptes),
                Err(PdpteError::Reserved) => return Ok(Expected::BadPointers),
                Err(PdpteError::Memory(_)) => return Err("the model finds no pointers".into()),
            };
        }
        let state = self.state(setting, case, pdptes);
        let distance = data_offset(case.access.kind);
        match walk(&mut self.tables, &state, Gva::new(case.address + distance), case.access) {
            Ok(found) => Ok(Expected::Reaches(found.gpa.raw() - distance)),
            Err(WalkError::Fault(code)) => Ok(Expected::PageFault(code.raw())),
            Err(WalkError::NonCanonical) => Ok(Expected::NonCanonical),
            Err(other) => Err(format!("the model's walk ends with {other:x?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coverage::{Cause, Class, Coverage};
    use super::super::generate::{choose_pages, Generator, Limits};
    use super::*;
    use crate::random::Random;

    /// The classes are worked out from how a case was made, not by the model: they must be of one
    /// mind, and a tenth of the cases must do for all classes.
    #[test]
    fn classes() {
        let features = Features {
            phys_bits: 40,
            pages_1g: true,
            pse36: true,
            nx: true,
            smep: true,
            smap: true,
            keys: true,
            five_levels: true,
        };
        let pages = choose_pages(&mut Random::new(1), &[layout::FIRST_POOL, layout::THIRD_POOL]);
        for intel in [false, true] {
            let mut model = Model::new(features, intel);
            let mut generator = Generator::new(1, features, Limits::new(intel, intel, 0), pages.clone());
            let mut coverage = Coverage::default();
            for number in 0..200 {
                let batch = generator.batch(features.modes()[number % 4]);
                let (setting, mode) = (&batch.setting, batch.setting.mode);
                for case in &batch.cases {
                    case.entries.iter().for_each(|entry| model.set_entry(mode, entry.at, entry.value));
                    let class = Class::of(setting, case);
                    coverage.count(class);
                    let found = model.access(setting, case).unwrap();
                    let same = match class.cause {
                        Cause::None | Cause::WriteProtectOff | Cause::SelfMapped => {
                            matches!(found, Expected::Reaches(_))
                        }
                        Cause::NonCanonical => found == Expected::NonCanonical,
                        Cause::Reserved if intel && mode == Mode::Pae && class.level == 3 => {
                            found == Expected::BadPointers
                        }
                        Cause::Reserved => matches!(found, Expected::PageFault(code) if code & 9 == 9),
                        Cause::NotPresent => matches!(found, Expected::PageFault(code) if code & 9 == 0),
                        Cause::Key => matches!(found, Expected::PageFault(code) if code & 0x29 == 0x21),
                        Cause::Several => matches!(found, Expected::PageFault(code) if code & 9 == 1),
                        _ => matches!(found, Expected::PageFault(code) if code & 0x29 == 1),
                    };
                    assert!(same, "{class:?}: {found:x?}, {setting:x?}, {case:x?}");
                    case.entries.iter().for_each(|entry| model.set_entry(mode, entry.at, 0));
                }
            }
            assert_eq!(coverage.missing(&features), []);
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The comparison: where each access went or how it faulted, and every entry of its tables.

use super::coverage::{Class, Coverage};
use super::generate::{choose_pages, Batch, Case, Entry, Generator, Limits, Setting, ACCESSED, PRESENT};
use super::guest::{data_offset, is_table, layout, written, Guest, Record, CASES, DONE, NOTHING, TABLES_END};
use super::model::{entry_size, Expected, Model};
use super::Features;
use crate::device::Device;
use crate::emulator::{is_bochs, is_nested, walk_quirks, FaultMarks, WalkQuirks};
use crate::fail;
use crate::harness::{count_check, Context, Failure, Outcome};
use crate::memory::{Memory, PAGE};
use crate::random::Random;
use crate::traps::{GENERAL_PROTECTION, PAGE_FAULT};
use crate::vendor::{vendor, Vendor};
use rusthv_model::arch::exception::PageFaultError;
use rusthv_model::paging::state::{AccessKind, Mode};
use rusthv_model::paging::walk::EntrySize;

/// How many cases there are at full scale.
pub const CASE_COUNT: u64 = 100_000;
/// All of memory is compared once in so many batches.
const WHOLE: usize = 64;

/// Bits of a page fault's error code.
const PRESENT_ENTRY: u32 = PageFaultError::PRESENT.raw();
const RESERVED_BIT: u32 = PageFaultError::RESERVED.raw();

/// A guest of one device, and the model beside it.
pub struct Pair {
    pub(super) guest: Guest,
    pub(super) model: Model,
    quirks: WalkQuirks,
    pages: Vec<u64>,
}

/// Page-directory pointers are loaded with CR3. AMD's CPUs read those of a guest in each walk.
fn loads_pointers() -> bool {
    vendor() == Vendor::Intel || !is_nested()
}

impl Pair {
    pub fn new(device: &Device) -> Result<Self, Failure> {
        let cpuid = device.supported_cpuid(256)?;
        let features = Features::new(&cpuid);
        let guest = Guest::new(device, &cpuid, &features)?;
        let pages = choose_pages(&mut Random::new(1), &guest.pools);
        let pair =
            Self { guest, model: Model::new(features, loads_pointers()), quirks: walk_quirks(), pages };
        for page in &pair.pages {
            for slot in 0..PAGE as u64 / layout::SLOT as u64 {
                pair.write_slot(page + slot * layout::SLOT as u64);
            }
        }
        Ok(pair)
    }

    /// For cases that fit this guest.
    pub fn generator(&self, seed: u64) -> Generator {
        let upper_global = vendor() == Vendor::Intel;
        let limits = Limits::new(loads_pointers(), upper_global, self.quirks.unchecked_pdpte_bits);
        Generator::new(seed, self.model.features, limits, self.pages.clone())
    }

    pub fn features(&self) -> &Features {
        &self.model.features
    }

    /// What a slot of a page says of itself; no other slot says the same.
    fn number(&self, gpa: u64) -> Option<u32> {
        if is_table(gpa) {
            return Some(0x2000_0000 | (gpa - layout::TABLES) as u32);
        }
        let page = self.pages.iter().position(|page| *page == gpa & !0xFFF)?;
        Some(0x1000_0000 | (page as u32) << 12 | (gpa & 0xFF8) as u32)
    }

    /// Code that loads the number and ends the access: data accesses see the number alone.
    fn slot(&self, gpa: u64) -> [u8; layout::SLOT] {
        let [a, b, c, d] = self.number(gpa).unwrap_or_default().to_le_bytes();
        // mov eax, number; int 0x21; nop
        [0xB8, a, b, c, d, 0xCD, DONE as u8, 0x90]
    }

    fn write_slot(&self, gpa: u64) {
        if let Some(place) = self.guest.place(gpa) {
            self.guest.memory().write_u64(place, u64::from_le_bytes(self.slot(gpa)));
        }
    }

    fn set_entry(&mut self, mode: Mode, at: u64, value: u64) {
        self.model.set_entry(mode, at, value);
        match entry_size(mode) {
            EntrySize::Four => self.memory().write(at as usize, &(value as u32).to_le_bytes()),
            EntrySize::Eight => self.memory().write_u64(at as usize, value),
        }
    }

    fn memory(&self) -> &Memory {
        self.guest.memory()
    }

    /// What an entry is now: in the guest, and as the model left it.
    pub(super) fn entry(&mut self, mode: Mode, at: u64) -> (u64, u64) {
        let actual = match entry_size(mode) {
            EntrySize::Four => u64::from(self.memory().read_u32(at as usize)),
            EntrySize::Eight => self.memory().read_u64(at as usize),
        };
        (actual, self.model.entry(mode, at))
    }

    pub(super) fn write_tables(&mut self, batch: &Batch) {
        let mode = batch.setting.mode;
        for case in &batch.cases {
            let (own, value) = Guest::own_entry(mode, case);
            self.set_entry(mode, own, value);
            for entry in &case.entries {
                self.set_entry(mode, entry.at, entry.value);
            }
            if let Some(slot) = table_slot(case) {
                self.write_slot(slot);
            }
        }
    }

    pub(super) fn clear_tables(&mut self, batch: &Batch) {
        let mode = batch.setting.mode;
        for case in &batch.cases {
            self.set_entry(mode, Guest::own_entry(mode, case).0, 0);
            for entry in &case.entries {
                self.set_entry(mode, entry.at, 0);
            }
            if let Some(slot) = table_slot(case) {
                self.memory().write_u64(slot as usize, 0);
            }
        }
    }

    /// Runs a batch; `Ok(Err(what))` when CPU and model disagree.
    fn judge(&mut self, batch: &Batch) -> Result<Result<(), String>, Failure> {
        let mode = batch.setting.mode;
        self.write_tables(batch);
        let expected: Vec<_> =
            batch.cases.iter().map(|case| self.model.access(&batch.setting, case)).collect();
        let records = self.guest.run(batch)?;
        let mut verdict = Ok(());
        for (index, (case, expected)) in batch.cases.iter().zip(&expected).enumerate() {
            let record = &records[index];
            let compared = match expected {
                Ok(expected) => self
                    .compare_outcome(index, case, expected, record)
                    .and_then(|()| self.compare_entries(mode, case, expected)),
                Err(message) => Err(message.clone()),
            };
            if let Err(message) = compared {
                verdict = Err(self.describe(&batch.setting, index, case, record, &message));
                break;
            }
            count_check();
        }
        for (case, expected) in batch.cases.iter().zip(&expected) {
            if let Ok(Expected::Reaches(gpa)) = expected {
                if case.access.kind == AccessKind::Write {
                    self.write_slot(*gpa);
                }
            }
        }
        self.clear_tables(batch);
        Ok(verdict)
    }

    fn compare_outcome(
        &self,
        index: usize,
        case: &Case,
        expected: &Expected,
        record: &Record,
    ) -> Result<(), String> {
        let linear = case.address.wrapping_add(data_offset(case.access.kind));
        let same = match *expected {
            Expected::Reaches(gpa) => {
                let (Some(number), Some(place)) = (self.number(gpa), self.guest.place(gpa)) else {
                    return Err(format!("the model goes to {gpa:#x}, where no page is"));
                };
                let done = record.vector == DONE;
                done && match case.access.kind {
                    AccessKind::Read | AccessKind::Fetch => record.read == number,
                    AccessKind::Write => {
                        let mut slot = self.slot(gpa);
                        slot[1..5].copy_from_slice(&written(index).to_le_bytes());
                        record.read == NOTHING && self.memory().read_u64(place) == u64::from_le_bytes(slot)
                    }
                }
            }
            Expected::PageFault(code) => {
                u64::from(record.vector) == PAGE_FAULT
                    && self.is_code(record.error, code)
                    && record.cr2 == linear
                    && !record.is_early()
            }
            Expected::NonCanonical | Expected::BadPointers => {
                u64::from(record.vector) == GENERAL_PROTECTION
                    && record.error == 0
                    && record.is_early() == (*expected == Expected::BadPointers)
            }
        };
        if same {
            return Ok(());
        }
        let number = match *expected {
            Expected::Reaches(gpa) => self.number(gpa).unwrap_or_default(),
            _ => 0,
        };
        Err(format!("the model says {expected:x?} (number {number:#x})"))
    }

    fn is_code(&self, actual: u32, model: u32) -> bool {
        let lacks_present = self.quirks.reserved_without_present && model & RESERVED_BIT != 0;
        actual == model || (lacks_present && actual == model & !PRESENT_ENTRY)
    }

    fn compare_entries(&mut self, mode: Mode, case: &Case, expected: &Expected) -> Result<(), String> {
        let walked = matches!(expected, Expected::Reaches(_) | Expected::PageFault(_));
        let passed = if walked { case.passed() } else { 0 };
        for (index, entry) in case.entries.iter().enumerate() {
            let (actual, model) = self.entry(mode, entry.at);
            let faults = matches!(expected, Expected::PageFault(_));
            let present = entry.value & PRESENT != 0;
            let marks = match entry.level {
                3 if mode == Mode::Pae && index < passed => self.quirks.pointer,
                3 if entry.leaf && faults && present && index == passed => self.quirks.faulting_1g,
                _ if faults && index < passed => self.quirks.faulting,
                _ => FaultMarks::None,
            };
            let right = match marks {
                FaultMarks::None => actual == model,
                FaultMarks::Always => actual == model | ACCESSED,
                FaultMarks::Maybe => actual | ACCESSED == model | ACCESSED,
            };
            if !right {
                return Err(format!("the entry of level {} must be {model:#x}", entry.level));
            }
        }
        Ok(())
    }

    fn describe(
        &mut self,
        setting: &Setting,
        index: usize,
        case: &Case,
        record: &Record,
        message: &str,
    ) -> String {
        let mut entries = String::new();
        for Entry { at, value, level, .. } in case.entries.iter().copied() {
            let now = self.entry(setting.mode, at).0;
            entries += &format!("\n  level {level} at {at:#x}: {value:#x}, now {now:#x}");
        }
        format!(
            "{message}, the CPU {record:x?}\n  case {index}, {:x?} of {:#x}, CR3 {:#x}, {:x?}{entries}",
            case.access, case.address, case.cr3, setting
        )
    }

    /// Nothing is left of the cases, and nothing else has changed.
    fn check_whole(&self) -> Outcome {
        let memory = self.memory();
        for at in (layout::TABLES..TABLES_END).step_by(8) {
            let word = memory.read_u64(at as usize);
            if word != 0 {
                fail!("{word:#x} at {at:#x}, where no case had an entry");
            }
        }
        for page in &self.pages {
            for slot in (0..PAGE as u64).step_by(layout::SLOT) {
                let gpa = page + slot;
                let word = self.guest.place(gpa).map(|place| memory.read_u64(place));
                if word != Some(u64::from_le_bytes(self.slot(gpa))) {
                    fail!("{word:x?} at {gpa:#x}, where no case wrote");
                }
            }
        }
        Ok(())
    }
}

/// What a self-mapped case accesses: words that are no present entry before.
fn table_slot(case: &Case) -> Option<u64> {
    case.self_mapped.then_some(case.cr3 | (case.address & 0xFFF))
}

/// Lets CPU and model make the cases of a seed, and counts what they were.
///
/// At a small scale it goes on until every class has had a case.
pub fn check(t: &Context, device: &Device, seed: u64) -> Outcome {
    let mut pair = Pair::new(device)?;
    let features = pair.model.features;
    println!("# {features:?}");
    let mut generator = pair.generator(seed);
    let mut coverage = Coverage::default();
    let mut modes = features.modes();
    // The mode of most guests twice.
    modes.push(Mode::FourLevel);
    // Bochs takes half a minute for all of them, and QEMU is there for that.
    let wanted = t.repetitions(if is_bochs() { CASE_COUNT / 5 } else { CASE_COUNT });
    for number in 0.. {
        let total = coverage.total();
        if total >= wanted && (total >= CASE_COUNT || coverage.missing(&features).is_empty()) {
            break;
        }
        let batch = generator.batch(modes[number % modes.len()]);
        batch.cases.iter().for_each(|case| coverage.count(Class::of(&batch.setting, case)));
        if let Err(message) = pair.judge(&batch)? {
            fail!("batch {number}: {message}\n{}", second_opinion(t, device, &batch));
        }
        if number % WHOLE == 0 {
            pair.check_whole()?;
        }
    }
    pair.check_whole()?;
    for line in coverage.lines() {
        println!("# {line}");
    }
    println!("# {} cases in batches of {CASES}, seed {seed}", coverage.total());
    let missing = coverage.missing(&features);
    if !missing.is_empty() {
        fail!("no case of {missing:x?}");
    }
    Ok(())
}

/// Whether the other device's guest agrees with the model: then it is not the emulator's doing.
fn second_opinion(t: &Context, device: &Device, batch: &Batch) -> String {
    let other = if device.is_kvm() { "/dev/rusthv" } else { "/dev/kvm" };
    let judged = Device::open(other)
        .map_err(Failure::from)
        .and_then(|device| Pair::new(&device))
        .and_then(|mut pair| pair.judge(batch));
    match judged {
        Ok(Ok(())) => format!("{other} agrees with the model, {} does not", t.path()),
        Ok(Err(message)) => format!("and {other}: {message}"),
        Err(failure) => format!("{other} cannot be asked: {failure:?}"),
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What the cases were, counted, and what must have been among them.

use super::generate::{letter, Case, Setting, NO_EXECUTE, PRESENT, USER, WRITABLE};
use super::{levels, shift, Features, KINDS};
use rusthv_model::arch::regs::Cr4;
use rusthv_model::paging::state::{AccessKind, Mode, Privilege};
use std::collections::BTreeMap;

/// Why an access faults. When several things forbid it, it is none of the single ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cause {
    /// It does not.
    None,
    /// It does not although the page is read-only: CR0.WP is 0.
    WriteProtectOff,
    /// It does not although its table is its page: one entry is used at every level.
    SelfMapped,
    NonCanonical,
    NotPresent,
    Reserved,
    /// A user at a supervisor's page.
    Supervisor,
    ReadOnly,
    NoExecute,
    Smep,
    Smap,
    Key,
    Several,
}

/// Who accesses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    User,
    Supervisor,
    SupervisorWithAc,
}

const EVERYBODY: [Who; 3] = [Who::User, Who::Supervisor, Who::SupervisorWithAc];

/// One class: the mode by its number of levels, the level where the walk ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Class {
    pub levels: u32,
    pub cause: Cause,
    pub level: u32,
    pub who: Who,
    /// `r`, `w` or `x`.
    pub kind: char,
}

impl Class {
    pub fn of(setting: &Setting, case: &Case) -> Self {
        let who = match case.access.privilege {
            Privilege::User => Who::User,
            Privilege::Supervisor { ac: true } => Who::SupervisorWithAc,
            _ => Who::Supervisor,
        };
        let (cause, level) = cause(setting, case, who);
        Self { levels: levels(setting.mode), cause, level, who, kind: letter(case.access.kind) }
    }
}

fn cause(setting: &Setting, case: &Case, who: Who) -> (Cause, u32) {
    if !case.canonical {
        return (Cause::NonCanonical, 0);
    }
    let Some(leaf) = case.leaf() else {
        let last = case.entries[case.passed()];
        let cause = if last.value & PRESENT == 0 { Cause::NotPresent } else { Cause::Reserved };
        return (cause, last.level);
    };
    // Page-directory pointers have no rights.
    let rights = case.entries.iter().filter(|entry| setting.mode != Mode::Pae || entry.level < 3);
    let (all, any) = rights.fold((u64::MAX, 0), |(all, any), entry| (all & entry.value, any | entry.value));
    let (user_page, read_only) = (all & USER != 0, all & WRITABLE == 0);
    let (user, kind) = (who == Who::User, case.access.kind);
    let write = kind == AccessKind::Write;
    let fetch = kind == AccessKind::Fetch;
    let key = setting.registers.pkru >> (2 * (leaf.value >> 59 & 15));
    let has_keys = setting.has(Cr4::PKE) && levels(setting.mode) > 3;
    let causes = [
        (Cause::Supervisor, user && !user_page),
        (Cause::ReadOnly, write && read_only && (user || setting.wp())),
        // Where it means nothing, the generator leaves the bit clear.
        (Cause::NoExecute, fetch && any & NO_EXECUTE != 0),
        (Cause::Smep, !user && user_page && fetch && setting.has(Cr4::SMEP)),
        (Cause::Smap, who == Who::Supervisor && user_page && !fetch && setting.has(Cr4::SMAP)),
        (
            Cause::Key,
            has_keys
                && user_page
                && !fetch
                && (key & 1 != 0 || (key & 2 != 0 && write && (user || setting.wp()))),
        ),
    ];
    let mut found = causes.into_iter().filter(|(_, forbids)| *forbids).map(|(cause, _)| cause);
    let cause = match (found.next(), found.next()) {
        (None, _) if case.self_mapped => return (Cause::SelfMapped, 0),
        (None, _) if write && read_only => Cause::WriteProtectOff,
        (None, _) => Cause::None,
        (Some(cause), None) => cause,
        _ => Cause::Several,
    };
    (cause, if case.self_mapped { 1 } else { leaf.level })
}

/// How many cases there were of each class.
#[derive(Default)]
pub struct Coverage(BTreeMap<Class, u64>);

impl Coverage {
    pub fn count(&mut self, class: Class) {
        *self.0.entry(class).or_default() += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The classes that must not be empty and are.
    pub fn missing(&self, features: &Features) -> Vec<Class> {
        required(features).into_iter().filter(|class| !self.0.contains_key(class)).collect()
    }

    /// A line for each mode, cause and level.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: BTreeMap<(u32, Cause, u32), String> = BTreeMap::new();
        let mut before = None;
        for (class, count) in &self.0 {
            let key = (class.levels, class.cause, class.level);
            let line = lines.entry(key).or_insert_with(|| format!("{}:", heading(class)));
            if before != Some((key, class.who)) {
                *line += match class.who {
                    Who::User => " user",
                    Who::Supervisor => " supervisor",
                    Who::SupervisorWithAc => " with AC",
                };
            }
            before = Some((key, class.who));
            *line += &format!(" {}{count}", class.kind);
        }
        lines.into_values().collect()
    }
}

fn mode(levels: u32) -> Mode {
    [Mode::Bits32, Mode::Pae, Mode::FourLevel, Mode::FiveLevel][levels as usize - 2]
}

fn heading(class: &Class) -> String {
    let mode_name = ["32-bit", "PAE", "4-level", "5-level"][class.levels as usize - 2];
    let size = match class.level {
        0 => return format!("{mode_name} {:?}", class.cause),
        level => shift(mode(class.levels), level),
    };
    let place = match class.cause {
        Cause::NotPresent | Cause::Reserved => format!("level {}", class.level),
        _ if size >= 30 => format!("{} GiB", 1u64 << (size - 30)),
        _ if size >= 20 => format!("{} MiB", 1u64 << (size - 20)),
        _ => "4 KiB".into(),
    };
    format!("{mode_name} {:?} {place}", class.cause)
}

/// What must have been tried: every mode, cause, privilege, access and size that go together.
fn required(features: &Features) -> Vec<Class> {
    let mut classes = Vec::new();
    for mode in features.modes() {
        let long = matches!(mode, Mode::FourLevel | Mode::FiveLevel);
        let largest = if long && features.pages_1g { 3 } else { 2 };
        for who in EVERYBODY {
            for kind in KINDS {
                let mut add = |cause, level| {
                    let class = Class { levels: levels(mode), cause, level, who, kind: letter(kind) };
                    classes.push(class);
                };
                let (user, write) = (who == Who::User, kind == AccessKind::Write);
                let fetch = kind == AccessKind::Fetch;
                if long {
                    add(Cause::NonCanonical, 0);
                }
                if mode != Mode::Pae {
                    add(Cause::SelfMapped, 0);
                }
                for level in 1..=levels(mode) {
                    add(Cause::NotPresent, level);
                    let possible = match mode {
                        // Only in the entries of large pages.
                        Mode::Bits32 => level == 2,
                        _ => true,
                    };
                    if possible {
                        add(Cause::Reserved, level);
                    }
                }
                for level in 1..=largest {
                    add(Cause::None, level);
                    let causes = [
                        (Cause::Supervisor, user),
                        (Cause::ReadOnly, write),
                        (Cause::WriteProtectOff, write && !user),
                        (Cause::NoExecute, fetch && features.nx && mode != Mode::Bits32),
                        (Cause::Smep, fetch && !user && features.smep),
                        (Cause::Smap, !fetch && who == Who::Supervisor && features.smap),
                        (Cause::Key, !fetch && long && features.keys),
                    ];
                    causes
                        .into_iter()
                        .filter(|(_, possible)| *possible)
                        .for_each(|(cause, _)| add(cause, level));
                }
            }
        }
    }
    classes
}

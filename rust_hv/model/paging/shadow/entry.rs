// SPDX-License-Identifier: GPL-2.0

//! Entries of shadow tables: those of the CPU's own paging, in 8 bytes (SDM Vol. 3A, "4-Level
//! Paging and 5-Level Paging", "PAE Paging"). Memory is write-back: place 0 of the PAT.

use super::super::state::{Rights, ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use super::route::Regime;
use crate::model::arch::addr::Hpa;
use crate::model::paging::format::Leaf;
use crate::model::paging::{PageSize, Permissions};

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the CPU may do with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grant {
    pub(super) user: bool,
    pub(super) write: bool,
    pub(super) execute: bool,
}

/// The access that makes a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cause {
    /// It is a write.
    pub write: bool,
    /// It is made at CPL 3.
    pub user: bool,
}

impl Cause {
    /// None: the page is likely to be used soon.
    pub const NONE: Self = Self {
        write: false,
        user: true,
    };
}

impl Grant {
    /// What a page of these rights is given for an access that the guest's tables allow.
    ///
    /// The CPU runs with CR0.WP, always: read-only entries hold back writes that have to be seen.
    /// A guest without it writes to read-only pages in supervisor mode; such a page becomes one of
    /// supervisor mode that can be written, until the next access by a user, and cannot be executed
    /// where SMEP would forbid that.
    pub(super) const fn new(regime: Regime, rights: Rights, dirty: bool, cause: Cause) -> Self {
        if !regime.write_protect && !rights.writable && cause.write && !cause.user {
            return Self {
                user: false,
                write: true,
                execute: rights.executable && !(rights.user && regime.smep),
            };
        }
        Self {
            user: rights.user,
            write: rights.writable && dirty,
            execute: rights.executable,
        }
    }
}

/// An entry that maps a page.
pub(super) const fn leaf(hpa: Hpa, large: bool, grant: Grant) -> u64 {
    let mut raw = (hpa.raw() & ADDRESS) | PRESENT | ACCESSED;
    if grant.user {
        raw |= USER;
    }
    if grant.write {
        raw |= WRITABLE | DIRTY;
    }
    if !grant.execute {
        raw |= NO_EXECUTE;
    }
    if large {
        raw |= LARGE;
    }
    raw
}

/// The entry of a small page with other rights; the accessed flag is as it was.
pub(super) const fn granting(raw: u64, grant: Grant) -> u64 {
    leaf(Hpa::new(raw & ADDRESS), false, grant) & !ACCESSED | raw & ACCESSED
}

/// An entry that refers to a table; all rights are in the last level's.
pub(super) const fn table(hpa: Hpa, pointer: bool) -> u64 {
    let raw = (hpa.raw() & ADDRESS) | PRESENT;
    if pointer {
        // The other bits are reserved there.
        return raw;
    }
    raw | WRITABLE | USER | ACCESSED
}

/// The same entry without the right to write.
pub(super) const fn read_only(raw: u64) -> u64 {
    raw & !(WRITABLE | DIRTY)
}

/// Two entries that map pages: the same one of the host's.
pub(super) const fn is_same_page(one: u64, other: u64) -> bool {
    (one ^ other) & (ADDRESS | LARGE) == 0
}

/// What an entry for a page maps.
pub(super) const fn page(raw: u64) -> Hpa {
    Hpa::new(raw & ADDRESS)
}

/// The same with what it allows, to anybody.
pub(super) const fn leaf_of(raw: u64, size: PageSize) -> Leaf {
    let mut perms = Permissions::R;
    if raw & WRITABLE != 0 {
        perms = perms.union(Permissions::W);
    }
    if raw & NO_EXECUTE == 0 {
        perms = perms.union(Permissions::X);
    }
    let mut leaf = Leaf::new(page(raw), size, perms);
    leaf.accessed = raw & ACCESSED != 0;
    leaf.dirty = raw & DIRTY != 0;
    leaf
}

/// True when the page can be written.
pub(super) const fn is_writable(raw: u64) -> bool {
    raw & WRITABLE != 0
}

/// True when the change from one entry to the other takes something away from CPUs that have the
/// old one.
pub(super) const fn weakens(old: u64, new: u64) -> bool {
    let given = WRITABLE | USER;
    (old ^ new) & (ADDRESS | LARGE) != 0 || old & given & !new != 0 || new & NO_EXECUTE & !old != 0
}

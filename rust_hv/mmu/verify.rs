// SPDX-License-Identifier: GPL-2.0

//! The inverted page table compared with the VMs' own tables, while guests run.
//!
//! First every leaf of every VM is looked up in the inverted table, then every entry of that in its
//! VM's tables. Each comparison is made under the VM's `Mmu::state`, where the two must agree: what
//! changes between two comparisons makes no difference. Of shadow tables every leaf is looked up, and
//! the pages are counted that they map.

use super::owners::{Member, Notes, Owners, OWNERS};
use super::paging::{Paging, Steps};
use super::{everything, Mmu, State};
use crate::host::frame::PageKind;
use crate::host::inverted::{InvertedTable, INVERTED};
use crate::host::tables::Tables;
use crate::host::task;
use crate::model::arch::addr::Hpa;
use crate::model::memory::inverted::{Alias, GROUPS};
use crate::model::paging::format::Leaf;
use crate::model::paging::sweep::Progress;
use crate::model::paging::Permissions;
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// VMs that were looked at.
    pub vms: u64,
    /// Their mapped pages, of each size.
    pub mapped: [u64; 3],
    /// Those among them that are the host's page of zeroes.
    pub zero: u64,
    /// Mapped pages that are not in the inverted table.
    pub missing: u64,
    /// Entries of the inverted table that nobody has mapped so.
    pub stale: u64,
    /// Mapped pages that another VM has mapped, too.
    pub shared: u64,
    /// Those among them that should not be.
    pub violations: u64,
    /// Changes that went past the inverted table since the module was loaded.
    pub lost: u64,
}

impl Report {
    /// True when all is as it should be.
    pub fn is_good(&self) -> bool {
        self.missing == 0 && self.stale == 0 && self.violations == 0 && self.lost == 0
    }
}

impl Mmu {
    /// The mapping of a guest frame, as the inverted table should have it.
    fn forward(&self, state: &State, what: &Alias) -> Option<Leaf> {
        let memory = Tables::existing(&self.supply);
        let mut found = None;
        let mode = state.tree.mode.as_ref()?;
        mode.for_each_mapping(&memory, what.gfn, |gfn, leaf| {
            if gfn == what.gfn && leaf.hpa == what.hpa && leaf.size == what.size {
                found = Some(leaf);
            }
        });
        found
    }

    /// The mapping of a page in the inverted table; `None` when it is not there any more, and
    /// `Err` when only the inverted table says so.
    pub(super) fn leaf_of(&self, what: &Alias) -> Result<Option<Leaf>, ()> {
        let leaf = self.forward(&self.state.read(), what);
        if leaf.is_some() {
            return Ok(leaf);
        }
        // It may just have gone: with the lock, and nothing waiting, both say the same.
        let mut notes = Notes::new(self.inverted, &self.owner);
        let mut state = self.state.write();
        state.settle(&mut notes);
        let leaf = self.forward(&state, what);
        let stale = leaf.is_none() && self.inverted.contains(what);
        drop(state);
        notes.check_shared();
        match stale {
            true => Err(()),
            false => Ok(leaf),
        }
    }

    /// Looks every leaf up in the inverted table.
    fn verify_leaves(&self, report: &mut Report) -> Result {
        let memory = Tables::existing(&self.supply);
        let mut steps = Steps::new(everything());
        loop {
            let mut notes = Notes::new(self.inverted, &self.owner);
            let mut state = self.state.write();
            state.settle(&mut notes);
            let progress = match &state.tree.mode {
                Some(mode) => mode.for_each_leaf(&memory, &mut steps, |gfn, leaf, first| {
                    if let Some(count) = report.mapped.get_mut(leaf.size as usize) {
                        *count += u64::from(first);
                    }
                    let what = Alias {
                        owner: self.owner.owner,
                        gfn,
                        hpa: leaf.hpa,
                        size: leaf.size,
                    };
                    if self.inverted.is_zero_page(leaf.hpa) {
                        report.zero += u64::from(first);
                    } else if !self.inverted.contains(&what) {
                        report.missing += 1;
                    }
                }),
                None => Progress::Done,
            };
            drop(state);
            notes.check_shared();
            if progress == Progress::Done {
                return Ok(());
            }
            pause()?;
        }
    }
}

/// Lets others run, and ends for a signal.
fn pause() -> Result {
    task::do_work_if_pending()?;
    task::cond_resched();
    Ok(())
}

/// The mappings in a chain of the inverted table; `None` when there is no such chain. What comes
/// while room for it is made may not be among them.
pub(super) fn chain(
    table: &InvertedTable,
    group: usize,
    number: u32,
    room: &mut KVec<Alias>,
) -> Result<bool> {
    loop {
        room.clear();
        let mut more = 0;
        let there = table.for_each_in(group, number, |alias| {
            // Allocates nothing.
            if room.push_within_capacity(alias).is_err() {
                more += 1;
            }
        });
        if !there || more == 0 {
            return Ok(there);
        }
        let wanted = room.len() + more + more / 2;
        room.clear();
        room.reserve(wanted, GFP_KERNEL)?;
    }
}

/// True when a VM of another process has the frame, too.
fn is_shared(owners: &Owners, table: &InvertedTable, what: &Alias, mmu: &Mmu) -> bool {
    let mut others: [Option<_>; 4] = [None; 4];
    table.for_each_alias(what.hpa, |alias| {
        let known = others.contains(&Some(alias.owner));
        if alias.owner != what.owner && !known {
            if let Some(place) = others.iter_mut().find(|place| place.is_none()) {
                *place = Some(alias.owner);
            }
        }
    });
    others.into_iter().flatten().any(|owner| {
        let other = owners.find(owner);
        other.is_some_and(|other| other.mmu.mm().id() != mmu.mm().id())
    })
}

fn verify_entries(owners: &Owners, table: &InvertedTable, report: &mut Report) -> Result {
    let mut room = KVec::new();
    let mut last: Option<Member> = None;
    for group in 0..GROUPS {
        let mut number = 0;
        while chain(table, group, number, &mut room)? {
            number += 1;
            for what in room.iter() {
                if last.as_ref().map(|member| member.mmu.owner.owner) != Some(what.owner) {
                    last = owners.find(what.owner);
                }
                let Some(member) = &last else {
                    report.stale += u64::from(table.contains(what));
                    continue;
                };
                let Ok(leaf) = member.mmu.leaf_of(what) else {
                    report.stale += 1;
                    continue;
                };
                let Some(leaf) = leaf else { continue };
                if is_shared(owners, table, what, &member.mmu) {
                    report.shared += 1;
                    let writable = leaf.perms.contains(Permissions::W) || leaf.tracked;
                    report.violations += u64::from(!is_allowed(owners, table, what.hpa, writable));
                }
            }
            pause()?;
        }
    }
    Ok(())
}

/// Whether a frame that several VMs have may be so mapped.
fn is_allowed(owners: &Owners, table: &InvertedTable, hpa: Hpa, writable: bool) -> bool {
    let written_to_copy = writable && PageKind::of(hpa) == PageKind::CopiedOnWrite;
    !written_to_copy && owners.check(table, hpa)
}

/// Compares all there is.
///
/// # Errors
///
/// `EINTR` for a signal; `ENOMEM`.
pub fn verify() -> Result<Report> {
    let (owners, table) = (OWNERS.get()?, INVERTED.get()?);
    let mut report = Report::default();
    let mut next = 0;
    while let Some((index, member)) = owners.next(next) {
        next = index + 1;
        report.vms += 1;
        member.mmu.verify_leaves(&mut report)?;
    }
    verify_entries(owners, table, &mut report)?;
    report.lost = table.lost.load(Relaxed);
    Ok(report)
}

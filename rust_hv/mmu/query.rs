// SPDX-License-Identifier: GPL-2.0

//! Questions about frames, for user space: who has one, where a guest address is, and which entries
//! an access meets.

use super::owners::OWNERS;
use super::paging::{Mode, Paging};
use super::shadow::ShadowCpu;
use super::Mmu;
use crate::host::bindings::{self, rusthv_frame, rusthv_gpa, rusthv_owner, rusthv_walk};
use crate::host::errno::no_such_device;
use crate::host::frame::{node_of, PageKind};
use crate::host::inverted::INVERTED;
use crate::host::tables::Tables;
use crate::model::arch::addr::{Gpa, Gva, Hpa};
use crate::model::memory::inverted::Alias;
use crate::model::paging::format::Leaf;
use crate::model::paging::{Level, Permissions};
use kernel::prelude::*;

const OWNERS_MAX: usize = bindings::RUSTHV_OWNERS as usize;

/// `RUSTHV_MAP_*` of a mapping.
fn flags(leaf: &Leaf) -> u32 {
    let may = |right| leaf.perms.contains(right);
    [
        (may(Permissions::R), bindings::RUSTHV_MAP_READ),
        (may(Permissions::W), bindings::RUSTHV_MAP_WRITE),
        (may(Permissions::X), bindings::RUSTHV_MAP_EXEC),
        (leaf.accessed, bindings::RUSTHV_MAP_ACCESSED),
        (leaf.dirty, bindings::RUSTHV_MAP_DIRTY),
        (leaf.tracked, bindings::RUSTHV_MAP_TRACKED),
    ]
    .into_iter()
    .fold(0, |sum, (set, flag)| if set { sum | flag } else { sum })
}

/// `RUSTHV_PAGE_*`.
fn kind_number(kind: PageKind) -> u32 {
    match kind {
        PageKind::Private => bindings::RUSTHV_PAGE_PRIVATE,
        PageKind::CopiedOnWrite => bindings::RUSTHV_PAGE_COW,
        PageKind::Merged => bindings::RUSTHV_PAGE_KSM,
        PageKind::Zero => bindings::RUSTHV_PAGE_ZERO,
        PageKind::Shared => bindings::RUSTHV_PAGE_SHARED,
    }
}

fn node_number(hpa: Hpa) -> i32 {
    node_of(hpa).map_or(-1, |node| node as i32)
}

/// Bytes from the start of a leaf to an address in it.
fn offset(address: u64, leaf: &Leaf) -> u64 {
    address & (leaf.size.bytes() - 1)
}

/// `RUSTHV_GET_FRAME`.
///
/// # Errors
///
/// `EINVAL` for fields that are not 0; `ENODEV` while the module comes or goes.
pub fn frame(asked: &rusthv_frame) -> Result<rusthv_frame> {
    if asked.reserved != [0; 4] || asked.count != 0 {
        return Err(EINVAL);
    }
    let (table, owners) = (INVERTED.get()?, OWNERS.get()?);
    owners.settle();
    let hpa = Hpa::new(asked.hpa);
    let mut found: [Option<Alias>; OWNERS_MAX] = [None; OWNERS_MAX];
    let (mut total, mut kind) = (0, 0);
    if table.is_zero_page(hpa) {
        kind = bindings::RUSTHV_PAGE_ZERO;
    }
    table.for_each_alias(hpa, |alias| {
        // Mapped here and now: what the host says of the page holds.
        kind = kind_number(PageKind::of(hpa));
        let place = usize::try_from(total - i64::from(asked.first));
        if let Some(place) = place.ok().and_then(|index| found.get_mut(index)) {
            *place = Some(alias);
        }
        total += 1;
    });
    let mut answer = rusthv_frame {
        hpa: asked.hpa,
        first: asked.first,
        total: total as u64,
        kind,
        node: node_number(hpa),
        ..Default::default()
    };
    for alias in found.into_iter().flatten() {
        // Gone in between: one owner less.
        let Some(member) = owners.find(alias.owner) else {
            continue;
        };
        let Ok(Some(leaf)) = member.mmu.leaf_of(&alias) else {
            continue;
        };
        if let Some(place) = answer.owners.get_mut(answer.count as usize) {
            let first = alias.gfn.raw() << 12;
            *place = rusthv_owner {
                vm: member.id,
                gpa: first.wrapping_add(offset(hpa.raw(), &leaf)),
                pid: member.pid as u32,
                page_shift: alias.size.level().shift(),
                flags: flags(&leaf),
                mode: member.mmu.mode().1,
            };
            answer.count += 1;
        }
    }
    Ok(answer)
}

impl Mmu {
    /// `RUSTHV_GET_GPA`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for fields that are not 0, `ENXIO` where the guest has no memory.
    pub fn locate(&self, asked: &rusthv_gpa) -> Result<rusthv_gpa> {
        if asked.reserved != [0; 4] {
            return Err(EINVAL);
        }
        let gpa = Gpa::new(asked.gpa);
        let slot = self.slot(gpa).ok_or_else(no_such_device)?;
        let hva = slot.hva_of_gpa(gpa).ok_or_else(no_such_device)?;
        let mut answer = rusthv_gpa {
            gpa: asked.gpa,
            hva: hva.raw(),
            slot: slot.id.into(),
            mode: self.mode().1,
            node: -1,
            ..Default::default()
        };
        OWNERS.get()?.settle();
        let memory = Tables::existing(&self.supply);
        let state = self.state.read();
        let mut found = None;
        if let Some(mode) = &state.tree.mode {
            mode.for_each_mapping(&memory, gpa.gfn(), |_, leaf| found = Some(leaf));
        }
        if let Some(leaf) = found {
            let hpa = leaf.hpa.wrapping_add(offset(gpa.raw(), &leaf));
            answer.hpa = hpa.raw();
            answer.page_shift = leaf.size.level().shift();
            answer.flags = flags(&leaf);
            // With the lock held it stays mapped.
            answer.kind = kind_number(PageKind::of(hpa));
            answer.node = node_number(hpa);
            self.inverted.for_each_alias(hpa, |_| answer.owners += 1);
        }
        Ok(answer)
    }

    /// The nested half of `RUSTHV_WALK`: the entries that an access to `gpa` meets, and where it
    /// ends.
    pub fn trace(
        &self,
        gpa: Gpa,
        write: bool,
        fetch: bool,
        mut on_entry: impl FnMut(Level, Hpa, u64),
    ) -> Option<Hpa> {
        let memory = Tables::existing(&self.supply);
        let state = self.state.read();
        let leaf = state.tree.walked()?.path(&memory, gpa, &mut on_entry)?;
        end_of(&leaf, gpa.raw(), write, fetch)
    }

    /// The same of `RUSTHV_WALK` for shadow tables: the entries that the CPU meets instead of the
    /// guest's.
    pub fn trace_shadow(
        &self,
        cpu: &ShadowCpu,
        gva: Gva,
        write: bool,
        fetch: bool,
        mut on_entry: impl FnMut(Level, Hpa, u64),
    ) -> Option<Hpa> {
        let memory = Tables::existing(&self.supply);
        let state = self.state.read();
        let Some(Mode::Shadow(shadow)) = &state.tree.mode else {
            return None;
        };
        let leaf = shadow.path(&memory, cpu.current_root()?, gva, &mut on_entry)?;
        end_of(&leaf, gva.raw(), write, fetch)
    }
}

/// Where an access to an address ends that a leaf maps; `None` where it may not.
fn end_of(leaf: &Leaf, address: u64, write: bool, fetch: bool) -> Option<Hpa> {
    let wanted = match (write, fetch) {
        (true, _) => Permissions::W,
        (false, true) => Permissions::X,
        (false, false) => Permissions::R,
    };
    let hpa = leaf.hpa.wrapping_add(offset(address, leaf));
    leaf.perms.contains(wanted).then_some(hpa)
}

/// Adds an entry to a walk.
pub fn note_entry(walk: &mut rusthv_walk, table: u32, level: u32, address: u64, entry: u64) {
    if let Some(place) = walk.entries.get_mut(walk.count as usize) {
        *place = bindings::rusthv_walk_entry {
            table,
            level,
            address,
            entry,
        };
        walk.count += 1;
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What guests may do with a slot: read, write, fetch instructions, or less than that.
//!
//! With nested tables the rights are in each entry, and the CPU sees to them; what it refuses is an
//! exit for the VMM. Where the hypervisor reaches guest memory in the guest's place, it asks
//! [`Mmu::check`]. Shadow tables say what the guest's own do, and have no rights of slots in them.

use super::choice::PagingMode;
use super::Mmu;
use crate::host::errno::unsupported;
use crate::model::arch::addr::Gpa;
use crate::model::exit::NestedFault;
use crate::model::memory::slots::Slot;
use crate::model::paging::Permissions;
use crate::model::sync::Ordering;
use kernel::prelude::*;

/// The right that an access takes.
pub(super) const fn needed(fault: &NestedFault) -> Permissions {
    if fault.fetch {
        Permissions::X
    } else if fault.write {
        Permissions::W
    } else {
        Permissions::R
    }
}

impl Mmu {
    /// Lets guests do no more than this with a slot, from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` for rights of which one is nothing without another (a write without a read),
    /// `EOPNOTSUPP` where tables cannot say it: without nested ones, and fetches alone on some CPUs.
    /// `ENOENT` without such a slot; `ENOMEM`.
    pub fn set_rights(&self, id: u16, rights: Permissions) -> Result {
        let reads = rights.contains(Permissions::R);
        if !reads && rights.contains(Permissions::W) {
            return Err(EINVAL);
        }
        let fetches_alone = !reads && rights.contains(Permissions::X);
        if fetches_alone && !self.format.can_only_execute() {
            return Err(unsupported());
        }
        let _one_at_a_time = self.slots_lock.lock();
        if self.paging_mode() != PagingMode::Nested {
            return Err(unsupported());
        }
        let found = {
            let mut state = self.state.write();
            let slot = state.slots.iter_mut().find(|slot| slot.id == id);
            let found = slot.map(|slot| core::mem::replace(&mut slot.rights, rights));
            // No fault maps a page with the old rights from here on.
            self.slots_changed(&mut state);
            found.and_then(|old| Some((old, *state.view().find_id(id)?)))
        };
        let (old, slot) = found.ok_or(ENOENT)?;
        if old != rights {
            // They come back with the new ones when they are used.
            self.zap(slot.gfns(), true);
        }
        Ok(())
    }

    /// True when no slot takes anything from guests.
    #[inline]
    pub fn is_unrestricted(&self) -> bool {
        self.restricted.load(Ordering::Relaxed) == 0
    }

    /// For accesses in a guest's place.
    ///
    /// # Errors
    ///
    /// `EFAULT` where the slot does not give the right.
    #[inline]
    pub fn check(&self, gpa: Gpa, right: Permissions) -> Result {
        if self.is_unrestricted() {
            return Ok(());
        }
        self.check_slot(gpa, right)
    }

    #[cold]
    fn check_slot(&self, gpa: Gpa, right: Permissions) -> Result {
        let denies = |slot: Slot| !slot.rights.contains(right);
        match self.slot(gpa).is_some_and(denies) {
            true => Err(EFAULT),
            false => Ok(()),
        }
    }
}

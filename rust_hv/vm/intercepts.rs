// SPDX-License-Identifier: GPL-2.0

//! What exits of a VM's guests: ports and MSRs, where the VMM has a say in it.
//!
//! Without one, all VMs share what the vendor has set up: every port exits, and every MSR but those
//! that are switched with the guest. With the first change a VM gets bitmaps of its own, which stay
//! as they are from its first vCPU on.

use super::Vm;
use crate::host::task;
use crate::model::arch::intercept::{may_pass, passes_anyway, Intercepted, Numbers};
use crate::vendor::{Intercepts, Vendor};
use kernel::prelude::*;
use kernel::sync::{Arc, UniqueArc};

/// A VM's own bitmaps.
pub(super) enum Own<T> {
    /// There are none.
    None,
    /// No vCPU has them yet.
    Open(UniqueArc<T>),
    /// They do not change any more.
    Shared(Arc<T>),
}

impl<T> Own<T> {
    /// For a vCPU.
    pub(super) fn share(&mut self) -> Option<Arc<T>> {
        *self = match core::mem::replace(self, Self::None) {
            Self::Open(own) => Self::Shared(own.into()),
            other => other,
        };
        match self {
            Self::Shared(own) => Some(own.clone()),
            Self::None | Self::Open(_) => None,
        }
    }
}

impl<V: Vendor> Vm<V> {
    /// `RUSTHV_SET_INTERCEPTS`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there was a vCPU; `EINVAL` for numbers that there are not, and for MSRs that no
    /// guest may write unseen; `EPERM` for a task without `CAP_SYS_RAWIO` that would let a guest
    /// through to what is the host's; `EOPNOTSUPP`; `ENOMEM`.
    pub fn set_intercepts(&self, what: Intercepted, numbers: Numbers, exits: bool) -> Result {
        if !exits && !may_pass(what, numbers) {
            return Err(EINVAL);
        }
        if !exits && !passes_anyway(what, numbers) && !task::may_use_hardware() {
            return Err(EPERM);
        }
        self.before_vcpus(|| {
            let mut own = self.intercepts.lock();
            if let Own::None = *own {
                let new = self.machine.vendor.intercepts(self.mmu.supply().place())?;
                *own = Own::Open(UniqueArc::new(new, GFP_KERNEL_ACCOUNT)?);
            }
            match &mut *own {
                Own::Open(own) => own.set(what, numbers, exits),
                Own::None | Own::Shared(_) => Err(EBUSY),
            }
        })
    }
}

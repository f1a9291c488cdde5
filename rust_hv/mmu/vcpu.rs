// SPDX-License-Identifier: GPL-2.0

//! A vCPU's part in how its VM is paged: one interface for what its guest does, in three forms.
//!
//! | Form | The guest's registers | INVLPG, INVPCID | A fault | A write to a table |
//! |---|---|---|---|---|
//! | [`Faults`]: nested | the CPU's business | the CPU's business | maps a guest-physical page | the CPU's business |
//! | [`ShadowCpu`]: shadow | another root, in step with the guest's tables | the entry is compared, or all are | maps a linear page | goes ahead |
//! | [`TrapCpu`]: trap | the same | the same | the same | is executed in software, and followed at once |
//!
//! The VM's part, which is what the host and the dirty log need, is in `paging`.

use super::choice::PagingMode;
use super::fault::{Faults, Resolved};
use super::shadow::{GuestFault, ShadowCpu};
use super::Mmu;
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::{Gpa, Gva, Hpa};
use crate::model::emulate::{Backing, Exception};
use crate::model::exit::NestedFault;
use crate::model::paging::state::PagingState;
use crate::model::paging::walk::GuestPhys;
use crate::model::paging::Permissions;
use kernel::prelude::*;
use kernel::sync::Arc;

/// A fault of the CPU's, in the tables that it walks.
#[derive(Clone, Copy)]
pub enum Fault<'a> {
    /// In those behind the guest's own.
    Nested(&'a NestedFault),
    /// In those that stand in place of the guest's; and what a walk of the guest's depends on.
    Guest(&'a GuestFault, &'a PagingState),
}

/// What a fault came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Try the access again.
    Mapped,
    /// It is the guest's own.
    Raise(Exception),
    /// A device's business: no memory is there ([`Backing::Mmio`]), or memory that the guest must
    /// not write ([`Backing::Rom`]).
    Device(NestedFault, Backing),
    /// Refused: guests do not have this right on the slot.
    Denied(Gpa, Permissions),
    /// A write to a table of the guest's, to be executed in software.
    Table(NestedFault),
    /// The guest's tables are where it has no memory.
    NoTables,
}

/// Translations that the CPU has to forget before it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forget {
    /// None.
    Nothing,
    /// Those of one address.
    Address(Gva),
    /// All of the guest's.
    Everything,
}

/// What each form makes of what its guest does.
pub trait VcpuPaging {
    /// CR0, CR3, CR4, EFER or the page-directory pointers have changed: the root of the tables that
    /// the CPU walks from now on. `None` where they are the guest's own.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for what this form cannot page; `ENOMEM`.
    fn root(&mut self, paging: &PagingState) -> Result<Option<Hpa>>;

    /// INVLPG; without an address INVPCID of any kind: more may be forgotten than was asked for.
    ///
    /// # Errors
    ///
    /// `EIO`.
    fn invalidate<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        paging: &PagingState,
        gva: Option<Gva>,
    ) -> Result<Forget>;

    /// Resolves a fault.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the VMM has no memory there or may not access it so, `EHWPOISON`, `ENOMEM`,
    /// `EINTR` for a signal; `EIO` for a fault that cannot come in this form.
    fn fault<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        fault: Fault<'_>,
    ) -> Result<Outcome>;

    /// After [`Outcome::Table`], which only forms that watch for writes come to: the write was
    /// executed.
    ///
    /// # Errors
    ///
    /// `EIO`.
    fn written(&mut self, _paging: &PagingState, _gpa: Gpa) -> Result {
        Ok(())
    }

    /// After [`Outcome::Table`]: it cannot be executed. The guest may write there until it
    /// invalidates.
    fn let_go(&mut self, _gpa: Gpa) {}
}

impl VcpuPaging for Faults {
    fn root(&mut self, _paging: &PagingState) -> Result<Option<Hpa>> {
        Ok(None)
    }

    fn invalidate<M: GuestPhys<Error = Error>>(
        &mut self,
        _guest: &mut M,
        _paging: &PagingState,
        _gva: Option<Gva>,
    ) -> Result<Forget> {
        Ok(Forget::Nothing)
    }

    #[inline]
    fn fault<M: GuestPhys<Error = Error>>(
        &mut self,
        _guest: &mut M,
        fault: Fault<'_>,
    ) -> Result<Outcome> {
        let Fault::Nested(fault) = fault else {
            return Err(EIO);
        };
        Ok(match self.resolve(fault)? {
            Resolved::Mapped => Outcome::Mapped,
            Resolved::Mmio(backing) => Outcome::Device(*fault, backing),
            Resolved::Denied(right) => Outcome::Denied(fault.gpa.page_base(), right),
        })
    }
}

impl VcpuPaging for ShadowCpu {
    fn root(&mut self, paging: &PagingState) -> Result<Option<Hpa>> {
        let Self { mmu, place, .. } = self;
        mmu.shadow_root(place, paging).map(Some)
    }

    fn invalidate<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        paging: &PagingState,
        gva: Option<Gva>,
    ) -> Result<Forget> {
        let Self { mmu, place, run } = self;
        let alone = mmu.shadow_invalidate(place, run, guest, paging, gva)?;
        Ok(match gva {
            Some(gva) if alone => Forget::Address(gva),
            _ => Forget::Everything,
        })
    }

    fn fault<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        fault: Fault<'_>,
    ) -> Result<Outcome> {
        let Fault::Guest(fault, paging) = fault else {
            return Err(EIO);
        };
        let Self { mmu, place, run } = self;
        mmu.shadow_fault(place, run, guest, paging, fault)
    }
}

/// As [`ShadowCpu`], but that the guest's writes to its tables are executed.
pub struct TrapCpu(KBox<ShadowCpu>);

impl VcpuPaging for TrapCpu {
    fn root(&mut self, paging: &PagingState) -> Result<Option<Hpa>> {
        self.0.root(paging)
    }

    fn invalidate<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        paging: &PagingState,
        gva: Option<Gva>,
    ) -> Result<Forget> {
        self.0.invalidate(guest, paging, gva)
    }

    fn fault<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        fault: Fault<'_>,
    ) -> Result<Outcome> {
        self.0.fault(guest, fault)
    }

    /// What the entry refers to now is mapped at once.
    fn written(&mut self, paging: &PagingState, gpa: Gpa) -> Result {
        let ShadowCpu { mmu, run, .. } = &mut *self.0;
        mmu.shadow_refill(run, paging, gpa)
    }

    fn let_go(&mut self, gpa: Gpa) {
        self.0.mmu.shadow_let_go(gpa);
    }
}

/// A vCPU, as its VM is paged.
pub enum PagedVcpu {
    /// With nested tables.
    Nested(KBox<Faults>),
    /// With shadow tables that follow the guest's when it invalidates translations.
    Shadow(KBox<ShadowCpu>),
    /// With shadow tables that follow each write.
    Trap(TrapCpu),
}

impl PagedVcpu {
    /// Another vCPU.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(mmu: Arc<Mmu>, mode: PagingMode) -> Result<Self> {
        Ok(match mode {
            PagingMode::Nested => Self::Nested(Faults::new(mmu)?),
            PagingMode::Shadow => Self::Shadow(ShadowCpu::new(mmu)?),
            PagingMode::Trap => Self::Trap(TrapCpu(ShadowCpu::new(mmu)?)),
        })
    }

    /// Where the CPU is to log the vCPU's writes, if it does.
    pub fn write_log(&self) -> Option<Arc<WriteLog>> {
        match self {
            Self::Nested(faults) => faults.write_log(),
            Self::Shadow(_) | Self::Trap(_) => None,
        }
    }

    /// Makes room in that log, which is full. The vCPU is not in its guest.
    pub fn empty_write_log(&self) {
        if let Self::Nested(faults) = self {
            faults.empty_write_log();
        }
    }

    /// Where it is in shadow tables, if it has those.
    pub fn shadow(&self) -> Option<&ShadowCpu> {
        match self {
            Self::Nested(_) => None,
            Self::Shadow(cpu) | Self::Trap(TrapCpu(cpu)) => Some(cpu),
        }
    }
}

macro_rules! each {
    ($vcpu:expr, $form:ident => $what:expr) => {
        match $vcpu {
            PagedVcpu::Nested($form) => $what,
            PagedVcpu::Shadow($form) => $what,
            PagedVcpu::Trap($form) => $what,
        }
    };
}

impl VcpuPaging for PagedVcpu {
    fn root(&mut self, paging: &PagingState) -> Result<Option<Hpa>> {
        each!(self, form => form.root(paging))
    }

    fn invalidate<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        paging: &PagingState,
        gva: Option<Gva>,
    ) -> Result<Forget> {
        each!(self, form => form.invalidate(guest, paging, gva))
    }

    #[inline]
    fn fault<M: GuestPhys<Error = Error>>(
        &mut self,
        guest: &mut M,
        fault: Fault<'_>,
    ) -> Result<Outcome> {
        each!(self, form => form.fault(guest, fault))
    }

    fn written(&mut self, paging: &PagingState, gpa: Gpa) -> Result {
        each!(self, form => form.written(paging, gpa))
    }

    fn let_go(&mut self, gpa: Gpa) {
        each!(self, form => form.let_go(gpa));
    }
}

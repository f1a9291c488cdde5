// SPDX-License-Identifier: GPL-2.0

//! vCPUs whose page tables the hypervisor keeps: without nested tables.
//!
//! The CPU runs such a guest with paging on, write protection on, and CR3 at shadow tables
//! (`mmu/shadow`), whatever the guest's own registers say. What the guest does to these, and page
//! faults, comes here. All of it takes locks, so the window is closed before.

use super::exits::Action;
use super::memory::{GuestPhysical, Machine};
use super::mmio::{Mmio, Step};
use super::run::Turn;
use super::snapshot::{paging_state, Snapshot};
use super::{State, Vcpu};
use crate::host::errno::{no_such_device, unsupported};
use crate::host::run_page::UserExit;
use crate::host::switch::request_cache_flush;
use crate::mmu::access::SlotCache;
use crate::mmu::shadow::GuestFault;
use crate::mmu::vcpu::{Fault, Forget, PagedVcpu, VcpuPaging};
use crate::mmu::Mmu;
use crate::model::arch::addr::{Gva, Hpa};
use crate::model::arch::exception::PageFaultError;
use crate::model::arch::regs::Rflags;
use crate::model::emulate::system::{invpcid_allows, Kind, System};
use crate::model::emulate::{Backing, Cpu, Exception, Stop, MAX_LEN};
use crate::model::exit::NestedFault;
use crate::model::paging::state::{Mode, PagingState};
use crate::vendor::{Guest, HwError, Vendor, Window};
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};

/// What such a vCPU has beside its other state.
pub(super) struct Software {
    /// Page-directory pointers, as they were loaded.
    pointers: [u64; 4],
    /// What walks depend on, as of the last exit that needs to know.
    paging: Option<PagingState>,
    /// The root has to be looked up before the next entry: MOV to CR3, or a register that decides
    /// what tables mean.
    stale: bool,
    /// A root for the next window.
    root: Option<Hpa>,
    /// What the next window forgets.
    forget: Forget,
}

impl Software {
    pub(super) const fn new() -> Self {
        Self {
            pointers: [0; 4],
            paging: None,
            stale: true,
            root: None,
            forget: Forget::Nothing,
        }
    }

    /// Brings to the CPU what was decided outside of the window.
    #[inline]
    pub(super) fn apply(&mut self, window: &mut impl Window) -> Result<(), HwError> {
        let forget = core::mem::replace(&mut self.forget, Forget::Nothing);
        match (self.root.take(), forget) {
            (Some(root), _) => window.set_root(root),
            (None, Forget::Nothing) => Ok(()),
            (None, Forget::Address(gva)) => window.flush_address(gva),
            (None, Forget::Everything) => window.flush_guest_tables(),
        }
    }
}

impl State {
    /// Registers have changed that decide what the guest's tables mean, or where they are.
    pub(super) fn translate_anew(&mut self) {
        if let Some(software) = &mut self.software {
            software.stale = true;
        }
    }

    /// The CPU walks tables at the next entry that are not known yet.
    pub(super) fn root_is_stale(&self) -> bool {
        let software = self.software.as_ref();
        software.is_some_and(|software| software.stale)
    }

    /// The page-directory pointers have been loaded.
    pub(super) fn note_pointers(&mut self, pointers: [u64; 4]) {
        if let Some(software) = &mut self.software {
            software.pointers = pointers;
        }
    }

    /// After such a change: out of the window, without nested tables.
    pub(super) fn after_change(&mut self, window: &impl Window) -> Result<Action, HwError> {
        if self.software.is_none() {
            return Ok(Action::Enter);
        }
        self.note_paging(window)?;
        self.translate_anew();
        Ok(Action::Leave)
    }

    /// Keeps what walks depend on for the time outside of the window.
    pub(super) fn note_paging(&mut self, window: &impl Window) -> Result<(), HwError> {
        let paging = self.paging(window)?;
        if let Some(software) = &mut self.software {
            software.paging = Some(paging);
        }
        Ok(())
    }

    /// What a walk of the guest's tables depends on.
    pub(super) fn paging(&self, window: &impl Window) -> Result<PagingState, HwError> {
        let paging = paging_state(window, self.cpuid.facts())?;
        Ok(match &self.software {
            Some(software) if paging.mode() == Mode::Pae => paging.with_pointers(software.pointers),
            _ => paging,
        })
    }
}

/// A page fault's facts, from a window.
pub(super) fn fault_at(
    state: &mut State,
    window: &impl Window,
    gva: Gva,
    code: PageFaultError,
) -> Result<GuestFault, HwError> {
    state.note_paging(window)?;
    let (_, cpl) = window.code_rights_and_cpl()?;
    let rflags = Rflags::from_raw(window.rflags()?);
    Ok(GuestFault {
        gva,
        code,
        cpl,
        ac: rflags.contains(Rflags::AC),
    })
}

/// Says why a guest does not run, for the first ones.
#[cold]
fn refuse() -> Error {
    static LEFT: Atomic<i32> = Atomic::new(16);
    if LEFT.fetch_sub(1, Relaxed) > 0 {
        pr_info!("this CPU runs real mode with nested tables only: not there with shadow tables\n");
    } else {
        LEFT.store(0, Relaxed);
    }
    unsupported()
}

/// The INVPCID that the guest is at, if its operands are right: how long it is.
fn invpcid(mmu: &Mmu, slots: &mut SlotCache, snapshot: &mut Snapshot) -> Result<u8, Stop<Error>> {
    let (mode, cpl) = (snapshot.mode(), snapshot.cpl);
    let contexts = snapshot.paging.has_contexts();
    let mut machine = Machine::new(snapshot, mmu, slots);
    let mut bytes = [0; MAX_LEN];
    let have = match machine.fetch(&mut bytes) {
        // The tables were changed since the CPU fetched it: it will come to the same fault.
        Err(Stop::Fault(_)) => return Err(Stop::Retry),
        have => have?,
    };
    let system = System::decode(bytes.get(..have).unwrap_or_default(), mode);
    let Ok((system, Kind::Invpcid { kind, descriptor })) = system.map(|found| (found, found.kind))
    else {
        // The instruction was changed under us: let the CPU look again.
        return Err(Stop::Retry);
    };
    let denied = Stop::Fault(Exception::general_protection());
    if cpl != 0 {
        return Err(denied);
    }
    let gva = system
        .descriptor(&machine, &descriptor)
        .map_err(Stop::Fault)?;
    let mut words = [0; 2];
    machine.load(gva, words.as_mut_bytes())?;
    let kind = system.operand_width().mask() & machine.gpr(kind);
    if !invpcid_allows(kind, words, contexts, machine.linear_bits()) {
        return Err(denied);
    }
    Ok(system.len)
}

impl<V: Vendor> Vcpu<V> {
    /// Brings the root that the CPU walks in line with the guest's registers.
    pub(super) fn follow_registers(
        &self,
        state: &mut State,
        guest: &mut impl Guest,
        paged: &mut PagedVcpu,
    ) -> Result {
        let Some(software) = &mut state.software else {
            return Ok(());
        };
        if !software.stale {
            return Ok(());
        }
        let paging = match software.paging.take() {
            Some(paging) => paging,
            None => state.paging(&guest.open()?)?,
        };
        if !paging.is_protected() && !self.machine.vendor.caps().software_real_mode {
            return Err(refuse());
        }
        if let Some(software) = &mut state.software {
            software.root = paged.root(&paging)?;
            software.stale = false;
        }
        Ok(())
    }

    /// INVLPG, or without an address INVPCID of any kind: more may be forgotten than was asked for.
    pub(super) fn invalidate(
        &self,
        state: &mut State,
        paged: &mut PagedVcpu,
        gva: Option<Gva>,
    ) -> Result {
        let State {
            software, slots, ..
        } = state;
        if let Some(software) = software {
            let mut memory = GuestPhysical::new(&self.mmu, slots);
            let paging = software.paging.take().ok_or(EIO)?;
            let forget = paged.invalidate(&mut memory, &paging, gva)?;
            software.forget = match (software.forget, forget) {
                (Forget::Nothing, forget) => forget,
                (before, Forget::Nothing) => before,
                _ => Forget::Everything,
            };
        }
        Ok(())
    }

    /// INVPCID: checks its operands, and forgets everything, which is more than any kind asks for.
    pub(super) fn invalidate_context(
        &self,
        state: &mut State,
        guest: &mut impl Guest,
        paged: &mut PagedVcpu,
        snapshot: &mut Snapshot,
    ) -> Result<Turn> {
        match invpcid(&self.mmu, &mut state.slots, snapshot) {
            Ok(len) => {
                let mut window = guest.open()?;
                state.finish_instruction(&mut window, snapshot.rip, len.into())?;
                state.note_paging(&window)?;
                drop(window);
                self.invalidate(state, paged, None)?;
            }
            Err(Stop::Fault(exception)) => state.raise(&mut guest.open()?, exception),
            Err(Stop::Retry) => {}
            // Instruction, descriptor or tables are where the guest has no memory.
            Err(Stop::Failed(error)) if error == no_such_device() => {
                return Ok(Turn::User(UserExit::UNKNOWN_INSTRUCTION));
            }
            Err(Stop::Failed(error)) => return Err(error),
        }
        Ok(Turn::Again)
    }

    /// A page fault of the CPU's.
    pub(super) fn guest_fault(
        &self,
        state: &mut State,
        mmio: &mut Mmio,
        guest: &mut impl Guest,
        paged: &mut PagedVcpu,
        fault: &GuestFault,
    ) -> Result<Turn> {
        // Software reads what the guest points it to.
        request_cache_flush();
        let software = state.software.as_mut().ok_or(EIO)?;
        let paging = software.paging.take().ok_or(EIO)?;
        let (fault, counter) = (Fault::Guest(fault, &paging), &self.counters.page_faults);
        self.fault(state, mmio, guest, paged, fault, counter)
    }

    /// Executes a write to one of the guest's tables.
    pub(super) fn table_write(
        &self,
        state: &mut State,
        mmio: &mut Mmio,
        guest: &mut impl Guest,
        paged: &mut PagedVcpu,
        fault: Fault<'_>,
        write: &NestedFault,
    ) -> Result<Turn> {
        let Fault::Guest(_, paging) = fault else {
            return Err(EIO);
        };
        if state.event.is_some() {
            // Not an instruction's write but the delivery of an event.
            paged.let_go(write.gpa);
            return Ok(Turn::Again);
        }
        self.counters.table_writes.bump();
        self.mmu.stats.table_writes.add(1, Relaxed);
        match mmio.emulate(state, guest, &self.mmu, write, Backing::Ram)? {
            Step::Enter => {
                paged.written(paging, write.gpa)?;
                Ok(Turn::Again)
            }
            Step::Exit(exit) => Ok(Turn::User(exit)),
            Step::Unknown(_) => {
                paged.let_go(write.gpa);
                Ok(Turn::Again)
            }
        }
    }
}

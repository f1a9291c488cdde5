// SPDX-License-Identifier: GPL-2.0

//! What each exit does.
//!
//! [`Handler::handle`] runs in the window, with interrupts off, and does what needs no sleep. What
//! may sleep, or wants user space, leaves as an [`Action`].

use super::control::{self, Fault, Pdptes, Written};
use super::cpuid::Now;
use super::software::fault_at;
use super::{msr, port, Counters, State};
use crate::host::bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
use crate::host::debug::machine_check;
use crate::host::run_page::{RunPages, UserExit};
use crate::host::switch::HostSwitch;
use crate::host::task;
use crate::mmu::shadow::GuestFault;
use crate::model::arch::addr::Gva;
use crate::model::arch::exception::{is_alignment_check, Vector};
use crate::model::arch::msr::EFER;
use crate::model::arch::regs::{Cr0, Cr4, Efer, Rflags};
use crate::model::emulate::Exception;
use crate::model::exit::{
    ControlAccess, Direction, Event, EventKind, Exit, NestedFault, PortAccess,
};
use crate::vendor::{Caps, Guest, HwError, Window};

/// DR6.BS: a single-step trap. DR6.BD: access to a debug register under DR7.GD.
const DR6_BS: u64 = 1 << 14;
const DR6_BD: u64 = 1 << 13;
/// DR7.GD
pub(super) const DR7_GD: u64 = 1 << 13;
/// DR6 bits that always read as 1, and those that a guest may write: B0 to B3, BD, BS, BT.
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 bits that always read as 1 and those that a guest may write.
const DR7_FIXED: u64 = 0x400;
const DR7_WRITABLE: u64 = 0xffff_2bff;
/// IA32_APIC_BASE: the local APIC is enabled.
const APIC_ENABLED: u64 = 1 << 11;
/// DR7's enable bits.
const DR7_ENABLES: u64 = 0xff;

const RSP: u8 = 4;

/// What comes after an exit.
pub(super) enum Action {
    /// Enter again, in the same window.
    Enter,
    /// Return to user space.
    User(UserExit),
    /// Map memory, or find out that it is a device.
    Memory(NestedFault),
    /// INS or OUTS.
    PortString(PortAccess),
    /// Fetch the instruction, and ask the window again.
    Fetch,
    /// Without nested tables: a page fault.
    GuestFault(GuestFault),
    /// Without nested tables: translations to be forgotten, of one address or all.
    Invalidate(Option<Gva>),
    /// Without nested tables: INVPCID, of which nothing has been looked at.
    InvalidateContext,
    /// Close the window, and enter again.
    Leave,
    /// Empty the log of writes.
    EmptyLog,
    /// The instruction here has made a locked access across cache lines, and the host minds.
    SplitLock(u64),
    /// A write of CR0, CR3 or CR4 that loads the entries of PAE paging.
    Control {
        /// 0, 3 or 4.
        register: u8,
        /// What is written.
        value: u64,
    },
}

/// What handlers act on, besides state and window.
pub(super) struct Handler<'a> {
    pub(super) caps: &'a Caps,
    pub(super) run: &'a RunPages,
    pub(super) counters: &'a Counters,
    pub(super) switch: &'a HostSwitch,
}

impl State {
    /// Puts an event in front of the next instruction; it combines with one that waits already.
    pub(super) fn queue(&mut self, event: Event) {
        let combined = match &self.event {
            Some(first) => first.then(event),
            None => Some(event),
        };
        self.triple_fault |= combined.is_none();
        self.event = combined;
    }

    /// Queues an exception of an emulated instruction.
    pub(super) fn raise(&mut self, window: &mut impl Window, exception: Exception) {
        if let Some(address) = exception.cr2 {
            window.set_cr2(address.raw());
        }
        self.queue(Event::exception(
            exception.vector.raw(),
            exception.error_code,
        ));
    }

    /// The same without a window.
    pub(super) fn raise_outside(&mut self, guest: &mut impl Guest, exception: Exception) {
        if let Some(address) = exception.cr2 {
            guest.set_cr2(address.raw());
        }
        self.queue(Event::exception(
            exception.vector.raw(),
            exception.error_code,
        ));
    }

    /// What a completed instruction leaves behind: no interrupt shadow, and a trap when it was
    /// single-stepped.
    pub(super) fn finish_effects(
        &mut self,
        window: &mut impl Window,
        trap: bool,
    ) -> Result<(), HwError> {
        window.clear_interrupt_shadow()?;
        if trap {
            self.dr6 |= DR6_BS;
            self.queue(Event::exception(Vector::DB.raw(), None));
        }
        Ok(())
    }

    /// Moves past an instruction at `rip` that was emulated.
    pub(super) fn finish_instruction(
        &mut self,
        window: &mut impl Window,
        rip: u64,
        len: u32,
    ) -> Result<(), HwError> {
        let mut next = rip.wrapping_add(len.into());
        if (next ^ rip) >> 32 != 0 && !window.code_rights_and_cpl()?.0.long() {
            // Outside 64-bit code EIP wraps.
            next &= 0xffff_ffff;
        }
        window.set_rip(next)?;
        let trap = Rflags::from_raw(window.rflags()?).contains(Rflags::TF);
        self.finish_effects(window, trap)
    }

    /// DR6 as the guest reads it.
    pub(super) fn dr6(&self) -> u64 {
        self.dr6 & DR6_WRITABLE | DR6_FIXED
    }
}

impl Handler<'_> {
    /// Moves past the instruction that exited.
    fn skip(&self, state: &mut State, window: &mut impl Window) -> Result<(), HwError> {
        let (rip, len) = (window.rip()?, window.instruction_len()?);
        state.finish_instruction(window, rip, len)
    }

    fn fault(&self, state: &mut State, fault: Fault) -> Action {
        state.queue(fault.0);
        Action::Enter
    }

    /// Does what an exit asks for.
    pub(super) fn handle(
        &self,
        state: &mut State,
        window: &mut impl Window,
        exit: Exit,
    ) -> Result<Action, HwError> {
        let counters = self.counters;
        match exit {
            Exit::Cpuid => {
                counters.cpuid.bump();
                self.cpuid(state, window)
            }
            Exit::Port(access) => {
                counters.io.bump();
                if access.string {
                    return Ok(Action::PortString(access));
                }
                port::register_access(state, self.run, window, access)
            }
            // Counted when it is known what it is.
            Exit::Fetch => Ok(Action::Fetch),
            Exit::Memory(fault) => Ok(Action::Memory(fault)),
            // Counted when it is known what it is.
            Exit::PageFault { gva, code } => {
                Ok(Action::GuestFault(fault_at(state, window, gva, code)?))
            }
            Exit::Invalidate(gva) => {
                counters.invalidations.bump();
                self.skip(state, window)?;
                state.note_paging(window)?;
                Ok(Action::Invalidate(gva))
            }
            Exit::InvalidateContext => {
                counters.invalidations.bump();
                Ok(Action::InvalidateContext)
            }
            Exit::Halt => {
                counters.hlt.bump();
                self.skip(state, window)?;
                Ok(Action::User(UserExit::Hlt))
            }
            Exit::Msr(direction) => {
                counters.msr.bump();
                self.msr(state, window, direction)
            }
            Exit::Control(access) => {
                counters.cr.bump();
                self.control(state, window, access)
            }
            Exit::Debug {
                register,
                gpr,
                direction,
            } => {
                counters.cr.bump();
                self.debug(state, window, register, gpr, direction)
            }
            Exit::Exception { vector, error_code } => {
                counters.exceptions.bump();
                self.exception(state, window, vector, error_code)
            }
            other => {
                counters.other.bump();
                self.rare(state, window, other)
            }
        }
    }

    #[cold]
    fn rare(
        &self,
        state: &mut State,
        window: &mut impl Window,
        exit: Exit,
    ) -> Result<Action, HwError> {
        Ok(match exit {
            Exit::InterruptWindow => {
                window.want_interrupt_window(false)?;
                Action::Enter
            }
            Exit::CacheControl => {
                self.skip(state, window)?;
                Action::Enter
            }
            Exit::LogFull => Action::EmptyLog,
            Exit::Xsetbv => self.xsetbv(state, window)?,
            Exit::Rdpmc => self.fault(state, Fault::general_protection()),
            Exit::Undefined => self.fault(state, Fault::invalid_opcode()),
            Exit::MachineCheck => {
                machine_check(window.irqs());
                Action::Enter
            }
            Exit::TripleFault => Action::User(UserExit::Shutdown),
            Exit::EntryFailed { reason } => {
                window.cancel_injection()?;
                Action::User(UserExit::FailEntry(reason))
            }
            Exit::TaskSwitch => Action::User(UserExit::UNKNOWN_INSTRUCTION),
            Exit::Misconfigured(gpa) => Action::User(UserExit::Internal {
                suberror: KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                data: [gpa.raw(), 0, 0, 0],
                ndata: 1,
            }),
            Exit::Unknown { reason } => Action::User(UserExit::Unknown(reason)),
            _ => Action::Enter,
        })
    }

    fn cpuid(&self, state: &mut State, window: &mut impl Window) -> Result<Action, HwError> {
        let now = Now {
            osxsave: state.osxsave,
            apic: state.apic_base & APIC_ENABLED != 0,
            xcr0: state.xcr0,
        };
        let [rax, rcx, rdx, rbx, ..] = window.gprs_mut();
        let found = state.cpuid.query(*rax as u32, *rcx as u32, &now);
        *rax = found.eax.into();
        *rbx = found.ebx.into();
        *rcx = found.ecx.into();
        *rdx = found.edx.into();
        self.skip(state, window)?;
        Ok(Action::Enter)
    }

    fn msr(
        &self,
        state: &mut State,
        window: &mut impl Window,
        direction: Direction,
    ) -> Result<Action, HwError> {
        let [rax, rcx, rdx, ..] = *window.gprs_mut();
        let number = rcx as u32;
        match direction {
            Direction::Read => match msr::read(state, self.switch, window, number)? {
                Ok(value) => {
                    let [rax, _, rdx, ..] = window.gprs_mut();
                    *rax = value & 0xffff_ffff;
                    *rdx = value >> 32;
                }
                Err(fault) => return Ok(self.fault(state, fault)),
            },
            Direction::Write => {
                let value = rax & 0xffff_ffff | rdx << 32;
                let written = msr::write(state, self.switch, window, number, value)?;
                if let Written::Faulted(fault) = written {
                    return Ok(self.fault(state, fault));
                }
                if number == EFER {
                    self.skip(state, window)?;
                    return state.after_change(window);
                }
            }
        }
        self.skip(state, window)?;
        Ok(Action::Enter)
    }

    fn xsetbv(&self, state: &mut State, window: &mut impl Window) -> Result<Action, HwError> {
        let [rax, rcx, rdx, ..] = *window.gprs_mut();
        let value = rax & 0xffff_ffff | rdx << 32;
        // CPUs look at both before they exit, QEMU's TCG afterwards.
        if !state.osxsave {
            return Ok(self.fault(state, Fault::invalid_opcode()));
        }
        let (_, cpl) = window.code_rights_and_cpl()?;
        if cpl != 0 {
            return Ok(self.fault(state, Fault::general_protection()));
        }
        match control::write_xcr0(state, rcx as u32, value) {
            Ok(()) => {
                self.skip(state, window)?;
                Ok(Action::Enter)
            }
            Err(fault) => Ok(self.fault(state, fault)),
        }
    }

    /// A general-purpose register; RSP lives elsewhere.
    fn gpr(&self, window: &mut impl Window, number: u8) -> Result<u64, HwError> {
        if number == RSP {
            return window.rsp();
        }
        let gprs = window.gprs_mut();
        Ok(gprs.get(usize::from(number)).copied().unwrap_or(0))
    }

    fn set_gpr(&self, window: &mut impl Window, number: u8, value: u64) -> Result<(), HwError> {
        if number == RSP {
            return window.set_rsp(value);
        }
        if let Some(place) = window.gprs_mut().get_mut(usize::from(number)) {
            *place = value;
        }
        Ok(())
    }

    /// True in 64-bit code, where control and debug registers move 64 bits.
    fn in_long_code(&self, window: &impl Window) -> Result<bool, HwError> {
        let efer = Efer::from_raw(window.efer()?);
        Ok(efer.contains(Efer::LMA) && window.code_rights_and_cpl()?.0.long())
    }

    fn control(
        &self,
        state: &mut State,
        window: &mut impl Window,
        access: ControlAccess,
    ) -> Result<Action, HwError> {
        let (register, value) = match access {
            ControlAccess::Write { register, gpr } => {
                let mut value = self.gpr(window, gpr)?;
                if !self.in_long_code(window)? {
                    value &= 0xffff_ffff;
                }
                (register, value)
            }
            ControlAccess::Read { register: 8, gpr } => {
                self.set_gpr(window, gpr, state.cr8)?;
                self.skip(state, window)?;
                return Ok(Action::Enter);
            }
            ControlAccess::Read { register, gpr } => {
                let value = match register {
                    0 => window.cr0()?,
                    3 => window.cr3()?,
                    4 => window.cr4()?,
                    _ => return Ok(Action::User(UserExit::Unknown(register.into()))),
                };
                self.set_gpr(window, gpr, value)?;
                self.skip(state, window)?;
                return Ok(Action::Enter);
            }
            ControlAccess::ClearTaskSwitched => (0, window.cr0()? & !Cr0::TS.raw()),
            ControlAccess::LoadMachineStatus(source) => {
                // PE, MP, EM and TS are loaded; PE cannot be cleared.
                let old = window.cr0()?;
                let kept = old & !(Cr0::MP | Cr0::EM | Cr0::TS).raw();
                (0, kept | u64::from(source & 0xf))
            }
        };
        if register == 8 {
            if value & !0xf != 0 {
                return Ok(self.fault(state, Fault::general_protection()));
            }
            let lowered = value < state.cr8;
            state.cr8 = value;
            window.set_task_priority(value)?;
            self.skip(state, window)?;
            // User space has the interrupt controller: it wants to know of a lower priority.
            return Ok(if lowered {
                Action::User(UserExit::SetTpr)
            } else {
                Action::Enter
            });
        }
        self.write_control(state, window, register, value, Pdptes::Unread)
    }

    /// MOV to CR0, CR3 or CR4.
    pub(super) fn write_control(
        &self,
        state: &mut State,
        window: &mut impl Window,
        register: u8,
        value: u64,
        pdptes: Pdptes,
    ) -> Result<Action, HwError> {
        let written = match register {
            0 => control::write_cr0(self.caps, state, window, value, pdptes)?,
            3 => control::write_cr3(state, window, value, pdptes)?,
            4 => control::write_cr4(self.caps, state, window, value, pdptes)?,
            _ => return Ok(Action::User(UserExit::Unknown(register.into()))),
        };
        match written {
            Written::Done => {
                self.skip(state, window)?;
                state.after_change(window)
            }
            Written::Faulted(fault) => Ok(self.fault(state, fault)),
            Written::NeedsPdptes => Ok(Action::Control { register, value }),
        }
    }

    #[inline(never)]
    fn debug(
        &self,
        state: &mut State,
        window: &mut impl Window,
        register: u8,
        gpr: u8,
        direction: Direction,
    ) -> Result<Action, HwError> {
        let register = match register {
            4 | 5 if Cr4::from_raw(window.cr4()?).contains(Cr4::DE) => {
                return Ok(self.fault(state, Fault::invalid_opcode()));
            }
            4 | 5 => register + 2,
            _ => register,
        };
        // VT-x exits before it looks at the privilege level.
        let (_, cpl) = window.code_rights_and_cpl()?;
        if cpl != 0 {
            return Ok(self.fault(state, Fault::general_protection()));
        }
        let dr7 = window.dr7()?;
        if dr7 & DR7_GD != 0 {
            state.dr6 |= DR6_BD;
            state.queue(Event::exception(Vector::DB.raw(), None));
            return Ok(Action::Enter);
        }
        match direction {
            Direction::Read => {
                let value = match register {
                    6 => state.dr6(),
                    7 => dr7,
                    _ => state.dr.get(usize::from(register)).copied().unwrap_or(0),
                };
                self.set_gpr(window, gpr, value)?;
            }
            Direction::Write => {
                let mut value = self.gpr(window, gpr)?;
                if !self.in_long_code(window)? {
                    value &= 0xffff_ffff;
                }
                match register {
                    6 | 7 if value >> 32 != 0 => {
                        return Ok(self.fault(state, Fault::general_protection()));
                    }
                    6 => state.dr6 = value & DR6_WRITABLE,
                    7 => {
                        window.set_dr7(value & DR7_WRITABLE | DR7_FIXED)?;
                        state.special.set_breakpoints(value & DR7_ENABLES != 0);
                    }
                    _ => {
                        if let Some(place) = state.dr.get_mut(usize::from(register)) {
                            *place = value;
                        }
                    }
                }
            }
        }
        self.skip(state, window)?;
        Ok(Action::Enter)
    }

    /// Exceptions that exit go on to the guest: see the vendors' lists of them.
    #[inline(never)]
    fn exception(
        &self,
        state: &mut State,
        window: &mut impl Window,
        vector: u8,
        error_code: Option<u32>,
    ) -> Result<Action, HwError> {
        if vector == Vector::DB.raw() {
            // The exit has not written DR6; INT1 is delivered with its length.
            state.dr6 = state.dr6 & !0xf | window.debug_conditions()? & DR6_WRITABLE;
            if window.exited_by_int1()? {
                // It has been executed: nothing is in the shadow of what came before it.
                window.clear_interrupt_shadow()?;
                state.queue(Event {
                    vector,
                    kind: EventKind::PrivilegedSoftwareException,
                    error_code: None,
                    instruction_len: window.instruction_len()? as u8,
                });
                return Ok(Action::Enter);
            }
        }
        if vector == Vector::AC.raw() && task::detects_split_locks() {
            let cr0 = Cr0::from_raw(window.cr0()?);
            let rflags = Rflags::from_raw(window.rflags()?);
            let (_, cpl) = window.code_rights_and_cpl()?;
            if !is_alignment_check(cpl, cr0, rflags) {
                return Ok(Action::SplitLock(window.rip()?));
            }
        }
        state.queue(Event::exception(vector, error_code));
        Ok(Action::Enter)
    }
}

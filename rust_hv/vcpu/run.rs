// SPDX-License-Identifier: GPL-2.0

//! `KVM_RUN`: the loop around the entry.
//!
//! Outside the window (interrupts on): signals, page faults, emulation. Inside: injection, the
//! flush check, the entry, and every exit that needs no sleep; see `exits`.

use super::code::{fetch_present, Code};
use super::control::Pdptes;
use super::exits::{Action, Handler, DR7_GD};
use super::memory::GuestPhysical;
use super::mmio::{Mmio, Step};
use super::port::StringStep;
use super::snapshot::{paging_state, Snapshot};
use super::{direct, port, Counter, Inner, Pending, Special, State, Vcpu};
use crate::host::bindings::KVM_INTERNAL_ERROR_DELIVERY_EV;
use crate::host::cpu;
use crate::host::errno::no_such_device;
use crate::host::fpu::FpuInUse;
use crate::host::msr;
use crate::host::run_page::UserExit;
use crate::host::switch::{request_cache_flush, Running};
use crate::host::task;
use crate::mmu::vcpu::{Fault, Outcome, PagedVcpu, VcpuPaging};
use crate::mmu::Mmu;
use crate::model::arch::exception::Vector;
use crate::model::arch::regs::{Cr0, Rflags};
use crate::model::emulate::{Backing, Stop, MAX_LEN};
use crate::model::exit::{Event, EventKind, Exit, NestedFault, PortAccess};
use crate::vendor::{Guest, HwError, More, Vendor, Window};
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;

/// Exits that are handled with interrupts off before they come on for a moment, whatever the guest
/// does.
const EXITS_PER_WINDOW: u32 = 256;

/// What a turn of the loop came to.
pub(super) enum Turn {
    /// Look after signals, then enter (again).
    Again,
    /// Return to user space.
    User(UserExit),
}

/// What entries need, for the length of a `KVM_RUN`.
struct Entry<'a> {
    running: &'a Running<'a>,
    fpu: &'a FpuInUse<'a>,
    mmu: &'a Mmu,
    handler: Handler<'a>,
}

impl<V: Vendor> Vcpu<V> {
    /// `KVM_RUN`.
    ///
    /// # Errors
    ///
    /// `EINTR` for a signal or `immediate_exit`, `EFAULT` when the VMM's memory is not there,
    /// `EINVAL` for register sets that are not there, `ENOMEM`, `EIO`.
    pub fn run(&self) -> Result<isize> {
        let mut inner = self.lock()?;
        inner.state.noted = false;
        let result = self.run_locked(&mut inner);
        if !inner.state.noted {
            inner.note_now();
        }
        let state = &inner.state;
        self.run.finish(
            state.if_flag,
            state.ready_for_interrupt,
            state.cr8,
            state.apic_base,
        );
        match result {
            Ok(exit) => {
                self.counters.user_exits.bump();
                self.run.set_exit(exit, cpu::current_cpu());
                // The one exit that KVM reports with an error.
                match exit {
                    UserExit::MemoryFault { .. } => Err(EFAULT),
                    _ => Ok(0),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn run_locked(&self, inner: &mut Inner<V>) -> Result<UserExit> {
        let immediate = self.run.immediate_exit();
        self.run.begin();
        if self.run.sync_regs() != 0 {
            return Err(EINVAL);
        }
        let cr8 = self.run.cr8();
        if cr8 & !0xf != 0 {
            return Err(EINVAL);
        }
        let Inner {
            switch,
            guest,
            fpu,
            paging,
            mmio,
            state,
        } = inner;
        state.cr8 = cr8;
        if let Some(exit) = self.complete(state, mmio, guest)? {
            return Ok(exit);
        }
        if immediate {
            return Err(EINTR);
        }
        self.run.forget_exit();
        state.has_run = true;
        let running = switch.as_mut().begin();
        let fpu = fpu.enter();
        let entry = Entry {
            running: &running,
            fpu: &fpu,
            mmu: &self.mmu,
            handler: Handler {
                caps: self.machine.vendor.caps(),
                run: &self.run,
                counters: &self.counters,
                switch: &running,
            },
        };
        loop {
            if guest.has_moved() {
                self.follow_node(guest);
            }
            let done = match self.turn(&entry, state, mmio, guest, paging) {
                Ok(Turn::User(exit)) => return Ok(exit),
                Ok(Turn::Again) => task::do_work_if_pending(),
                Err(error) => Err(error),
            };
            // A signal: it was found pending, or came while the host waited for a page.
            if let Err(error) = done {
                if error == EINTR {
                    self.run.set_exit(UserExit::Intr, cpu::current_cpu());
                }
                return Err(error);
            }
        }
    }

    /// Moves the hardware's state near to the CPU that it is used on. Where there is no room, or the
    /// VM's frames are not to be there, it stays. Nothing of the last exit is wanted any more.
    #[cold]
    fn follow_node(&self, guest: &mut V::Guest) {
        let place = self.mmu.supply().nearer(guest.node());
        if place.is_some_and(|place| guest.move_to(place).is_ok()) {
            self.counters.node_moves.bump();
        }
    }

    /// Finishes what the last exit left to user space. Some when there is more for it to do.
    fn complete(
        &self,
        state: &mut State,
        mmio: &mut Mmio,
        guest: &mut impl Guest,
    ) -> Result<Option<UserExit>> {
        if mmio.is_waiting() {
            let step = mmio.complete(state, guest, &self.run, &self.mmu)?;
            return self.mmio_step(state, guest, step);
        }
        match core::mem::replace(&mut state.pending, Pending::None) {
            Pending::None => Ok(None),
            Pending::Load(pending) => {
                direct::complete(state, guest, &self.run, pending)?;
                Ok(None)
            }
            Pending::Port(pending) => {
                let done = port::complete(state, guest, &self.run, &self.mmu, pending);
                if let Err(error) = done {
                    // The device has answered: it is not asked again.
                    state.pending = Pending::Port(pending);
                    let memory_has_gone = error == no_such_device();
                    return Err(if memory_has_gone { EFAULT } else { error });
                }
                Ok(None)
            }
        }
    }

    fn mmio_step(
        &self,
        state: &mut State,
        guest: &mut impl Guest,
        step: Step,
    ) -> Result<Option<UserExit>> {
        let exit = match step {
            Step::Enter => None,
            Step::Exit(exit) => Some(exit),
            Step::Unknown(unknown) => unknown.report(state, guest)?,
        };
        if exit.is_some() {
            self.counters.mmio.bump();
        }
        Ok(exit)
    }

    /// Enters until an exit needs to sleep or goes to user space, and does what it needs.
    fn turn(
        &self,
        entry: &Entry<'_>,
        state: &mut State,
        mmio: &mut Mmio,
        guest: &mut impl Guest,
        paging: &mut PagedVcpu,
    ) -> Result<Turn> {
        state.noted = false;
        self.follow_registers(state, guest, paging)?;
        let mut window = guest.open()?;
        if let Some(software) = &mut state.software {
            software.apply(&mut window)?;
        }
        let action = entry.in_window(state, &mut window);
        let mut action = match action {
            Ok(Some(action)) => action,
            Ok(None) => return Ok(Turn::Again),
            Err(error) => return Err(error.into()),
        };
        if let Action::Fetch = action {
            drop(window);
            action = self.identify(entry, state, guest)?;
            if let Action::Enter = action {
                return Ok(Turn::Again);
            }
            window = guest.open()?;
        }
        if let Action::User(exit) = action {
            state.note_interruptibility(&window)?;
            return Ok(Turn::User(exit));
        }
        if let Action::PortString(access) = action {
            let facts = *state.cpuid.facts();
            let mut snapshot = Snapshot::take(&mut window, &facts)?;
            state.note_interruptibility(&window)?;
            drop(window);
            return self.port_string(state, guest, &mut snapshot, access);
        }
        if let Action::InvalidateContext = action {
            let facts = *state.cpuid.facts();
            let mut snapshot = Snapshot::take(&mut window, &facts)?;
            drop(window);
            return self.invalidate_context(state, guest, paging, &mut snapshot);
        }
        drop(window);
        match action {
            Action::Memory(fault) => {
                let (fault, counter) = (Fault::Nested(&fault), &self.counters.nested_faults);
                self.fault(state, mmio, guest, paging, fault, counter)
            }
            Action::GuestFault(fault) => self.guest_fault(state, mmio, guest, paging, &fault),
            Action::Invalidate(gva) => {
                self.invalidate(state, paging, gva)?;
                Ok(Turn::Again)
            }
            Action::Control { register, value } => {
                let cr3 = match register {
                    3 => value,
                    _ => guest.open()?.cr3()?,
                };
                let pdptes = Pdptes::read(&self.mmu, state, cr3);
                let mut window = guest.open()?;
                entry
                    .handler
                    .write_control(state, &mut window, register, value, pdptes)?;
                Ok(Turn::Again)
            }
            Action::EmptyLog => {
                paging.empty_write_log();
                guest.open()?.restart_log()?;
                Ok(Turn::Again)
            }
            Action::SplitLock(rip) => {
                task::split_lock(rip);
                Ok(Turn::Again)
            }
            Action::Enter
            | Action::Leave
            | Action::User(_)
            | Action::PortString(_)
            | Action::InvalidateContext
            | Action::Fetch => Ok(Turn::Again),
        }
    }

    /// Does what an exit asks for of which the CPU has not said enough, when the instruction could
    /// not be fetched in the window.
    fn identify(
        &self,
        entry: &Entry<'_>,
        state: &mut State,
        guest: &mut impl Guest,
    ) -> Result<Action> {
        let window = guest.open()?;
        let paging = paging_state(&window, state.cpuid.facts())?;
        let code = Code::at(&window, &paging)?;
        drop(window);
        // Software reads what the guest points it to.
        request_cache_flush();
        let mut memory = GuestPhysical::new(&self.mmu, &mut state.slots);
        let mut bytes = [0; MAX_LEN];
        let have = match code.fetch(&mut memory, &mut bytes) {
            Ok(have) => have,
            // The tables were changed since the CPU fetched it: it will come to the same fault.
            Err(Stop::Fault(_) | Stop::Retry) => return Ok(Action::Enter),
            Err(Stop::Failed(error)) if error == no_such_device() => {
                return Ok(Action::User(UserExit::UNKNOWN_INSTRUCTION));
            }
            Err(Stop::Failed(error)) => return Err(error),
        };
        let mut window = guest.open()?;
        match window.identify(bytes.get(..have).unwrap_or_default())? {
            Some(exit) => Ok(entry.handler.handle(state, &mut window, exit)?),
            None => Ok(Action::Enter),
        }
    }

    fn port_string(
        &self,
        state: &mut State,
        guest: &mut impl Guest,
        snapshot: &mut Snapshot,
        access: PortAccess,
    ) -> Result<Turn> {
        let step = match port::string_access(&self.run, &self.mmu, snapshot, access) {
            // The data, the instruction or the guest's tables are where it has no memory.
            Err(error) if error == no_such_device() => {
                return Ok(Turn::User(UserExit::UNKNOWN_INSTRUCTION));
            }
            step => step?,
        };
        match step {
            StringStep::Exit(exit, pending) => {
                state.pending = Pending::Port(pending);
                Ok(Turn::User(exit))
            }
            StringStep::Again => {
                snapshot.put(&mut guest.open()?)?;
                Ok(Turn::Again)
            }
            StringStep::Nothing(len) => {
                state.finish_instruction(&mut guest.open()?, snapshot.rip, len)?;
                Ok(Turn::Again)
            }
            StringStep::Fault(exception) => {
                state.raise(&mut guest.open()?, exception);
                Ok(Turn::Again)
            }
        }
    }

    /// A fault of the CPU's in the tables that it walks. Counted where it is not a device's business.
    pub(super) fn fault(
        &self,
        state: &mut State,
        mmio: &mut Mmio,
        guest: &mut impl Guest,
        paging: &mut PagedVcpu,
        fault: Fault<'_>,
        counter: &Counter,
    ) -> Result<Turn> {
        let mut memory = GuestPhysical::new(&self.mmu, &mut state.slots);
        match paging.fault(&mut memory, fault)? {
            Outcome::Mapped => {
                counter.bump();
                Ok(Turn::Again)
            }
            Outcome::Raise(exception) => {
                counter.bump();
                state.raise_outside(guest, exception);
                Ok(Turn::Again)
            }
            Outcome::Device(fault, backing) => self.device(state, mmio, guest, &fault, backing),
            Outcome::Denied(gpa, right) => Ok(Turn::User(UserExit::MemoryFault { gpa, right })),
            Outcome::Table(write) => self.table_write(state, mmio, guest, paging, fault, &write),
            Outcome::NoTables => {
                counter.bump();
                Ok(Turn::User(UserExit::UNKNOWN_INSTRUCTION))
            }
        }
    }

    /// An access to what is not memory.
    pub(super) fn device(
        &self,
        state: &mut State,
        mmio: &mut Mmio,
        guest: &mut impl Guest,
        fault: &NestedFault,
        backing: Backing,
    ) -> Result<Turn> {
        if state.event.is_some() {
            // Not an instruction's access but the delivery of an event: nothing to emulate.
            return Ok(Turn::User(delivery_failure(
                &guest.open()?,
                state.event.as_ref(),
                fault,
            )?));
        }
        if backing == Backing::Mmio {
            // The next one may be simple enough for the window.
            self.mmu.note_hole(&mut state.slots, fault.gpa);
        }
        let step = mmio.emulate(state, guest, &self.mmu, fault, backing)?;
        Ok(match self.mmio_step(state, guest, step)? {
            Some(exit) => Turn::User(exit),
            None => Turn::Again,
        })
    }
}

impl Entry<'_> {
    /// Enters, and handles exits, as long as nothing needs interrupts on. `None` when there is
    /// work for the task first.
    #[inline]
    fn in_window(
        &self,
        state: &mut State,
        window: &mut impl Window,
    ) -> Result<Option<Action>, HwError> {
        window.set_task_priority(state.cr8)?;
        for _ in 0..EXITS_PER_WINDOW {
            if state.triple_fault {
                state.triple_fault = false;
                return Ok(Some(Action::User(UserExit::Shutdown)));
            }
            if task::work_pending(window.irqs()) {
                return Ok(None);
            }
            if let Some(exit) = self.offer_interrupt(state, window)? {
                return Ok(Some(Action::User(exit)));
            }
            let here = window.irqs().cpu();
            match window.follow(self.mmu.tlb().visit(here)) {
                Ok(false) => {}
                Ok(true) => self.mmu.stats.invalidations.add(1, Relaxed),
                Err(error) => {
                    self.mmu.tlb().spoil(here);
                    return Err(error);
                }
            }
            let exit = self.enter(state, window)?;
            self.handler.counters.exits.bump();
            if matches!(exit, Exit::HostEvent) {
                // The host takes the interrupt when the window closes.
                self.handler.counters.interrupts.bump();
                window.irqs().interrupt_from_guest();
                return Ok(None);
            }
            let exit = match exit {
                Exit::Fetch => self.identify(state, window)?,
                Exit::Memory(fault) => {
                    if let Some(exit) = direct::access(state, window, self.mmu, &fault)? {
                        self.handler.counters.mmio.bump();
                        return Ok(Some(Action::User(exit)));
                    }
                    Some(exit)
                }
                exit => Some(exit),
            };
            let Some(exit) = exit else {
                continue;
            };
            match self.handler.handle(state, window, exit)? {
                Action::Enter => {}
                action => return Ok(Some(action)),
            }
        }
        Ok(None)
    }

    /// What the exit was of which the CPU has not said enough. [`Exit::Fetch`] when that takes a
    /// sleep; `None` when the guest has to be entered again: its tables or its code were changed
    /// since.
    #[inline]
    fn identify(&self, state: &State, window: &mut impl Window) -> Result<Option<Exit>, HwError> {
        let paging = paging_state(window, state.cpuid.facts())?;
        let code = Code::at(window, &paging)?;
        let mut bytes = [0; MAX_LEN];
        match fetch_present(&code, self.mmu, &state.slots, &mut bytes) {
            Ok(have) => window.identify(bytes.get(..have).unwrap_or_default()),
            Err(Stop::Fault(_) | Stop::Retry) => Ok(None),
            Err(Stop::Failed(_)) => Ok(Some(Exit::Fetch)),
        }
    }

    /// Brings a waiting interrupt to the guest, or asks for an exit when it can take one. Some
    /// when user space wants to hear of that.
    #[inline]
    fn offer_interrupt(
        &self,
        state: &mut State,
        window: &mut impl Window,
    ) -> Result<Option<UserExit>, HwError> {
        let wants_window = self.handler.run.wants_interrupt_window();
        if state.interrupt.is_none() && !wants_window {
            return window.want_interrupt_window(false).map(|()| None);
        }
        let open = state.event.is_none() && can_interrupt(window)?;
        if !open {
            window.want_interrupt_window(true)?;
            return Ok(None);
        }
        match state.interrupt.take() {
            Some(vector) => {
                state.event = Some(Event::interrupt(vector));
                // Another one may be wanted right behind it.
                window.want_interrupt_window(wants_window)?;
                Ok(None)
            }
            None => {
                state.note_interruptibility(window)?;
                Ok(Some(UserExit::IrqWindowOpen))
            }
        }
    }

    /// One entry and exit.
    #[inline]
    fn enter(&self, state: &mut State, window: &mut impl Window) -> Result<Exit, HwError> {
        if let Some(event) = &state.event {
            let mut event = *event;
            // In real mode exceptions push no error code.
            if event.error_code.is_some() && window.cr0()? & Cr0::PE.raw() == 0 {
                event.error_code = None;
            }
            if event.kind != EventKind::Interrupt {
                before_exception(window, &event)?;
            }
            window.inject(&event)?;
        }
        let xcr0 = if state.osxsave {
            state.xcr0
        } else {
            msr::SAME_XCR0
        };
        let exit = match state.special.any() {
            false => window.enter(self.running, self.fpu, xcr0),
            true => self.enter_specially(state, window, xcr0),
        };
        let exit = exit?;
        state.event = match exit {
            // Nothing was delivered.
            Exit::EntryFailed { .. } => return Ok(exit),
            // The end of all deliveries.
            Exit::TripleFault => None,
            _ => window.interrupted_event()?,
        };
        Ok(exit)
    }

    /// An entry with breakpoints in the CPU, or one whose ticks are counted.
    #[inline(never)]
    fn enter_specially(
        &self,
        state: &State,
        window: &mut impl Window,
        xcr0: u64,
    ) -> Result<Exit, HwError> {
        let breakpoints = state.special.has(Special::BREAKPOINTS);
        let mut ticks = 0;
        let more = More {
            breakpoints: breakpoints.then(|| (&state.dr, state.dr6())),
            ticks: state.special.has(Special::COUNTED).then_some(&mut ticks),
        };
        let exit = window.enter_with(self.running, self.fpu, xcr0, more);
        self.handler.counters.guest_ticks.add(ticks);
        exit
    }
}

/// What the CPU does to the registers when it raises an exception, and not when it delivers one that is
/// injected: the flags that are pushed have RF for faults, all but #DB; and #DB disables DR7.GD (SDM
/// Vol. 3B, "Masking Instruction Breakpoints" and "Debug Control Register").
#[inline(never)]
fn before_exception(window: &mut impl Window, event: &Event) -> Result<(), HwError> {
    if event.is_fault() {
        let rflags = window.rflags()?;
        if rflags & Rflags::RF.raw() == 0 {
            window.set_rflags(rflags | Rflags::RF.raw())?;
        }
    } else if event.vector == Vector::DB.raw() {
        let dr7 = window.dr7()?;
        if dr7 & DR7_GD != 0 {
            window.set_dr7(dr7 & !DR7_GD)?;
        }
    }
    Ok(())
}

/// `KVM_INTERNAL_ERROR_DELIVERY_EV`: vectoring information, exit reason, exit qualification, GPA.
fn delivery_failure(
    window: &impl Window,
    event: Option<&Event>,
    fault: &NestedFault,
) -> Result<UserExit, HwError> {
    let [vectoring, reason, qualification] = window.delivery_details(event)?;
    Ok(UserExit::Internal {
        suberror: KVM_INTERNAL_ERROR_DELIVERY_EV,
        data: [vectoring, reason, qualification, fault.gpa.raw()],
        ndata: 4,
    })
}

/// True when the guest can take an external interrupt at its next instruction.
fn can_interrupt(window: &impl Window) -> Result<bool, HwError> {
    let enabled = Rflags::from_raw(window.rflags()?).contains(Rflags::IF);
    Ok(enabled && !window.interrupt_shadow()?)
}

impl<V: Vendor> Inner<V> {
    /// The same without a window, as after an error. What is known from before stays where the CPU does
    /// not let us look.
    #[cold]
    #[inline(never)]
    fn note_now(&mut self) {
        let Self { guest, state, .. } = self;
        let _ = guest
            .open()
            .map(|window| state.note_interruptibility(&window));
    }
}

impl State {
    /// Notes for `kvm_run` whether the guest takes interrupts.
    fn note_interruptibility(&mut self, window: &impl Window) -> Result<(), HwError> {
        self.if_flag = Rflags::from_raw(window.rflags()?).contains(Rflags::IF);
        self.ready_for_interrupt = self.if_flag
            && self.event.is_none()
            && self.interrupt.is_none()
            && !window.interrupt_shadow()?;
        self.noted = true;
        Ok(())
    }
}

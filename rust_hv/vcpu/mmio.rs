// SPDX-License-Identifier: GPL-2.0

//! Instructions on memory that is not there: executed in software, answered by user space.
//!
//! A device read stops the instruction before it has changed anything; the answer goes into a log
//! and the instruction starts over. Device writes leave after the instruction is done, one exit
//! each. See `model::emulate`.

use super::memory::{Known, Machine};
use super::snapshot::Snapshot;
use super::State;
use crate::host::errno::no_such_device;
use crate::host::run_page::{RunPages, UserExit};
use crate::host::task;
use crate::mmu::Mmu;
use crate::model::arch::exception::Vector;
use crate::model::arch::regs::Rflags;
use crate::model::emulate::{
    decode, execute, Backing, DecodeError, Exception, Insn, MmioLog, MmioRead, MmioWrites, Outcome,
    Stop, MAX_LEN,
};
use crate::model::exit::NestedFault;
use crate::vendor::Guest;
use kernel::prelude::*;

/// Iterations of a repeated instruction before signals are looked after.
const ITERATIONS: u32 = 256;
/// Times that an instruction is tried while other vCPUs keep changing the tables that it needs.
const RETRIES: u32 = 64;

/// What user space has to do before the next entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// Nothing.
    No,
    /// Answer this read of `insn`.
    Read(MmioRead, Insn),
    /// See to the memory that `insn` needs besides: devices have answered.
    Memory(Insn),
    /// Take the rest of the writes; the instruction is done.
    Writes,
}

/// The instruction that is being executed. It stays in place over exits to user space.
pub struct Mmio {
    waiting: Waiting,
    /// Where the instruction is that waits.
    rip: u64,
    log: MmioLog,
    writes: MmioWrites,
    /// Where the CPU itself has translated the access to.
    known: Option<Known>,
    /// The registers, kept over the exit; `None` when user space may have changed them.
    snapshot: Option<Snapshot>,
}

/// What came of an instruction.
pub(super) enum Step {
    /// Enter the guest (again).
    Enter,
    /// User space has to do something.
    Exit(UserExit),
    /// The instruction cannot be executed here. Nothing has changed.
    Unknown(Unknown),
}

/// An instruction that is not known.
pub(super) struct Unknown {
    cpl: u8,
    bytes: [u8; MAX_LEN],
    have: usize,
}

impl Mmio {
    /// Nothing is being executed.
    pub(super) const fn new() -> Self {
        Self {
            waiting: Waiting::No,
            rip: 0,
            log: MmioLog::new(),
            writes: MmioWrites::NONE,
            known: None,
            snapshot: None,
        }
    }

    /// User space has changed registers: what was kept of them is worthless.
    pub(super) fn forget_registers(&mut self) {
        self.snapshot = None;
    }

    /// True when the last exit left something to be finished.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting != Waiting::No
    }

    /// Executes the instruction at RIP, whose access `fault` met what is not memory: `backing`.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the VMM's memory is not there, `EIO`.
    pub(super) fn emulate(
        &mut self,
        state: &mut State,
        guest: &mut impl Guest,
        mmu: &Mmu,
        fault: &NestedFault,
        backing: Backing,
    ) -> Result<Step> {
        let facts = *state.cpuid.facts();
        // It stays where it is, as it is large: nothing below moves it.
        let snapshot = Snapshot::take_into(&mut self.snapshot, &mut guest.open()?, &facts)?;
        let cpl = snapshot.cpl;
        self.log.clear();
        self.known = None;
        let mut bytes = [0; MAX_LEN];
        let mut machine = Machine::new(snapshot, mmu, &mut state.slots);
        let have = match machine.fetch(&mut bytes) {
            Ok(have) => have,
            Err(Stop::Fault(exception)) => {
                state.raise(&mut guest.open()?, exception);
                return Ok(Step::Enter);
            }
            Err(Stop::Retry) => return Ok(Step::Enter),
            // The guest executes where it has no memory.
            Err(Stop::Failed(_)) => {
                return Ok(Step::Unknown(Unknown {
                    cpl,
                    bytes,
                    have: 0,
                }))
            }
        };
        let code = bytes.get(..have).unwrap_or_default();
        match decode(code, machine.snapshot.mode()) {
            Ok(insn) => {
                self.known = Known::from_fault(fault, backing, &insn);
                self.go_on(state, guest, mmu, insn)
            }
            Err(DecodeError::NeedMoreBytes) => {
                // The instruction goes on in a page that cannot be fetched from.
                match machine.probe_code(have as u64) {
                    Err(Stop::Fault(exception)) => {
                        state.raise(&mut guest.open()?, exception);
                        Ok(Step::Enter)
                    }
                    _ => Ok(Step::Unknown(Unknown { cpl, bytes, have })),
                }
            }
            Err(DecodeError::Unknown) => Ok(Step::Unknown(Unknown { cpl, bytes, have })),
            Err(error) => {
                if let Some(exception) = error.exception() {
                    state.raise(&mut guest.open()?, exception);
                }
                Ok(Step::Enter)
            }
        }
    }

    /// Goes on with an instruction that user space has answered.
    ///
    /// # Errors
    ///
    /// As [`Mmio::emulate`].
    pub(super) fn complete(
        &mut self,
        state: &mut State,
        guest: &mut impl Guest,
        run: &RunPages,
        mmu: &Mmu,
    ) -> Result<Step> {
        let (read, insn) = match core::mem::replace(&mut self.waiting, Waiting::No) {
            Waiting::No => return Ok(Step::Enter),
            Waiting::Writes => return Ok(self.next_write()),
            Waiting::Read(read, insn) => (Some(read), insn),
            Waiting::Memory(insn) => (None, insn),
        };
        let snapshot = match &mut self.snapshot {
            Some(snapshot) => snapshot,
            empty => {
                let facts = *state.cpuid.facts();
                self.known = None;
                Snapshot::take_into(empty, &mut guest.open()?, &facts)?
            }
        };
        if snapshot.rip != self.rip {
            // User space has sent the guest elsewhere.
            return Ok(Step::Enter);
        }
        if let Some(read) = read {
            self.log.record(read, run.mmio_data()).map_err(|_| EINVAL)?;
        }
        self.go_on(state, guest, mmu, insn)
    }

    /// Executes, from the beginning or after an answer.
    fn go_on(
        &mut self,
        state: &mut State,
        guest: &mut impl Guest,
        mmu: &Mmu,
        insn: Insn,
    ) -> Result<Step> {
        let Some(snapshot) = &mut self.snapshot else {
            return Ok(Step::Enter);
        };
        let mut outcome;
        let mut tries = RETRIES;
        loop {
            let mut machine = Machine::new(snapshot, mmu, &mut state.slots);
            machine.known = self.known;
            outcome = execute(&mut machine, &insn, &mut self.log, ITERATIONS);
            tries -= 1;
            // Entering the guest would ask devices again that have answered.
            let again = match outcome {
                Outcome::Again { .. } => true,
                // The slots were changed meanwhile.
                Outcome::Failed(error) => error == EAGAIN,
                _ => false,
            };
            if tries == 0 || self.log.is_empty() || !again {
                break;
            }
            task::cond_resched();
        }
        let (finished, trap) = match outcome {
            Outcome::Done { trap } => (true, trap),
            Outcome::Again { trap } => (false, trap),
            Outcome::MmioWrite {
                writes,
                finished,
                trap,
            } => {
                self.writes = writes;
                (finished, trap)
            }
            Outcome::MmioRead(_) | Outcome::Fault(_) | Outcome::Failed(_) => (false, false),
        };
        let untouched = matches!(outcome, Outcome::MmioRead(_)) && insn.rep.is_none();
        if !untouched {
            // Of a repeated instruction, iterations before this one are done.
            let mut window = guest.open()?;
            snapshot.put(&mut window)?;
            if trap || (finished && snapshot.interrupt_shadow) {
                state.finish_effects(&mut window, trap)?;
                snapshot.interrupt_shadow = false;
            }
            if let Outcome::Fault(exception) = outcome {
                state.raise(&mut window, exception);
            }
        }
        state.if_flag = snapshot.rflags.contains(Rflags::IF);
        state.ready_for_interrupt = state.if_flag
            && state.event.is_none()
            && state.interrupt.is_none()
            && !snapshot.interrupt_shadow;
        state.noted = true;
        self.rip = snapshot.rip;
        if !matches!(outcome, Outcome::MmioRead(_)) {
            self.snapshot = None;
        }
        match outcome {
            Outcome::MmioRead(read) => {
                self.waiting = Waiting::Read(read, insn);
                Ok(Step::Exit(UserExit::Mmio {
                    gpa: read.gpa,
                    len: read.len,
                    write: None,
                }))
            }
            Outcome::MmioWrite { .. } => Ok(self.next_write()),
            // The slots were changed meanwhile.
            Outcome::Failed(error) if error == EAGAIN => Ok(Step::Enter),
            // The guest's page tables are where it has no memory.
            Outcome::Failed(error) if error == no_such_device() => {
                Ok(Step::Exit(UserExit::UNKNOWN_INSTRUCTION))
            }
            Outcome::Failed(error) => {
                if !self.log.is_empty() {
                    self.waiting = Waiting::Memory(insn);
                }
                Err(error)
            }
            Outcome::Done { .. } | Outcome::Again { .. } | Outcome::Fault(_) => Ok(Step::Enter),
        }
    }

    /// Hands out the next device write.
    fn next_write(&mut self) -> Step {
        let Some(write) = self.writes.pop() else {
            return Step::Enter;
        };
        let mut data = [0; 8];
        for (to, from) in data.iter_mut().zip(write.bytes()) {
            *to = *from;
        }
        if !self.writes.is_empty() {
            self.waiting = Waiting::Writes;
        }
        Step::Exit(UserExit::Mmio {
            gpa: write.gpa,
            len: write.len,
            write: Some(data),
        })
    }
}

impl Unknown {
    /// What comes of an instruction that cannot be executed. The VMM hears of it, unless it is one
    /// of the guest's user programs: that must not be able to stop the VM, and gets #UD, as with
    /// KVM.
    pub(super) fn report(
        &self,
        state: &mut State,
        guest: &mut impl Guest,
    ) -> Result<Option<UserExit>> {
        if self.cpl == 0 {
            return Ok(Some(UserExit::Emulation {
                bytes: self.bytes,
                len: self.have as u8,
            }));
        }
        let exception = Exception {
            vector: Vector::UD,
            error_code: None,
            cr2: None,
        };
        state.raise(&mut guest.open()?, exception);
        Ok(None)
    }
}

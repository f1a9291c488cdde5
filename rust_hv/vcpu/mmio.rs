// SPDX-License-Identifier: GPL-2.0

//! Instructions on memory that is not there: executed in software, answered by user space.
//!
//! A device read stops the instruction before it has changed anything; the answer goes into a log
//! and the instruction starts over. Device writes leave after the instruction is done, one exit
//! each. See `model::emulate`.

use super::memory::Machine;
use super::snapshot::Snapshot;
use super::State;
use crate::host::errno::no_such_device;
use crate::host::run_page::{RunPages, UserExit};
use crate::host::task;
use crate::mmu::Mmu;
use crate::model::emulate::{
    decode, execute, DecodeError, Insn, MmioLog, MmioRead, MmioWrites, Outcome, Stop, MAX_LEN,
};
use crate::model::paging::state::AccessKind;
use crate::vmx::guest::Guest;
use kernel::prelude::*;

/// Iterations of a repeated instruction before signals are looked after.
const ITERATIONS: u32 = 256;
/// Times that an instruction is tried while other vCPUs keep changing the tables that it needs.
const RETRIES: u32 = 64;

/// An instruction that waits for user space.
pub struct PendingMmio {
    /// Where it is; if RIP is elsewhere afterwards, it is forgotten.
    rip: u64,
    insn: Insn,
    log: MmioLog,
    /// The read that user space answers.
    read: Option<MmioRead>,
    /// Writes still to be handed out; the instruction is done.
    writes: MmioWrites,
}

/// What came of an instruction.
pub(super) enum Step {
    /// Enter the guest (again).
    Enter,
    /// User space has to do something; what to go on with, if anything.
    Exit(UserExit, Option<PendingMmio>),
}

/// Executes the instruction at RIP, which touched memory that is not there.
///
/// # Errors
///
/// `EFAULT` when the VMM's memory is not there, `ENOMEM`, `EIO`.
pub(super) fn emulate(state: &mut State, guest: &mut Guest, mmu: &Mmu) -> Result<Step> {
    let facts = *state.cpuid.facts();
    let mut snapshot = Snapshot::take(&mut guest.open()?, &facts)?;
    let mut bytes = [0; MAX_LEN];
    let have = match Machine::new(&mut snapshot, mmu).fetch(&mut bytes) {
        Ok(have) => have,
        Err(Stop::Fault(exception)) => {
            state.raise(&mut guest.open()?, exception);
            return Ok(Step::Enter);
        }
        Err(Stop::Retry) => return Ok(Step::Enter),
        // The guest executes where it has no memory.
        Err(Stop::Failed(_)) => return Ok(unknown(&bytes, 0)),
    };
    let code = bytes.get(..have).unwrap_or_default();
    match decode(code, snapshot.mode()) {
        Ok(insn) => go_on(state, guest, mmu, snapshot, insn, MmioLog::new()),
        Err(DecodeError::NeedMoreBytes) => {
            // The instruction goes on in a page that cannot be fetched from.
            let next = snapshot.linear_rip(have as u64);
            let fetched = Machine::new(&mut snapshot, mmu).translate_kind(next, AccessKind::Fetch);
            match fetched {
                Err(Stop::Fault(exception)) => {
                    state.raise(&mut guest.open()?, exception);
                    Ok(Step::Enter)
                }
                _ => Ok(unknown(&bytes, have)),
            }
        }
        Err(DecodeError::Unknown) => Ok(unknown(&bytes, have)),
        Err(error) => {
            if let Some(exception) = error.exception() {
                state.raise(&mut guest.open()?, exception);
            }
            Ok(Step::Enter)
        }
    }
}

fn unknown(bytes: &[u8; MAX_LEN], have: usize) -> Step {
    let exit = UserExit::Emulation {
        bytes: *bytes,
        len: have as u8,
    };
    Step::Exit(exit, None)
}

/// Executes, from the beginning or after an answer.
fn go_on(
    state: &mut State,
    guest: &mut Guest,
    mmu: &Mmu,
    mut snapshot: Snapshot,
    insn: Insn,
    mut log: MmioLog,
) -> Result<Step> {
    let rip = snapshot.rip;
    let mut outcome;
    let mut tries = RETRIES;
    loop {
        let mut machine = Machine::new(&mut snapshot, mmu);
        outcome = execute(&mut machine, &insn, &mut log, ITERATIONS);
        tries -= 1;
        // Entering the guest would ask devices again that have answered.
        if tries == 0 || log.is_empty() || !matches!(outcome, Outcome::Again { .. }) {
            break;
        }
        task::cond_resched();
    }
    let pending = |log, read, writes| PendingMmio {
        rip,
        insn,
        log,
        read,
        writes,
    };
    match outcome {
        Outcome::Done { trap } => {
            commit(state, guest, &snapshot, true, trap)?;
            Ok(Step::Enter)
        }
        Outcome::Again { trap } => {
            commit(state, guest, &snapshot, false, trap)?;
            Ok(Step::Enter)
        }
        Outcome::MmioRead(read) => {
            // Iterations before this one are done.
            commit(state, guest, &snapshot, false, false)?;
            let exit = UserExit::Mmio {
                gpa: read.gpa,
                len: read.len,
                write: None,
            };
            let pending = pending(log, Some(read), MmioWrites::default());
            Ok(Step::Exit(exit, Some(pending)))
        }
        Outcome::MmioWrite {
            writes,
            finished,
            trap,
        } => {
            let pending = pending(MmioLog::new(), None, writes);
            commit(state, guest, &snapshot, finished, trap)?;
            Ok(next_write(pending))
        }
        Outcome::Fault(exception) => {
            commit(state, guest, &snapshot, false, false)?;
            state.raise(&mut guest.open()?, exception);
            Ok(Step::Enter)
        }
        Outcome::Failed(error) => {
            commit(state, guest, &snapshot, false, false)?;
            if error == EAGAIN {
                return Ok(Step::Enter);
            }
            // The guest's page tables are where it has no memory.
            if error == no_such_device() {
                return Ok(unknown(&[0; MAX_LEN], 0));
            }
            Err(error)
        }
    }
}

fn commit(
    state: &mut State,
    guest: &mut Guest,
    snapshot: &Snapshot,
    finished: bool,
    trap: bool,
) -> Result {
    let mut window = guest.open()?;
    snapshot.put(&mut window)?;
    if finished || trap {
        state.finish_effects(&mut window, trap)?;
    }
    Ok(())
}

/// Hands out the next device write.
fn next_write(mut pending: PendingMmio) -> Step {
    let Some(write) = pending.writes.pop() else {
        return Step::Enter;
    };
    let mut data = [0; 8];
    for (to, from) in data.iter_mut().zip(write.bytes()) {
        *to = *from;
    }
    let exit = UserExit::Mmio {
        gpa: write.gpa,
        len: write.len,
        write: Some(data),
    };
    let rest = if pending.writes.is_empty() {
        None
    } else {
        Some(pending)
    };
    Step::Exit(exit, rest)
}

/// Goes on with an instruction that user space has answered.
///
/// # Errors
///
/// As [`emulate`].
pub(super) fn complete(
    state: &mut State,
    guest: &mut Guest,
    run: &RunPages,
    mmu: &Mmu,
    mut pending: PendingMmio,
) -> Result<Step> {
    let Some(read) = pending.read.take() else {
        return Ok(next_write(pending));
    };
    let facts = *state.cpuid.facts();
    let snapshot = Snapshot::take(&mut guest.open()?, &facts)?;
    if snapshot.rip != pending.rip {
        // User space has sent the guest elsewhere.
        return Ok(Step::Enter);
    }
    pending
        .log
        .record(read, run.mmio_data())
        .map_err(|_| EINVAL)?;
    go_on(state, guest, mmu, snapshot, pending.insn, pending.log)
}

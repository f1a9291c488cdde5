// SPDX-License-Identifier: GPL-2.0

//! IN, OUT, INS and OUTS: user space answers them.
//!
//! As with KVM, RIP is still at the instruction while user space looks at the exit; the next
//! `KVM_RUN` moves on, unless user space has changed RIP meanwhile.

use super::exits::Action;
use super::memory::Machine;
use super::snapshot::Snapshot;
use super::{Pending, State};
use crate::host::run_page::{RunPages, UserExit, PIO_BYTES};
use crate::host::user::to_page_end;
use crate::mmu::access::SlotCache;
use crate::mmu::Mmu;
use crate::model::arch::regs::Rflags;
use crate::model::emulate::{Exception, PortString, Stop, Width, MAX_LEN};
use crate::model::exit::PortAccess;
use crate::model::paging::state::AccessKind;
use crate::vendor::{Guest, HwError, Window};
use kernel::prelude::*;

/// Bytes that a string access moves per exit at most; they go over the stack.
const CHUNK: usize = 256;

/// A port access that user space answers before the next entry.
#[derive(Clone, Copy)]
pub struct PendingPort {
    rip: u64,
    len: u32,
    what: Waiting,
}

#[derive(Clone, Copy)]
enum Waiting {
    /// OUT: nothing but to move on.
    Out,
    /// IN of so many bytes to RAX.
    In(u8),
    /// INS or OUTS of so many items.
    String(PortString, u32),
}

/// IN or OUT, in the window.
pub(super) fn register_access(
    state: &mut State,
    run: &RunPages,
    window: &mut impl Window,
    access: PortAccess,
) -> Result<Action, HwError> {
    let what = if access.out {
        let [rax, ..] = *window.gprs_mut();
        let bytes = rax.to_le_bytes();
        run.put_pio(0, bytes.get(..access.size.into()).unwrap_or_default());
        Waiting::Out
    } else {
        Waiting::In(access.size)
    };
    state.pending = Pending::Port(PendingPort {
        rip: window.rip()?,
        len: window.instruction_len()?,
        what,
    });
    Ok(Action::User(UserExit::Io {
        out: access.out,
        size: access.size,
        port: access.port,
        count: 1,
    }))
}

/// What came of a string access, outside the window.
pub(super) enum StringStep {
    /// User space is asked.
    Exit(UserExit, PendingPort),
    /// The instruction has changed, or the tables: enter the guest again.
    Again,
    /// There is nothing to transfer: an instruction of so many bytes is done.
    Nothing(u32),
    /// The guest gets an exception.
    Fault(Exception),
}

fn stopped(stop: Stop<Error>) -> Result<StringStep> {
    match stop {
        Stop::Fault(exception) => Ok(StringStep::Fault(exception)),
        Stop::Retry => Ok(StringStep::Again),
        Stop::Failed(error) => Err(error),
    }
}

/// INS or OUTS: checks, and for OUTS reads, as many items as go into one exit.
///
/// # Errors
///
/// `EFAULT` when the VMM's memory is not there.
pub(super) fn string_access(
    run: &RunPages,
    mmu: &Mmu,
    snapshot: &mut Snapshot,
    access: PortAccess,
) -> Result<StringStep> {
    let mode = snapshot.mode();
    let down = snapshot.rflags.contains(Rflags::DF);
    let trap = snapshot.rflags.contains(Rflags::TF);
    let rip = snapshot.rip;
    let mut slot = SlotCache::new();
    let mut machine = Machine::new(snapshot, mmu, &mut slot);
    let mut code = [0; MAX_LEN];
    let have = match machine.fetch(&mut code) {
        Ok(have) => have,
        Err(stop) => return stopped(stop),
    };
    let code = code.get(..have).unwrap_or_default();
    let string = match PortString::decode(code, mode) {
        Ok(string) if string.out == access.out && string.width.bytes() == access.size => string,
        // The instruction was changed under us: let the CPU look again.
        _ => return Ok(StringStep::Again),
    };
    let size = usize::from(access.size);
    let count = string.count(&machine);
    if count == 0 {
        return Ok(StringStep::Nothing(string.len.into()));
    }
    let gva = match string.item(&machine) {
        Ok(gva) => gva,
        Err(exception) => return Ok(StringStep::Fault(exception)),
    };
    // Items up to the end of the page, of the segment and of what the register counts to; one that
    // crosses the page's goes alone, and so does each on the way down, or with a trap behind it.
    let room = string.room(&machine).min(CHUNK as u64) as usize;
    let fit = to_page_end(gva.page_offset()).min(room).min(PIO_BYTES) / size;
    let items = if down || trap || fit == 0 {
        1
    } else {
        count.min(fit as u64) as usize
    };
    let mut data = [0; CHUNK];
    let data = data.get_mut(..items * size).unwrap_or_default();
    let checked = if access.out {
        machine.load(gva, data)
    } else {
        machine.probe(gva, data.len(), AccessKind::Write)
    };
    if let Err(stop) = checked {
        return stopped(stop);
    }
    if access.out {
        run.put_pio(0, data);
    }
    let pending = PendingPort {
        rip,
        len: string.len.into(),
        what: Waiting::String(string, items as u32),
    };
    let exit = UserExit::Io {
        out: access.out,
        size: access.size,
        port: access.port,
        count: items as u32,
    };
    Ok(StringStep::Exit(exit, pending))
}

/// Finishes an access that user space has answered.
///
/// # Errors
///
/// `EFAULT` when the VMM's memory is not there, `EIO`.
pub(super) fn complete(
    state: &mut State,
    guest: &mut impl Guest,
    run: &RunPages,
    mmu: &Mmu,
    pending: PendingPort,
) -> Result {
    let mut window = guest.open()?;
    if window.rip()? != pending.rip {
        // User space has sent the guest elsewhere.
        return Ok(());
    }
    match pending.what {
        Waiting::Out => {}
        Waiting::In(size) => {
            let mut bytes = [0; 8];
            run.get_pio(0, bytes.get_mut(..size.into()).unwrap_or_default());
            let value = u64::from_le_bytes(bytes);
            let [rax, ..] = window.gprs_mut();
            *rax = width_of(size).merge(*rax, value);
        }
        Waiting::String(string, items) => {
            let facts = *state.cpuid.facts();
            let mut snapshot = Snapshot::take(&mut window, &facts)?;
            // Guest memory may have to be faulted in.
            drop(window);
            let fault = store_items(run, mmu, &mut snapshot, &string, items)?;
            window = guest.open()?;
            if let Some(exception) = fault {
                state.raise(&mut window, exception);
                return Ok(());
            }
            let down = snapshot.rflags.contains(Rflags::DF);
            let mut slot = SlotCache::new();
            let mut machine = Machine::new(&mut snapshot, mmu, &mut slot);
            string.advance(&mut machine, items.into(), down);
            let more = string.repeated && string.count(&machine) != 0;
            snapshot.put(&mut window)?;
            if more {
                // The instruction goes on: the guest executes it again.
                let trap = snapshot.rflags.contains(Rflags::TF);
                return Ok(state.finish_effects(&mut window, trap)?);
            }
        }
    }
    state.finish_instruction(&mut window, pending.rip, pending.len)?;
    Ok(())
}

fn width_of(bytes: u8) -> Width {
    match bytes {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    }
}

/// Writes what INS got into guest memory. Some for an exception of the guest's.
fn store_items(
    run: &RunPages,
    mmu: &Mmu,
    snapshot: &mut Snapshot,
    string: &PortString,
    items: u32,
) -> Result<Option<Exception>> {
    if string.out {
        return Ok(None);
    }
    let mut data = [0; CHUNK];
    let len = (items as usize).saturating_mul(string.width.bytes().into());
    let data = data.get_mut(..len).ok_or(EINVAL)?;
    run.get_pio(0, data);
    let mut slot = SlotCache::new();
    let mut machine = Machine::new(snapshot, mmu, &mut slot);
    let gva = match string.item(&machine) {
        Ok(gva) => gva,
        Err(exception) => return Ok(Some(exception)),
    };
    match machine.store(gva, data) {
        Ok(()) => Ok(None),
        Err(Stop::Fault(exception)) => Ok(Some(exception)),
        // The access was checked before the exit; only a host failure is left to report.
        Err(Stop::Retry) => Err(EAGAIN),
        Err(Stop::Failed(error)) => Err(error),
    }
}

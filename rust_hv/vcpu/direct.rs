// SPDX-License-Identifier: GPL-2.0

//! Device accesses by a plain MOV, in the window: no snapshot of the registers, no transaction.
//!
//! The CPU has told where the access goes; what is left to find out is what moves. Whatever is not
//! as simple as that is left to `mmio`.

use super::code::{fetch_present, Code};
use super::snapshot::paging_state;
use super::{Pending, State};
use crate::host::run_page::{RunPages, UserExit};
use crate::mmu::Mmu;
use crate::model::arch::addr::PAGE_SIZE;
use crate::model::arch::regs::Rflags;
use crate::model::emulate::{decode, Mode, PlainMove, SegmentName, MAX_LEN};
use crate::model::exit::{NestedFault, Origin};
use crate::vendor::{Guest, HwError, Window};
use kernel::prelude::*;

/// A load that user space answers before the next entry.
#[derive(Clone, Copy)]
pub struct PendingLoad {
    rip: u64,
    load: PlainMove,
}

/// Does what a nested fault asks for, if it is a plain access to where there is no memory.
#[inline]
pub(super) fn access(
    state: &mut State,
    window: &mut impl Window,
    mmu: &Mmu,
    fault: &NestedFault,
) -> Result<Option<UserExit>, HwError> {
    let is_data = matches!(fault.origin, Origin::Access(_)) && !fault.fetch;
    if !is_data || state.event.is_some() || !mmu.is_hole(&state.slots, fault.gpa) {
        return Ok(None);
    }
    plain(state, window, mmu, fault)
}

fn plain(
    state: &mut State,
    window: &mut impl Window,
    mmu: &Mmu,
    fault: &NestedFault,
) -> Result<Option<UserExit>, HwError> {
    let paging = paging_state(window, state.cpuid.facts())?;
    let code = Code::at(window, &paging)?;
    // User programs may have alignment checks, and must not be able to stop the VM.
    if code.cpl != 0 {
        return Ok(None);
    }
    let mut bytes = [0; MAX_LEN];
    let Ok(have) = fetch_present(&code, mmu, &state.slots, &mut bytes) else {
        return Ok(None);
    };
    let Ok(insn) = decode(bytes.get(..have).unwrap_or_default(), code.mode) else {
        return Ok(None);
    };
    let Some(plain) = insn
        .plain_move()
        .filter(|plain| plain.is_store() == fault.write)
    else {
        return Ok(None);
    };
    let rip = code.rip;
    let segment = plain.segment();
    let base = match code.mode {
        Mode::Bits64 if !matches!(segment, SegmentName::Fs | SegmentName::Gs) => 0,
        _ => window.segment_base(segment.into())?,
    };
    let gprs = window.gprs_mut();
    let offset = base.wrapping_add(plain.offset(gprs, rip)) % PAGE_SIZE;
    // Another instruction is there by now, or the operand goes on in the next page.
    let beyond = offset + u64::from(plain.bytes()) > PAGE_SIZE;
    if offset != fault.gpa.page_offset() || beyond {
        return Ok(None);
    }
    let write = if plain.is_store() {
        let data = plain.stored(gprs).to_le_bytes();
        finish(state, window, rip, plain)?;
        Some(data)
    } else {
        state.pending = Pending::Load(PendingLoad { rip, load: plain });
        None
    };
    Ok(Some(UserExit::Mmio {
        gpa: fault.gpa,
        len: plain.bytes(),
        write,
    }))
}

/// Finishes a load that user space has answered.
///
/// # Errors
///
/// `EINTR`, `EIO`.
pub(super) fn complete(
    state: &mut State,
    guest: &mut impl Guest,
    run: &RunPages,
    pending: PendingLoad,
) -> Result {
    let mut window = guest.open()?;
    // Else user space has sent the guest elsewhere.
    if window.rip()? == pending.rip {
        let data = u64::from_le_bytes(run.mmio_data());
        pending.load.finish_load(window.gprs_mut(), data);
        finish(state, &mut window, pending.rip, pending.load)?;
    }
    Ok(())
}

fn finish(
    state: &mut State,
    window: &mut impl Window,
    rip: u64,
    plain: PlainMove,
) -> Result<(), HwError> {
    let flags = Rflags::from_raw(window.rflags()?);
    if flags.contains(Rflags::RF) {
        window.set_rflags(flags.without(Rflags::RF).raw())?;
    }
    state.finish_instruction(window, rip, plain.insn_len().into())
}

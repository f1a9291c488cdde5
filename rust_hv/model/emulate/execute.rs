// SPDX-License-Identifier: GPL-2.0

//! Executing a decoded instruction.

use super::alu;
use super::cpu::Cpu;
use super::insn::{Insn, Op, Operand};
use super::memory::{Memory, MmioLog, MmioRead, MmioWrites, Stop};
use super::string;
use super::transaction::{Halt, Transaction};
use super::types::{Access, Exception, Gpr, Mode, SegmentName, Width};
use crate::model::arch::regs::Rflags;

/// How far execution came.
///
/// Where an instruction or iteration was completed, interrupt shadows (STI, MOV SS) end, and
/// `trap` says that RFLAGS.TF was set when it began: a single-step #DB is due, after any device
/// stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<E> {
    /// Done: RIP is at the next instruction.
    Done {
        /// A single-step trap is due.
        trap: bool,
    },
    /// Not done yet, but consistent: RIP is still at the instruction and all else says how far it
    /// came. Look after signals and interrupts, then execute again with the same log, or clear
    /// the log and enter the guest.
    Again {
        /// A single-step trap is due.
        trap: bool,
    },
    /// A device has to be asked. Nothing has changed: put its answer into the log and execute
    /// again.
    MmioRead(MmioRead),
    /// As [`Done`](Self::Done) or [`Again`](Self::Again), once devices have got these stores.
    MmioWrite {
        /// The stores, in order.
        writes: MmioWrites,
        /// The instruction is done.
        finished: bool,
        /// A single-step trap is due.
        trap: bool,
    },
    /// The guest gets an exception. Nothing has changed, but iterations before this one stay done.
    Fault(Exception),
    /// The host failed. Answers of devices are still in the log: it may be tried again.
    Failed(E),
}

/// Executes one instruction, of a repeated one at most `limit` iterations (and at least one).
///
/// RIP must be at the instruction. On the way back from [`Outcome::MmioRead`] or [`Outcome::Failed`],
/// `log` holds the answers so far; otherwise it is empty.
pub fn execute<M: Cpu + Memory>(
    machine: &mut M,
    insn: &Insn,
    log: &mut MmioLog,
    limit: u32,
) -> Outcome<M::Error> {
    let mut left = limit;
    loop {
        let trap = machine.rflags().contains(Rflags::TF);
        let (finished, writes) = match step(machine, insn, log) {
            Ok(stepped) => stepped,
            Err(Halt::MmioRead(read)) => return Outcome::MmioRead(read),
            // Devices that have answered keep their answers in the log.
            Err(Halt::Stop(Stop::Retry)) => return Outcome::Again { trap: false },
            Err(Halt::Stop(Stop::Fault(exception))) => {
                log.clear();
                return Outcome::Fault(exception);
            }
            Err(Halt::Stop(Stop::Failed(error))) => return Outcome::Failed(error),
        };
        if !writes.is_empty() {
            return Outcome::MmioWrite {
                writes,
                finished,
                trap,
            };
        }
        if finished {
            return Outcome::Done { trap };
        }
        left = left.saturating_sub(1);
        if trap || left == 0 {
            return Outcome::Again { trap };
        }
    }
}

/// One transaction. Tells if the instruction is done, and what devices are still to be told.
fn step<M: Cpu + Memory>(
    machine: &mut M,
    insn: &Insn,
    log: &mut MmioLog,
) -> Result<(bool, MmioWrites), Halt<M::Error>> {
    let rip = machine.rip();
    let mut transaction = Transaction::new(machine, log, insn.mode);
    let finished = if insn.op.is_string() {
        string::iterate(&mut transaction, insn)?
    } else {
        operate(&mut transaction, insn)?;
        true
    };
    let flags = transaction.rflags();
    let writes = if finished {
        transaction.set_rflags(flags.without(Rflags::RF));
        transaction.commit(next_rip(insn, rip))?
    } else {
        // An instruction breakpoint fires before the first iteration only.
        transaction.set_rflags(flags | Rflags::RF);
        transaction.commit(rip)?
    };
    Ok((finished, writes))
}

/// RIP after the instruction.
///
/// IP does not wrap at 64 KiB: since the 80286, running off the end of a segment is a limit
/// violation, which the CPU raises when it fetches there.
fn next_rip(insn: &Insn, rip: u64) -> u64 {
    let next = rip.wrapping_add(u64::from(insn.len));
    match insn.mode {
        Mode::Bits64 => next,
        Mode::Bits16 | Mode::Bits32 => next & Width::Dword.mask(),
    }
}

fn operate<M: Cpu + Memory>(t: &mut Transaction<'_, M>, insn: &Insn) -> Result<(), Halt<M::Error>> {
    match insn.op {
        Op::Mov | Op::Movzx | Op::Movsx => copy(t, insn),
        Op::Bt | Op::Bts | Op::Btr | Op::Btc => bit_test(t, insn),
        Op::Xchg | Op::Xadd => exchange(t, insn),
        Op::Cmpxchg => compare_exchange(t, insn),
        Op::Cmpxchg8b => compare_exchange_8_bytes(t, insn),
        Op::Push => push(t, insn),
        Op::Pop => pop(t, insn),
        _ => arithmetic(t, insn),
    }
}

fn copy<M: Cpu + Memory>(t: &mut Transaction<'_, M>, insn: &Insn) -> Result<(), Halt<M::Error>> {
    let src = t.locate(insn, insn.src, insn.source_width, Access::Read, 0)?;
    let dst = t.locate(insn, insn.dst, insn.width, Access::Write, 0)?;
    let value = t.load(src)?;
    let value = match insn.op {
        Op::Movsx => insn.source_width.sign_extend(value),
        _ => value,
    };
    t.store(dst, value, None);
    Ok(())
}

fn arithmetic<M: Cpu + Memory>(
    t: &mut Transaction<'_, M>,
    insn: &Insn,
) -> Result<(), Halt<M::Error>> {
    let discards = matches!(insn.op, Op::Cmp | Op::Test);
    let access = if discards {
        Access::Read
    } else {
        Access::Write
    };
    let dst = t.locate(insn, insn.dst, insn.width, access, 0)?;
    let src = t.locate(insn, insn.src, insn.width, Access::Read, 0)?;
    let a = t.load(dst)?;
    let b = t.load(src)?;
    let computed = alu::compute(insn.op, insn.width, a, b, t.rflags());
    t.set_rflags(computed.rflags);
    if !discards {
        t.store(dst, computed.value, insn.lock.then_some(a));
    }
    Ok(())
}

fn bit_test<M: Cpu + Memory>(
    t: &mut Transaction<'_, M>,
    insn: &Insn,
) -> Result<(), Halt<M::Error>> {
    let access = match insn.op {
        Op::Bt => Access::Read,
        _ => Access::Write,
    };
    let src = t.locate(insn, insn.src, insn.width, Access::Read, 0)?;
    let index = t.load(src)?;
    // A bit number from a register is a signed offset from the operand into memory around it.
    let displacement = match insn.src {
        Operand::Reg(_) => {
            let index = insn.width.sign_extend(index) as i64;
            let log2 = u32::from(insn.width.log2());
            index.wrapping_shr(log2.wrapping_add(3)).wrapping_shl(log2)
        }
        _ => 0,
    };
    let dst = t.locate(insn, insn.dst, insn.width, access, displacement)?;
    let a = t.load(dst)?;
    let computed = alu::bit_test(insn.op, insn.width, a, index, t.rflags());
    t.set_rflags(computed.rflags);
    if insn.op != Op::Bt {
        t.store(dst, computed.value, insn.lock.then_some(a));
    }
    Ok(())
}

fn exchange<M: Cpu + Memory>(
    t: &mut Transaction<'_, M>,
    insn: &Insn,
) -> Result<(), Halt<M::Error>> {
    let dst = t.locate(insn, insn.dst, insn.width, Access::Write, 0)?;
    let src = t.locate(insn, insn.src, insn.width, Access::Read, 0)?;
    let a = t.load(dst)?;
    let b = t.load(src)?;
    let (value, locked) = match insn.op {
        Op::Xadd => {
            let computed = alu::compute(insn.op, insn.width, a, b, t.rflags());
            t.set_rflags(computed.rflags);
            (computed.value, insn.lock)
        }
        // XCHG with memory is locked with or without the prefix.
        _ => (b, true),
    };
    t.store(src, a, None);
    t.store(dst, value, locked.then_some(a));
    Ok(())
}

fn compare_exchange<M: Cpu + Memory>(
    t: &mut Transaction<'_, M>,
    insn: &Insn,
) -> Result<(), Halt<M::Error>> {
    let width = insn.width;
    let dst = t.locate(insn, insn.dst, width, Access::Write, 0)?;
    let src = t.locate(insn, insn.src, width, Access::Read, 0)?;
    let old = t.load(dst)?;
    let new = t.load(src)?;
    let accumulator = t.gpr(Gpr::RAX) & width.mask();
    let computed = alu::compute(insn.op, width, accumulator, old, t.rflags());
    t.set_rflags(computed.rflags);
    let equal = accumulator == old;
    // The destination gets a write cycle in either case.
    t.store(dst, if equal { new } else { old }, insn.lock.then_some(old));
    if !equal {
        t.set_gpr(Gpr::RAX, width, old);
    }
    Ok(())
}

fn compare_exchange_8_bytes<M: Cpu + Memory>(
    t: &mut Transaction<'_, M>,
    insn: &Insn,
) -> Result<(), Halt<M::Error>> {
    let pair = |t: &Transaction<'_, M>, high, low| {
        t.gpr(high).wrapping_shl(32) | (t.gpr(low) & Width::Dword.mask())
    };
    let dst = t.locate(insn, insn.dst, Width::Qword, Access::Write, 0)?;
    let old = t.load(dst)?;
    let equal = old == pair(t, Gpr::RDX, Gpr::RAX);
    t.set_rflags(t.rflags().with(Rflags::ZF, equal));
    let new = if equal {
        pair(t, Gpr::RCX, Gpr::RBX)
    } else {
        t.set_gpr(Gpr::RAX, Width::Dword, old);
        t.set_gpr(Gpr::RDX, Width::Dword, old.wrapping_shr(32));
        old
    };
    t.store(dst, new, insn.lock.then_some(old));
    Ok(())
}

fn push<M: Cpu + Memory>(t: &mut Transaction<'_, M>, insn: &Insn) -> Result<(), Halt<M::Error>> {
    let src = t.locate(insn, insn.src, insn.width, Access::Read, 0)?;
    let stack_width = t.stack_width();
    let pointer = t.gpr(Gpr::RSP).wrapping_sub(u64::from(insn.width.bytes())) & stack_width.mask();
    let top = t.span(SegmentName::Ss, pointer, insn.width, Access::Write)?;
    let value = t.load(src)?;
    t.set_gpr(Gpr::RSP, stack_width, pointer);
    t.store(top.into(), value, None);
    Ok(())
}

fn pop<M: Cpu + Memory>(t: &mut Transaction<'_, M>, insn: &Insn) -> Result<(), Halt<M::Error>> {
    let stack_width = t.stack_width();
    let pointer = t.gpr(Gpr::RSP) & stack_width.mask();
    let top = t.span(SegmentName::Ss, pointer, insn.width, Access::Read)?;
    // A destination that is addressed by the stack pointer, or is it, sees it already moved.
    let above = pointer.wrapping_add(u64::from(insn.width.bytes()));
    t.set_gpr(Gpr::RSP, stack_width, above);
    let dst = t.locate(insn, insn.dst, insn.width, Access::Write, 0)?;
    let value = t.load(top.into())?;
    t.store(dst, value, None);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Decoding and executing the instructions that touch MMIO or trapped page tables.
//!
//! A guest access that no mapping serves exits with an address, but not with what the instruction
//! wanted to do there. This room finds out ([`decode`]) and does it ([`execute`]).
//!
//! Execution is a sequence of transactions, one per instruction or per iteration of a repeated
//! string instruction. In each, addresses are computed and every page is translated with the
//! right that is needed in the end; then memory is read; then memory is written; then registers,
//! flags and RIP change. A guest fault can only come from the first phase, so it leaves nothing
//! half done. A device read leaves to user space from the second phase: its answer goes into the
//! [`MmioLog`], and the transaction starts over with the same [`Insn`]. Device writes are handed
//! out after the last phase, in order.
//!
//! The caller's loop, for an exit at an address that is not RAM:
//!
//! 1. fetch up to 15 bytes at CS:RIP; [`decode`]; on [`DecodeError::NeedMoreBytes`] fetch from the
//!    next page, on [`DecodeError::Unknown`] report the bytes to user space, else inject
//!    [`DecodeError::exception`];
//! 2. [`execute`]; on [`Outcome::MmioRead`] ask the device, [`MmioLog::record`] the answer and
//!    execute again; on [`Outcome::MmioWrite`] hand the writes to the device.
//!
//! Not modelled: data breakpoints, the A20 gate, and the atomicity of locked operands that are
//! misaligned, lie in more than one page, or belong to a device.

mod address;
mod alu;
mod cpu;
mod decode;
mod execute;
mod insn;
mod memory;
mod modrm;
mod opcode;
mod plain;
mod port;
mod prefix;
mod string;
pub mod system;
mod transaction;
mod types;

pub use cpu::Cpu;
pub use decode::{decode, length};
pub use execute::{execute, Outcome};
pub use insn::{Base, DecodeError, Insn, Mem, Op, Operand, Reg, Rep};
pub use memory::{Backing, LogFull, Memory, MmioLog, MmioRead, MmioWrite, MmioWrites, Place, Stop};
pub use plain::PlainMove;
pub use port::PortString;
pub use prefix::MAX_LEN;
pub use types::{Access, Exception, Gpr, Mode, SegmentName, Width};

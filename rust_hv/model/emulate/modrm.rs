// SPDX-License-Identifier: GPL-2.0

//! ModRM and SIB: which register, or which address.

use super::insn::{Base, DecodeError, Mem, Operand, Reg};
use super::prefix::{Cursor, Prefixes};
use super::types::{Gpr, Mode, SegmentName, Width};

/// A ModRM byte with all that belongs to it.
pub(super) struct ModRm {
    /// Bits 5 to 3, without REX: the extension of a group opcode.
    pub(super) extension: u8,
    /// Bits 5 to 3 with REX.R.
    reg: u8,
    /// Bits 2 to 0, without REX.
    pub(super) rm: u8,
    place: Place,
}

enum Place {
    Reg(u8),
    Mem(Mem),
}

impl ModRm {
    pub(super) fn read(code: &mut Cursor<'_>, prefixes: &Prefixes) -> Result<Self, DecodeError> {
        let byte = code.byte()?;
        let mode = byte >> 6;
        let extension = (byte >> 3) & 7;
        let rm = byte & 7;
        let place = if mode == 3 {
            Place::Reg(rm | prefixes.rex.b())
        } else if prefixes.address_width() == Width::Word {
            Place::Mem(memory16(code, prefixes, mode, rm)?)
        } else {
            Place::Mem(memory32(code, prefixes, mode, rm)?)
        };
        Ok(Self {
            extension,
            reg: extension | prefixes.rex.r(),
            rm,
            place,
        })
    }

    pub(super) fn is_memory(&self) -> bool {
        matches!(self.place, Place::Mem(_))
    }

    /// The operand in bits 5 to 3.
    pub(super) fn reg(&self, prefixes: &Prefixes, width: Width) -> Operand {
        Operand::Reg(register(self.reg, prefixes, width))
    }

    /// The operand in bits 7, 6 and 2 to 0.
    pub(super) fn rm(&self, prefixes: &Prefixes, width: Width) -> Operand {
        match self.place {
            Place::Reg(number) => Operand::Reg(register(number, prefixes, width)),
            Place::Mem(mem) => Operand::Mem(mem),
        }
    }
}

fn register(number: u8, prefixes: &Prefixes, width: Width) -> Reg {
    match number {
        4..=7 if width == Width::Byte && !prefixes.has_rex => Reg::High(Gpr::new(number & 3)),
        _ => Reg::Low(Gpr::new(number)),
    }
}

fn displacement(code: &mut Cursor<'_>, mode: u8, wide: Width) -> Result<i64, DecodeError> {
    match mode {
        1 => code.signed(Width::Byte),
        2 => code.signed(wide),
        _ => Ok(0),
    }
}

fn memory16(
    code: &mut Cursor<'_>,
    prefixes: &Prefixes,
    mode: u8,
    rm: u8,
) -> Result<Mem, DecodeError> {
    let (base, index) = match rm {
        0 => (Base::Reg(Gpr::RBX), Some(Gpr::RSI)),
        1 => (Base::Reg(Gpr::RBX), Some(Gpr::RDI)),
        2 => (Base::Reg(Gpr::RBP), Some(Gpr::RSI)),
        3 => (Base::Reg(Gpr::RBP), Some(Gpr::RDI)),
        4 => (Base::Reg(Gpr::RSI), None),
        5 => (Base::Reg(Gpr::RDI), None),
        6 if mode == 0 => (Base::None, None),
        6 => (Base::Reg(Gpr::RBP), None),
        _ => (Base::Reg(Gpr::RBX), None),
    };
    let disp = match base {
        Base::None => code.signed(Width::Word)?,
        _ => displacement(code, mode, Width::Word)?,
    };
    Ok(Mem {
        segment: segment(prefixes, base),
        base,
        index,
        scale: 0,
        disp,
    })
}

fn memory32(
    code: &mut Cursor<'_>,
    prefixes: &Prefixes,
    mode: u8,
    rm: u8,
) -> Result<Mem, DecodeError> {
    let mut index = None;
    let mut scale = 0;
    let mut base = rm;
    let has_sib = rm == 4;
    if has_sib {
        let sib = code.byte()?;
        base = sib & 7;
        // The number of RSP, unless REX.X makes it R12, means that there is no index.
        let number = ((sib >> 3) & 7) | prefixes.rex.x();
        if number != Gpr::RSP.number() {
            index = Some(Gpr::new(number));
            scale = sib >> 6;
        }
    }
    // The number of RBP without a displacement means a displacement alone, whatever REX.B says;
    // 64-bit mode makes it relative to RIP in the encoding without SIB.
    let (base, disp) = if mode == 0 && base == Gpr::RBP.number() {
        let relative = !has_sib && prefixes.mode == Mode::Bits64;
        let base = if relative { Base::Rip } else { Base::None };
        (base, code.signed(Width::Dword)?)
    } else {
        let base = Base::Reg(Gpr::new(base | prefixes.rex.b()));
        (base, displacement(code, mode, Width::Dword)?)
    };
    Ok(Mem {
        segment: segment(prefixes, base),
        base,
        index,
        scale,
        disp,
    })
}

/// The override, or else SS for addresses based on the stack or frame pointer, or else DS.
fn segment(prefixes: &Prefixes, base: Base) -> SegmentName {
    let default = match base {
        Base::Reg(Gpr::RSP | Gpr::RBP) => SegmentName::Ss,
        _ => SegmentName::Ds,
    };
    prefixes.segment.unwrap_or(default)
}

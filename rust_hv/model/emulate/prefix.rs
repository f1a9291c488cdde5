// SPDX-License-Identifier: GPL-2.0

//! Instruction bytes and prefixes.

use super::insn::{DecodeError, Rep};
use super::types::{Mode, SegmentName, Width};

/// Longest instruction that a CPU accepts.
pub const MAX_LEN: usize = 15;

/// Reads the instruction's bytes in order and enforces its length limit.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn len(&self) -> u8 {
        // At most `MAX_LEN`.
        self.at as u8
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        // The limit comes first: the CPU does not fetch a sixteenth byte to find it too many.
        if self.at >= MAX_LEN {
            return Err(DecodeError::TooLong);
        }
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::NeedMoreBytes)?;
        self.at = self.at.wrapping_add(1);
        Ok(byte)
    }

    /// A little-endian value of this width, zero-extended.
    pub(super) fn value(&mut self, width: Width) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for i in 0..u32::from(width.bytes()) {
            value |= u64::from(self.byte()?).wrapping_shl(i.wrapping_mul(8));
        }
        Ok(value)
    }

    /// A little-endian value of this width, sign-extended.
    pub(super) fn signed(&mut self, width: Width) -> Result<i64, DecodeError> {
        Ok(width.sign_extend(self.value(width)?) as i64)
    }
}

/// A REX prefix.
#[derive(Clone, Copy)]
pub(super) struct Rex(u8);

impl Rex {
    pub(super) fn w(self) -> bool {
        self.0 & 8 != 0
    }

    /// Bit 3 of the register in ModRM.reg.
    pub(super) fn r(self) -> u8 {
        (self.0 & 4) << 1
    }

    /// Bit 3 of the index register.
    pub(super) fn x(self) -> u8 {
        (self.0 & 2) << 2
    }

    /// Bit 3 of the register in ModRM.rm or of the base register.
    pub(super) fn b(self) -> u8 {
        (self.0 & 1) << 3
    }
}

/// Everything that comes before the opcode.
pub(super) struct Prefixes {
    pub(super) mode: Mode,
    pub(super) operand_override: bool,
    pub(super) address_override: bool,
    pub(super) segment: Option<SegmentName>,
    pub(super) repeat: Option<Rep>,
    pub(super) lock: bool,
    /// `Rex(0)` where there is none.
    pub(super) rex: Rex,
    /// A REX prefix without bits still replaces AH..BH by SPL..DIL.
    pub(super) has_rex: bool,
}

impl Prefixes {
    /// Reads the prefixes; also returns the byte that ended them, the opcode.
    pub(super) fn read(code: &mut Cursor<'_>, mode: Mode) -> Result<(Self, u8), DecodeError> {
        let mut prefixes = Self {
            mode,
            operand_override: false,
            address_override: false,
            segment: None,
            repeat: None,
            lock: false,
            rex: Rex(0),
            has_rex: false,
        };
        loop {
            let byte = code.byte()?;
            if mode == Mode::Bits64 && byte & 0xf0 == 0x40 {
                prefixes.rex = Rex(byte);
                prefixes.has_rex = true;
                continue;
            }
            match byte {
                0x26 => prefixes.set_segment(SegmentName::Es),
                0x2e => prefixes.set_segment(SegmentName::Cs),
                0x36 => prefixes.set_segment(SegmentName::Ss),
                0x3e => prefixes.set_segment(SegmentName::Ds),
                0x64 => prefixes.segment = Some(SegmentName::Fs),
                0x65 => prefixes.segment = Some(SegmentName::Gs),
                0x66 => prefixes.operand_override = true,
                0x67 => prefixes.address_override = true,
                0xf0 => prefixes.lock = true,
                0xf2 => prefixes.repeat = Some(Rep::WhileNotEqual),
                0xf3 => prefixes.repeat = Some(Rep::WhileEqual),
                opcode => return Ok((prefixes, opcode)),
            }
            // A REX prefix counts only right before the opcode.
            prefixes.rex = Rex(0);
            prefixes.has_rex = false;
        }
    }

    fn set_segment(&mut self, segment: SegmentName) {
        // In 64-bit mode these four do nothing, not even cancel an earlier FS or GS.
        if self.mode != Mode::Bits64 {
            self.segment = Some(segment);
        }
    }

    /// Operand size of instructions that are not byte-sized.
    pub(super) fn operand_width(&self) -> Width {
        match (self.mode, self.operand_override) {
            (Mode::Bits64, _) if self.rex.w() => Width::Qword,
            (Mode::Bits16, true) | (Mode::Bits32 | Mode::Bits64, false) => Width::Dword,
            (Mode::Bits16, false) | (Mode::Bits32 | Mode::Bits64, true) => Width::Word,
        }
    }

    /// Operand size of PUSH and POP, which 64-bit mode does not narrow to 32 bits.
    pub(super) fn stack_width(&self) -> Width {
        match self.operand_width() {
            Width::Dword if self.mode == Mode::Bits64 => Width::Qword,
            width => width,
        }
    }

    pub(super) fn address_width(&self) -> Width {
        match (self.mode, self.address_override) {
            (Mode::Bits64, false) => Width::Qword,
            (Mode::Bits16, true) | (Mode::Bits32, false) | (Mode::Bits64, true) => Width::Dword,
            (Mode::Bits16, false) | (Mode::Bits32, true) => Width::Word,
        }
    }
}

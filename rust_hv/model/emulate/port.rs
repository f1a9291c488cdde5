// SPDX-License-Identifier: GPL-2.0

//! The memory side of INS and OUTS.
//!
//! Hardware reports port, direction and size of a string instruction on a port; its address size
//! and segment stand in its prefixes.

use super::address::{linear, room};
use super::cpu::Cpu;
use super::insn::DecodeError;
use super::prefix::{Cursor, Prefixes};
use super::types::{Access, Exception, Gpr, Mode, SegmentName, Width};
use crate::model::arch::addr::Gva;

/// An INS or OUTS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortString {
    /// OUTS rather than INS.
    pub out: bool,
    /// Bytes of an item.
    pub width: Width,
    /// Width of the index register and the count.
    pub address_width: Width,
    /// Where OUTS reads; INS always writes to ES.
    pub segment: SegmentName,
    /// With a REP prefix.
    pub repeated: bool,
    /// Length of the instruction.
    pub len: u8,
    mode: Mode,
}

/// Size of a port access; bit 0 of the opcode is 0 for bytes.
pub(super) fn access_width(prefixes: &Prefixes, opcode: u8) -> Width {
    match (opcode & 1, prefixes.operand_width()) {
        (0, _) => Width::Byte,
        (_, Width::Word) => Width::Word,
        // There is no 64-bit port access: REX.W does nothing.
        _ => Width::Dword,
    }
}

impl PortString {
    /// Decodes INS (6C, 6D) or OUTS (6E, 6F); anything else is [`DecodeError::Unknown`].
    pub fn decode(bytes: &[u8], mode: Mode) -> Result<Self, DecodeError> {
        let mut code = Cursor::new(bytes);
        let (prefixes, opcode) = Prefixes::read(&mut code, mode)?;
        if prefixes.lock {
            return Err(DecodeError::InvalidOpcode);
        }
        if opcode & 0xfc != 0x6c {
            return Err(DecodeError::Unknown);
        }
        let out = opcode & 2 != 0;
        Ok(Self {
            out,
            width: access_width(&prefixes, opcode),
            address_width: prefixes.address_width(),
            segment: if out {
                prefixes.segment.unwrap_or(SegmentName::Ds)
            } else {
                SegmentName::Es
            },
            repeated: prefixes.repeat.is_some(),
            len: code.len(),
            mode,
        })
    }

    /// The register that holds the offset.
    pub const fn index(&self) -> Gpr {
        if self.out {
            Gpr::RSI
        } else {
            Gpr::RDI
        }
    }

    /// Items still to be transferred.
    pub fn count<C: Cpu>(&self, cpu: &C) -> u64 {
        if self.repeated {
            cpu.gpr(Gpr::RCX) & self.address_width.mask()
        } else {
            1
        }
    }

    /// Linear address of the next item, or the exception that the access raises.
    pub fn item<C: Cpu>(&self, cpu: &C) -> Result<Gva, Exception> {
        let offset = cpu.gpr(self.index()) & self.address_width.mask();
        let access = if self.out {
            Access::Read
        } else {
            Access::Write
        };
        linear(cpu, self.mode, self.segment, offset, self.width, access)
    }

    /// Bytes from the next item on, on the way up, whose addresses follow each other: none is outside
    /// of the segment, and the index register does not wrap.
    pub fn room<C: Cpu>(&self, cpu: &C) -> u64 {
        let offset = cpu.gpr(self.index()) & self.address_width.mask();
        room(cpu, self.mode, self.segment, offset, self.address_width)
    }

    /// Moves index and count past so many items.
    pub fn advance<C: Cpu>(&self, cpu: &mut C, items: u64, down: bool) {
        let bytes = items.wrapping_mul(u64::from(self.width.bytes()));
        let index = cpu.gpr(self.index());
        let next = if down {
            index.wrapping_sub(bytes)
        } else {
            index.wrapping_add(bytes)
        };
        let merged = self.address_width.merge(index, next);
        cpu.set_gpr(self.index(), merged);
        if self.repeated {
            let count = cpu.gpr(Gpr::RCX);
            let left = self.address_width.merge(count, count.wrapping_sub(items));
            cpu.set_gpr(Gpr::RCX, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8], mode: Mode) -> PortString {
        PortString::decode(bytes, mode).unwrap()
    }

    #[test]
    fn widths_follow_prefixes_and_mode() {
        let plain = decode(&[0x6d], Mode::Bits16);
        assert_eq!(
            (plain.width, plain.address_width),
            (Width::Word, Width::Word)
        );
        let wide = decode(&[0x66, 0x67, 0x6d], Mode::Bits16);
        assert_eq!(
            (wide.width, wide.address_width),
            (Width::Dword, Width::Dword)
        );
        let long = decode(&[0xf3, 0x48, 0x6f], Mode::Bits64);
        assert_eq!(
            (long.width, long.address_width),
            (Width::Dword, Width::Qword)
        );
        assert!(long.repeated && long.out && long.len == 3);
        assert_eq!(decode(&[0x6c], Mode::Bits32).width, Width::Byte);
    }

    #[test]
    fn ins_ignores_segment_overrides() {
        assert_eq!(decode(&[0x64, 0x6e], Mode::Bits32).segment, SegmentName::Fs);
        assert_eq!(decode(&[0x64, 0x6c], Mode::Bits32).segment, SegmentName::Es);
    }

    #[test]
    fn refuses_what_it_is_not() {
        let unknown = PortString::decode(&[0xa4], Mode::Bits32);
        assert_eq!(unknown, Err(DecodeError::Unknown));
        let locked = PortString::decode(&[0xf0, 0x6c], Mode::Bits32);
        assert_eq!(locked, Err(DecodeError::InvalidOpcode));
        let short = PortString::decode(&[0xf3], Mode::Bits32);
        assert_eq!(short, Err(DecodeError::NeedMoreBytes));
    }
}

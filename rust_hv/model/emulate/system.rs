// SPDX-License-Identifier: GPL-2.0

//! The instructions that leave a guest, for CPUs that tell that there was one, and no more.
//!
//! VT-x reports length and operands of what exited. So does AMD-V with NRIP saving and decode
//! assists (CPUID 0x8000_000A EDX bits 3 and 7; APM Vol. 2, "#VMEXIT" and "Decode Assists");
//! without them the bytes have to be read again. Another CPU may have changed them meanwhile:
//! whoever asks compares the answer with the exit.
//!
//! The encodings are those of APM Vol. 3 and, for what Intel defined, SDM Vol. 2, as an AMD CPU
//! decodes them.

use super::address::{is_canonical, linear};
use super::cpu::Cpu;
use super::insn::{DecodeError, Mem, Operand, Reg, Rep};
use super::modrm::ModRm;
use super::port::{access_width, PortString};
use super::prefix::{Cursor, Prefixes};
use super::types::{Access, Exception, Gpr, Mode, Width};
use crate::model::arch::addr::Gva;
use crate::model::exit::Direction;

/// What a system instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // Named after their mnemonics.
pub enum Kind {
    Clgi,
    Clts,
    /// MOV to (`Write`) or from (`Read`) a control register that exists: 0, 2, 3, 4 or 8.
    Control {
        register: u8,
        gpr: Gpr,
        direction: Direction,
    },
    Cpuid,
    /// MOV to (`Write`) or from (`Read`) a debug register, 0 to 7.
    Debug {
        register: u8,
        gpr: Gpr,
        direction: Direction,
    },
    Hlt,
    /// INT1, once known as ICEBP.
    Int1,
    Invd,
    /// INVLPG, of the page with this operand.
    Invlpg(Operand),
    Invlpga,
    /// INVPCID: the register says what is to be invalidated, the 16 bytes in memory where.
    Invpcid {
        kind: Gpr,
        descriptor: Mem,
    },
    /// LMSW, from a register or from memory, of 16 bits.
    Lmsw(Operand),
    /// MONITOR or MONITORX.
    Monitor,
    /// MWAIT or MWAITX.
    Mwait,
    Pause,
    /// IN (`Read`) or OUT (`Write`).
    Port {
        /// The port, or else it is in DX.
        port: Option<u8>,
        width: Width,
        direction: Direction,
    },
    /// INS or OUTS.
    PortString(PortString),
    Rdmsr,
    Rdpmc,
    Rdpru,
    Rdtscp,
    Rsm,
    Skinit,
    /// SMSW: to a register of this width, or to 16 bits of memory.
    Smsw {
        destination: Operand,
        width: Width,
    },
    Stgi,
    Vmload,
    Vmmcall,
    Vmrun,
    Vmsave,
    Wbinvd,
    Wbnoinvd,
    Wrmsr,
    Xsetbv,
}

/// A system instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct System {
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// What it does, to what.
    pub kind: Kind,
    /// Address size.
    pub address_width: Width,
    mode: Mode,
}

impl System {
    /// Decodes the instruction at the start of `bytes`, which may go on behind it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Unknown`] for all that [`Kind`] does not have. With 15 bytes, never
    /// [`DecodeError::NeedMoreBytes`].
    pub fn decode(bytes: &[u8], mode: Mode) -> Result<Self, DecodeError> {
        let mut code = Cursor::new(bytes);
        let (prefixes, opcode) = Prefixes::read(&mut code, mode)?;
        let kind = match opcode {
            0x0f => two_byte(&mut code, &prefixes)?,
            0x6c..=0x6f => Kind::PortString(PortString::decode(bytes, mode)?),
            _ => one_byte(&mut code, &prefixes, opcode)?,
        };
        if prefixes.lock && !matches!(kind, Kind::Control { register: 8, .. }) {
            return Err(DecodeError::InvalidOpcode);
        }
        Ok(Self {
            len: code.len(),
            kind,
            address_width: prefixes.address_width(),
            mode,
        })
    }

    /// Width of an operand that is as wide as addresses can be: INVPCID's register.
    pub fn operand_width(&self) -> Width {
        native_width(self.mode)
    }

    /// Linear address of INVPCID's descriptor of 16 bytes, or the exception that the access raises.
    ///
    /// # Errors
    ///
    /// As [`System::linear`].
    pub fn descriptor<C: Cpu>(&self, cpu: &C, mem: &Mem) -> Result<Gva, Exception> {
        let upper = Mem {
            disp: mem.disp.wrapping_add(8),
            ..*mem
        };
        let lower = self.linear(cpu, mem, Width::Qword, Access::Read)?;
        self.linear(cpu, &upper, Width::Qword, Access::Read)?;
        Ok(lower)
    }

    /// Linear address of `width` bytes at a memory operand of the instruction, which is the one at
    /// RIP; or the exception that the access raises.
    ///
    /// # Errors
    ///
    /// #SS or #GP, as the segment and the address have it.
    pub fn linear<C: Cpu>(
        &self,
        cpu: &C,
        mem: &Mem,
        width: Width,
        access: Access,
    ) -> Result<Gva, Exception> {
        let next = cpu.rip().wrapping_add(u64::from(self.len));
        let offset = mem.offset(|register| cpu.gpr(register), next, self.address_width);
        linear(cpu, self.mode, mem.segment, offset, width, access)
    }
}

fn one_byte(code: &mut Cursor<'_>, prefixes: &Prefixes, opcode: u8) -> Result<Kind, DecodeError> {
    Ok(match opcode {
        0x90 if prefixes.repeat == Some(Rep::WhileEqual) => Kind::Pause,
        0xe4..=0xe7 => port(prefixes, opcode, Some(code.byte()?)),
        0xec..=0xef => port(prefixes, opcode, None),
        0xf1 => Kind::Int1,
        0xf4 => Kind::Hlt,
        _ => return Err(DecodeError::Unknown),
    })
}

fn port(prefixes: &Prefixes, opcode: u8, port: Option<u8>) -> Kind {
    Kind::Port {
        port,
        width: access_width(prefixes, opcode),
        direction: direction(opcode),
    }
}

/// Bit 1 of an opcode turns the operands around.
const fn direction(opcode: u8) -> Direction {
    if opcode & 2 == 0 {
        Direction::Read
    } else {
        Direction::Write
    }
}

fn two_byte(code: &mut Cursor<'_>, prefixes: &Prefixes) -> Result<Kind, DecodeError> {
    let opcode = code.byte()?;
    Ok(match opcode {
        0x01 => group7(&ModRm::read(code, prefixes)?, prefixes)?,
        0x06 => Kind::Clts,
        0x08 => Kind::Invd,
        0x09 if prefixes.repeat == Some(Rep::WhileEqual) => Kind::Wbnoinvd,
        0x09 => Kind::Wbinvd,
        0x20..=0x23 => special_register(code.byte()?, prefixes, opcode)?,
        0x30 => Kind::Wrmsr,
        0x32 => Kind::Rdmsr,
        0x33 => Kind::Rdpmc,
        0x38 if code.byte()? == 0x82 => invpcid(&ModRm::read(code, prefixes)?, prefixes)?,
        0xa2 => Kind::Cpuid,
        0xaa => Kind::Rsm,
        _ => return Err(DecodeError::Unknown),
    })
}

/// MOV to and from control and debug registers. The other operand is a general-purpose register
/// whatever the first two bits of `modrm` say, and there are no bytes behind it.
fn special_register(modrm: u8, prefixes: &Prefixes, opcode: u8) -> Result<Kind, DecodeError> {
    let register = ((modrm >> 3) & 7) | prefixes.rex.r();
    let gpr = Gpr::new((modrm & 7) | prefixes.rex.b());
    let direction = direction(opcode);
    if opcode & 1 != 0 {
        return match register {
            0..=7 => Ok(Kind::Debug {
                register,
                gpr,
                direction,
            }),
            _ => Err(DecodeError::InvalidOpcode),
        };
    }
    let register = match register {
        // Outside of 64-bit mode there is no REX prefix to reach CR8 with: LOCK takes its place,
        // in every mode (APM Vol. 3, "MOV CRn"; CPUID 0x8000_0001 ECX bit 4).
        0 if prefixes.lock => 8,
        0 | 2 | 3 | 4 | 8 if !prefixes.lock => register,
        _ => return Err(DecodeError::InvalidOpcode),
    };
    Ok(Kind::Control {
        register,
        gpr,
        direction,
    })
}

const fn native_width(mode: Mode) -> Width {
    match mode {
        Mode::Bits64 => Width::Qword,
        Mode::Bits16 | Mode::Bits32 => Width::Dword,
    }
}

/// 0F 01: operands in memory, and instructions without any in place of registers.
fn group7(modrm: &ModRm, prefixes: &Prefixes) -> Result<Kind, DecodeError> {
    match modrm.extension {
        4 if modrm.is_memory() => {
            return Ok(Kind::Smsw {
                destination: modrm.rm(prefixes, Width::Word),
                width: Width::Word,
            })
        }
        4 => {
            let width = prefixes.operand_width();
            return Ok(Kind::Smsw {
                destination: modrm.rm(prefixes, width),
                width,
            });
        }
        6 => return Ok(Kind::Lmsw(modrm.rm(prefixes, Width::Word))),
        7 if modrm.is_memory() => return Ok(Kind::Invlpg(modrm.rm(prefixes, Width::Byte))),
        _ if modrm.is_memory() => return Err(DecodeError::Unknown),
        _ => {}
    }
    // Some of these are other instructions, or none, behind such a prefix.
    let bare = !prefixes.operand_override && prefixes.repeat.is_none();
    Ok(match (modrm.extension, modrm.rm) {
        (1, 0) if bare => Kind::Monitor,
        (1, 1) if bare => Kind::Mwait,
        (2, 1) if bare => Kind::Xsetbv,
        (3, 0) => Kind::Vmrun,
        // With F2 or F3 it is VMGEXIT, which is the same in a guest without encrypted state.
        (3, 1) => Kind::Vmmcall,
        (3, 2) => Kind::Vmload,
        (3, 3) => Kind::Vmsave,
        (3, 4) => Kind::Stgi,
        (3, 5) => Kind::Clgi,
        (3, 6) => Kind::Skinit,
        (3, 7) => Kind::Invlpga,
        (7, 1) => Kind::Rdtscp,
        (7, 2) if bare => Kind::Monitor,
        (7, 3) if bare => Kind::Mwait,
        (7, 5) if bare => Kind::Rdpru,
        _ => return Err(DecodeError::Unknown),
    })
}

/// Whether INVPCID accepts its operands: the kind, and the two halves of the descriptor (SDM Vol. 2A,
/// "INVPCID"). `contexts` is CR4.PCIDE. #GP otherwise.
pub const fn invpcid_allows(
    kind: u64,
    descriptor: [u64; 2],
    contexts: bool,
    linear_bits: u32,
) -> bool {
    const PCID: u64 = 0xfff;
    let [pcid, address] = descriptor;
    if pcid & !PCID != 0 {
        return false;
    }
    let has_context = pcid == 0 || contexts;
    match kind {
        // One address.
        0 => has_context && is_canonical(address, linear_bits),
        // One context.
        1 => has_context,
        // All, with and without global translations.
        2 | 3 => true,
        _ => false,
    }
}

/// 66 0F 38 82.
fn invpcid(modrm: &ModRm, prefixes: &Prefixes) -> Result<Kind, DecodeError> {
    let width = native_width(prefixes.mode);
    match (modrm.reg(prefixes, width), modrm.rm(prefixes, width)) {
        (Operand::Reg(Reg::Low(kind)), Operand::Mem(descriptor))
            if prefixes.operand_override && prefixes.repeat.is_none() =>
        {
            Ok(Kind::Invpcid { kind, descriptor })
        }
        _ => Err(DecodeError::InvalidOpcode),
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The decoder agrees with iced-x86, both ways: on everything that it accepts, and in accepting
//! all of its set.

mod emulate_reference;

use emulate_reference::*;
use iced_x86::{Code, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::*;
use rusthv_model::emulate::*;
use std::collections::HashMap;

fn op(insn: &Instruction) -> Option<Op> {
    Some(match insn.mnemonic() {
        Mnemonic::Add => Op::Add,
        Mnemonic::Or => Op::Or,
        Mnemonic::Adc => Op::Adc,
        Mnemonic::Sbb => Op::Sbb,
        Mnemonic::And => Op::And,
        Mnemonic::Sub => Op::Sub,
        Mnemonic::Xor => Op::Xor,
        Mnemonic::Cmp => Op::Cmp,
        Mnemonic::Test => Op::Test,
        Mnemonic::Not => Op::Not,
        Mnemonic::Neg => Op::Neg,
        Mnemonic::Inc => Op::Inc,
        Mnemonic::Dec => Op::Dec,
        Mnemonic::Mov | Mnemonic::Movnti => Op::Mov,
        Mnemonic::Movzx => Op::Movzx,
        Mnemonic::Movsx | Mnemonic::Movsxd => Op::Movsx,
        Mnemonic::Xchg => Op::Xchg,
        Mnemonic::Xadd => Op::Xadd,
        Mnemonic::Cmpxchg => Op::Cmpxchg,
        Mnemonic::Cmpxchg8b => Op::Cmpxchg8b,
        Mnemonic::Bt => Op::Bt,
        Mnemonic::Bts => Op::Bts,
        Mnemonic::Btr => Op::Btr,
        Mnemonic::Btc => Op::Btc,
        Mnemonic::Push => Op::Push,
        Mnemonic::Pop => Op::Pop,
        _ if !insn.is_string_instruction() => return None,
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Op::Movs,
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => Op::Cmps,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Op::Stos,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Op::Lods,
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => Op::Scas,
        _ => return None,
    })
}

fn is_memory(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Memory | MemorySegSI | MemorySegESI | MemorySegRSI | MemoryESDI | MemoryESEDI | MemoryESRDI
    )
}

/// Must our decoder know this?
fn is_in_set(insn: &Instruction) -> bool {
    let system = |i| {
        let register = insn.op_register(i);
        insn.op_kind(i) == OpKind::Register && !register.is_gpr()
    };
    op(insn).is_some()
        && (0..insn.op_count()).any(|i| is_memory(insn.op_kind(i)))
        && !(0..insn.op_count()).any(system)
}

fn reg(register: Register) -> Reg {
    use Register::{AH, BH, CH, DH};
    assert!(register.is_gpr());
    match register {
        AH => Reg::High(Gpr::RAX),
        CH => Reg::High(Gpr::RCX),
        DH => Reg::High(Gpr::RDX),
        BH => Reg::High(Gpr::RBX),
        _ => Reg::Low(gpr(register)),
    }
}

/// Compares an operand; `size` is its width in ours.
fn same_operand(ours: &Insn, operand: Operand, size: Width, theirs: &Instruction, i: u32) {
    use OpKind::*;
    let kind = theirs.op_kind(i);
    match operand {
        Operand::None => panic!("they have {kind:?}"),
        Operand::Reg(found) => {
            assert_eq!(kind, Register);
            assert_eq!(found, reg(theirs.op_register(i)));
            assert_eq!(size, width(theirs.op_register(i).size()));
        }
        Operand::Imm(value) => {
            let bits = if kind == Immediate8 {
                Width::Byte
            } else {
                size
            };
            assert_eq!(
                value as u64 & bits.mask(),
                theirs.immediate(i) & bits.mask()
            );
        }
        Operand::Mem(mem) => {
            assert_eq!(size, width(theirs.memory_size().size()));
            let string = |register, address| {
                assert_eq!(mem.base, Base::Reg(register));
                assert_eq!((mem.index, mem.scale, mem.disp), (None, 0, 0));
                assert_eq!(ours.address_width, address);
            };
            match kind {
                Memory => same_address(&mem, ours.len, ours.address_width, theirs),
                MemorySegSI => string(Gpr::RSI, Width::Word),
                MemorySegESI => string(Gpr::RSI, Width::Dword),
                MemorySegRSI => string(Gpr::RSI, Width::Qword),
                MemoryESDI => string(Gpr::RDI, Width::Word),
                MemoryESEDI => string(Gpr::RDI, Width::Dword),
                MemoryESRDI => string(Gpr::RDI, Width::Qword),
                _ => panic!("{kind:?} is not memory"),
            }
            let expected = match kind {
                MemoryESDI | MemoryESEDI | MemoryESRDI => SegmentName::Es,
                _ => expected_segment(ours.mode, theirs),
            };
            assert_eq!(mem.segment, expected);
        }
    }
}

fn same(ours: &Insn, theirs: &Instruction) {
    assert_eq!(usize::from(ours.len), theirs.len());
    assert_eq!(Some(ours.op), op(theirs));
    assert_eq!(ours.lock, theirs.has_lock_prefix());
    let operands = match ours.op {
        Op::Push => [ours.src, Operand::None],
        _ => [ours.dst, ours.src],
    };
    let sizes = [ours.width, ours.source_width];
    let mut count = 0;
    for (operand, size) in operands.into_iter().zip(sizes) {
        if operand != Operand::None {
            same_operand(ours, operand, size, theirs, count);
            count += 1;
        }
    }
    assert_eq!(count, theirs.op_count());
    if ours.op.is_string() {
        let theirs = theirs.has_rep_prefix() || theirs.has_repne_prefix();
        assert_eq!(ours.rep.is_some(), theirs);
    } else {
        assert_eq!(ours.rep, None);
    }
}

/// Decodes 16 bytes or more both ways and compares; returns what ours said.
fn check(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    assert!(bytes.len() > MAX_LEN);
    let theirs = reference(bytes, mode, DecoderOptions::NONE);
    let ours = decode(bytes, mode);
    match ours {
        Ok(insn) => {
            same(&insn, &theirs);
            let len = usize::from(insn.len);
            assert_eq!(length(bytes, mode), Ok(len));
            // The bytes after it do not matter, and no byte of it can be missing.
            assert_eq!(decode(&bytes[..len], mode), ours);
            for short in 0..len {
                let cut = decode(&bytes[..short], mode);
                assert_eq!(cut, Err(DecodeError::NeedMoreBytes));
            }
        }
        Err(DecodeError::NeedMoreBytes) => panic!("15 bytes are always enough"),
        Err(DecodeError::TooLong | DecodeError::InvalidOpcode) => {
            assert_eq!(theirs.code(), Code::INVALID);
        }
        Err(DecodeError::Unknown) => assert!(!is_in_set(&theirs), "we lack {theirs}"),
    }
    ours
}

pub fn checked(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    // The bytes belong into any panic message.
    std::panic::catch_unwind(|| check(bytes, mode)).unwrap_or_else(|_| {
        let theirs = reference(bytes, mode, DecoderOptions::NONE);
        let ours = decode(bytes, mode);
        panic!("{mode:?} {bytes:02x?}: {theirs} is not {ours:?}")
    })
}

/// Every opcode of both maps with every ModRM byte, under several prefixes.
#[test]
fn agrees_with_iced_on_every_opcode() {
    let prefixes: [&[u8]; 9] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf0],
        &[0xf3],
        &[0x66, 0x67, 0xf2],
        &[0x2e, 0x48],
        &[0x65, 0x36, 0x47],
        &[0xf0, 0x66, 0x4c],
    ];
    let mut seen = HashMap::new();
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    for mode in MODES {
        for prefix in prefixes {
            for opcode in 0..512u32 {
                for modrm in 0..=255u8 {
                    let mut bytes = prefix.to_vec();
                    if opcode >= 256 {
                        bytes.push(0x0f);
                    }
                    bytes.extend([opcode as u8, modrm]);
                    for _ in 0..2 {
                        noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        bytes.extend(noise.rotate_left(32).to_le_bytes());
                    }
                    if let Ok(insn) = checked(&bytes, mode) {
                        *seen
                            .entry((format!("{:?}", insn.op), bitness(mode)))
                            .or_insert(0) += 1;
                    }
                }
            }
        }
    }
    // 31 operations, each in all three modes.
    assert_eq!(seen.len(), 31 * 3, "{seen:?}");
}

/// An opcode of the set.
fn opcode() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0u8..8, 0u8..4).prop_map(|(op, form)| vec![op << 3 | form]),
        (0x80u8..=0x8b).prop_map(|op| vec![op]),
        (0xa0u8..=0xaf).prop_map(|op| vec![op]),
        prop::sample::select(vec![0x63u8, 0x8f, 0xc6, 0xc7, 0xf6, 0xf7, 0xfe, 0xff])
            .prop_map(|op| vec![op]),
        prop::sample::select(vec![
            0xa3u8, 0xab, 0xb3, 0xbb, 0xba, 0xb0, 0xb1, 0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1, 0xc3,
            0xc7
        ])
        .prop_map(|op| vec![0x0f, op]),
    ]
}

#[test]
fn agrees_with_iced_on_random_bytes() {
    check_many(noise(), |bytes, mode| {
        let _ = checked(bytes, mode);
    });
}

#[test]
fn agrees_with_iced_on_structured_bytes() {
    check_many(structured(opcode()), |bytes, mode| {
        let _ = checked(bytes, mode);
    });
}

#[test]
fn fifteen_bytes_are_the_limit() {
    // 14 prefixes and a string instruction fit; one more prefix does not.
    let mut bytes = [0x66; 16];
    bytes[14] = 0xa4;
    assert_eq!(decode(&bytes, Mode::Bits32).map(|insn| insn.len), Ok(15));
    bytes[14] = 0x66;
    bytes[15] = 0xa4;
    assert_eq!(decode(&bytes, Mode::Bits32), Err(DecodeError::TooLong));
    // The sixteenth byte is not asked for, even if the page ends before it.
    assert_eq!(
        decode(&bytes[..15], Mode::Bits32),
        Err(DecodeError::TooLong)
    );
    assert_eq!(
        decode(&bytes[..14], Mode::Bits32),
        Err(DecodeError::NeedMoreBytes)
    );
}

#[test]
fn lock_is_for_memory_destinations() {
    for (bytes, expected) in [
        (&[0xf0u8, 0x01, 0x07][..], Ok(())),
        (&[0xf0, 0x01, 0xc7], Err(DecodeError::InvalidOpcode)), // to a register
        (&[0xf0, 0x03, 0x07], Err(DecodeError::InvalidOpcode)), // from memory
        (&[0xf0, 0x39, 0x07], Err(DecodeError::InvalidOpcode)), // CMP stores nothing
        (&[0xf0, 0x89, 0x07], Err(DecodeError::InvalidOpcode)), // MOV
        (&[0xf0, 0x0f, 0xa3, 0x07], Err(DecodeError::InvalidOpcode)), // BT
        (&[0xf0, 0x0f, 0xab, 0x07], Ok(())),                    // BTS
        (&[0xf0, 0xa4], Err(DecodeError::InvalidOpcode)),
        (&[0xf0, 0x87, 0x07], Ok(())),
    ] {
        assert_eq!(
            decode(bytes, Mode::Bits32).map(|_| ()),
            expected,
            "{bytes:02x?}"
        );
    }
}

#[test]
fn the_last_repeat_prefix_counts() {
    let rep = |bytes: &[u8]| decode(bytes, Mode::Bits64).unwrap().rep;
    assert_eq!(rep(&[0xf2, 0xf3, 0xa6]), Some(Rep::WhileEqual));
    assert_eq!(rep(&[0xf3, 0xf2, 0xa6]), Some(Rep::WhileNotEqual));
    assert_eq!(rep(&[0xf3, 0x89, 0x07]), None);
}

#[test]
fn errors_become_the_exceptions_of_the_cpu() {
    let vector = |error: DecodeError| error.exception().map(|e| (e.vector.raw(), e.error_code));
    assert_eq!(vector(DecodeError::TooLong), Some((13, Some(0))));
    assert_eq!(vector(DecodeError::InvalidOpcode), Some((6, None)));
    assert_eq!(vector(DecodeError::Unknown), None);
    assert_eq!(vector(DecodeError::NeedMoreBytes), None);
}

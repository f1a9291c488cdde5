// SPDX-License-Identifier: GPL-2.0

//! What the tests against iced-x86 share: its answers, and operands of ours beside its own.
#![allow(dead_code)]

use iced_x86::{Decoder, Instruction, Register};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rusthv_model::emulate::*;

pub const MODES: [Mode; 3] = [Mode::Bits16, Mode::Bits32, Mode::Bits64];
pub const IP: u64 = 0x12_3456;

pub fn bitness(mode: Mode) -> u32 {
    match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    }
}

pub fn reference(bytes: &[u8], mode: Mode, options: u32) -> Instruction {
    Decoder::with_ip(bitness(mode), bytes, IP, options).decode()
}

pub fn width(bytes: usize) -> Width {
    match bytes {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Dword,
        8 => Width::Qword,
        _ => panic!("{bytes} bytes"),
    }
}

pub fn segment(register: Register) -> SegmentName {
    match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => panic!("{register:?}"),
    }
}

pub fn gpr(register: Register) -> Gpr {
    Gpr::new(register.full_register().number() as u8)
}

/// The segment of a memory operand.
pub fn expected_segment(mode: Mode, theirs: &Instruction) -> SegmentName {
    use Register::{CS, DS, EBP, ES, ESP, RBP, RSP, SS};
    // iced shows an override even where 64-bit mode ignores it.
    if mode == Mode::Bits64 && matches!(theirs.segment_prefix(), ES | CS | SS | DS) {
        return match theirs.memory_base() {
            RSP | ESP | RBP | EBP => SegmentName::Ss,
            _ => SegmentName::Ds,
        };
    }
    segment(theirs.memory_segment())
}

/// Compares the address of a memory operand of an instruction of `len` bytes; not its segment.
pub fn same_address(mem: &Mem, len: u8, address: Width, theirs: &Instruction) {
    let (base, index) = (theirs.memory_base(), theirs.memory_index());
    let mut displacement = mem.disp as u64;
    match mem.base {
        Base::None => assert_eq!(base, Register::None),
        Base::Reg(register) => {
            assert!(base.is_gpr());
            assert_eq!(register, gpr(base));
            assert_eq!(address, width(base.size()));
        }
        Base::Rip => {
            let expected = match address {
                Width::Dword => Register::EIP,
                _ => Register::RIP,
            };
            assert_eq!(base, expected);
            displacement = IP.wrapping_add(u64::from(len)).wrapping_add(displacement);
        }
    }
    match mem.index {
        None => assert_eq!(index, Register::None),
        Some(register) => {
            assert!(index.is_gpr());
            assert_eq!(register, gpr(index));
            assert_eq!(address, width(index.size()));
            assert_eq!(1 << mem.scale, theirs.memory_index_scale());
        }
    }
    if base == Register::None && index == Register::None {
        assert_eq!(address, width(theirs.memory_displ_size() as usize));
    }
    assert_eq!(
        displacement & address.mask(),
        theirs.memory_displacement64() & address.mask()
    );
}

/// Checks many byte sequences, each in one of the modes.
pub fn check_many(bytes: impl Strategy<Value = Vec<u8>>, check: impl Fn(&[u8], Mode)) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 40_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cases = (bytes, prop::sample::select(&MODES[..]));
    let result = runner.run(&cases, |(bytes, mode)| {
        check(&bytes, mode);
        Ok(())
    });
    result.unwrap();
}

/// Any bytes, more than an instruction can have.
pub fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 16)
}

/// Prefixes in any order and number, an opcode, anything after it.
pub fn structured(opcode: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop_oneof![
        prop::sample::select(vec![
            0x26u8, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3
        ]),
        0x40u8..=0x4f,
    ];
    (prop::collection::vec(prefix, 0..6), opcode, noise())
        .prop_map(|(prefixes, opcode, tail)| [prefixes, opcode, tail].concat())
}

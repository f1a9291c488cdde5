// SPDX-License-Identifier: GPL-2.0

//! The decoder of system instructions agrees with iced-x86, as an AMD CPU, both ways: on
//! everything that it accepts, and in accepting all of its set.

mod emulate_reference;
mod emulate_support;

use std::collections::BTreeMap;

use emulate_reference::*;
use emulate_support::Machine;
use iced_x86::{Code, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::*;
use rusthv_model::arch::addr::Gva;
use rusthv_model::emulate::system::{invpcid_allows, Kind, System};
use rusthv_model::emulate::*;
use rusthv_model::exit::Direction;

fn is(insn: &Instruction, operand: u32, test: fn(Register) -> bool) -> bool {
    operand < insn.op_count()
        && insn.op_kind(operand) == OpKind::Register
        && test(insn.op_register(operand))
}

/// The name that the instruction has in our set; of a MOV, also which one it is.
fn name(insn: &Instruction) -> Option<String> {
    use Mnemonic::*;
    let either = |test| is(insn, 0, test) || is(insn, 1, test);
    Some(match insn.mnemonic() {
        Mov if either(Register::is_cr) => "control".into(),
        Mov if either(Register::is_dr) => "debug".into(),
        Insb | Insw | Insd => "ins".into(),
        Outsb | Outsw | Outsd => "outs".into(),
        Monitorx => "monitor".into(),
        Mwaitx => "mwait".into(),
        Vmgexit => "vmmcall".into(),
        // Later CPUs also have them with an immediate, which is another instruction.
        Rdmsr | Wrmsr if insn.op_count() != 0 => return None,
        Clgi | Clts | Cpuid | Hlt | In | Int1 | Invd | Invlpg | Invlpga | Invpcid | Lmsw
        | Monitor | Mwait | Out | Pause | Rdmsr | Rdpmc | Rdpru | Rdtscp | Rsm | Skinit | Smsw
        | Stgi | Vmload | Vmmcall | Vmrun | Vmsave | Wbinvd | Wbnoinvd | Wrmsr | Xsetbv => {
            format!("{:?}", insn.mnemonic()).to_lowercase()
        }
        _ => return None,
    })
}

fn our_name(kind: &Kind) -> String {
    let long = format!("{kind:?}").to_lowercase();
    match kind {
        Kind::Port { direction, .. } => match direction {
            Direction::Read => "in",
            Direction::Write => "out",
        },
        Kind::PortString(string) if string.out => "outs",
        Kind::PortString(_) => "ins",
        _ => long.split([' ', '(']).next().unwrap(),
    }
    .into()
}

fn same_memory(ours: &System, mode: Mode, mem: &Mem, theirs: &Instruction) {
    same_address(mem, ours.len, ours.address_width, theirs);
    assert_eq!(mem.segment, expected_segment(mode, theirs));
}

/// Compares a special register and the general-purpose one beside it.
fn same_move(
    theirs: &Instruction,
    mode: Mode,
    first: Register,
    register: u8,
    general: Gpr,
    direction: Direction,
) {
    let special = Register::try_from(first as usize + usize::from(register)).unwrap();
    let (to, from) = (theirs.op_register(0), theirs.op_register(1));
    let (expected, other) = match direction {
        Direction::Read => (from, to),
        Direction::Write => (to, from),
    };
    assert_eq!(special, expected);
    assert!(other.is_gpr());
    assert_eq!(general, gpr(other));
    let size = if mode == Mode::Bits64 { 8 } else { 4 };
    assert_eq!(other.size(), size);
}

fn same_port(theirs: &Instruction, port: Option<u8>, size: Width, direction: Direction) {
    let (data, address) = match direction {
        Direction::Read => (0, 1),
        Direction::Write => (1, 0),
    };
    assert_eq!(gpr(theirs.op_register(data)), Gpr::RAX);
    assert_eq!(size, width(theirs.op_register(data).size()));
    match port {
        Some(port) => assert_eq!(theirs.immediate(address), u64::from(port)),
        None => assert_eq!(theirs.op_register(address), Register::DX),
    }
}

fn same_port_string(theirs: &Instruction, mode: Mode, string: &PortString) {
    use OpKind::*;
    let kind = theirs.op_kind(if string.out { 1 } else { 0 });
    assert_eq!(usize::from(string.len), theirs.len());
    assert_eq!(string.width, width(theirs.memory_size().size()));
    let (address, out) = match kind {
        MemoryESDI => (Width::Word, false),
        MemoryESEDI => (Width::Dword, false),
        MemoryESRDI => (Width::Qword, false),
        MemorySegSI => (Width::Word, true),
        MemorySegESI => (Width::Dword, true),
        MemorySegRSI => (Width::Qword, true),
        _ => panic!("{kind:?} is not of a string"),
    };
    assert_eq!((string.address_width, string.out), (address, out));
    let expected = match out {
        true => expected_segment(mode, theirs),
        false => SegmentName::Es,
    };
    assert_eq!(string.segment, expected);
    let repeated = theirs.has_rep_prefix() || theirs.has_repne_prefix();
    assert_eq!(string.repeated, repeated);
}

fn same_operands(ours: &System, mode: Mode, theirs: &Instruction) {
    let same_operand = |operand: Operand, size: Width| match operand {
        Operand::Reg(Reg::Low(register)) => {
            assert!(is(theirs, 0, Register::is_gpr));
            assert_eq!(register, gpr(theirs.op_register(0)));
            size
        }
        Operand::Mem(mem) => {
            assert_eq!(theirs.op_kind(0), OpKind::Memory);
            assert_eq!(theirs.memory_size().size(), 2);
            same_memory(ours, mode, &mem, theirs);
            size
        }
        other => panic!("{other:?}"),
    };
    match ours.kind {
        Kind::Control {
            register,
            gpr,
            direction,
        } => same_move(theirs, mode, Register::CR0, register, gpr, direction),
        Kind::Debug {
            register,
            gpr,
            direction,
        } => same_move(theirs, mode, Register::DR0, register, gpr, direction),
        Kind::Port {
            port,
            width,
            direction,
        } => same_port(theirs, port, width, direction),
        Kind::PortString(string) => same_port_string(theirs, mode, &string),
        Kind::Smsw { destination, width } => {
            let size = match destination {
                Operand::Mem(_) => 2,
                _ => theirs.op_register(0).size(),
            };
            assert_eq!(usize::from(same_operand(destination, width).bytes()), size);
        }
        Kind::Lmsw(operand) => {
            same_operand(operand, Width::Word);
        }
        Kind::Invpcid { kind, descriptor } => {
            assert_eq!(kind, gpr(theirs.op_register(0)));
            assert_eq!(theirs.op_kind(1), OpKind::Memory);
            same_memory(ours, mode, &descriptor, theirs);
        }
        Kind::Invlpg(Operand::Mem(mem)) => {
            assert_eq!(theirs.op_kind(0), OpKind::Memory);
            same_memory(ours, mode, &mem, theirs);
        }
        // What is left has no operands, or always the same ones.
        _ => {
            let fixed = |i| theirs.op_kind(i) == OpKind::Register;
            assert!((0..theirs.op_count()).all(fixed));
        }
    }
}

fn reference_of(bytes: &[u8], mode: Mode) -> Instruction {
    reference(bytes, mode, DecoderOptions::AMD)
}

/// Decodes 16 bytes or more both ways and compares; returns what ours said.
fn check(bytes: &[u8], mode: Mode) -> Result<System, DecodeError> {
    assert!(bytes.len() > MAX_LEN);
    let theirs = reference_of(bytes, mode);
    let ours = System::decode(bytes, mode);
    match ours {
        Ok(system) => {
            let len = usize::from(system.len);
            assert_eq!(len, theirs.len());
            assert_eq!(Some(our_name(&system.kind)), name(&theirs));
            same_operands(&system, mode, &theirs);
            // The bytes after it do not matter, and no byte of it can be missing.
            assert_eq!(System::decode(&bytes[..len], mode), ours);
            for short in 0..len {
                let cut = System::decode(&bytes[..short], mode);
                assert_eq!(cut, Err(DecodeError::NeedMoreBytes));
            }
        }
        Err(DecodeError::NeedMoreBytes) => panic!("15 bytes are always enough"),
        Err(DecodeError::TooLong | DecodeError::InvalidOpcode) => {
            assert_eq!(theirs.code(), Code::INVALID);
        }
        Err(DecodeError::Unknown) => assert_eq!(name(&theirs), None, "we lack {theirs}"),
    }
    ours
}

pub fn checked(bytes: &[u8], mode: Mode) -> Result<System, DecodeError> {
    // The bytes belong into any panic message.
    std::panic::catch_unwind(|| check(bytes, mode)).unwrap_or_else(|_| {
        let theirs = reference_of(bytes, mode);
        let ours = System::decode(bytes, mode);
        panic!("{mode:?} {bytes:02x?}: {theirs} is not {ours:?}")
    })
}

/// Every opcode of three maps under several prefixes; of the map that has most of the set, with
/// every ModRM byte.
#[test]
fn agrees_with_iced_on_every_opcode() {
    let prefixes: [&[u8]; 11] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf0],
        &[0xf2],
        &[0xf3],
        &[0x66, 0x67, 0xf2],
        &[0x2e, 0x48],
        &[0x65, 0x36, 0x47],
        &[0xf0, 0x66, 0x4c],
        &[0xf3, 0x41],
    ];
    let mut seen = BTreeMap::new();
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    for mode in MODES {
        for prefix in prefixes {
            for opcode in 0..3 * 256u32 {
                let (escape, step): (&[u8], _) = match opcode >> 8 {
                    0 => (&[], 17),
                    1 => (&[0x0f], 1),
                    _ => (&[0x0f, 0x38], 17),
                };
                for modrm in (0..=255u8).step_by(step) {
                    let mut bytes = [prefix, escape, &[opcode as u8, modrm]].concat();
                    for _ in 0..2 {
                        noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        bytes.extend(noise.rotate_left(32).to_le_bytes());
                    }
                    if let Ok(system) = checked(&bytes, mode) {
                        *seen
                            .entry((our_name(&system.kind), bitness(mode)))
                            .or_insert(0) += 1;
                    }
                }
            }
        }
    }
    // 35 instructions, each in all three modes.
    assert_eq!(seen.len(), 35 * 3, "{seen:?}");
}

/// An opcode of the set.
fn opcode() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => prop::sample::select(vec![
            0x6cu8, 0x6d, 0x6e, 0x6f, 0x90, 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef, 0xf1,
            0xf4
        ])
        .prop_map(|op| vec![op]),
        3 => prop::sample::select(vec![
            0x06u8, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x32, 0x33, 0xa2, 0xaa
        ])
        .prop_map(|op| vec![0x0f, op]),
        2 => Just(vec![0x0f, 0x01]),
        1 => (0xc0u8..).prop_map(|modrm| vec![0x0f, 0x01, modrm]),
        1 => Just(vec![0x0f, 0x38, 0x82]),
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

fn kind(bytes: &[u8], mode: Mode) -> Result<Kind, DecodeError> {
    System::decode(bytes, mode).map(|system| system.kind)
}

#[test]
fn lock_reaches_cr8_in_every_mode() {
    for mode in MODES {
        for (opcode, direction) in [(0x20, Direction::Read), (0x22, Direction::Write)] {
            // The first two bits of ModRM say nothing, not even that an address follows.
            for modrm in [0x05, 0x45, 0x85, 0xc5] {
                let expected = Kind::Control {
                    register: 8,
                    gpr: Gpr::RBP,
                    direction,
                };
                assert_eq!(kind(&[0xf0, 0x0f, opcode, modrm], mode), Ok(expected));
            }
            for register in 1..8 {
                let locked = kind(&[0xf0, 0x0f, opcode, 0xc0 | register << 3], mode);
                assert_eq!(locked, Err(DecodeError::InvalidOpcode));
            }
        }
    }
    let rex = kind(&[0x45, 0x0f, 0x22, 0xc7], Mode::Bits64);
    let expected = Kind::Control {
        register: 8,
        gpr: Gpr::new(15),
        direction: Direction::Write,
    };
    assert_eq!(rex, Ok(expected));
    let both = kind(&[0xf0, 0x44, 0x0f, 0x22, 0xc0], Mode::Bits64);
    assert_eq!(both, Err(DecodeError::InvalidOpcode));
}

#[test]
fn registers_that_do_not_exist_are_invalid() {
    for register in 0..16u8 {
        let modrm = 0xc0 | (register & 7) << 3;
        let rex = 0x40 | (register >> 3) << 2;
        let of = |opcode| kind(&[rex, 0x0f, opcode, modrm], Mode::Bits64);
        let control = [0, 2, 3, 4, 8].contains(&register);
        for opcode in [0x20, 0x22] {
            assert_eq!(of(opcode).is_ok(), control, "CR{register}");
        }
        for opcode in [0x21, 0x23] {
            assert_eq!(of(opcode).is_ok(), register < 8, "DR{register}");
        }
    }
}

#[test]
fn machine_status_has_16_bits_but_in_a_register() {
    let smsw = |bytes: &[u8], mode| match kind(bytes, mode) {
        Ok(Kind::Smsw { destination, width }) => (matches!(destination, Operand::Mem(_)), width),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        smsw(&[0x0f, 0x01, 0xe0], Mode::Bits16),
        (false, Width::Word)
    );
    assert_eq!(
        smsw(&[0x0f, 0x01, 0xe0], Mode::Bits64),
        (false, Width::Dword)
    );
    let wide = smsw(&[0x48, 0x0f, 0x01, 0xe0], Mode::Bits64);
    assert_eq!(wide, (false, Width::Qword));
    assert_eq!(
        smsw(&[0x48, 0x0f, 0x01, 0x20], Mode::Bits64),
        (true, Width::Word)
    );
}

#[test]
fn operands_in_memory_have_addresses() {
    let mut machine = Machine::new();
    machine.rip = 0x10_0000;
    machine.set(Gpr::RBX, 0xffff_0000_0001_2000);
    machine.set(Gpr::RSI, 0x10);
    machine.set(Gpr::RBP, 0x1fff);
    machine.segments[SegmentName::Ss as usize].limit = 0x1fff;
    machine.segments[SegmentName::Fs as usize].base = 0x7000_0000;
    let address = |machine: &Machine, bytes: &[u8], mode| {
        let system = System::decode(bytes, mode).unwrap();
        let mem = match system.kind {
            Kind::Lmsw(Operand::Mem(mem)) => mem,
            other => panic!("{other:?}"),
        };
        system
            .linear(machine, &mem, Width::Word, Access::Read)
            .map(Gva::raw)
    };
    // LMSW [BX+SI+5]: offsets have 16 bits.
    let bx_si = [0x0f, 0x01, 0x70, 0x05];
    assert_eq!(address(&machine, &bx_si, Mode::Bits16), Ok(0x2015));
    // LMSW FS:[EBX-1].
    let fs = [0x64, 0x0f, 0x01, 0x73, 0xff];
    assert_eq!(address(&machine, &fs, Mode::Bits32), Ok(0x7001_1fff));
    // LMSW [RBX]: not canonical.
    let rbx = [0x0f, 0x01, 0x33];
    assert_eq!(
        address(&machine, &rbx, Mode::Bits64),
        Err(Exception::general_protection())
    );
    machine.set(Gpr::RBX, 0xffff_8000_0001_2000);
    assert_eq!(
        address(&machine, &rbx, Mode::Bits64),
        Ok(0xffff_8000_0001_2000)
    );
    // LMSW [RIP+0x100], from the end of its seven bytes.
    let rip = [0x0f, 0x01, 0x35, 0x00, 0x01, 0x00, 0x00];
    assert_eq!(address(&machine, &rip, Mode::Bits64), Ok(0x10_0107));
    // LMSW [EBP]: the second byte is beyond the stack segment.
    let ebp = [0x0f, 0x01, 0x75, 0x00];
    assert_eq!(
        address(&machine, &ebp, Mode::Bits32),
        Err(Exception::stack_fault())
    );
}

#[test]
fn descriptors_of_invpcid_have_16_bytes() {
    let mut machine = Machine::new();
    machine.set(Gpr::RBX, 0x1ff8);
    machine.segments[SegmentName::Ds as usize].limit = 0x1fff;
    // INVPCID EAX, [EBX+disp]
    let address = |machine: &Machine, disp: u8, mode| {
        let system = System::decode(&[0x66, 0x0f, 0x38, 0x82, 0x43, disp], mode).unwrap();
        match system.kind {
            Kind::Invpcid { descriptor, .. } => system.descriptor(machine, &descriptor),
            other => panic!("{other:?}"),
        }
    };
    let denied = Err(Exception::general_protection());
    let minus = |by: u8| 0u8.wrapping_sub(by);
    assert_eq!(
        address(&machine, minus(8), Mode::Bits32),
        Ok(Gva::new(0x1ff0))
    );
    assert_eq!(address(&machine, minus(7), Mode::Bits32), denied);
    assert_eq!(address(&machine, 0, Mode::Bits32), denied);
    // No limits, but the end of what is canonical.
    machine.set(Gpr::RBX, 0x7fff_ffff_fff8);
    let last = Gva::new(0x7fff_ffff_fff0);
    assert_eq!(address(&machine, minus(8), Mode::Bits64), Ok(last));
    assert_eq!(address(&machine, minus(7), Mode::Bits64), denied);
    assert_eq!(address(&machine, 0, Mode::Bits64), denied);
}

#[test]
fn operands_of_invpcid() {
    const EDGE: u64 = 1 << 47;
    let allows =
        |kind, pcid, address, contexts| invpcid_allows(kind, [pcid, address], contexts, 48);
    for kind in 0..4 {
        let (one, some) = (kind == 0, kind < 2);
        assert!(allows(kind, 0, EDGE - 1, false));
        // Contexts, where there are any.
        assert!(allows(kind, 0xfff, 0, true));
        assert_eq!(allows(kind, 1, 0, false), !some, "kind {kind}");
        // Reserved bits, whatever is to be forgotten.
        assert!(!allows(kind, 0x1000, 0, true));
        assert!(!allows(kind, 1 << 63, 0, true));
        // Addresses count where one is asked for.
        assert_eq!(allows(kind, 0, EDGE, true), !one, "kind {kind}");
        assert!(allows(kind, 0, 0u64.wrapping_sub(EDGE), true));
    }
    assert!(!allows(4, 0, 0, true));
    assert!(!allows(1 << 32, 0, 0, true));
}

#[test]
fn fifteen_bytes_are_the_limit() {
    let mut bytes = [0x66; 16];
    bytes[14] = 0xf4;
    assert_eq!(System::decode(&bytes, Mode::Bits32).map(|s| s.len), Ok(15));
    bytes[14] = 0x66;
    bytes[15] = 0xf4;
    for known in [&bytes[..], &bytes[..15]] {
        assert_eq!(kind(known, Mode::Bits32), Err(DecodeError::TooLong));
    }
    // HLT fits, CPUID does not.
    bytes[13..].copy_from_slice(&[0x66, 0x0f, 0xa2]);
    assert_eq!(kind(&bytes, Mode::Bits32), Err(DecodeError::TooLong));
}

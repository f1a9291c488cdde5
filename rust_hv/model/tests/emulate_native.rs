// SPDX-License-Identifier: GPL-2.0

//! The executor agrees with the CPU that runs this test: the same bytes on the same registers and
//! memory, once natively and once emulated, leave the same registers, flags and memory.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod emulate_support;

use core::arch::asm;
use emulate_support::Machine;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rusthv_model::arch::regs::Rflags;
use rusthv_model::emulate::*;
use std::cell::RefCell;
use std::collections::HashMap;

const PAGE: usize = 4096;
/// Where the guest code is in the arena, and where the memory that it may touch.
const CODE: usize = 0;
const DATA: usize = PAGE;
const DATA_LEN: usize = 2 * PAGE;
const RSP: usize = 4;

/// Executable and data pages below 4 GiB, so that 32-bit addresses reach them.
struct Arena {
    base: *mut u8,
}

const CF: u64 = Rflags::CF.raw();
const DF: u64 = Rflags::DF.raw();
/// The flags that arithmetic sets.
const STATUS: u64 = 0x8d5;

/// What the trampoline loads before the guest code and stores after it.
#[repr(C)]
struct Context {
    gprs: [u64; 16],
    rflags: u64,
    code: u64,
}

impl Arena {
    fn new() -> Self {
        const SYS_MMAP: i64 = 9;
        const READ_WRITE_EXEC: u64 = 7;
        const PRIVATE_ANONYMOUS_32BIT: u64 = 0x62;
        let address: i64;
        // SAFETY: an anonymous mapping at a place that the kernel picks touches nothing of ours;
        // the clobbers are those of the system-call ABI.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_MMAP => address,
                in("rdi") 0,
                in("rsi") DATA + DATA_LEN,
                in("rdx") READ_WRITE_EXEC,
                in("r10") PRIVATE_ANONYMOUS_32BIT,
                in("r8") -1i64,
                in("r9") 0,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        assert!(address > 0, "mmap: error {}", -address);
        Self {
            base: address as *mut u8,
        }
    }

    fn address(&self, offset: usize) -> u64 {
        self.base as u64 + offset as u64
    }

    fn data(&mut self) -> &mut [u8] {
        // SAFETY: the arena is that long, lives as long as the process, and is only written by
        // guest code while `run` has `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(DATA), DATA_LEN) }
    }

    /// Runs one instruction with these registers (all but RSP).
    ///
    /// # Safety
    ///
    /// The instruction must fall through, and touch no memory but `data` and no RSP.
    unsafe fn run(&mut self, bytes: &[u8], context: &mut Context) {
        const RET: u8 = 0xc3;
        // SAFETY: an instruction and RET fit into the code page.
        unsafe {
            let code = self.base.add(CODE);
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), code, bytes.len());
            code.add(bytes.len()).write(RET);
        }
        context.code = self.address(CODE);
        // SAFETY: every register is saved by us or declared, and DF is clear again at the end;
        // the caller vouches for the guest code.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "push rdi",
                "push qword ptr [rdi + 136]",
                "push qword ptr [rdi + 128]",
                "popfq",
                "mov rax, [rdi]",
                "mov rcx, [rdi + 8]",
                "mov rdx, [rdi + 16]",
                "mov rbx, [rdi + 24]",
                "mov rbp, [rdi + 40]",
                "mov rsi, [rdi + 48]",
                "mov r8, [rdi + 64]",
                "mov r9, [rdi + 72]",
                "mov r10, [rdi + 80]",
                "mov r11, [rdi + 88]",
                "mov r12, [rdi + 96]",
                "mov r13, [rdi + 104]",
                "mov r14, [rdi + 112]",
                "mov r15, [rdi + 120]",
                "mov rdi, [rdi + 56]",
                "call [rsp]",
                "pushfq",
                "cld",
                "push rdi",
                "mov rdi, [rsp + 24]",
                "mov [rdi], rax",
                "mov [rdi + 8], rcx",
                "mov [rdi + 16], rdx",
                "mov [rdi + 24], rbx",
                "mov [rdi + 40], rbp",
                "mov [rdi + 48], rsi",
                "mov [rdi + 64], r8",
                "mov [rdi + 72], r9",
                "mov [rdi + 80], r10",
                "mov [rdi + 88], r11",
                "mov [rdi + 96], r12",
                "mov [rdi + 104], r13",
                "mov [rdi + 112], r14",
                "mov [rdi + 120], r15",
                "pop rax",
                "mov [rdi + 56], rax",
                "pop rax",
                "mov [rdi + 128], rax",
                "add rsp, 16",
                "pop rbp",
                "pop rbx",
                inlateout("rdi") context => _,
                lateout("rax") _,
                lateout("rcx") _,
                lateout("rdx") _,
                lateout("rsi") _,
                lateout("r8") _,
                lateout("r9") _,
                lateout("r10") _,
                lateout("r11") _,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
            );
        }
    }
}

/// Raw material for one comparison.
#[derive(Clone, Debug)]
struct Case {
    bytes: Vec<u8>,
    gprs: [u64; 16],
    rflags: u64,
    /// Where in the data the operands lie.
    at: [u16; 2],
    count: u8,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let prefix = prop::sample::select(vec![0x66u8, 0x67, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x3e]);
    let rex = prop_oneof![Just(vec![]), (0x40u8..=0x4f).prop_map(|rex| vec![rex])];
    let opcode = prop_oneof![
        4 => (0u8..8, 0u8..4).prop_map(|(op, form)| vec![op << 3 | form]),
        4 => prop::sample::select(vec![
            0x63u8, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0xc6, 0xc7,
            0xf6, 0xf7, 0xf6, 0xf7, 0xfe, 0xff,
        ])
        .prop_map(|op| vec![op]),
        2 => prop::sample::select(vec![
            0xa4u8, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf
        ])
        .prop_map(|op| vec![op]),
        4 => prop::sample::select(vec![
            0xa3u8, 0xab, 0xb3, 0xbb, 0xba, 0xb0, 0xb1, 0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1, 0xc3
        ])
        .prop_map(|op| vec![0x0f, op]),
    ];
    // CMPXCHG8B is rare among the values of ModRM.
    let opcode = prop_oneof![
        20 => (opcode, any::<u8>()).prop_map(|(op, modrm)| [op, vec![modrm]].concat()),
        1 => (0u8..8).prop_map(|rm| vec![0x0f, 0xc7, 0x88 | rm]),
    ];
    let tail = prop::collection::vec(any::<u8>(), 13);
    // Small values and edges meet carries and matching comparisons more often.
    let value = prop_oneof![
        any::<u64>(),
        prop::sample::select(vec![
            0,
            1,
            0x7f,
            0x80,
            0x7fff,
            0x8000,
            0x7fff_ffff,
            0x8000_0000,
            1 << 63,
            !0
        ]),
        0u64..4096,
    ];
    let bytes = (prop::collection::vec(prefix, 0..3), rex, opcode, tail)
        .prop_map(|(prefixes, rex, opcode, tail)| [prefixes, rex, opcode, tail].concat());
    (
        bytes,
        prop::array::uniform16(value),
        any::<u64>(),
        [0..DATA_LEN as u16, 0..DATA_LEN as u16],
        0u8..20,
        any::<u64>(),
    )
        .prop_map(|(bytes, gprs, flags, at, count, seed)| Case {
            bytes,
            gprs,
            // Bit 1 always reads as set, and interrupts stay enabled.
            rflags: (flags & (STATUS | DF)) | 0x202,
            at,
            count,
            seed,
        })
}

/// Points the instruction's memory operands into the data, or says that it cannot.
fn aim(insn: &Insn, case: &mut Case, arena: &Arena) -> Option<()> {
    let is_rsp = |register: Gpr| usize::from(register.number()) == RSP;
    for (operand, at) in [insn.dst, insn.src].into_iter().zip(case.at) {
        match operand {
            Operand::Reg(Reg::Low(register)) if is_rsp(register) => return None,
            Operand::Mem(mem) => {
                let Base::Reg(base) = mem.base else {
                    return None;
                };
                if is_rsp(base) || mem.index == Some(base) {
                    return None;
                }
                let index = mem.index.map_or(0, |index| {
                    case.gprs[usize::from(index.number())] << mem.scale
                });
                let address = arena
                    .address(DATA + usize::from(at))
                    .wrapping_sub(index)
                    .wrapping_sub(mem.disp as u64);
                let junk = case.seed & !insn.address_width.mask();
                let base = usize::from(base.number());
                case.gprs[base] = (address & insn.address_width.mask()) | junk;
            }
            _ => {}
        }
    }
    // An accumulator that matches now and then, a bit offset that stays near.
    if insn.op.is_bit_test() {
        if let (Operand::Reg(Reg::Low(index)), Operand::Mem(mem)) = (insn.src, insn.dst) {
            if mem.base != Base::Reg(index) && mem.index != Some(index) {
                let index = &mut case.gprs[usize::from(index.number())];
                let near = (*index & 0x3fff) as i64 - 0x2000;
                *index = near as u64;
            }
        }
    }
    if insn.op.is_string() {
        // A zero count with a 32-bit counter is left out: some CPUs then clear the upper halves.
        let rcx = &mut case.gprs[1];
        *rcx = match insn.address_width {
            Width::Qword => u64::from(case.count),
            _ => u64::from(case.count.max(1)) | *rcx & !0xffff_ffff,
        };
    }
    Some(())
}

fn fill(data: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in data.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Runs of equal bytes give repeated comparisons something to repeat.
        let word = if state & 3 == 0 { state } else { 0 };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// The same CPU with the same memory, emulated.
fn emulated(case: &Case, arena: &mut Arena) -> Machine {
    let mut machine = Machine::new();
    for offset in (0..DATA_LEN).step_by(PAGE) {
        let address = arena.address(DATA + offset);
        machine.ram(address, address);
    }
    let base = arena.address(DATA);
    machine.poke(base, arena.data());
    machine.gprs = case.gprs;
    machine.rflags = Rflags::from_raw(case.rflags);
    machine.rip = arena.address(CODE);
    machine
}

/// Compares one case; returns its operation if it could be run.
fn compare(mut case: Case, arena: &mut Arena) -> Option<(Op, bool)> {
    let insn = decode(&case.bytes, Mode::Bits64).ok()?;
    case.bytes.truncate(usize::from(insn.len));
    if matches!(insn.op, Op::Push | Op::Pop) {
        return None;
    }
    // Whether a failed comparison clears the upper half of a destination register, vendors
    // document differently.
    if insn.op == Op::Cmpxchg && matches!(insn.dst, Operand::Reg(_)) && insn.width == Width::Dword {
        return None;
    }
    // Of MOVSXD to 16 bits, Intel's load is 16 bits wide, as ours, and AMD's 32: at the very end of
    // the data, that faults.
    if insn.op == Op::Movsx && insn.width == insn.source_width {
        return None;
    }
    aim(&insn, &mut case, arena)?;
    fill(arena.data(), case.seed);
    let mut machine = emulated(&case, arena);
    // A fault means that the operand does not lie in the data: then it is not for us to run.
    if machine.run_insn(&insn) != (Outcome::Done { trap: false }) {
        return None;
    }
    assert_eq!(machine.rip, arena.address(CODE) + u64::from(insn.len));
    let mut context = Context {
        gprs: case.gprs,
        rflags: case.rflags,
        code: 0,
    };
    // SAFETY: the emulator has shown which memory the instruction touches, and none of the set
    // branches; RSP is no operand.
    unsafe { arena.run(&case.bytes, &mut context) };
    assert_eq!(machine.gprs, context.gprs, "registers of {insn:?}");
    let flags = |rflags| rflags & (STATUS | DF);
    assert_eq!(
        flags(machine.rflags.raw()),
        flags(context.rflags),
        "flags of {insn:?}"
    );
    let found = machine.peek(arena.address(DATA), DATA_LEN as u64);
    assert!(found == arena.data(), "memory of {insn:?}");
    let memory = matches!(insn.dst, Operand::Mem(_)) || matches!(insn.src, Operand::Mem(_));
    Some((insn.op, memory))
}

#[test]
fn agrees_with_the_cpu() {
    let config = ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let arena = RefCell::new(Arena::new());
    let ran = RefCell::new(HashMap::new());
    let result = TestRunner::new(config).run(&case(), |case| {
        if let Some((op, true)) = compare(case, &mut arena.borrow_mut()) {
            *ran.borrow_mut().entry(format!("{op:?}")).or_insert(0) += 1;
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // All 31 but PUSH and POP, with memory, often enough to mean something.
    let ran = ran.into_inner();
    println!("{ran:?}");
    assert_eq!(ran.len(), 29, "{ran:?}");
    assert!(ran.values().all(|times| *times >= 20), "{ran:?}");
}

/// Every pair of bytes through every 8-bit operation, with carry clear and set.
#[test]
fn agrees_with_the_cpu_on_all_bytes() {
    let mut arena = Arena::new();
    let address = arena.address(DATA);
    // ADD..CMP [RSI], CL; TEST; INC, DEC, NOT, NEG; XADD; CMPXCHG.
    let mut code: Vec<Vec<u8>> = (0..8).map(|op| vec![op << 3, 0x0e]).collect();
    code.push(vec![0x84, 0x0e]);
    code.extend([vec![0xfe, 0x06], vec![0xfe, 0x0e]]);
    code.extend([vec![0xf6, 0x16], vec![0xf6, 0x1e]]);
    code.extend([vec![0x0f, 0xc0, 0x0e], vec![0x0f, 0xb0, 0x0e]]);
    for bytes in code {
        let insn = decode(&bytes, Mode::Bits64).unwrap();
        let mut machine = Machine::new();
        machine.ram(address, address);
        for a in 0..=255u8 {
            for b in (0..=255u8).step_by(3) {
                for carry in [0, CF] {
                    let mut context = Context {
                        gprs: [0; 16],
                        rflags: 0x202 | carry,
                        code: 0,
                    };
                    context.gprs[0] = u64::from(b);
                    context.gprs[1] = u64::from(b);
                    context.gprs[6] = address;
                    machine.gprs = context.gprs;
                    machine.rflags = Rflags::from_raw(context.rflags);
                    machine.poke(address, &[a]);
                    arena.data()[0] = a;
                    // SAFETY: the only memory operand is the data's first byte.
                    unsafe { arena.run(&bytes, &mut context) };
                    machine.run_insn(&insn);
                    let what = (insn.op, a, b, carry);
                    assert_eq!(machine.gprs, context.gprs, "{what:x?}");
                    assert_eq!(machine.peek(address, 1), arena.data()[..1], "{what:x?}");
                    assert_eq!(
                        machine.rflags.raw() & STATUS,
                        context.rflags & STATUS,
                        "{what:x?}"
                    );
                }
            }
        }
    }
}

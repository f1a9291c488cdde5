// SPDX-License-Identifier: GPL-2.0

//! Plain moves do the same as the executor does with the instruction.

mod emulate_support;

use emulate_support::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rusthv_model::emulate::*;
use std::cell::Cell;

const DEVICES: u64 = 0x4_0000;
const ENOUGH: u32 = 2000;

/// Opcodes with a memory operand that move, and some that do something else.
const OPCODES: &[&[u8]] = &[
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0xc6],
    &[0xc7],
    &[0x63],
    &[0xa0],
    &[0xa1],
    &[0xa2],
    &[0xa3],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xbe],
    &[0x0f, 0xbf],
    &[0x0f, 0xc3],
    &[0x01],
    &[0x87],
    &[0xa4],
    &[0x8f],
];

fn machine(gprs: [u64; 16], bases: [u64; 6]) -> Machine {
    let mut machine = Machine::new();
    machine.gprs = gprs;
    for (segment, base) in machine.segments.iter_mut().zip(bases) {
        segment.base = base;
    }
    for page in (0..DEVICES).step_by(0x1000) {
        machine.mmio(page, 0xfe00_0000 + page);
    }
    machine
}

#[test]
fn plain_moves_agree_with_the_executor() {
    let input = (
        prop::sample::select(vec![Mode::Bits16, Mode::Bits32, Mode::Bits64]),
        prop::collection::vec(
            prop::sample::select(&[0x66u8, 0x67, 0x64, 0x65, 0x3e][..]),
            0..3,
        ),
        prop::option::of(0x40u8..0x50),
        prop::sample::select(OPCODES),
        prop::collection::vec(prop_oneof![any::<u8>(), 0u8..2], 12),
        prop::array::uniform16(prop_oneof![0u64..0x4000, any::<u64>()]),
        prop::array::uniform6(prop::sample::select(&[0u64, 0x1000, 0x2004][..])),
    );
    let (loads, stores) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config::with_cases(60_000));
    let result = runner.run(
        &input,
        |(mode, prefixes, rex, opcode, tail, gprs, bases)| {
            let mut bytes = prefixes;
            bytes.extend(rex.filter(|_| mode == Mode::Bits64));
            bytes.extend(opcode);
            bytes.extend(tail);
            bytes.truncate(MAX_LEN);
            let Ok(insn) = decode(&bytes, mode) else {
                return Ok(());
            };
            let Some(plain) = insn.plain_move() else {
                return Ok(());
            };
            let start = machine(gprs, bases);
            let mut wanted = start.clone();
            if wanted.run_insn(&insn) != DONE {
                return Ok(());
            }
            prop_assert_eq!(plain.insn_len(), insn.len);
            let segment = start.segment(plain.segment()).base;
            let flat = mode == Mode::Bits64
                && !matches!(plain.segment(), SegmentName::Fs | SegmentName::Gs);
            let base = if flat { 0 } else { segment };
            let offset = base.wrapping_add(plain.offset(&gprs, start.rip)) & 0xfff;
            let bytes = u64::from(plain.bytes());
            if offset + bytes > 0x1000 {
                return Ok(());
            }
            let mut found = gprs;
            if plain.is_store() {
                let (gpa, data) = &wanted.mmio_writes[0];
                prop_assert_eq!(wanted.mmio_writes.len(), 1);
                prop_assert_eq!((gpa & 0xfff, data.len() as u64), (offset, bytes));
                let stored = plain.stored(&gprs).to_le_bytes();
                prop_assert_eq!(&stored[..data.len()], &data[..]);
                stores.set(stores.get() + 1);
            } else {
                let read = wanted.mmio_reads[0];
                prop_assert_eq!(wanted.mmio_reads.len(), 1);
                prop_assert_eq!(
                    (read.gpa.page_offset(), u64::from(read.len)),
                    (offset, bytes)
                );
                // What lies behind the answer is no part of it.
                let answer = Machine::device_value(read.gpa.raw(), bytes);
                let rest = u64::MAX.checked_shl(8 * bytes as u32).unwrap_or(0);
                plain.finish_load(&mut found, answer | rest);
                loads.set(loads.get() + 1);
            }
            prop_assert_eq!(found, wanted.gprs);
            Ok(())
        },
    );
    result.unwrap();
    assert!(loads.get() > ENOUGH, "{} loads", loads.get());
    assert!(stores.get() > ENOUGH, "{} stores", stores.get());
}

#[test]
fn the_stack_pointer_and_high_bytes_are_not_plain() {
    for (bytes, mode) in [
        // mov rsp, [rax]; mov [rsp], rax; mov [rax], esp; mov ah, [rbx]; lodsb; push [rax]
        (&[0x48, 0x8b, 0x20][..], Mode::Bits64),
        (&[0x48, 0x89, 0x04, 0x24], Mode::Bits64),
        (&[0x89, 0x20], Mode::Bits64),
        (&[0x8a, 0x23], Mode::Bits64),
        (&[0xac], Mode::Bits64),
        (&[0xff, 0x30], Mode::Bits64),
    ] {
        let insn = decode(bytes, mode).unwrap();
        assert_eq!(insn.plain_move(), None, "{bytes:x?}");
    }
    // mov rax, [rbx]
    assert!(decode(&[0x48, 0x8b, 0x03], Mode::Bits64)
        .unwrap()
        .plain_move()
        .is_some());
}

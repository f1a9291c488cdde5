// SPDX-License-Identifier: GPL-2.0

//! String instructions, the bit-test family, and single-stepping.

mod emulate_support;

use emulate_support::*;
use rusthv_model::arch::regs::Rflags;
use rusthv_model::arch::segment::Segment;
use rusthv_model::emulate::*;

mod strings {
    use super::*;

    const CF: Rflags = Rflags::CF;
    const ZF: Rflags = Rflags::ZF;

    const REP_MOVSB: [u8; 2] = [0xf3, 0xa4];

    #[test]
    fn copies_upwards_over_a_page() {
        let mut machine = machine();
        let data: Vec<u8> = (1..=20).collect();
        machine.poke(0x9_1100, &data);
        machine.set(Gpr::RSI, 0x1100);
        machine.set(Gpr::RDI, 0x1ff8);
        machine.set(Gpr::RCX, 20);
        assert_eq!(machine.run(&REP_MOVSB, Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x9_1ff8, 8), data[..8]);
        assert_eq!(machine.peek(0x5_2000, 12), data[8..]);
        let indexes = [Gpr::RSI, Gpr::RDI, Gpr::RCX].map(|r| machine.reg(r));
        assert_eq!(indexes, [0x1114, 0x200c, 0]);
        assert_eq!(machine.rip, 0x10_0002);
        assert!(!machine.rflags.contains(Rflags::RF));
    }

    #[test]
    fn copies_downwards_over_a_page_with_elements_across() {
        let mut machine = machine();
        let data: Vec<u8> = (1..=16).collect();
        machine.poke(0x9_1100, &data);
        machine.rflags |= Rflags::DF;
        machine.set(Gpr::RSI, 0x110c);
        machine.set(Gpr::RDI, 0x2006);
        machine.set(Gpr::RCX, 4);
        // rep movsd: its third element lies at 0x1ffe
        assert_eq!(machine.run(&[0xf3, 0xa5], Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x9_1ffa, 6), data[..6]);
        assert_eq!(machine.peek(0x5_2000, 10), data[6..]);
        let indexes = [Gpr::RSI, Gpr::RDI, Gpr::RCX].map(|r| machine.reg(r));
        assert_eq!(indexes, [0x10fc, 0x1ff6, 0]);
    }

    #[test]
    fn overlapping_copies_spread_the_first_byte() {
        let mut machine = machine();
        machine.poke(0x9_1100, &[7]);
        machine.set(Gpr::RSI, 0x1100);
        machine.set(Gpr::RDI, 0x1101);
        machine.set(Gpr::RCX, 5);
        assert_eq!(machine.run(&REP_MOVSB, Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x9_1100, 7), [7, 7, 7, 7, 7, 7, 0]);
    }

    #[test]
    fn a_fault_keeps_the_iterations_before_it() {
        let mut machine = machine();
        machine.poke(0x9_1000, &[1, 2, 3, 4, 5, 6, 7, 8]);
        machine.set(Gpr::RSI, 0x1000);
        machine.set(Gpr::RDI, 0x2ffd);
        machine.set(Gpr::RCX, 8);
        let outcome = machine.run(&REP_MOVSB, Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, WRITE));
        assert_eq!(machine.peek(0x5_2ffd, 3), [1, 2, 3]);
        let indexes = [Gpr::RSI, Gpr::RDI, Gpr::RCX].map(|r| machine.reg(r));
        assert_eq!(indexes, [0x1003, 0x3000, 5]);
        assert_eq!(machine.rip, 0x10_0000);
        // With the page there it goes on to the same end.
        machine.ram(0x3000, 0x7000);
        assert_eq!(machine.run(&REP_MOVSB, Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x7000, 5), [4, 5, 6, 7, 8]);
    }

    #[test]
    fn each_device_store_is_its_own_step() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x4000);
        machine.set(Gpr::RAX, 0xabcd);
        machine.set(Gpr::RCX, 3);
        let insn = decode(&[0xf3, 0x66, 0xab], Mode::Bits32).unwrap();
        for left in [2, 1, 0] {
            let outcome = machine.step(&insn, &mut MmioLog::new(), 100);
            let Outcome::MmioWrite {
                mut writes,
                finished,
                ..
            } = outcome
            else {
                panic!("{outcome:?}");
            };
            let write = writes.pop().unwrap();
            assert_eq!(write.gpa.raw(), 0xfee0_4000 + 2 * (2 - left));
            assert_eq!(write.bytes(), [0xcd, 0xab]);
            assert_eq!(writes.pop(), None);
            assert_eq!(machine.reg(Gpr::RCX), left);
            assert_eq!(finished, left == 0);
            let rip = if finished { 0x10_0003 } else { 0x10_0000 };
            assert_eq!(machine.rip, rip);
            assert_eq!(machine.rflags.contains(Rflags::RF), !finished);
        }
    }

    #[test]
    fn device_to_device() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4ffe);
        machine.set(Gpr::RDI, 0x4ffd);
        machine.set(Gpr::RCX, 2);
        assert_eq!(machine.run(&[0xf3, 0xa5], Mode::Bits32), DONE);
        let reads: Vec<_> = machine
            .mmio_reads
            .iter()
            .map(|r| (r.gpa.raw(), r.len))
            .collect();
        let (low, high) = (0xfee0_4000, 0xfed0_5000);
        assert_eq!(reads, [(low + 0xffe, 2), (high, 2), (high + 2, 4)]);
        let byte = Machine::device;
        let expected = [
            (
                low + 0xffd,
                vec![byte(low + 0xffe), byte(low + 0xfff), byte(high)],
            ),
            (high, vec![byte(high + 1)]),
            (
                high + 1,
                vec![
                    byte(high + 2),
                    byte(high + 3),
                    byte(high + 4),
                    byte(high + 5),
                ],
            ),
        ];
        assert_eq!(machine.mmio_writes, expected);
    }

    #[test]
    fn loads_from_a_device_end_in_the_accumulator() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4000);
        machine.set(Gpr::RAX, 0xffff_ffff_ffff_ffff);
        machine.set(Gpr::RCX, 3);
        // rep lodsw
        assert_eq!(machine.run(&[0xf3, 0x66, 0xad], Mode::Bits64), DONE);
        let last = Machine::device_value(0xfee0_4004, 2);
        assert_eq!(machine.reg(Gpr::RAX), 0xffff_ffff_ffff_0000 | last);
        assert_eq!(machine.mmio_reads.len(), 3);
        assert_eq!(machine.reg(Gpr::RSI), 0x4006);
    }

    #[test]
    fn the_limit_bounds_one_call() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1000);
        machine.set(Gpr::RCX, 100);
        let insn = decode(&[0xf3, 0xaa], Mode::Bits32).unwrap();
        for (limit, left) in [(40, 60), (1, 59), (0, 58), (57, 1)] {
            let outcome = machine.step(&insn, &mut MmioLog::new(), limit);
            assert_eq!(outcome, Outcome::Again { trap: false });
            assert_eq!(machine.reg(Gpr::RCX), left);
            assert_eq!(machine.rip, 0x10_0000);
            assert!(machine.rflags.contains(Rflags::RF));
        }
        assert_eq!(machine.step(&insn, &mut MmioLog::new(), 1), DONE);
        assert_eq!(machine.rip, 0x10_0002);
        assert!(!machine.rflags.contains(Rflags::RF));
    }

    #[test]
    fn a_count_of_zero_does_nothing() {
        let mut machine = machine();
        // CX is zero, the rest of RCX is not; and there is no memory there.
        machine.set(Gpr::RCX, 0x7_0000);
        machine.set(Gpr::RDI, 0x3000);
        let before = machine.gprs;
        assert_eq!(machine.run(&[0xf3, 0xaa], Mode::Bits16), DONE);
        assert_eq!((machine.gprs, machine.rip), (before, 0x10_0002));
        assert!(machine.translated.is_empty());
        let outcome = machine.run(&[0xf3, 0xaa], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, WRITE));
    }

    #[test]
    fn index_registers_wrap_at_the_address_size() {
        let mut machine = machine();
        machine.ram(0xf000, 0x7000);
        machine.ram(0, 0x8000);
        machine.set(Gpr::RDI, 0x1234_ffff);
        machine.set(Gpr::RCX, 0x5678_0002);
        machine.set(Gpr::RAX, 0xab);
        assert_eq!(machine.run(&[0xf3, 0xaa], Mode::Bits16), DONE);
        assert_eq!(machine.reg(Gpr::RDI), 0x1234_0001);
        assert_eq!(machine.reg(Gpr::RCX), 0x5678_0000);
        assert_eq!(machine.peek(0x7fff, 1), [0xab]);
        assert_eq!(machine.peek(0x8000, 1), [0xab]);
    }

    #[test]
    fn comparisons_stop_where_decided() {
        let mut machine = machine();
        machine.poke(0x9_1000, b"abcXef");
        machine.poke(0x9_1100, b"abcdef");
        let run = |machine: &mut Machine, bytes: &[u8]| {
            machine.set(Gpr::RSI, 0x1000);
            machine.set(Gpr::RDI, 0x1100);
            machine.set(Gpr::RCX, 6);
            assert_eq!(machine.run(bytes, Mode::Bits32), DONE);
            let indexes = [Gpr::RSI, Gpr::RDI, Gpr::RCX].map(|r| machine.reg(r));
            (indexes, machine.rflags.intersection(ZF | CF))
        };
        // repe cmpsb: 'X' is below 'd'
        let stopped = run(&mut machine, &[0xf3, 0xa6]);
        assert_eq!(stopped, ([0x1004, 0x1104, 2], CF));
        // repne scasb for 'c'
        machine.set(Gpr::RAX, u64::from(b'c'));
        let stopped = run(&mut machine, &[0xf2, 0xae]);
        assert_eq!(stopped, ([0x1000, 0x1103, 3], ZF));
        // repne scasb for what is not there
        machine.set(Gpr::RAX, u64::from(b'z'));
        let stopped = run(&mut machine, &[0xf2, 0xae]);
        assert_eq!(stopped, ([0x1000, 0x1106, 0], Rflags::NONE));
    }

    #[test]
    fn only_the_source_segment_can_be_overridden() {
        let mut machine = machine();
        let segment = |base| Segment { base, ..FLAT };
        machine.segments[SegmentName::Gs as usize] = segment(0x1000);
        machine.segments[SegmentName::Es as usize] = segment(0x2000);
        machine.poke(0x9_1010, &[0x5a]);
        machine.set(Gpr::RSI, 0x10);
        machine.set(Gpr::RDI, 0x20);
        // movsb es:[edi], gs:[esi]
        assert_eq!(machine.run(&[0x65, 0xa4], Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x5_2020, 1), [0x5a]);
    }
}

mod bits {
    use super::*;

    #[test]
    fn negative_offsets_reach_below_the_operand() {
        for (bytes, mode, offset, byte, bit) in [
            // bts [rdi], cx / ecx / rcx
            (
                &[0x66u8, 0x0f, 0xab, 0x0f][..],
                Mode::Bits64,
                -1i64,
                -1i64,
                7,
            ),
            (&[0x0f, 0xab, 0x0f], Mode::Bits64, -1, -1, 7),
            (&[0x48, 0x0f, 0xab, 0x0f], Mode::Bits64, -65, -9, 7),
            (
                &[0x48, 0x0f, 0xab, 0x0f],
                Mode::Bits64,
                64 * 100 + 9,
                801,
                1,
            ),
            (&[0x0f, 0xab, 0x0f], Mode::Bits32, -8 * 0x200, -0x200, 0),
            (&[0x66, 0x0f, 0xab, 0x0f], Mode::Bits32, 0x7fff, 0xfff, 7),
        ] {
            let mut machine = machine();
            machine.set(Gpr::RDI, 0x1800);
            // Above the operand size the register does not count.
            let junk = if bytes[0] == 0x66 { 0x1234_0000 } else { 0 };
            let width = decode(bytes, mode).unwrap().width;
            machine.set(Gpr::RCX, (offset as u64 & width.mask()) | junk);
            assert_eq!(machine.run(bytes, mode), DONE);
            let expected = 0x1800i64 + byte;
            let gpa = if expected < 0x2000 {
                0x9_0000
            } else {
                0x5_0000
            } + expected as u64;
            assert_eq!(machine.peek(gpa, 1), [1 << bit], "{bytes:02x?} {offset}");
            assert!(!machine.rflags.contains(Rflags::CF));
            assert_eq!(machine.run(bytes, mode), DONE);
            assert!(machine.rflags.contains(Rflags::CF));
        }
    }

    #[test]
    fn immediate_offsets_stay_inside() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1000);
        // btc dword [rdi], 0xff
        assert_eq!(machine.run(&[0x0f, 0xba, 0x3f, 0xff], Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x9_1000, 4), [0, 0, 0, 0x80]);
        // btr dword [rdi], 31
        assert_eq!(machine.run(&[0x0f, 0xba, 0x37, 31], Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x9_1000, 4), [0; 4]);
        assert!(machine.rflags.contains(Rflags::CF));
    }

    #[test]
    fn offsets_wrap_at_the_address_size() {
        let mut machine = machine();
        machine.ram(0xf000, 0x7000);
        machine.set(Gpr::RBX, 0);
        machine.set(Gpr::RCX, 0xffff);
        // bts [bx], cx in 16-bit mode: the word at 0xfffe
        assert_eq!(machine.run(&[0x0f, 0xab, 0x0f], Mode::Bits16), DONE);
        assert_eq!(machine.peek(0x7ffe, 2), [0, 0x80]);
    }
}

mod single_step {
    use super::*;

    const TRAP: Outcome<HostError> = Outcome::Done { trap: true };

    #[test]
    fn each_instruction_and_each_iteration_traps() {
        let mut machine = machine();
        machine.rflags |= Rflags::TF | Rflags::RF;
        machine.set(Gpr::RDI, 0x1000);
        machine.set(Gpr::RCX, 2);
        assert_eq!(machine.run(&[0x89, 0x07], Mode::Bits32), TRAP);
        assert!(machine.rflags.contains(Rflags::TF));
        assert!(!machine.rflags.contains(Rflags::RF));
        let insn = decode(&[0xf3, 0xaa], Mode::Bits32).unwrap();
        let mut log = MmioLog::new();
        let outcome = machine.step(&insn, &mut log, 100);
        assert_eq!(outcome, Outcome::Again { trap: true });
        assert_eq!(machine.reg(Gpr::RCX), 1);
        assert_eq!(machine.step(&insn, &mut log, 100), TRAP);
        assert_eq!(machine.reg(Gpr::RCX), 0);
    }

    #[test]
    fn a_trap_comes_after_the_device_store() {
        let mut machine = machine();
        machine.rflags |= Rflags::TF;
        machine.set(Gpr::RDI, 0x4000);
        let insn = decode(&[0x88, 0x07], Mode::Bits32).unwrap();
        let outcome = machine.step(&insn, &mut MmioLog::new(), 1);
        let Outcome::MmioWrite { finished, trap, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert!(finished && trap);
    }
}

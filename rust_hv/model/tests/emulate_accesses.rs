// SPDX-License-Identifier: GPL-2.0

//! RAM, devices, ROM and faults: what is loaded and stored, and in which order.

mod emulate_support;

use emulate_support::*;
use rusthv_model::arch::addr::Gpa;
use rusthv_model::arch::regs::Rflags;
use rusthv_model::emulate::*;

mod crossing {
    use super::*;

    #[test]
    fn a_store_over_a_page_boundary_lands_in_both() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1ffd);
        machine.set(Gpr::RAX, 0x8877_6655_4433_2211);
        // mov [rdi], rax
        assert_eq!(machine.run(&[0x48, 0x89, 0x07], Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x9_1ffd, 3), [0x11, 0x22, 0x33]);
        assert_eq!(machine.peek(0x5_2000, 5), [0x44, 0x55, 0x66, 0x77, 0x88]);
        // mov rbx, [rdi]
        assert_eq!(machine.run(&[0x48, 0x8b, 0x1f], Mode::Bits64), DONE);
        assert_eq!(machine.reg(Gpr::RBX), 0x8877_6655_4433_2211);
    }

    #[test]
    fn a_fault_on_the_second_page_leaves_the_first_alone() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x2ffe);
        machine.set(Gpr::RAX, !0);
        // add [rdi], eax: the load, too, faults as a write.
        let outcome = refused(machine.clone(), &[0x01, 0x07], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, WRITE));
        // mov eax, [rdi]
        let outcome = refused(machine.clone(), &[0x8b, 0x07], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, READ));
        machine.map(0x3000, 0x7000, Backing::Ram, false);
        let outcome = refused(machine, &[0x89, 0x07], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, WRITE | PRESENT));
    }

    #[test]
    fn device_accesses_are_split_at_the_page() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x4ffd);
        // add qword [rdi], 1: both loads, then both stores
        let outcome = machine.run(&[0x48, 0x83, 0x07, 0x01], Mode::Bits64);
        assert_eq!(outcome, DONE);
        let (low, high) = (0xfee0_4ffd, 0xfed0_5000);
        let reads: Vec<_> = machine
            .mmio_reads
            .iter()
            .map(|r| (r.gpa.raw(), r.len))
            .collect();
        assert_eq!(reads, [(low, 3), (high, 5)]);
        let value = Machine::device_value(low, 3) | Machine::device_value(high, 5) << 24;
        let bytes = value.wrapping_add(1).to_le_bytes();
        let expected = [(low, bytes[..3].to_vec()), (high, bytes[3..].to_vec())];
        assert_eq!(machine.mmio_writes, expected);
    }

    #[test]
    fn half_ram_half_device() {
        let mut machine = machine();
        machine.ram(0x3000, 0x8_3000);
        machine.poke(0x8_3ffe, &[0xaa, 0xbb]);
        machine.set(Gpr::RDI, 0x3ffe);
        machine.set(Gpr::RAX, 0x4433_2211);
        // xchg [rdi], eax: locked, but nothing here can be exchanged atomically
        assert_eq!(machine.run(&[0x87, 0x07], Mode::Bits32), DONE);
        let device = Machine::device_value(0xfee0_4000, 2);
        assert_eq!(machine.reg(Gpr::RAX), device << 16 | 0xbbaa);
        assert_eq!(machine.peek(0x8_3ffe, 2), [0x11, 0x22]);
        assert_eq!(machine.mmio_writes, [(0xfee0_4000, vec![0x33, 0x44])]);
        assert!(machine.exchanges.is_empty());
    }

    #[test]
    fn linear_addresses_wrap_at_4_gib_outside_64_bit_mode() {
        let mut machine = machine();
        machine.ram(0xffff_f000, 0x7000);
        machine.ram(0, 0x8000);
        machine.set(Gpr::RDI, 0xffff_fffe);
        machine.set(Gpr::RAX, 0x4433_2211);
        assert_eq!(machine.run(&[0x89, 0x07], Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x7ffe, 2), [0x11, 0x22]);
        assert_eq!(machine.peek(0x8000, 2), [0x33, 0x44]);
    }
}

mod devices {
    use super::*;

    #[test]
    fn a_load_leaves_everything_as_it_was_until_it_is_answered() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4010);
        machine.set(Gpr::RAX, !0);
        let insn = decode(&[0x8b, 0x06], Mode::Bits64).unwrap();
        let before = machine.registers();
        let mut log = MmioLog::new();
        let read = MmioRead {
            gpa: Gpa::new(0xfee0_4010),
            len: 4,
        };
        for _ in 0..2 {
            // Asked twice, it asks for the same.
            let outcome = machine.step(&insn, &mut log, 1);
            assert_eq!(outcome, Outcome::MmioRead(read));
            assert_eq!(machine.registers(), before);
        }
        log.record(read, [1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff])
            .unwrap();
        assert_eq!(machine.step(&insn, &mut log, 1), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0x0403_0201);
        assert_eq!(machine.rip, before.1 + 2);
        assert!(log.is_empty());
    }

    #[test]
    fn an_answer_for_another_address_is_not_used() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4010);
        let insn = decode(&[0x8a, 0x06], Mode::Bits64).unwrap();
        let mut log = MmioLog::new();
        let Outcome::MmioRead(read) = machine.step(&insn, &mut log, 1) else {
            panic!("not a device load");
        };
        log.record(read, [0x11; 8]).unwrap();
        // Another CPU moves the mapping meanwhile.
        machine.mmio(0x4000, 0xfeb0_0000);
        let Outcome::MmioRead(read) = machine.step(&insn, &mut log, 1) else {
            panic!("used a stale answer");
        };
        assert_eq!(read.gpa.raw(), 0xfeb0_0010);
        log.record(read, [0x22; 8]).unwrap();
        assert_eq!(machine.step(&insn, &mut log, 1), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0x22);
    }

    #[test]
    fn a_fault_on_the_way_back_forgets_the_answers() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4010);
        machine.set(Gpr::RDI, 0x1000);
        let insn = decode(&[0xa4], Mode::Bits64).unwrap();
        let mut log = MmioLog::new();
        let Outcome::MmioRead(read) = machine.step(&insn, &mut log, 1) else {
            panic!("not a device load");
        };
        log.record(read, [0x11; 8]).unwrap();
        machine.pages.remove(&0x1000);
        let outcome = machine.step(&insn, &mut log, 1);
        assert_eq!(outcome, page_fault(0x1000, WRITE));
        assert!(log.is_empty());
    }

    #[test]
    fn a_contended_translation_comes_back_with_the_answers_kept() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4ffe);
        machine.set(Gpr::RDI, 0x1000);
        // movsd from two device pages
        let insn = decode(&[0xa5], Mode::Bits64).unwrap();
        let mut log = MmioLog::new();
        let Outcome::MmioRead(read) = machine.step(&insn, &mut log, 1) else {
            panic!("not a device load");
        };
        log.record(read, [0x11; 8]).unwrap();
        let before = machine.registers();
        machine.contended = Some(0x1000);
        for _ in 0..2 {
            let outcome = machine.step(&insn, &mut log, 9);
            assert_eq!(outcome, Outcome::Again { trap: false });
            assert_eq!(machine.registers(), before);
        }
        machine.contended = None;
        let Outcome::MmioRead(read) = machine.step(&insn, &mut log, 1) else {
            panic!("not a device load");
        };
        assert_eq!(read.gpa.raw(), 0xfed0_5000);
        log.record(read, [0x22; 8]).unwrap();
        assert_eq!(machine.step(&insn, &mut log, 1), DONE);
        assert_eq!(machine.peek(0x9_1000, 4), [0x11, 0x11, 0x22, 0x22]);
    }

    #[test]
    fn no_device_is_asked_if_the_destination_faults() {
        let mut machine = machine();
        machine.set(Gpr::RSI, 0x4000);
        machine.set(Gpr::RDI, 0x3000);
        // movsb; then push [rsi] with a stack that is not there
        let outcome = refused(machine.clone(), &[0xa4], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, WRITE));
        machine.set(Gpr::RSP, 0x3008);
        let outcome = refused(machine, &[0xff, 0x36], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3004, WRITE));
    }

    #[test]
    fn rom_is_read_here_and_written_there() {
        let mut machine = machine();
        machine.map(0x7000, 0xf_0000, Backing::Rom, true);
        machine.poke(0xf_0004, &[0x0f]);
        machine.set(Gpr::RDI, 0x7004);
        // or byte [rdi], 0x30
        assert_eq!(machine.run(&[0x80, 0x0f, 0x30], Mode::Bits32), DONE);
        assert!(machine.mmio_reads.is_empty());
        assert_eq!(machine.mmio_writes, [(0xf_0004, vec![0x3f])]);
        assert_eq!(machine.peek(0xf_0004, 1), [0x0f]);
    }

    #[test]
    fn comparisons_only_read() {
        let mut machine = machine();
        machine.map(0x4000, 0xfee0_4000, Backing::Mmio, false);
        machine.set(Gpr::RDI, 0x4000);
        let low = Machine::device_value(0xfee0_4000, 1) as u8;
        // cmp byte [rdi], the same; test byte [rdi], 0; bt dword [rdi], 0
        for bytes in [
            &[0x80u8, 0x3f, low][..],
            &[0xf6, 0x07, 0],
            &[0x0f, 0xba, 0x27, 0],
        ] {
            machine.rflags = Rflags::FIXED;
            assert_eq!(machine.run(bytes, Mode::Bits32), DONE);
            let flag = if bytes[0] == 0x0f {
                Rflags::CF
            } else {
                Rflags::ZF
            };
            assert!(machine.rflags.contains(flag), "{bytes:02x?}");
        }
        assert_eq!(machine.mmio_reads.len(), 3);
        assert!(machine.mmio_writes.is_empty());
    }

    #[test]
    fn a_host_failure_changes_no_register() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1000);
        machine.broken = Some(0x9_1000);
        for bytes in [&[0x89u8, 0x07][..], &[0x8b, 0x07], &[0xab]] {
            let outcome = refused(machine.clone(), bytes, Mode::Bits32);
            assert_eq!(outcome, Outcome::Failed(HostError::Injected));
        }
    }
}

mod locked {
    use super::*;

    #[test]
    fn a_lost_race_starts_over_with_the_new_value() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1008);
        machine.poke(0x9_1008, &[5]);
        machine.races = 2;
        // lock add dword [rdi], 0x10
        assert_eq!(machine.run(&[0xf0, 0x83, 0x07, 0x10], Mode::Bits32), DONE);
        let tried: Vec<_> = machine.exchanges.iter().map(|e| (e.2, e.3)).collect();
        assert_eq!(tried, [(5, 0x15), (6, 0x16), (7, 0x17)]);
        assert_eq!(machine.peek(0x9_1008, 4), [0x17, 0, 0, 0]);
        assert_eq!(machine.rip, 0x10_0004);
    }

    #[test]
    fn a_lost_race_is_reported_with_nothing_changed() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1008);
        machine.races = 1;
        let before = machine.registers();
        let insn = decode(&[0x87, 0x0f], Mode::Bits32).unwrap();
        let outcome = machine.step(&insn, &mut MmioLog::new(), 9);
        assert_eq!(outcome, Outcome::Again { trap: false });
        assert_eq!(machine.registers(), before);
    }

    #[test]
    fn every_locked_form_exchanges_atomically_and_no_other() {
        for (bytes, atomic) in [
            (&[0x87u8, 0x0f][..], true),          // xchg, without a prefix
            (&[0x01, 0x0f], false),               // add
            (&[0xf0, 0x01, 0x0f], true),          // lock add
            (&[0xf0, 0xff, 0x07], true),          // lock inc
            (&[0xf0, 0xf7, 0x17], true),          // lock not
            (&[0xf0, 0x0f, 0xc1, 0x0f], true),    // lock xadd
            (&[0x0f, 0xc1, 0x0f], false),         // xadd
            (&[0xf0, 0x0f, 0xb1, 0x0f], true),    // lock cmpxchg
            (&[0xf0, 0x0f, 0xc7, 0x0f], true),    // lock cmpxchg8b
            (&[0xf0, 0x0f, 0xba, 0x2f, 3], true), // lock bts
            (&[0x0f, 0xba, 0x2f, 3], false),      // bts
        ] {
            let mut machine = machine();
            machine.set(Gpr::RDI, 0x1008);
            assert_eq!(machine.run(bytes, Mode::Bits32), DONE);
            assert_eq!(machine.exchanges.len(), usize::from(atomic), "{bytes:02x?}");
        }
    }

    #[test]
    fn misaligned_operands_are_stored_plainly() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1006);
        assert_eq!(machine.run(&[0xf0, 0xff, 0x07], Mode::Bits32), DONE);
        assert!(machine.exchanges.is_empty());
        assert_eq!(machine.peek(0x9_1006, 4), [1, 0, 0, 0]);
    }

    #[test]
    fn cmpxchg8b_compares_and_exchanges_pairs() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1008);
        machine.poke(0x9_1008, &0x1111_2222_3333_4444u64.to_le_bytes());
        machine.set(Gpr::RBX, 0x5555_6666);
        machine.set(Gpr::RCX, 0x7777_8888);
        let bytes = [0xf0, 0x0f, 0xc7, 0x0f];
        assert_eq!(machine.run(&bytes, Mode::Bits32), DONE);
        assert!(!machine.rflags.contains(Rflags::ZF));
        let (high, low) = (machine.reg(Gpr::RDX), machine.reg(Gpr::RAX));
        assert_eq!((high, low), (0x1111_2222, 0x3333_4444));
        assert_eq!(machine.run(&bytes, Mode::Bits32), DONE);
        assert!(machine.rflags.contains(Rflags::ZF));
        let expected = 0x7777_8888_5555_6666u64.to_le_bytes();
        assert_eq!(machine.peek(0x9_1008, 8), expected);
    }
}

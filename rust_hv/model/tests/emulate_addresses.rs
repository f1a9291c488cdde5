// SPDX-License-Identifier: GPL-2.0

//! Addresses: segments and their limits, wrapping, RIP, the stack.

mod emulate_support;

use emulate_support::*;
use rusthv_model::arch::segment::{AccessRights, Segment};
use rusthv_model::emulate::*;

mod segments {
    use super::*;

    fn with(name: SegmentName, limit: u32, rights: u32) -> Machine {
        let mut machine = machine();
        machine.segments[name as usize] = Segment {
            base: 0,
            limit,
            selector: 8,
            rights: AccessRights::from_raw(rights),
        };
        machine.set(Gpr::RDI, 0x1ffe);
        machine.set(Gpr::RBP, 0x1ffe);
        machine
    }

    const STORE: [u8; 2] = [0x89, 0x07]; // mov [rdi], eax
    const LOAD: [u8; 2] = [0x8b, 0x07]; // mov eax, [rdi]
    const STORE_SS: [u8; 3] = [0x89, 0x45, 0x00]; // mov [rbp+0], eax

    #[test]
    fn limits_hold_for_the_last_byte() {
        let mut machine = with(SegmentName::Ds, 0x2001, 0x4093);
        assert_eq!(machine.run(&STORE, Mode::Bits32), DONE);
        let machine = with(SegmentName::Ds, 0x2000, 0x4093);
        assert_eq!(refused(machine.clone(), &STORE, Mode::Bits32), GP);
        assert_eq!(refused(machine, &LOAD, Mode::Bits32), GP);
        let machine = with(SegmentName::Ss, 0x2000, 0x4093);
        assert_eq!(refused(machine, &STORE_SS, Mode::Bits32), SS);
    }

    #[test]
    fn bases_wrap_at_4_gib() {
        let mut machine = with(SegmentName::Ds, u32::MAX, 0x4093);
        machine.segments[SegmentName::Ds as usize].base = 0xffff_f000;
        machine.set(Gpr::RDI, 0x2010);
        machine.set(Gpr::RAX, 0x77);
        assert_eq!(machine.run(&STORE, Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x9_1010, 1), [0x77]);
    }

    #[test]
    fn real_mode_has_64_kib_and_no_types() {
        // mov cs:[di], ax at 0xffff crosses the end
        let mut machine = with(SegmentName::Cs, 0xffff, 0x9b);
        machine.protected = false;
        let bytes = [0x2e, 0x89, 0x05];
        machine.set(Gpr::RDI, 0xffff);
        assert_eq!(refused(machine.clone(), &bytes, Mode::Bits16), GP);
        machine.set(Gpr::RDI, 0x1000);
        assert_eq!(machine.run(&bytes, Mode::Bits16), DONE);
        machine.protected = true;
        assert_eq!(refused(machine, &bytes, Mode::Bits16), GP);
    }

    #[test]
    fn expand_down_segments_end_below() {
        let machine = with(SegmentName::Ss, 0x1ffd, 0x4097);
        assert_eq!(machine.clone().run(&STORE_SS, Mode::Bits32), DONE);
        let machine = with(SegmentName::Ss, 0x1ffe, 0x4097);
        assert_eq!(refused(machine, &STORE_SS, Mode::Bits32), SS);
    }

    #[test]
    fn types_are_checked_in_protected_mode() {
        for (rights, load, store) in [
            (0x4093, DONE, DONE), // data
            (0x4091, DONE, GP),   // read-only data
            (0x409b, DONE, GP),   // code
            (0x4099, GP, GP),     // execute-only code
            (0x1_0093, GP, GP),   // unusable
            (0x4013, GP, GP),     // not present
        ] {
            let machine = with(SegmentName::Ds, u32::MAX, rights);
            let run = |bytes: &[u8]| machine.clone().run(bytes, Mode::Bits32);
            assert_eq!(run(&LOAD), load, "{rights:x}");
            assert_eq!(run(&STORE), store, "{rights:x}");
        }
    }

    #[test]
    fn long_mode_ignores_all_but_fs_and_gs_bases() {
        let mut machine = with(SegmentName::Ds, 0, 0x1_0000);
        machine.segments[SegmentName::Ds as usize].base = 0x5000_0000;
        assert_eq!(machine.run(&STORE, Mode::Bits64), DONE);
        machine.segments[SegmentName::Fs as usize].base = 0x1000u64.wrapping_sub(0x1ffe);
        machine.set(Gpr::RAX, 0x77);
        // mov fs:[rdi], al; the DS override after it does nothing
        assert_eq!(machine.run(&[0x64, 0x3e, 0x88, 0x07], Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x9_1000, 1), [0x77]);
    }

    #[test]
    fn long_mode_addresses_must_be_canonical() {
        let mut machine = machine();
        for (bits, edge) in [(48, 1u64 << 47), (57, 1 << 56)] {
            machine.linear_bits = bits;
            for address in [edge - 2, edge, edge.wrapping_neg() - 4] {
                machine.set(Gpr::RDI, address);
                machine.set(Gpr::RBP, address);
                assert_eq!(refused(machine.clone(), &STORE, Mode::Bits64), GP);
                assert_eq!(refused(machine.clone(), &STORE_SS, Mode::Bits64), SS);
            }
            machine.set(Gpr::RDI, edge.wrapping_neg());
            let outcome = refused(machine.clone(), &STORE, Mode::Bits64);
            assert_eq!(outcome, page_fault(edge.wrapping_neg(), WRITE));
        }
    }

    #[test]
    fn alignment_is_checked_on_request() {
        let mut machine = machine();
        machine.alignment_checked = true;
        machine.set(Gpr::RDI, 0x1002);
        let outcome = refused(machine.clone(), &STORE, Mode::Bits32);
        assert_eq!(outcome, Outcome::Fault(Exception::alignment_check()));
        // A word there is aligned.
        assert_eq!(machine.run(&[0x66, 0x89, 0x07], Mode::Bits32), DONE);
    }
}

mod addressing {
    use super::*;

    #[test]
    fn effective_addresses_wrap_at_the_address_size() {
        let mut machine = machine();
        machine.set(Gpr::RAX, 0x5a);
        // mov [bx+si+0x10], al: 0xffff + 0x1ff1 + 0x10 is 0x2000
        machine.set(Gpr::RBX, 0xffff);
        machine.set(Gpr::RSI, 0x7_1ff1);
        assert_eq!(machine.run(&[0x88, 0x40, 0x10], Mode::Bits16), DONE);
        assert_eq!(machine.peek(0x5_2000, 1), [0x5a]);
        // mov [edi+esi*8-1], al with a 32-bit address in 64-bit mode
        machine.set(Gpr::RDI, 0xffff_ffff_ffff_f003);
        machine.set(Gpr::RSI, 0x6000_0400);
        let bytes = [0x67, 0x88, 0x44, 0xf7, 0xff];
        machine.set(Gpr::RAX, 0x5b);
        assert_eq!(machine.run(&bytes, Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x9_1002, 1), [0x5b]);
    }

    #[test]
    fn rip_relative_counts_from_the_next_instruction() {
        let mut machine = machine();
        machine.rip = 0xffff_ffff_ffff_fffc;
        // mov byte [rip+0x1001], 0x12: 7 bytes, so RIP is 3 after it
        let bytes = [0xc6, 0x05, 0x01, 0x10, 0, 0, 0x12];
        assert_eq!(machine.run(&bytes, Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x9_1004, 1), [0x12]);
        assert_eq!(machine.rip, 3);
    }

    #[test]
    fn rip_wraps_at_32_bits_but_not_at_16() {
        let mut machine = machine();
        machine.set(Gpr::RBX, 0x1000);
        machine.rip = 0xfffe;
        assert_eq!(machine.run(&[0x88, 0x07], Mode::Bits16), DONE);
        assert_eq!(machine.rip, 0x1_0000);
        machine.rip = 0xffff_ffff;
        machine.set(Gpr::RDI, 0x1000);
        assert_eq!(machine.run(&[0x88, 0x07], Mode::Bits32), DONE);
        assert_eq!(machine.rip, 1);
    }

    #[test]
    fn absolute_addresses_have_the_address_size() {
        let mut machine = machine();
        machine.ram(0x1234_5678_9000, 0x7000);
        machine.set(Gpr::RAX, 0x1122_3344);
        // mov [0x123456789004], eax
        let bytes = [0xa3, 0x04, 0x90, 0x78, 0x56, 0x34, 0x12, 0, 0];
        assert_eq!(machine.run(&bytes, Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x7004, 4), [0x44, 0x33, 0x22, 0x11]);
        // mov al, [0x1000] in 16-bit mode
        machine.poke(0x9_1000, &[0x99]);
        assert_eq!(machine.run(&[0xa0, 0x00, 0x10], Mode::Bits16), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0x1122_3399);
    }

    #[test]
    fn high_bytes_and_extensions() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x1000);
        machine.set(Gpr::RAX, 0x1111_2222_3333_8044);
        // mov [rdi], ah; movsx rax, byte [rdi]; movzx ax, byte [rdi]
        assert_eq!(machine.run(&[0x88, 0x27], Mode::Bits64), DONE);
        assert_eq!(machine.peek(0x9_1000, 1), [0x80]);
        let bytes = [0x48, 0x0f, 0xbe, 0x07];
        assert_eq!(machine.run(&bytes, Mode::Bits64), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0xffff_ffff_ffff_ff80);
        let bytes = [0x66, 0x0f, 0xb6, 0x07];
        assert_eq!(machine.run(&bytes, Mode::Bits64), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0xffff_ffff_ffff_0080);
        // mov eax, dword [rdi] clears the upper half; mov ah, [rdi] keeps all around it
        assert_eq!(machine.run(&[0x8b, 0x07], Mode::Bits64), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0x80);
        assert_eq!(machine.run(&[0x8a, 0x27], Mode::Bits64), DONE);
        assert_eq!(machine.reg(Gpr::RAX), 0x8080);
    }
}

mod stack {
    use super::*;

    #[test]
    fn pushes_from_a_device() {
        let mut machine = machine();
        machine.set(Gpr::RDI, 0x4008);
        machine.set(Gpr::RSP, 0x1010);
        // push qword [rdi]
        assert_eq!(machine.run(&[0xff, 0x37], Mode::Bits64), DONE);
        let value = Machine::device_value(0xfee0_4008, 8);
        assert_eq!(machine.peek(0x9_1008, 8), value.to_le_bytes());
        assert_eq!(machine.reg(Gpr::RSP), 0x1008);
    }

    #[test]
    fn pop_addresses_with_the_moved_stack_pointer() {
        let mut machine = machine();
        machine.poke(0x9_1010, &0x1122_3344u32.to_le_bytes());
        machine.set(Gpr::RSP, 0x1010);
        // pop dword [esp+8]
        let bytes = [0x8f, 0x44, 0x24, 0x08];
        assert_eq!(machine.run(&bytes, Mode::Bits32), DONE);
        assert_eq!(machine.peek(0x9_101c, 4), 0x1122_3344u32.to_le_bytes());
        assert_eq!(machine.reg(Gpr::RSP), 0x1014);
        // pop rsp: what was popped wins
        machine.set(Gpr::RSP, 0x1010);
        assert_eq!(machine.run(&[0x8f, 0xc4], Mode::Bits64), DONE);
        assert_eq!(machine.reg(Gpr::RSP), 0x1122_3344);
    }

    #[test]
    fn a_16_bit_stack_wraps_in_its_low_half() {
        let mut machine = machine();
        machine.ram(0xf000, 0x7000);
        machine.segments[SegmentName::Ss as usize].rights = AccessRights::from_raw(0x93);
        machine.set(Gpr::RSP, 0x1234_0000);
        machine.set(Gpr::RBX, 0x1000);
        machine.poke(0x9_1000, &[0xcd, 0xab]);
        // push word [bx]
        assert_eq!(machine.run(&[0xff, 0x37], Mode::Bits16), DONE);
        assert_eq!(machine.reg(Gpr::RSP), 0x1234_fffe);
        assert_eq!(machine.peek(0x7ffe, 2), [0xcd, 0xab]);
        // pop word [bx+2]
        assert_eq!(machine.run(&[0x8f, 0x47, 0x02], Mode::Bits16), DONE);
        assert_eq!(machine.reg(Gpr::RSP), 0x1234_0000);
        assert_eq!(machine.peek(0x9_1002, 2), [0xcd, 0xab]);
    }

    #[test]
    fn a_fault_does_not_move_the_stack_pointer() {
        let mut machine = machine();
        machine.set(Gpr::RSP, 0x1010);
        machine.set(Gpr::RDI, 0x3000);
        let outcome = refused(machine.clone(), &[0x8f, 0x07], Mode::Bits32);
        assert_eq!(outcome, page_fault(0x3000, WRITE));
        machine.set(Gpr::RSP, 1 << 47);
        machine.set(Gpr::RDI, 0x1000);
        assert_eq!(refused(machine, &[0x8f, 0x07], Mode::Bits64), SS);
    }
}

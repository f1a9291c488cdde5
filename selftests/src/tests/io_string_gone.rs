// SPDX-License-Identifier: GPL-2.0

//! INS whose memory has gone is EFAULT until the memory is back; the device's answer is kept and stored once.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(io_string_gone_rep, code64, "rep insb", "hlt");
guest!(io_string_gone_one, code64, "insd", "hlt");

const AREA: u64 = 0x40_0000;

fn run(t: &Context) -> Outcome {
    // KVM hands the data back to user space as an MMIO write.
    let device = t.rusthv()?;
    let memory = Memory::new(2 * PAGE)?;
    for (what, code, start, answer) in [
        ("REP INSB, three at a page's end", io_string_gone_rep(), PAGE - 3, &[0xA1, 0xA2, 0xA3][..]),
        ("one INSD", io_string_gone_one(), 0x10, &[0xB1, 0xB2, 0xB3, 0xB4][..]),
    ] {
        for unmapped in [true, false] {
            let what = format!("{what}, {}", if unmapped { "unmapped" } else { "slot deleted" });
            let machine = Machine::long(&device, code)?;
            machine.vm.map(1, AREA, &memory)?;
            memory.fill(0, 2 * PAGE, 0xEE);
            machine.change_regs(|regs| {
                (regs.rcx, regs.rdx, regs.rdi) = (5, 0x10, AREA + start as u64);
            })?;
            let exit = machine.run()?;
            check!(matches!(exit, Exit::Io { direction: Direction::In, .. }), "{what}: {exit:x?}");
            machine.vcpu.answer_io(answer);
            let before = machine.vcpu.regs()?;
            if unmapped {
                remap(&memory, libc::PROT_NONE)?;
            } else {
                machine.vm.set_slot(1, 0, 0, 0, 0)?;
            }
            for attempt in 0..3 {
                check_err!(machine.run(), EFAULT, "{what}, attempt {attempt}");
                check_eq!(machine.vcpu.regs()?, before, "{what}: the guest stands still");
            }
            if unmapped {
                remap(&memory, libc::PROT_READ | libc::PROT_WRITE)?;
            } else {
                machine.vm.map(1, AREA, &memory)?;
            }
            // Completed by the next call, without the guest and without the device.
            machine.vcpu.set_immediate_exit(1);
            check_err!(machine.run(), EINTR, "{what}");
            machine.vcpu.set_immediate_exit(0);
            check_eq!(memory.read(start, answer.len()), answer, "{what}: the answer");
            let regs = machine.vcpu.regs()?;
            check_eq!(regs.rdi, AREA + (start + answer.len()) as u64, "{what}: RDI");
            if code == io_string_gone_one() {
                check_eq!((regs.rcx, regs.rip), (5, layout::CODE as u64 + 1), "{what}: done");
            } else {
                check_eq!((regs.rcx, regs.rip), (2, layout::CODE as u64), "{what}: goes on");
                let Exit::Io { count: 2, .. } = machine.run()? else {
                    fail!("{what}: the rest was due, not {:x?}", machine.vcpu.exit())
                };
                machine.vcpu.answer_io(&[0xA4, 0xA5]);
            }
            check_eq!(machine.run()?, Exit::Hlt, "{what}");
            if code == io_string_gone_rep() {
                check_eq!(memory.read(PAGE - 3, 5), [0xA1, 0xA2, 0xA3, 0xA4, 0xA5], "{what}");
            }
        }
    }
    Ok(())
}

/// Fresh pages in place of the old ones.
fn remap(memory: &Memory, protection: libc::c_int) -> Outcome {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let start = memory.at(0, memory.size()).cast();
    // SAFETY: replaces the pages of `memory`, which nothing has a reference into.
    let place = unsafe { libc::mmap(start, memory.size(), protection, flags, -1, 0) };
    check_eq!(place as u64, memory.address(), "mmap");
    Ok(())
}

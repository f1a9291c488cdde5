// SPDX-License-Identifier: GPL-2.0

//! The guest reads CR0, CR2, CR3, CR4 and CR8 as they were set, whether reads of CR0 exit or not.

use crate::emulator;
use crate::machine::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    control_register_reads,
    code64,
    "mov rax, cr0",
    "mov rbx, cr2",
    "mov rcx, cr3",
    "mov rdx, cr4",
    "mov rsi, cr8",
    "smsw rdi",
    "hlt",
);

/// Off in the CPU whatever the guest has: its reads of CR0 have to exit.
const NOT_CACHED: u64 = 3 << 29;
const CR2: u64 = 0x1234_5678_9ABC;
const CR8: u64 = 11;

fn run(t: &Context) -> Outcome {
    if emulator::reads_cr3_unseen(&t.device()?)? {
        skip!("the emulator does not look at the intercept of reads of CR3");
    }
    for caching in [0, NOT_CACHED] {
        let machine = Machine::long(&t.device()?, control_register_reads())?;
        let mut set = machine.vcpu.sregs()?;
        set.cr0 |= caching;
        set.cr2 = CR2;
        machine.vcpu.set_sregs(&set)?;
        // SAFETY: the vCPU's area.
        unsafe { (&raw mut (*machine.vcpu.kvm_run()).cr8).write_volatile(CR8) };
        check_eq!(machine.run()?, Exit::Hlt, "{caching:#x}");
        let regs = machine.vcpu.regs()?;
        check_eq!((regs.rax, regs.rdi), (set.cr0, set.cr0), "CR0 and SMSW");
        check_eq!((regs.rbx, regs.rcx), (CR2, set.cr3), "CR2 and CR3, {caching:#x}");
        check_eq!((regs.rdx, regs.rsi), (set.cr4, CR8), "CR4 and CR8, {caching:#x}");
        check_eq!(regs.rflags & 1 << 8, 0, "nothing is left of single steps");
        check_eq!(machine.vcpu.sregs()?.cr2, CR2);
    }
    Ok(())
}

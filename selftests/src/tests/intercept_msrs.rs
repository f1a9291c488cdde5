// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_SET_INTERCEPTS: only the MSRs that are intercepted exit, reads and writes apart, and a guest does
//! not notice.

use crate::prelude::*;
use crate::rusthv::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(intercept_msrs, code64, "2: wrmsr", "xor eax, eax", "xor edx, edx", "rdmsr", "hlt", "jmp 2b");

/// Those that a guest reaches without an exit, and a value.
const SWITCHED: [(u32, u64); 6] = [
    (0x174, 0x10),
    (0x175, 0xFFFF_8000_0000_1000),
    (0x176, 0xFFFF_8000_0000_2000),
    (0xC000_0100, 0x1234_5678_9ABC),
    (0xC000_0101, 0xFFFF_FFFF_8000_0000),
    (0xC000_0102, 0x5555_4444_3333),
];

fn write_and_read(machine: &Machine, msr: u32, value: u64) -> Result<(Exit, u64, u64), Failure> {
    let before = machine.vcpu.stats()?.msr;
    machine.change_regs(|regs| {
        (regs.rcx, regs.rax, regs.rdx) = (msr.into(), value & 0xFFFF_FFFF, value >> 32);
        (regs.rip, regs.rsp) = (layout::CODE as u64, layout::STACK as u64);
    })?;
    let exit = machine.run()?;
    let regs = machine.vcpu.regs()?;
    Ok((exit, regs.rax & 0xFFFF_FFFF | regs.rdx << 32, machine.vcpu.stats()?.msr - before))
}

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    for (reads, writes) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let vm = device.vm()?;
        for (msr, _) in SWITCHED {
            check_eq!(vm.set_intercepts(RUSTHV_INTERCEPT_MSR_READ, msr, 1, reads), Ok(0));
            check_eq!(vm.set_intercepts(RUSTHV_INTERCEPT_MSR_WRITE, msr, 1, writes), Ok(0));
        }
        let machine = Machine::long_in(&device, vm, intercept_msrs())?;
        for (msr, value) in SWITCHED {
            let (exit, seen, exits) = write_and_read(&machine, msr, value)?;
            check_eq!((exit, seen), (Exit::Hlt, value), "MSR {msr:#x}");
            check_eq!(exits, u64::from(reads + writes), "exits for MSR {msr:#x}");
        }
        check_eq!(machine.vcpu.sregs()?.fs.base, SWITCHED[3].1);
        if writes == 0 {
            continue;
        }
        // What the CPU would have said.
        for (msr, value) in [(0xC000_0100, 1 << 62), (0xC000_0102, 0x8000_0000_0000), (0x175, 1 << 63)] {
            let (exit, _, _) = write_and_read(&machine, msr, value)?;
            let trap = traps::trap(&machine, &exit)?;
            check!(trap.is_some_and(|trap| trap.vector == traps::GENERAL_PROTECTION), "{msr:#x}: {exit:x?}");
        }
    }
    // One of a row, its neighbours not.
    let vm = device.vm()?;
    check_eq!(vm.set_intercepts(RUSTHV_INTERCEPT_MSR_WRITE, 0x175, 1, 1), Ok(0));
    let machine = Machine::long_in(&device, vm, intercept_msrs())?;
    for (msr, value) in SWITCHED {
        let (_, seen, exits) = write_and_read(&machine, msr, value)?;
        check_eq!((seen, exits), (value, u64::from(msr == 0x175)), "MSR {msr:#x}");
    }
    Ok(())
}

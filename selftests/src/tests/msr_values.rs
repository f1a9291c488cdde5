// SPDX-License-Identifier: GPL-2.0

//! The guest's own MSRs keep what it writes, each vCPU its own, and bad values are #GP.

use crate::emulator;
use crate::machine::{enter_long, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE};
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(msr_values, code64, "2: wrmsr", "xor eax, eax", "xor edx, edx", "rdmsr", "hlt", "jmp 2b",);
guest!(msr_values_read, code64, "rdmsr", "hlt");

const STAR: u64 = 0xC000_0081;
const LSTAR: u64 = 0xC000_0082;
const CSTAR: u64 = 0xC000_0083;
const FMASK: u64 = 0xC000_0084;
const FS_BASE: u64 = 0xC000_0100;
const GS_BASE: u64 = 0xC000_0101;
const KERNEL_GS_BASE: u64 = 0xC000_0102;
const SYSENTER_CS: u64 = 0x174;
const SYSENTER_ESP: u64 = 0x175;
const SYSENTER_EIP: u64 = 0x176;
const PAT: u64 = 0x277;
const EFER: u64 = 0xC000_0080;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, msr_values())?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let values = [
        (STAR, 0x0030_0008_1234_5678),
        (LSTAR, 0xFFFF_8000_1234_5678),
        (CSTAR, 0x7FFF_FFFF_FFFF),
        (FMASK, 0x4_7700),
        (FS_BASE, 0x1234_5678_9ABC),
        (GS_BASE, 0xFFFF_FFFF_8000_0000),
        (KERNEL_GS_BASE, 0x5555_4444_3333),
        (SYSENTER_CS, 0x10),
        (SYSENTER_ESP, 0xFFFF_8000_0000_1000),
        (SYSENTER_EIP, 0xFFFF_8000_0000_2000),
        (PAT, 0x0007_0406_0007_0406),
    ];
    for step in [0, 1] {
        // Interleaved, so that one vCPU's values would show in the other's.
        for (msr, value) in values {
            for (index, vcpu) in [&machine.vcpu, &second].into_iter().enumerate() {
                let value = value ^ if msr == PAT { 0 } else { (index as u64 + step) << 12 };
                let value = if msr == SYSENTER_CS { value & 0xFFFF } else { value };
                check_eq!(write_read(vcpu, msr, value)?, value, "MSR {msr:#x} of vCPU {index}");
            }
        }
        for (msr, value) in values {
            for (index, vcpu) in [&machine.vcpu, &second].into_iter().enumerate() {
                let value = value ^ if msr == PAT { 0 } else { (index as u64 + step) << 12 };
                let value = if msr == SYSENTER_CS { value & 0xFFFF } else { value };
                check_eq!(read(&machine, vcpu, msr)?, value, "MSR {msr:#x} of vCPU {index}, later");
            }
        }
    }
    let sregs = second.sregs()?;
    check_eq!(sregs.fs.base, 0x1234_5678_9ABC ^ 2 << 12, "FS base for user space");
    let efer = EFER_LME | EFER_LMA | EFER_SCE;
    check_eq!(write_read(&machine.vcpu, EFER, efer)?, efer);
    check_eq!(machine.vcpu.sregs()?.efer, efer);
    check_eq!(write_read(&machine.vcpu, EFER, efer | EFER_NXE)?, efer | EFER_NXE);

    for (what, msr, value) in [
        ("EFER reserved bit", EFER, efer | 1 << 2),
        ("EFER.LME cleared under paging", EFER, EFER_LMA),
        ("LSTAR not canonical", LSTAR, 1 << 63),
        ("KERNEL_GS_BASE not canonical", KERNEL_GS_BASE, 0x8000_0000_0000),
        ("FS base not canonical", FS_BASE, 1 << 62),
        ("PAT with a type that is none", PAT, 2),
    ] {
        // Guests write these without an exit, and QEMU's TCG does not check (with KVM, too).
        if emulator::is_tcg() && matches!(msr, KERNEL_GS_BASE | FS_BASE) {
            continue;
        }
        machine.change_regs(|regs| {
            (regs.rcx, regs.rax, regs.rdx) = (msr, value & 0xFFFF_FFFF, value >> 32);
            (regs.rip, regs.rsp) = (layout::CODE as u64, layout::STACK as u64);
        })?;
        let trap = machine.run_to_trap(what)?;
        check_eq!((trap.vector, trap.rip), (traps::GENERAL_PROTECTION, layout::CODE as u64), "{what}");
    }
    Ok(())
}

/// The value in EDX:EAX after one turn of the guest.
fn turn(vcpu: &Vcpu, msr: u64, value: u64, rip: u64) -> Result<u64, Failure> {
    let mut regs = vcpu.regs()?;
    (regs.rcx, regs.rax, regs.rdx, regs.rip) = (msr, value & 0xFFFF_FFFF, value >> 32, rip);
    vcpu.set_regs(&regs)?;
    match vcpu.run()? {
        Exit::Hlt => {}
        other => return Err(Failure::failed(format!("MSR {msr:#x} = {value:#x}: {other:x?}"))),
    }
    let regs = vcpu.regs()?;
    Ok(regs.rdx << 32 | regs.rax)
}

fn write_read(vcpu: &Vcpu, msr: u64, value: u64) -> Result<u64, Failure> {
    turn(vcpu, msr, value, layout::CODE as u64)
}

fn read(machine: &Machine, vcpu: &Vcpu, msr: u64) -> Result<u64, Failure> {
    let elsewhere = layout::CODE + 0x800;
    machine.memory.write(elsewhere, msr_values_read());
    turn(vcpu, msr, 0, elsewhere as u64)
}

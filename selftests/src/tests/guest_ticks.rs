// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_CAP_GUEST_TICKS: vCPUs count for how many ticks of the time-stamp counter they are in the guest, and only if asked to.

use crate::host;
use crate::machine::*;
use crate::prelude::*;
use crate::rusthv::RUSTHV_CAP_GUEST_TICKS;

pub const TEST: Test = Test::new(60, run);

guest!(guest_ticks, code64, "2: imul rax, rax", "dec rcx", "jnz 2b", "hlt");
// The same with a breakpoint where it does not come by.
guest!(
    guest_ticks_breakpoint,
    code64,
    "mov eax, 0xf0000",
    "mov dr0, rax",
    "mov eax, 0x401",
    "mov dr7, rax",
    "2: imul rax, rax",
    "dec rcx",
    "jnz 2b",
    "hlt",
);

const FEW: u64 = 20_000;
const MANY: u64 = 10 * FEW;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    check_eq!(device.check_extension(RUSTHV_CAP_GUEST_TICKS), Ok(1));
    arguments(&device)?;
    // Counters of several CPUs may differ.
    host::pin(host::online_cpus()[0])?;
    for code in [guest_ticks(), guest_ticks_breakpoint()] {
        let machine = Machine::long(&device, code)?;
        least(&machine, FEW)?;
        check_eq!(machine.vcpu.stats()?.guest_ticks, 0, "not asked for");

        let vm = device.vm()?;
        vm.enable_cap(RUSTHV_CAP_GUEST_TICKS, 0, 1)?;
        let machine = Machine::long_in(&device, vm, code)?;
        let (few, many) = (least(&machine, FEW)?, least(&machine, MANY)?);
        check!(few > 0 && many > 3 * few, "{few} ticks for {FEW} turns, {many} for {MANY}");
        check_eq!(machine.vcpu.statistics()?.value("guest_ticks")?, Some(machine.vcpu.stats()?.guest_ticks));

        let vm = device.vm()?;
        vm.enable_cap(RUSTHV_CAP_GUEST_TICKS, 0, 1)?;
        vm.enable_cap(RUSTHV_CAP_GUEST_TICKS, 0, 0)?;
        let machine = Machine::long_in(&device, vm, code)?;
        least(&machine, FEW)?;
        check_eq!(machine.vcpu.stats()?.guest_ticks, 0, "not asked for any more");
    }
    Ok(())
}

fn arguments(device: &Device) -> Outcome {
    let vm = device.vm()?;
    for args in [[2, 0, 0, 0], [u64::MAX, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]] {
        check_err!(vm.enable_cap_with(RUSTHV_CAP_GUEST_TICKS, 0, args), EINVAL, "{args:?}");
    }
    check_err!(vm.enable_cap(RUSTHV_CAP_GUEST_TICKS, 1, 1), EINVAL, "flags");
    let vcpu = vm.vcpu(0)?;
    check_err!(vm.enable_cap(RUSTHV_CAP_GUEST_TICKS, 0, 1), EBUSY, "there is a vCPU");
    check_eq!(vcpu.stats()?.guest_ticks, 0);
    Ok(())
}

/// The least number of ticks in the guest that so many turns have taken, of several tries: the host's
/// interrupts take their time, too. Never more than have gone by.
fn least(machine: &Machine, turns: u64) -> Result<u64, Failure> {
    let mut least = u64::MAX;
    for _ in 0..5 {
        machine.vcpu.set_regs(&kvm_regs { rcx: turns, ..start_registers() })?;
        let (ticks, began) = (machine.vcpu.stats()?.guest_ticks, time_stamp());
        check_eq!(machine.run()?, Exit::Hlt);
        let (ticks, all) = (machine.vcpu.stats()?.guest_ticks - ticks, time_stamp() - began);
        check!(ticks <= all, "{ticks} ticks in the guest, of {all}");
        least = least.min(ticks);
    }
    Ok(least)
}

fn time_stamp() -> u64 {
    // SAFETY: every CPU with virtualization has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

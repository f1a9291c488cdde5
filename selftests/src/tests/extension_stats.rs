// SPDX-License-Identifier: GPL-2.0

//! The counters of the host, a VM and a vCPU count what happened, and nothing else.

use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(20, run);

guest!(
    extension_stats,
    code64,
    "mov ecx, 10",
    "2: out 0x10, al",
    "loop 2b",
    "mov edi, 5",
    "3: xor eax, eax",
    "xor ecx, ecx",
    "cpuid",
    "dec edi",
    "jnz 3b",
    "mov ebx, 0xd0000000",
    "mov eax, [rbx]",
    "mov [rbx], eax",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let empty = device.host_stats()?;
    let machine = Machine::long(&device, extension_stats())?;
    let made = device.host_stats()?;
    check!(made.vms > empty.vms || !t.is_exclusive(), "{made:?} after {empty:?}");
    check!(made.vms >= 1 && made.vcpus >= 1 && made.frames_in_use >= 1, "{made:?}");
    check_eq!(machine.vcpu.stats()?, VcpuStats::default(), "before the first run");
    for (request, result) in [
        (RUSTHV_GET_VM_STATS, machine.vm.ioctl(RUSTHV_GET_VM_STATS, 0)),
        (RUSTHV_GET_VCPU_STATS, machine.vcpu.ioctl(RUSTHV_GET_VCPU_STATS, 0)),
        (RUSTHV_GET_HOST_STATS, device.ioctl(RUSTHV_GET_HOST_STATS, 0)),
    ] {
        check_err!(result, EFAULT, "{request:#x}");
    }
    let mut exits = 0;
    loop {
        exits += 1;
        match machine.run()? {
            Exit::Hlt => break,
            Exit::MmioRead { .. } => machine.vcpu.answer_mmio(&[0; 4]),
            Exit::Io { .. } | Exit::MmioWrite { .. } => {}
            other => fail!("{other:x?}"),
        }
    }
    let stats = machine.vcpu.stats()?;
    check_eq!((stats.io, stats.cpuid, stats.mmio, stats.hlt), (10, 5, 2, 1), "{stats:?}");
    check_eq!(stats.user_exits, exits, "{stats:?}");
    check!(stats.ept_faults + stats.page_faults >= 1, "{stats:?}");
    let parts = stats.io
        + stats.mmio
        + stats.ept_faults
        + stats.cpuid
        + stats.hlt
        + stats.msr
        + stats.cr
        + stats.interrupts
        + stats.exceptions
        + stats.other
        + stats.page_faults
        + stats.invalidations
        + stats.table_writes;
    check_eq!(stats.exits, parts, "the kinds add up: {stats:?}");
    check_eq!(stats.reserved, [0; 7]);
    let vm = machine.vm.stats()?;
    check!(vm.table_frames >= 1 && vm.mapped_4k + vm.mapped_2m >= 1, "{vm:?}");
    drop(machine);
    if t.is_exclusive() {
        let end = device.host_stats()?;
        check_eq!((end.vms, end.vcpus, end.frames_in_use), (empty.vms, empty.vcpus, empty.frames_in_use));
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Every allocation of every ioctl fails once: ENOMEM or success, nothing leaked, and it works the next time.

use crate::faults::{self, Injector, MANY};
use crate::machine::enter_long;
use crate::prelude::*;

pub const TEST: Test = Test::new(600, run);

guest!(
    fail_completions,
    code64,
    "mov edi, 0x140000",
    "mov ecx, 4",
    "rep insb",
    "mov ebx, 0xd0000000",
    "mov eax, [rbx]",
    "mov [0x160000], eax",
    "movsd",
    "hlt",
);
guest!(fail_allocations, code64, "mov [0x100000], al", "out 0x10, al", "mov [0x180000], al", "hlt");

fn run(t: &Context) -> Outcome {
    if let Err(reason) = faults::enable() {
        skip!("{reason}");
    }
    let device = t.device()?;
    let before = if device.has_extensions() { Some(device.host_stats()?) } else { None };
    let cpuid = device.supported_cpuid(256)?;
    let mut injected = 0;
    let injector = Injector::new()?;
    let each = |what: &str, work: &mut dyn FnMut() -> Result<(), Errno>| injector.each(what, work);

    injected += each("open", &mut || Device::open(t.path()).map(drop))?;
    injected += each("CREATE_VM", &mut || device.vm().map(drop))?;
    injected += each("GET_SUPPORTED_CPUID", &mut || device.supported_cpuid(256).map(drop))?;
    injected += each("VM with a vCPU", &mut || device.vm()?.vcpu(0).map(drop))?;

    let vm = device.vm()?;
    let memory = Memory::new(16 << 20)?;
    injected += each("SET_USER_MEMORY_REGION, new", &mut || {
        vm.map(7, 0x4000_0000, &memory)?;
        while vm.set_slot(7, 0, 0, 0, 0) == Err(Errno::ENOMEM) {}
        Ok(())
    })?;
    vm.map(8, 0x8000_0000, &memory)?;
    let mut side = 0;
    injected += each("SET_USER_MEMORY_REGION, move", &mut || {
        side ^= 1;
        vm.map(8, 0x8000_0000 + (side << 30), &memory).map(drop)
    })?;
    let vcpu = device.vm()?.vcpu(0)?;
    injected += each("SET_CPUID2", &mut || vcpu.set_cpuid(&cpuid).map(drop))?;
    injected += each("GET_REGS", &mut || vcpu.regs().map(drop))?;
    let regs = vcpu.regs()?;
    injected += each("SET_REGS", &mut || vcpu.set_regs(&regs).map(drop))?;
    injected += each("GET_SREGS", &mut || vcpu.sregs().map(drop))?;
    let sregs = vcpu.sregs()?;
    injected += each("SET_SREGS", &mut || vcpu.set_sregs(&sregs).map(drop))?;

    // Entry, and faults with nothing mapped yet: the guest stands still where memory is short, and goes on.
    for n in 1..MANY {
        let machine = Machine::long(&device, fail_allocations())?;
        enter_long(&machine.vcpu)?;
        let (result, hit) = injector.with_failure(n, || machine.run())?;
        match &result {
            Err(Errno::ENOMEM | Errno::EFAULT) => {}
            Ok(Exit::Io { port: 0x10, .. }) => {}
            other => fail!("RUN, allocation {n}: {other:x?}"),
        }
        if result.is_err() {
            check!(matches!(machine.run()?, Exit::Io { port: 0x10, .. }), "RUN after allocation {n} failed");
        }
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.memory.read(0x10_0000, 1), machine.memory.read(0x18_0000, 1));
        injected += u64::from(hit);
        if !hit {
            break;
        }
    }
    // Completing port and device accesses, whose data go to memory that is not there yet.
    for n in 1..MANY {
        let machine = Machine::long(&device, fail_completions())?;
        machine.change_regs(|regs| (regs.rdx, regs.rsi) = (0x10, layout::MMIO))?;
        check!(matches!(machine.run()?, Exit::Io { direction: Direction::In, count: 4, .. }));
        machine.vcpu.answer_io(&[1, 2, 3, 4]);
        let (result, mut hit) = injector.with_failure(n, || machine.run())?;
        let mut exit = again(&machine, result, "INS", n)?;
        for answer in [[5, 6, 7, 8], [9, 10, 11, 12]] {
            check_eq!(exit, Exit::MmioRead { address: layout::MMIO, length: 4 }, "allocation {n}");
            machine.vcpu.answer_mmio(&answer);
            let (result, also) = injector.with_failure(n, || machine.run())?;
            exit = again(&machine, result, "MMIO", n)?;
            hit |= also;
        }
        check_eq!(exit, Exit::Hlt, "allocation {n}");
        let at = |address: usize| machine.memory.read(address, 4);
        check_eq!(
            (at(0x14_0000), at(0x16_0000), at(0x14_0004)),
            (vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10, 11, 12]),
            "allocation {n}"
        );
        injected += u64::from(hit);
        if !hit {
            break;
        }
    }
    let vcpu_area = device.vm()?.vcpu(0)?;
    injected += each("mmap of the run area", &mut || {
        let area = Memory::map(0x1000, libc::MAP_SHARED, vcpu_area.fd())?;
        area.write(0x800, &[1]);
        Ok(())
    })?;
    drop(vcpu_area);
    check!(injected > 20, "only {injected} failures were injected");
    drop((vm, vcpu));
    if let Some(before) = before {
        let after = device.host_stats()?;
        check_eq!(
            (after.vms, after.vcpus, after.frames_in_use),
            (before.vms, before.vcpus, before.frames_in_use),
            "after {injected} failures"
        );
    }
    Ok(())
}

/// What KVM_RUN comes to in the end: memory that was short is there the next time.
fn again(machine: &Machine, result: Result<Exit, Errno>, what: &str, n: u64) -> Result<Exit, Failure> {
    match result {
        Err(Errno::ENOMEM | Errno::EFAULT) => Ok(machine.run()?),
        Err(errno) => Err(Failure::failed(format!("{what}, allocation {n}: {errno}"))),
        Ok(exit) => Ok(exit),
    }
}

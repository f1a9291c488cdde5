// SPDX-License-Identifier: GPL-2.0

//! Every call on a vCPU and its VM from many threads at once, the guest running: each has its result, none is lost.

use crate::host;
use crate::machine::enter_long;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::traps;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(240, run);

guest!(
    concurrent_calls,
    code64,
    "2: inc rbx",
    "mov [0x21000], rbx",
    "mov rax, [0x400000]",
    "out 0x10, al",
    "jmp 2b",
);
guest!(concurrent_calls_handler, code64, "inc qword ptr [0x22000]", "iretq");

const VECTOR: usize = 0x51;

type Call<'a> = Box<dyn Fn(u64) -> Outcome + Send + 'a>;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, concurrent_calls())?;
    let Machine { vcpu, vm, memory } = &machine;
    memory.write(layout::DATA, concurrent_calls_handler());
    memory.write_u64(layout::IDT + 16 * VECTOR, traps::gate(layout::DATA));
    let extra = Memory::new(16 * PAGE)?;
    vm.map(1, 0x40_0000, &extra)?;
    let cpuid = device.supported_cpuid(256)?;
    vcpu.set_cpuid(&cpuid)?;
    let (regs, sregs) = (vcpu.regs()?, vcpu.sregs()?);
    let cpus = host::online_cpus();
    let calls: Vec<Call> = vec![
        Box::new(|_| {
            let exit = vcpu.run()?;
            check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{exit:x?}");
            Ok(())
        }),
        Box::new(|_| {
            let rsp = vcpu.regs()?.rsp;
            check!((regs.rsp - 0x100..=regs.rsp).contains(&rsp), "RSP {rsp:#x}");
            Ok(())
        }),
        Box::new(|_| {
            check_eq!(vcpu.set_regs(&kvm_regs { rsp: regs.rsp - 16, ..regs }), Ok(0));
            Ok(())
        }),
        Box::new(|_| {
            let now = vcpu.sregs()?;
            check_eq!((now.cr0, now.cr3, now.efer, now.cs), (sregs.cr0, sregs.cr3, sregs.efer, sregs.cs));
            Ok(())
        }),
        Box::new(|_| {
            check_eq!(vcpu.set_sregs(&sregs), Ok(0));
            Ok(())
        }),
        Box::new(|_| {
            check_eq!(vcpu.set_cpuid(&cpuid), Ok(0), "the same CPUID again");
            Ok(())
        }),
        Box::new(|_| {
            let result = vcpu.interrupt(VECTOR as u32);
            check!(matches!(result, Ok(0) | Err(Errno::EEXIST)), "KVM_INTERRUPT: {result:?}");
            Ok(())
        }),
        Box::new(|turn| {
            // The read at 0x400000 finds one or the other, with no gap in between.
            let offset = turn % 16 * PAGE as u64;
            check_eq!(vm.set_slot(2, 0, 0x80_0000 + offset, PAGE as u64, extra.address()), Ok(0));
            check_eq!(vm.set_slot(2, 0, 0xA0_0000 + offset, PAGE as u64, extra.address()), Ok(0));
            check_eq!(vm.set_slot(2, 0, 0, 0, 0), Ok(0));
            Ok(())
        }),
        Box::new(|turn| {
            if turn < 200 {
                let other = vm.vcpu(1 + turn)?;
                check!(other.regs().is_ok());
                check_err!(vm.vcpu(1 + turn).map(drop), EEXIST, "vCPU {turn}");
            }
            Ok(())
        }),
        Box::new(|_| {
            let area = Memory::map(PAGE, libc::MAP_SHARED, vcpu.fd())?;
            area.advise(0, PAGE, libc::MADV_DONTNEED)?;
            check_eq!(area.read(std::mem::offset_of!(kvm_run, padding1), 6), [0; 6]);
            Ok(())
        }),
        Box::new(|turn| {
            extra.write_u64(0, turn);
            extra.advise(0, PAGE, libc::MADV_DONTNEED)?;
            check_eq!(device.check_extension(KVM_CAP_USER_MEMORY), Ok(1));
            Ok(())
        }),
    ];
    let turns = t.repetitions(1000);
    let stop = AtomicBool::new(false);
    let results: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> = calls
            .into_iter()
            .enumerate()
            .map(|(index, call)| {
                let (stop, cpus) = (&stop, &cpus);
                scope.spawn(move || {
                    host::pin(cpus[index % cpus.len()])?;
                    for turn in 0..turns {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        if let Err(failure) = call(turn) {
                            stop.store(true, Ordering::Relaxed);
                            return Err(failure);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked"))))
            .collect()
    });
    results.into_iter().collect::<Outcome>()?;
    enter_long(vcpu)?;
    machine.change_regs(|regs| regs.rbx = 0x1234)?;
    extra.write_u64(0, 0x77);
    for turn in 0..3 {
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: 0x10, ref data, .. } if data == &[0x77]), "{exit:x?}");
        check_eq!(vcpu.regs()?.rbx, 0x1235 + turn, "in order afterwards");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Every call on the device, a VM and its vCPU from many threads at once, the guest running: each has its result, none is lost.

use crate::device::{Files, PAGING};
use crate::host;
use crate::ioctl::*;
use crate::machine::enter_long;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;
use crate::traps;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(240, run).with_several_cpus();

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

/// What the guest reads, and where else its memory is for a while.
const EXTRA: u64 = 0x40_0000;
/// The page that the guest writes without end.
const WRITTEN: usize = 0x21;
const PAGES: usize = layout::SIZE / PAGE;

/// What one thread does in a turn, and the ioctls that are in it.
struct Calls<'a> {
    of: Vec<(FileKind, u64)>,
    call: Box<dyn Fn(u64) -> Outcome + Send + 'a>,
}

fn calls<'a>(on: FileKind, requests: &[u64], call: impl Fn(u64) -> Outcome + Send + 'a) -> Calls<'a> {
    Calls { of: requests.iter().map(|request| (on, *request)).collect(), call: Box::new(call) }
}

impl Calls<'_> {
    fn and(mut self, on: FileKind, requests: &[u64]) -> Self {
        self.of.extend(requests.iter().map(|request| (on, *request)));
        self
    }
}

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, concurrent_calls())?;
    let Machine { vcpu, vm, memory } = &machine;
    memory.write(layout::DATA, concurrent_calls_handler());
    memory.write_u64(layout::IDT + 16 * VECTOR, traps::gate(layout::DATA));
    let extra = Memory::new(16 * PAGE)?;
    vm.map(1, EXTRA, &extra)?;
    vm.set_slot(0, KVM_MEM_LOG_DIRTY_PAGES, 0, layout::SIZE as u64, memory.address())?;
    let files = Files { device: &device, vm, vcpu };
    let mut all = of_a_vcpu(&files)?;
    all.extend(of_a_vm(&files, &extra));
    all.extend(of_memory(&files));
    all.extend(of_the_device(&files));
    if device.has_extensions() {
        all.extend(of_rusthv(&files, memory)?);
    }
    // Nothing is left out, whatever comes.
    for one in files.ioctls() {
        let there = all.iter().any(|calls| calls.of.contains(&(one.on, one.request)));
        check!(there, "{} on {:?} is in no thread", one.name, one.on);
    }
    together(t, all)?;
    check_eq!(vm.set_manual_log(0), Ok(0));
    vm.dirty_pages(0, PAGES)?;
    enter_long(vcpu)?;
    machine.change_regs(|regs| regs.rbx = 0x1234)?;
    extra.write_u64(0, 0x77);
    for turn in 0..3 {
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: 0x10, ref data, .. } if data == &[0x77]), "{exit:x?}");
        check_eq!(vcpu.regs()?.rbx, 0x1235 + turn, "in order afterwards");
    }
    check!(vm.dirty_pages(0, PAGES)?.contains(&WRITTEN), "what the guest writes is in the log");
    Ok(())
}

fn of_a_vcpu<'a>(files: &Files<'a>) -> Result<Vec<Calls<'a>>, Failure> {
    use FileKind::{Device, Vcpu};
    let Files { device, vcpu, .. } = *files;
    let cpuid = device.supported_cpuid(256)?;
    vcpu.set_cpuid(&cpuid)?;
    let (regs, sregs) = (vcpu.regs()?, vcpu.sregs()?);
    Ok(vec![
        calls(Vcpu, &[KVM_RUN], |_| {
            let exit = vcpu.run()?;
            check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{exit:x?}");
            Ok(())
        }),
        calls(Vcpu, &[KVM_GET_REGS], move |_| {
            let rsp = vcpu.regs()?.rsp;
            check!((regs.rsp - 0x100..=regs.rsp).contains(&rsp), "RSP {rsp:#x}");
            Ok(())
        }),
        calls(Vcpu, &[KVM_SET_REGS], move |_| {
            check_eq!(vcpu.set_regs(&kvm_regs { rsp: regs.rsp - 16, ..regs }), Ok(0));
            Ok(())
        }),
        calls(Vcpu, &[KVM_GET_SREGS], move |_| {
            let now = vcpu.sregs()?;
            check_eq!((now.cr0, now.cr3, now.efer, now.cs), (sregs.cr0, sregs.cr3, sregs.efer, sregs.cs));
            Ok(())
        }),
        calls(Vcpu, &[KVM_SET_SREGS], move |_| {
            check_eq!(vcpu.set_sregs(&sregs), Ok(0));
            Ok(())
        }),
        calls(Vcpu, &[KVM_SET_CPUID2], move |_| {
            check_eq!(vcpu.set_cpuid(&cpuid), Ok(0), "the same CPUID again");
            Ok(())
        })
        .and(Device, &[KVM_GET_SUPPORTED_CPUID]),
        calls(Vcpu, &[KVM_INTERRUPT], |_| {
            let result = vcpu.interrupt(VECTOR as u32);
            check!(matches!(result, Ok(0) | Err(Errno::EEXIST)), "KVM_INTERRUPT: {result:?}");
            Ok(())
        }),
        calls(Vcpu, &[KVM_TRANSLATE], |_| {
            let asked = kvm_translation { linear_address: EXTRA + 5, ..Default::default() };
            let found = vcpu.translate(asked)?;
            check_eq!((found.valid, found.physical_address), (1, EXTRA + 5));
            Ok(())
        }),
        calls(Vcpu, &[], |_| {
            let area = Memory::map(PAGE, libc::MAP_SHARED, vcpu.fd())?;
            area.advise(0, PAGE, libc::MADV_DONTNEED)?;
            check_eq!(area.read(std::mem::offset_of!(kvm_run, padding1), 6), [0; 6]);
            Ok(())
        }),
    ])
}

fn of_a_vm<'a>(files: &Files<'a>, extra: &'a Memory) -> Vec<Calls<'a>> {
    use FileKind::{Device, Vcpu, Vm};
    let Files { device, vm, vcpu } = *files;
    vec![
        calls(Vm, &[KVM_SET_USER_MEMORY_REGION], |turn| {
            // The read at EXTRA finds one or the other, with no gap in between.
            let offset = turn % 16 * PAGE as u64;
            check_eq!(vm.set_slot(2, 0, 0x80_0000 + offset, PAGE as u64, extra.address()), Ok(0));
            check_eq!(vm.set_slot(2, 0, 0xA0_0000 + offset, PAGE as u64, extra.address()), Ok(0));
            check_eq!(vm.set_slot(2, 0, 0, 0, 0), Ok(0));
            Ok(())
        }),
        calls(Vm, &[KVM_CREATE_VCPU], |turn| {
            if turn < 200 {
                let other = vm.vcpu(1 + turn)?;
                check!(other.regs().is_ok());
                check_err!(vm.vcpu(1 + turn).map(drop), EEXIST, "vCPU {turn}");
            }
            Ok(())
        }),
        calls(Device, &[KVM_CHECK_EXTENSION], |turn| {
            extra.write_u64(0, turn);
            extra.advise(0, PAGE, libc::MADV_DONTNEED)?;
            check_eq!(device.check_extension(KVM_CAP_USER_MEMORY), Ok(1));
            check_eq!(vm.ioctl(KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY.into()), Ok(1));
            Ok(())
        })
        .and(Vm, &[KVM_CHECK_EXTENSION]),
        calls(Vm, &[KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR], |_| {
            check_eq!(vm.ioctl(KVM_SET_TSS_ADDR, 0xFFFB_D000), Ok(0));
            let identity = 0xFFFB_C000u64;
            let result = vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, &raw const identity as u64);
            check_err!(result, EINVAL, "there is a vCPU");
            Ok(())
        }),
        calls(Vm, &[KVM_GET_STATS_FD], |_| {
            for statistics in [vm.statistics()?, vcpu.statistics()?] {
                check!(!statistics.id()?.is_empty());
                check!(!statistics.descriptors()?.is_empty());
            }
            Ok(())
        })
        .and(Vcpu, &[KVM_GET_STATS_FD]),
    ]
}

/// The dirty log, read and cleared in both ways by two threads at once.
fn of_memory<'a>(files: &Files<'a>) -> Vec<Calls<'a>> {
    let vm = files.vm;
    let log = move || -> Outcome {
        let pages = vm.dirty_pages(0, PAGES)?;
        check!(pages.iter().all(|page| *page < PAGES), "{pages:x?}");
        Ok(())
    };
    let of = [KVM_ENABLE_CAP, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG];
    vec![
        calls(FileKind::Vm, &of, move |turn| {
            let manual = if turn % 2 == 0 { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE } else { 0 };
            check_eq!(vm.set_manual_log(manual), Ok(0));
            log()?;
            check_eq!(vm.clear_log(0, 0, PAGES as u32, &[u64::MAX; PAGES / 64]), Ok(0));
            Ok(())
        }),
        calls(FileKind::Vm, &of[1..], move |turn| {
            log()?;
            let first = turn % (PAGES / 64) as u64 * 64;
            check_eq!(vm.clear_log(0, first, 64, &[turn]), Ok(0));
            Ok(())
        }),
    ]
}

fn of_the_device<'a>(files: &Files<'a>) -> Vec<Calls<'a>> {
    let device = files.device;
    let of = [KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_GET_SUPPORTED_CPUID];
    vec![calls(FileKind::Device, &of, move |turn| {
        check_eq!(device.ioctl(KVM_GET_API_VERSION, 0), Ok(12));
        check!(device.ioctl(KVM_GET_VCPU_MMAP_SIZE, 0)? >= 2 * PAGE as i32);
        check!(!device.supported_cpuid(256)?.is_empty());
        // Each waits for the host to be told of its end.
        if turn < 50 {
            drop(device.vm()?.vcpu(0)?);
        }
        Ok(())
    })]
}

/// What KVM has not.
fn of_rusthv<'a>(files: &Files<'a>, memory: &'a Memory) -> Result<Vec<Calls<'a>>, Failure> {
    use FileKind::{Device, Vcpu, Vm};
    let Files { device, vm, vcpu } = *files;
    let (code, page) = (layout::CODE as u64, PAGE as u64);
    let digest = vm.measure(code, page)?;
    let info = device.info()?;
    let counters = [RUSTHV_GET_VM_STATS, RUSTHV_GET_PAGING_STATS];
    Ok(vec![
        calls(Vm, &counters, |_| {
            let before = (vcpu.stats()?.exits, vm.stats()?);
            let paging = vm.paging_stats()?;
            check_eq!(paging.mode, PAGING.load(Ordering::Relaxed).into());
            let after = (vcpu.stats()?.exits, vm.stats()?);
            check_eq!(after.1.id, before.1.id);
            check!(after.0 >= before.0 && after.1.flushes >= before.1.flushes, "{before:?}, {after:?}");
            Ok(())
        })
        .and(Vcpu, &[RUSTHV_GET_VCPU_STATS]),
        calls(Device, &[RUSTHV_GET_INFO, RUSTHV_GET_HOST_STATS, RUSTHV_GET_NODE_STATS], move |_| {
            check_eq!(device.info()?, info);
            check!(device.host_stats()?.vms >= 1);
            check_eq!(device.node_stats(0)?.node, 0);
            Ok(())
        }),
        calls(Vm, &[RUSTHV_MEASURE], move |_| {
            // Nobody writes there.
            check_eq!(vm.measure(code, page)?, digest);
            Ok(())
        }),
        calls(Vm, &[RUSTHV_GET_GPA], move |_| {
            let found = vm.locate(code)?;
            check_eq!((found.slot, found.hva), (0, memory.address() + code));
            // Without nested tables it is nowhere, and the host may have moved it meanwhile.
            let frame = device.frame(found.hpa, 0)?;
            let moved = || vm.locate(code).is_ok_and(|now| now.hpa != found.hpa);
            check!(found.hpa == 0 || frame.total >= 1 || moved(), "{found:x?}: {frame:x?}");
            Ok(())
        })
        .and(Device, &[RUSTHV_GET_FRAME]),
        calls(Vm, &[RUSTHV_SET_RIGHTS], |_| {
            check_err!(vm.set_rights(77, RUSTHV_MAP_READ), ENOENT, "there is no such slot");
            Ok(())
        }),
        calls(Device, &[RUSTHV_UNMAP_FRAME], move |_| {
            // Nothing else is told of that page while others look at it.
            device.unmap_frame(vm.locate(EXTRA)?.hpa)?;
            Ok(())
        }),
        calls(Vcpu, &[RUSTHV_WALK], |turn| {
            let walk = vcpu.walk(EXTRA, (turn % 3) as u32)?;
            check_eq!(walk.gpa, EXTRA, "{walk:x?}");
            check!(matches!(walk.result, RUSTHV_WALK_DONE | RUSTHV_WALK_NOT_MAPPED), "{walk:x?}");
            Ok(())
        }),
        calls(Vm, &[RUSTHV_SET_NUMA_POLICY, RUSTHV_SET_WIPE, RUSTHV_SET_INTERCEPTS, KVM_ENABLE_CAP], |_| {
            check_err!(vm.set_numa_policy(RUSTHV_NUMA_BIND, 1), EBUSY, "there is a vCPU");
            check_err!(vm.set_wipe(RUSTHV_WIPE_ZEROS), EBUSY, "there is a vCPU");
            check_err!(vm.set_intercepts(RUSTHV_INTERCEPT_PORT, 0, 1, 1), EBUSY, "there is a vCPU");
            check_err!(vm.enable_cap(CAP_PAGING, 0, PAGING_SHADOW.into()), EBUSY, "there is a vCPU");
            Ok(())
        }),
    ])
}

/// Each in a thread, at the same time; the first failure ends all.
fn together(t: &Context, calls: Vec<Calls>) -> Outcome {
    let cpus = host::online_cpus();
    let turns = t.repetitions(1000);
    let stop = AtomicBool::new(false);
    let results: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> = calls
            .into_iter()
            .enumerate()
            .map(|(index, Calls { call, .. })| {
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
    results.into_iter().collect()
}

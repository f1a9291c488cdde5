// SPDX-License-Identifier: GPL-2.0

//! Every allocation of what is asked of a VM or settled for it fails once: ENOMEM or success, and it works the next time.

use crate::faults::{self, Injector, MANY};
use crate::ioctl::KVM_GET_STATS_FD;
use crate::prelude::*;
use crate::rusthv::*;
use std::os::fd::{FromRawFd, OwnedFd};

pub const TEST: Test = Test::new(300, run);

guest!(fail_allocations_vm, code64, "mov [0x100000], al", "hlt");

fn run(t: &Context) -> Outcome {
    if let Err(reason) = faults::enable() {
        skip!("{reason}");
    }
    let device = t.rusthv()?;
    let before = device.host_stats()?;
    let injector = Injector::new()?;
    let questions = questions(&device, &injector)?;
    let policies = policies(&device, &injector)?;
    let modes = paging(&device, &injector, PAGING_SHADOW)? + paging(&device, &injector, PAGING_TRAP)?;
    check!(questions > 5 && policies > 0 && modes > 1, "allocations: {questions}, {policies}, {modes}");
    let after = device.host_stats()?;
    check_eq!(
        (after.vms, after.vcpus, after.frames_in_use),
        (before.vms, before.vcpus, before.frames_in_use),
        "afterwards"
    );
    Ok(())
}

fn questions(device: &Device, injector: &Injector) -> Result<u64, Failure> {
    let machine = Machine::long(device, fail_allocations_vm())?;
    let Machine { vm, vcpu, memory } = &machine;
    memory.fill(0x10_0000, 0x1000, 0x11);
    check_eq!(machine.run()?, Exit::Hlt);
    let at = 0x10_0123;
    let digest = vm.measure(at, 0x5000)?;
    let hpa = vm.locate(at)?.hpa;
    // SAFETY: a new descriptor, which is closed.
    let close = |fd| drop(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut injected = 0;
    let mut each = |what: &str, work: &mut dyn FnMut() -> Result<(), Errno>| -> Outcome {
        // Once as it is: then the stack that the answer goes to is there.
        work()?;
        injected += injector.each(what, work)?;
        Ok(())
    };
    each("GET_STATS_FD of a VM", &mut || vm.ioctl(KVM_GET_STATS_FD, 0).map(close))?;
    each("GET_STATS_FD of a vCPU", &mut || vcpu.ioctl(KVM_GET_STATS_FD, 0).map(close))?;
    each("MEASURE", &mut || vm.measure(at, 0x5000).map(drop))?;
    each("GET_VM_STATS", &mut || vm.stats().map(drop))?;
    each("GET_PAGING_STATS", &mut || vm.paging_stats().map(drop))?;
    each("GET_GPA", &mut || vm.locate(at).map(drop))?;
    each("GET_FRAME", &mut || device.frame(hpa, 0).map(drop))?;
    each("UNMAP_FRAME", &mut || device.unmap_frame(hpa).map(drop))?;
    each("WALK", &mut || vcpu.walk(at, 0).map(drop))?;
    each("TRANSLATE", &mut || {
        vcpu.translate(kvm_translation { linear_address: at, ..Default::default() }).map(drop)
    })?;
    each("GET_NODE_STATS", &mut || device.node_stats(0).map(drop))?;
    check_eq!(vm.measure(at, 0x5000)?, digest, "the memory after all that");
    Ok(injected)
}

fn policies(device: &Device, injector: &Injector) -> Result<u64, Failure> {
    let vm = device.vm()?;
    // A pool with a frame would do without an allocation.
    std::fs::write("/proc/sys/vm/drop_caches", "2")?;
    let mut nodes = 0;
    let injected = injector.each("SET_NUMA_POLICY", &mut || {
        // Another one each time.
        nodes ^= 1 << 63;
        vm.set_numa_policy(RUSTHV_NUMA_BIND, 1 | nodes).map(drop)
    })?;
    // The first call alone makes bitmaps.
    for n in 1..MANY {
        let vm = device.plain_vm()?;
        let set = || vm.set_intercepts(RUSTHV_INTERCEPT_PORT, 0x80, 1, 1);
        let (result, hit) = injector.with_failure(n, set)?;
        check!(matches!(result, Ok(0) | Err(Errno::ENOMEM)), "SET_INTERCEPTS, allocation {n}: {result:?}");
        check!(hit || result.is_ok(), "SET_INTERCEPTS without a failure: {result:?}");
        check_eq!(set(), Ok(0), "the next time");
        if !hit {
            break;
        }
    }
    injector.each("SET_WIPE", &mut || vm.set_wipe(RUSTHV_WIPE_ZEROS).map(drop))?;
    check_eq!(Machine::long_in(device, vm, fail_allocations_vm())?.run()?, Exit::Hlt);
    Ok(injected)
}

/// ENABLE_CAP of a paging mode.
fn paging(device: &Device, injector: &Injector, mode: u32) -> Result<u64, Failure> {
    for n in 1..MANY {
        let vm = device.plain_vm()?;
        let choose = || vm.enable_cap(CAP_PAGING, 0, mode.into());
        let (result, hit) = injector.with_failure(n, choose)?;
        check!(matches!(result, Ok(0) | Err(Errno::ENOMEM)), "mode {mode}, allocation {n}: {result:?}");
        check!(hit || result.is_ok(), "mode {mode} without a failure: {result:?}");
        if result.is_err() {
            check_eq!(vm.paging_stats()?.mode, PAGING_NESTED.into(), "as it was");
            check_eq!(choose(), Ok(0), "the next time");
        }
        check_eq!(vm.paging_stats()?.mode, mode.into());
        if result.is_err() || !hit {
            check_eq!(Machine::long_in(device, vm, fail_allocations_vm())?.run()?, Exit::Hlt);
        }
        if !hit {
            return Ok(n - 1);
        }
    }
    Err(Failure::failed(format!("mode {mode} has more than {MANY} allocations")))
}

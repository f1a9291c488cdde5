// SPDX-License-Identifier: GPL-2.0

//! Without a file descriptor to be had KVM_CREATE_VM and KVM_CREATE_VCPU are EMFILE, and nothing stays of them.

use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(fd_limit, code16, "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::real(&device, fd_limit())?;
    let counts = || match device.has_extensions() {
        true => device.host_stats().map(|stats| (stats.vms, stats.vcpus)),
        false => Ok((0, 0)),
    };
    let before = counts()?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours.
    Errno::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    let set = |current: libc::rlim_t| -> Outcome {
        let limit = libc::rlimit { rlim_cur: current, ..limit };
        // SAFETY: the structure is ours.
        Errno::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
        Ok(())
    };
    // Descriptors that are open already stay open below the limit.
    set(0)?;
    let results: Vec<_> = (0..20).map(|_| (device.vm().map(drop), machine.vm.vcpu(1).map(drop))).collect();
    set(limit.rlim_cur)?;
    for (vm, vcpu) in results {
        check_err!(vm, EMFILE, "KVM_CREATE_VM");
        check_err!(vcpu, EMFILE, "KVM_CREATE_VCPU");
    }
    if t.is_exclusive() {
        check_eq!(counts()?, before, "VMs and vCPUs alive");
    }
    let second = machine.vm.vcpu(1);
    check!(second.is_ok(), "the id is free: {:?}", second.err());
    check!(device.vm().is_ok());
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_SET_NUMA_POLICY: a VM's frames come from the nodes that it says, in the order that it says.

use crate::host;
use crate::numa::{grown, in_use, machine, touch};
use crate::prelude::*;
use crate::rusthv::*;
use std::ptr;

pub const TEST: Test = Test::new(60, run).with_several_cpus();

const TABLES: u64 = 32;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.rusthv()?;
    arguments(&device)?;
    let nodes = host::nodes_with_cpus();
    let [(here, cpu), (there, _), ..] = nodes[..] else {
        skip!("processors are on {} NUMA nodes: two are needed", nodes.len());
    };
    host::pin(cpu)?;
    let (both, here_bit, there_bit) = (1 << here | 1 << there, 1 << here, 1 << there);
    for (what, policy, set, expected) in [
        ("bound elsewhere", RUSTHV_NUMA_BIND, there_bit, [0, 100]),
        ("bound here", RUSTHV_NUMA_BIND, here_bit, [100, 0]),
        ("bound to both", RUSTHV_NUMA_BIND, both, [100, 0]),
        // Nodes that are not there say nothing.
        ("bound elsewhere and nowhere", RUSTHV_NUMA_BIND, there_bit | 1 << 63, [0, 100]),
        ("interleaved", RUSTHV_NUMA_INTERLEAVE, both, [50, 50]),
        ("interleaved on one", RUSTHV_NUMA_INTERLEAVE, there_bit, [0, 100]),
        ("local", RUSTHV_NUMA_LOCAL, 0, [100, 0]),
    ] {
        let before = in_use(&device)?;
        let vm = device.vm()?;
        vm.set_numa_policy(policy, set)?;
        let (machine, _memory) = machine(&device, vm, TABLES)?;
        touch(&machine, 0, TABLES)?;
        let grown = grown(&device, &before)?;
        let all: u64 = grown.iter().sum();
        check!(all > TABLES, "{what}: {grown:?}");
        let shares = [here, there].map(|node| grown[node as usize] * 100 / all);
        let fits = shares.iter().zip(expected).all(|(share, expected)| match expected {
            50 => (40..=60).contains(share),
            exactly => *share == exactly,
        });
        check!(fits, "{what}: {shares:?} of {grown:?} instead of {expected:?} percent");
        drop(machine);
        check_eq!(in_use(&device)?, before, "{what}: when the VM is gone");
    }
    Ok(())
}

fn arguments(device: &Device) -> Outcome {
    check_eq!(device.check_extension(RUSTHV_CAP_NUMA_POLICY), Ok(0b111));
    let vm = device.vm()?;
    check_err!(vm.ioctl(RUSTHV_SET_NUMA_POLICY, 0), EFAULT);
    let good = NumaPolicy { policy: RUSTHV_NUMA_BIND, nodes: 1, ..Default::default() };
    let mut bad = [good; 6];
    bad[0].policy = 3;
    bad[1].padding = 1;
    bad[2].reserved[0] = 1;
    bad[3].reserved[5] = 1;
    bad[4].nodes = 0;
    // Local to some nodes: that is bound.
    bad[5].policy = RUSTHV_NUMA_LOCAL;
    for policy in &bad {
        let result = vm.ioctl(RUSTHV_SET_NUMA_POLICY, ptr::from_ref(policy) as u64);
        check_err!(result, EINVAL, "{policy:?}");
    }
    check_err!(vm.set_numa_policy(RUSTHV_NUMA_INTERLEAVE, 1 << 63), EINVAL, "no memory there");
    check_eq!(vm.set_numa_policy(good.policy, good.nodes), Ok(0));
    check_eq!(vm.set_numa_policy(RUSTHV_NUMA_LOCAL, 0), Ok(0));
    let _vcpu = vm.vcpu(0)?;
    check_err!(vm.set_numa_policy(RUSTHV_NUMA_LOCAL, 0), EBUSY, "there is a vCPU");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A VM's frames are on the NUMA node of the thread that makes the VM, its vCPUs and its tables.

use crate::host;
use crate::numa::{grown, in_use, machine, touch};
use crate::prelude::*;
use crate::rusthv::*;
use std::ptr;

pub const TEST: Test = Test::new(60, run).with_several_cpus();

/// Page tables that the guest makes the host fill.
const TABLES: u64 = 32;
/// Frames that a vCPU sets aside for its next fault, wherever that will be.
const RESERVE: u64 = 4;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.rusthv()?;
    bad_arguments(&device)?;
    let nodes = host::nodes_with_cpus();
    let [first, second, ..] = nodes[..] else {
        skip!("processors are on {} NUMA nodes: two are needed", nodes.len());
    };
    for (home, away) in [(first, second), (second, first)] {
        stays(&device, home, away)?;
        moves(&device, home, away)?;
    }
    Ok(())
}

/// A VM that is made and run in one place.
fn stays(device: &Device, (node, cpu): (u32, usize), (other, _): (u32, usize)) -> Outcome {
    host::pin(cpu)?;
    let before = in_use(device)?;
    check_eq!(before.iter().sum::<u64>(), device.host_stats()?.frames_in_use, "the nodes add up");
    let (machine, _memory) = machine(device, device.vm()?, TABLES)?;
    let vcpu = machine.vm.vcpu(1)?;
    let made = grown(device, &before)?;
    check!(made[node as usize] >= 3, "a root and two vCPUs on node {node}: {made:?}");
    touch(&machine, 0, TABLES)?;
    let run = grown(device, &before)?;
    let tables = machine.vm.stats()?.table_frames;
    check!(tables > TABLES, "{tables} frames in tables");
    check_eq!(run.iter().sum::<u64>(), run[node as usize], "all on node {node}: {run:?}");
    check_eq!(run[other as usize], 0, "on node {other}");
    check!(run[node as usize] >= made[node as usize] + TABLES, "{made:?}, then {run:?}");
    drop((machine, vcpu));
    check_eq!(in_use(device)?, before, "when the VM is gone");
    Ok(())
}

/// A VM that is made in one place, and run there and then in the other.
fn moves(device: &Device, home: (u32, usize), away: (u32, usize)) -> Outcome {
    host::pin(home.1)?;
    let (machine, _memory) = machine(device, device.vm()?, TABLES)?;
    touch(&machine, 0, TABLES / 2)?;
    let before = in_use(device)?;
    host::pin(away.1)?;
    touch(&machine, TABLES / 2, TABLES / 2)?;
    let after = in_use(device)?;
    let grown = |(node, _): (u32, usize)| after[node as usize].saturating_sub(before[node as usize]);
    check!(grown(away) >= TABLES / 2 - RESERVE, "node {}: {before:?}, then {after:?}", away.0);
    check!(grown(home) <= RESERVE, "node {}: {before:?}, then {after:?}", home.0);
    Ok(())
}

fn bad_arguments(device: &Device) -> Outcome {
    for (node, padding) in [(u32::MAX, 0), (1 << 20, 0), (0, 1)] {
        let mut stats = NodeStats { node, padding, ..Default::default() };
        let result = device.ioctl(RUSTHV_GET_NODE_STATS, ptr::from_mut(&mut stats) as u64);
        check_err!(result, EINVAL, "node {node}, padding {padding}");
    }
    let stats = device.node_stats(0)?;
    check_eq!((stats.node, stats.padding, stats.reserved), (0, 0, [0; 2]));
    Ok(())
}

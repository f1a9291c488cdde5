// SPDX-License-Identifier: GPL-2.0

//! On a NUMA node that is full, VMs are made and run with frames of the next node; bound to it, with none of others.

use crate::host;
use crate::numa::{fill_node, grown, in_use, machine, touch};
use crate::prelude::*;
use crate::rusthv::*;
use std::fs;

pub const TEST: Test = Test::new(180, run).with_several_cpus();

const TABLES: u64 = 64;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.rusthv()?;
    let nodes = host::nodes_with_cpus();
    let [(home, cpu), (next, _), ..] = nodes[..] else {
        skip!("processors are on {} NUMA nodes: two are needed", nodes.len());
    };
    if host::meminfo("MemTotal").unwrap_or_default() > 4 << 20 {
        skip!("too much memory to fill a node");
    }
    host::pin(cpu)?;
    let before = in_use(&device)?;
    // With memory at home.
    let (first, _first_memory) = machine(&device, device.vm()?, TABLES)?;
    touch(&first, 0, TABLES)?;
    let roomy = grown(&device, &before)?;
    check_eq!(roomy.iter().sum::<u64>(), roomy[home as usize], "all on node {home}: {roomy:?}");
    drop(first);

    let filler = fill_node(home)?;
    // The pools are given back as well.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    check_eq!(device.node_stats(home)?.frames_pooled, 0, "in the pool of node {home}");
    let (second, _second_memory) = machine(&device, device.vm()?, TABLES)?;
    touch(&second, 0, TABLES)?;
    let full = grown(&device, &before)?;
    check!(full[next as usize] >= TABLES * 3 / 4, "on node {next} when {home} is full: {full:?}");
    drop(second);

    let bound = device.vm()?;
    let set = bound.set_numa_policy(RUSTHV_NUMA_BIND, 1 << home);
    match set.and_then(|_| machine(&device, bound, TABLES)) {
        Ok((third, _third_memory)) => {
            let before_run = in_use(&device)?;
            let ran = touch(&third, 0, TABLES);
            let grown = grown(&device, &before_run)?;
            check_eq!(grown.iter().sum::<u64>(), grown[home as usize], "bound to node {home}: {grown:?}");
            // It may come through with what the host keeps for the last moment.
            if ran.is_err() {
                check_err!(third.run(), ENOMEM, "bound to a full node");
            }
        }
        // Nor is there room for a root table.
        Err(errno) => check_eq!(errno, Errno::ENOMEM, "bound to a full node"),
    }

    drop(filler);
    let (fourth, _fourth_memory) = machine(&device, device.vm()?, TABLES)?;
    let before = in_use(&device)?;
    touch(&fourth, 0, TABLES)?;
    let again = grown(&device, &before)?;
    check!(again[home as usize] >= TABLES * 3 / 4, "on node {home}, which has room again: {again:?}");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Frames of dead tables wait in a pool, serve the next VM, and go when the host wants its memory back.

use crate::debugfs;
use crate::host::{online_cpus, pin};
use crate::numa::{machine, touch};
use crate::prelude::*;
use crate::rusthv::*;
use std::fs;

pub const TEST: Test = Test::new(60, run);

const TABLES: u64 = 32;
/// What a node's pool keeps at most.
const CAPACITY: u64 = 128;

fn run(t: &Context) -> Outcome {
    t.nested()?;
    t.exclusive()?;
    // Each node has a pool of its own.
    pin(online_cpus()[0])?;
    let device = t.rusthv()?;
    let all = || -> Result<NodeStats, Errno> {
        let mut sum = NodeStats::default();
        for node in 0.. {
            match device.node_stats(node) {
                Ok(stats) => {
                    sum.frames_pooled += stats.frames_pooled;
                    sum.pool_hits += stats.pool_hits;
                    sum.pool_misses += stats.pool_misses;
                    sum.pool_shrunk += stats.pool_shrunk;
                }
                Err(_) => break,
            }
        }
        Ok(sum)
    };
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let (first, memory) = machine(&device, device.vm()?, TABLES)?;
    // Also what the vCPU has set aside for the table of owners and not needed.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    check_eq!(all()?.frames_pooled, 0, "after the host took them");
    let start = all()?;
    touch(&first, 0, TABLES)?;
    let run = all()?;
    check!(run.pool_misses - start.pool_misses >= TABLES, "{start:?}, then {run:?}");
    check_eq!(run.pool_hits, start.pool_hits, "nothing was there");
    let counters = |vm: &Vm| -> Result<(u64, u64), Errno> {
        let statistics = vm.statistics()?;
        let value = |name| statistics.value(name).map(Option::unwrap_or_default);
        Ok((value("table_pool_hits")?, value("table_pool_misses")?))
    };
    let (hits, misses) = counters(&first.vm)?;
    check!(hits == 0 && misses >= TABLES, "{hits} hits, {misses} misses");
    // Its tables go with the memory.
    drop(first);
    let dead = all()?;
    check!((TABLES..=2 * CAPACITY).contains(&dead.frames_pooled), "{dead:?}");
    drop(memory);

    let (second, _memory) = machine(&device, device.vm()?, TABLES)?;
    touch(&second, 0, TABLES)?;
    let (hits, misses) = counters(&second.vm)?;
    check!(hits >= TABLES && misses <= 8, "{hits} hits, {misses} misses with {dead:?}");
    check!(all()?.pool_hits - dead.pool_hits >= TABLES);
    drop(second);
    let full = all()?;
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let empty = all()?;
    check_eq!(empty.frames_pooled, 0);
    check_eq!(empty.pool_shrunk - full.pool_shrunk, full.frames_pooled, "what was there was taken");
    if let Some(root) = debugfs::module() {
        let text = fs::read_to_string(root.join("pools"))?;
        let shrunk: u64 = text.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
        check_eq!(shrunk, empty.pool_shrunk, "{text}");
    }
    Ok(())
}

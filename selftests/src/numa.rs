// SPDX-License-Identifier: GPL-2.0

//! NUMA: memory that fills a node, a VM whose guest makes page tables, and whose frames are where.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use std::ptr;
use std::thread::sleep;
use std::time::Duration;

guest!(
    numa_tables,
    code64,
    // Touches RCX places from RBX on, each in a page table of its own.
    "2: mov [rbx], rbx",
    "add rbx, 0x200000",
    "loop 2b",
    "hlt",
);

const BASE: u64 = 0x4000_0000;
const MPOL_MF_MOVE: libc::c_int = 2;

/// Frames in use on all nodes that there can be.
pub fn in_use(device: &Device) -> Result<Vec<u64>, Errno> {
    let mut frames = Vec::new();
    loop {
        match device.node_stats(frames.len() as u32) {
            Ok(stats) => frames.push(stats.frames_in_use),
            Err(Errno::EINVAL) => return Ok(frames),
            Err(errno) => return Err(errno),
        }
    }
}

/// How many more there are on each node.
pub fn grown(device: &Device, before: &[u64]) -> Result<Vec<u64>, Errno> {
    let now = in_use(device)?;
    Ok(now.into_iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect())
}

/// A VM with memory for so many page tables, behind which there are no large pages.
pub fn machine(device: &Device, vm: Vm, count: u64) -> Result<(Machine, Memory), Errno> {
    let machine = Machine::long_in(device, vm, numa_tables())?;
    let memory = Memory::new(count as usize * LARGE_PAGE)?;
    memory.advise(0, memory.size(), libc::MADV_NOHUGEPAGE)?;
    machine.vm.map(1, BASE, &memory)?;
    Ok((machine, memory))
}

/// Makes the guest touch a place in each of `count` page tables.
pub fn touch(machine: &Machine, from: u64, count: u64) -> Outcome {
    machine.change_regs(|regs| {
        regs.rip = layout::CODE as u64;
        regs.rbx = BASE + from * LARGE_PAGE as u64;
        regs.rcx = count;
    })?;
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

/// The node of a page of ours.
fn node_of(address: u64) -> Option<i32> {
    let (pages, mut status) = ([address], [0i32]);
    // SAFETY: one page to ask for, and room for one answer; nothing is moved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            1usize,
            pages.as_ptr(),
            ptr::null::<i32>(),
            status.as_mut_ptr(),
            0,
        )
    };
    (result == 0 && status[0] >= 0).then_some(status[0])
}

/// Memory that leaves nothing free on a node: further pages that prefer it come from elsewhere.
pub fn fill_node(node: u32) -> Result<Memory, Failure> {
    const MPOL_PREFERRED: libc::c_long = 1;
    /// Pages in a row that came from elsewhere.
    const ENOUGH: usize = 64;
    let memory = Memory::aligned(3 << 30, LARGE_PAGE)?;
    let mask = [1u64 << node, 0];
    // SAFETY: our own memory, which nothing has been read from yet.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.address(),
            memory.size(),
            MPOL_PREFERRED,
            mask.as_ptr(),
            65usize,
            0,
        )
    };
    check!(result == 0, "mbind: {}", std::io::Error::last_os_error());
    memory.advise(0, memory.size(), libc::MADV_HUGEPAGE)?;
    let mut at = 0;
    let here = |at: usize| {
        memory.write(at, &[1]);
        node_of(memory.address() + at as u64) == Some(node as i32)
    };
    // Large pages while there are some, then small ones.
    while at + LARGE_PAGE < memory.size() && here(at) {
        at += LARGE_PAGE;
    }
    memory.advise(at, memory.size() - at, libc::MADV_NOHUGEPAGE)?;
    at += LARGE_PAGE;
    // What the host has woken up to reclaim may find some more.
    for _ in 0..5 {
        let mut elsewhere = 0;
        while elsewhere < ENOUGH {
            check!(at + PAGE < memory.size(), "node {node} is never full");
            elsewhere = if here(at) { 0 } else { elsewhere + 1 };
            at += PAGE;
        }
        sleep(Duration::from_millis(50));
    }
    Ok(memory)
}

/// Moves pages to a node; those that are there afterwards.
pub fn migrate(memory: &Memory, pages: &[usize], node: i32) -> Result<Vec<usize>, Errno> {
    let addresses: Vec<u64> = pages.iter().map(|page| memory.address() + (page * PAGE) as u64).collect();
    let nodes = vec![node; pages.len()];
    let mut status = vec![-1i32; pages.len()];
    // SAFETY: arrays of as many elements as said, all of them ours.
    Errno::check(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            addresses.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        ) as i32
    })?;
    Ok(pages.iter().zip(status).filter(|(_, state)| *state == node).map(|(page, _)| *page).collect())
}

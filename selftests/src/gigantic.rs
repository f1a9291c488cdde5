// SPDX-License-Identifier: GPL-2.0

//! The host's pages of 1 GiB.
//!
//! They come from a pool that is filled when the host boots (`hugepagesz=1G hugepages=1`): later there is hardly
//! so much memory in one piece.

use crate::harness::Failure;
use crate::memory::{Memory, LARGE_PAGE, PAGE};
use crate::skip;
use std::fs;

pub const GIB: usize = 1 << 30;
/// Small, and large, pages in it.
pub const PAGES: usize = GIB / PAGE;
pub const LARGE: usize = GIB / LARGE_PAGE;
/// Where the tests map one for their guests.
pub const GPA: u64 = 0x4000_0000;

const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages";

/// Memory in one page of 1 GiB; each 2 MiB begins with their number.
pub fn memory() -> Result<Memory, Failure> {
    let free = fs::read_to_string(FREE).unwrap_or_default();
    if free.trim().parse().unwrap_or(0) < 1 {
        skip!("the host has no page of 1 GiB to give (hugepagesz=1G hugepages=1)");
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB;
    let memory = Memory::map(GIB, flags, -1)?;
    for number in 0..LARGE {
        memory.write_u64(number * LARGE_PAGE, number as u64);
    }
    Ok(memory)
}

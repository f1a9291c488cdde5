// SPDX-License-Identifier: GPL-2.0
//! 32-bit paging: two levels, 32-bit entries, pages of 4 MiB with CR4.PSE, nothing like no-execute.

pub type Entry = u32;
pub type Cell = core::sync::atomic::AtomicU32;

pub const LEVELS: &[(u32, u32)] = &[(12, 10), (22, 10)];
pub const LARGE_SIZE: usize = 4 << 20;
pub const HAS_NX: bool = false;
pub const NX: Entry = 0;
pub const ADDRESS: Entry = 0xffff_f000;

pub const MAPPINGS: usize = 0x5000_0000;

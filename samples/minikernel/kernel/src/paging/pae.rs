// SPDX-License-Identifier: GPL-2.0
//! Physical-address extension: the entries of long mode under a root of four. The processor reads
//! those four when CR3 is loaded and never again, so they are made with the address space.

pub type Entry = u64;
pub type Cell = core::sync::atomic::AtomicU64;

pub const LEVELS: &[(u32, u32)] = &[(12, 9), (21, 9), (30, 2)];
pub const LARGE_SIZE: usize = 2 << 20;
pub const HAS_NX: bool = true;
pub const NX: Entry = 1 << 63;
pub const ADDRESS: Entry = 0x000f_ffff_ffff_f000;

pub const MAPPINGS: usize = 0x5000_0000;

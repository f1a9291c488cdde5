// SPDX-License-Identifier: GPL-2.0
//! Long mode: four levels, 64-bit entries, no-execute.

pub type Entry = u64;
pub type Cell = core::sync::atomic::AtomicU64;

/// For each level, the lowest first: how far the address is shifted for the index, and by how many
/// bits of it.
pub const LEVELS: &[(u32, u32)] = &[(12, 9), (21, 9), (30, 9), (39, 9)];
pub const LARGE_SIZE: usize = 2 << 20;
pub const HAS_NX: bool = true;
pub const NX: Entry = 1 << 63;
pub const ADDRESS: Entry = 0x000f_ffff_ffff_f000;

/// Mappings go far up, under an entry of the root of their own.
pub const MAPPINGS: usize = 0x7000_0000_0000;

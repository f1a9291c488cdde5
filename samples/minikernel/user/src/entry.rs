// SPDX-License-Identifier: GPL-2.0
//! Page-table entries and page faults as the processor sees them; the same bits in all formats.

pub const PRESENT: u64 = 1 << 0;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
pub const LARGE: u64 = 1 << 7;

/// Bits of a page fault's error code.
pub mod error {
    pub const PRESENT: usize = 1 << 0;
    pub const WRITE: usize = 1 << 1;
    pub const USER: usize = 1 << 2;
    pub const FETCH: usize = 1 << 4;
}

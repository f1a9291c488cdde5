// SPDX-License-Identifier: GPL-2.0
//! How the kernel reports to the VMM: by port I/O, which works before and after anything else.

/// A byte of text for whoever watches.
pub const CONSOLE_PORT: u16 = 0x3f8;
/// A byte that ends the run: one of [`status`].
pub const EXIT_PORT: u16 = 0xf4;
/// This vCPU waits for another one, and the host may let that run. The byte is a [`Wait`].
pub const YIELD_PORT: u16 = 0xe0;
/// A byte that names the [`Value`] of which [`VALUE_PORT`] gets the two halves, the low one first.
pub const NAME_PORT: u16 = 0xe1;
pub const VALUE_PORT: u16 = 0xe4;

/// What a vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wait {
    /// For the lock, or a flush of a TLB, which another vCPU is about to do.
    Short,
    /// For what another process does, while this one goes on.
    Yield,
    /// For a process to run.
    Idle,
}

/// How a run ended.
pub mod status {
    /// All was as it should be.
    pub const OK: u8 = 0;
    /// The workload read what nobody had written, or a page-table entry was not as it should be.
    pub const MISMATCH: u8 = 1;
    /// The kernel is confused: an exception that nothing explains, or its own panic.
    pub const PANIC: u8 = 2;
}

/// What is reported at the end, in the order of its numbers on [`NAME_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Value {
    /// Of all that the workload has read. Depends on workload, size and seed alone.
    Checksum,
    /// Page faults taken, however they ended.
    Faults,
    /// Pages copied because somebody wrote to one that was shared since a fork.
    Copies,
    /// Page-table entries written.
    Entries,
    /// Single pages invalidated in the own TLB.
    PageFlushes,
    /// Own TLB flushed as a whole, or all of one address space.
    SpaceFlushes,
    /// Other vCPUs that were made to flush.
    ShootDowns,
    /// Loads of CR3 for another address space.
    Switches,
    /// Calls that processes made.
    Calls,
    /// Pages for page tables at the time when there were most.
    Tables,
}

impl Value {
    pub const COUNT: usize = 10;
    pub const NAMES: [&'static str; Self::COUNT] = [
        "checksum",
        "faults",
        "copies",
        "entries",
        "page_flushes",
        "space_flushes",
        "shoot_downs",
        "switches",
        "calls",
        "tables",
    ];
}

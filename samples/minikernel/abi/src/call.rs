// SPDX-License-Identifier: GPL-2.0
//! How a process calls the kernel: INT 0x80 with the number in EAX and arguments in EDI, EDX and
//! ECX (their 64-bit forms in long mode); what comes back is in EAX and EDX.

pub const VECTOR: u8 = 0x80;

/// A process ends; the arguments are the two halves of its checksum.
pub const EXIT: usize = 0;
/// Another process with the same memory, copied when one of the two writes. Returns the child's
/// number, and 0 in the child.
pub const FORK: usize = 1;
/// Wait for the child with this number to end. Returns the halves of its checksum.
pub const WAIT: usize = 2;
/// Let another process run.
pub const YIELD: usize = 3;
/// Map this many bytes with these rights ([`prot`]). Returns the address.
pub const MAP: usize = 4;
/// Unmap this many bytes from this address on.
pub const UNMAP: usize = 5;
/// Give this many bytes from this address on these rights.
pub const PROTECT: usize = 6;
/// The page-table entry for this address on this level, 0 being the lowest. Returns its halves.
pub const ENTRY: usize = 7;
/// Clear these of the accessed and dirty bits in the leaf entry for this address.
pub const CLEAR: usize = 8;
/// If the very next access faults, go on at EDX with the error code in EAX.
pub const CATCH: usize = 9;
/// The kernel touches this address as this [`probe`] says. Returns the error code, or [`NONE`].
pub const PROBE: usize = 10;
/// Map the page table that has the entry for the first address at the second one.
pub const TABLE: usize = 11;
/// Flush what TLBs have for this address.
pub const FLUSH: usize = 12;
/// Another process in the same address space: starts at the first address with its stack at the
/// second one, and the third argument in EDI. Returns its number.
pub const SPAWN: usize = 13;
/// End the run as a failure; the arguments say where, what came and what should have.
pub const FAIL: usize = 14;
/// The kernel's parameter with this number, see [`parameter`].
pub const PARAMETER: usize = 15;
/// Exchange the frames behind two pages.
pub const EXCHANGE: usize = 16;
/// Copy this many bytes from the first address to the second one, both in the own memory.
pub const COPY: usize = 17;

/// No error code: the access went well. Also what a call returns that cannot be done.
pub const NONE: usize = usize::MAX;

pub mod prot {
    pub const WRITE: usize = 1 << 0;
    pub const EXECUTE: usize = 1 << 1;
    /// Stays one memory when the process forks.
    pub const SHARED: usize = 1 << 2;
    /// Mapped at once with large pages.
    pub const LARGE: usize = 1 << 3;
    /// No access for the process itself, only for the kernel.
    pub const SUPERVISOR: usize = 1 << 4;
}

pub mod probe {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const EXECUTE: usize = 2;
    /// In addition: with RFLAGS.AC, which lets a kernel at user pages in spite of SMAP.
    pub const AC: usize = 1 << 2;
}

pub mod parameter {
    pub const WORKLOAD: usize = 0;
    pub const SIZE: usize = 1;
    pub const SEED: usize = 2;
    /// Which of [`super::feature`] are in use.
    pub const FEATURES: usize = 3;
    /// Levels of page tables: 2, 3 or 4.
    pub const LEVELS: usize = 4;
    /// Bytes of a large page.
    pub const LARGE: usize = 5;
    /// How many vCPUs there are. Nothing that a workload computes may depend on it.
    pub const VCPUS: usize = 6;
}

pub mod feature {
    pub const NX: usize = 1 << 0;
    pub const SMEP: usize = 1 << 1;
    pub const SMAP: usize = 1 << 2;
    pub const PCID: usize = 1 << 3;
    pub const INVPCID: usize = 1 << 4;
    pub const GLOBAL: usize = 1 << 5;
}

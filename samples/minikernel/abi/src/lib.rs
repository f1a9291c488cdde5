// SPDX-License-Identifier: GPL-2.0
//! What three parties agree on: the VMM that starts the mini-kernel and reads its report, the
//! kernel, and the program in its processes. Plain numbers, so that it is the same for a 32-bit
//! and a 64-bit guest.

#![no_std]

pub mod call;
pub mod report;

/// Guest-physical address of the [`Parameters`].
pub const PARAMETERS: u32 = 0x8000;
/// Where the VMM puts the kernel's image; each vCPU starts at its first byte, with its own number
/// in EDI, in long mode or in protected mode without paging.
pub const KERNEL: u32 = 0x10_0000;
/// Where the VMM puts the program's image. The kernel, with its variables, ends below.
pub const PROGRAM: u32 = 0x20_0000;
/// How many vCPUs the kernel has stacks for.
pub const MAX_VCPUS: u32 = 8;

/// How much memory the kernel can keep account of, in bytes.
pub const MAX_MEMORY: u32 = 256 << 20;

/// First word of the parameters.
pub const MAGIC: u32 = 0x6b76_6872;

/// What the kernel finds at [`PARAMETERS`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Parameters {
    pub magic: u32,
    pub vcpus: u32,
    /// Bytes of RAM, a multiple of 4 MiB.
    pub memory: u32,
    /// Bytes at [`PROGRAM`].
    pub program_size: u32,
    /// Place in [`WORKLOADS`].
    pub workload: u32,
    /// How much of it, in percent of the usual amount.
    pub size: u32,
    /// Where its pseudo-random numbers start.
    pub seed: u32,
}

/// The workloads by name. The number by which guest and host call one is its place here.
pub const WORKLOADS: [&str; 9] =
    ["sequential", "random", "fork", "churn", "switch", "threads", "large", "remap", "attributes"];

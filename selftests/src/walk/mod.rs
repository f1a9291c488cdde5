// SPDX-License-Identifier: GPL-2.0

//! The model's walk of guest page tables against the CPU.
//!
//! `generate` makes cases from a seed: registers, tables, an access. `guest` performs each access on
//! the CPU, many in one KVM_RUN. `model` walks the same tables in software, on a copy of guest memory
//! from before; `corpus` compares the two; `coverage` counts what the cases were.

pub mod corpus;
pub mod coverage;
pub mod generate;
pub mod guest;
pub mod model;
pub mod translate;

use kvm_bindings::kvm_cpuid_entry2;
use rusthv_model::paging::state::{AccessKind, Features as ModelFeatures, Mode};

/// What the guest's CPU has, by its CPUID.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    pub phys_bits: u8,
    pub pages_1g: bool,
    pub pse36: bool,
    pub nx: bool,
    pub smep: bool,
    pub smap: bool,
    pub keys: bool,
    pub five_levels: bool,
}

impl Features {
    pub fn new(cpuid: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function| {
            let found = cpuid.iter().find(|entry| entry.function == function && entry.index == 0);
            found.copied().unwrap_or_default()
        };
        let (basic, more, extended) = (leaf(1), leaf(7), leaf(0x8000_0001));
        let has = |register: u32, bit: u32| register >> bit & 1 != 0;
        Self {
            phys_bits: leaf(0x8000_0008).eax as u8,
            pages_1g: has(extended.edx, 26),
            pse36: has(basic.edx, 17),
            nx: has(extended.edx, 20),
            smep: has(more.ebx, 7),
            smap: has(more.ebx, 20),
            keys: has(more.ecx, 3),
            five_levels: has(more.ecx, 16),
        }
    }

    pub fn model(&self) -> ModelFeatures {
        ModelFeatures { phys_bits: self.phys_bits, pages_1g: self.pages_1g, pse36: self.pse36 }
    }

    /// The paging modes that a guest can be in.
    pub fn modes(&self) -> Vec<Mode> {
        let mut modes = vec![Mode::Bits32, Mode::Pae, Mode::FourLevel];
        if self.five_levels {
            modes.push(Mode::FiveLevel);
        }
        modes
    }
}

/// Levels of tables in a mode; level 1 maps 4 KiB pages.
pub fn levels(mode: Mode) -> u32 {
    match mode {
        Mode::Unpaged => 0,
        Mode::Bits32 => 2,
        Mode::Pae => 3,
        Mode::FourLevel => 4,
        Mode::FiveLevel => 5,
    }
}

/// log2 of what an entry of this level covers.
pub fn shift(mode: Mode, level: u32) -> u32 {
    match mode {
        Mode::Bits32 => 12 + 10 * (level - 1),
        _ => 12 + 9 * (level - 1),
    }
}

pub const KINDS: [AccessKind; 3] = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];

// SPDX-License-Identifier: GPL-2.0

//! Intel VT-x: VMX operation, VMCSs, controls, entry and exit, VPIDs.
//!
//! The second floor with `unsafe` (the first is `host`). What is not Intel's does not live here:
//! exits leave as [`crate::model::exit::Exit`].
//!
//! | File | What it holds |
//! |---|---|
//! | `instr` | the VMX instructions, each a `Result` |
//! | `caps` | what the CPU can do, and the control words that follow |
//! | `fields` | VMCS fields as typed constants |
//! | `active` | which VMCS is active on which CPU; CPUs coming and going |
//! | `vmcs` | a VMCS and the window in which it is current |
//! | `guest` | a vCPU's VMCS: reset state, registers, events |
//! | `exit` | from exit reason and qualification to a neutral exit |
//! | `tlb` | INVEPT, INVVPID, VPID numbers |
//! | `entry.S` | the entry and the exit themselves |

pub mod active;
pub mod caps;
pub mod exit;
pub mod fields;
pub mod guest;
pub mod instr;
pub mod tlb;
pub mod vmcs;

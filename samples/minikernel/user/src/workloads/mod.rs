// SPDX-License-Identifier: GPL-2.0
//! The workloads, in the order of `minikernel_abi::WORKLOADS`.

mod fork;
mod sequential;

pub const ALL: [fn() -> u64; minikernel_abi::WORKLOADS.len()] = [sequential::run, fork::run];

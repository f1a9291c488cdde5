// SPDX-License-Identifier: GPL-2.0
//! The workloads, in the order of `minikernel_abi::WORKLOADS`.

mod attributes;
mod churn;
mod fork;
mod large;
mod random;
mod remap;
mod sequential;
mod switch;
mod threads;

pub const ALL: [fn() -> u64; minikernel_abi::WORKLOADS.len()] = [
    sequential::run,
    random::run,
    fork::run,
    churn::run,
    switch::run,
    threads::run,
    large::run,
    remap::run,
    attributes::run,
];

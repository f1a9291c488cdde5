// SPDX-License-Identifier: GPL-2.0
//! What the kernel counts, for the report.

use core::sync::atomic::{AtomicU32, Ordering};

use minikernel_abi::report::Value;

static COUNTERS: [AtomicU32; Value::COUNT] = [const { AtomicU32::new(0) }; Value::COUNT];

pub fn count(what: Value) {
    COUNTERS[what as usize].fetch_add(1, Ordering::Relaxed);
}

/// Reports all that is counted here.
pub fn report() {
    use Value::*;
    for what in [Faults, Copies, Entries, PageFlushes, SpaceFlushes, ShootDowns, Switches, Calls] {
        let value = COUNTERS[what as usize].load(Ordering::Relaxed);
        crate::console::report(what, u64::from(value));
    }
}

// SPDX-License-Identifier: GPL-2.0

//! How many VM exits a vCPU has had.

use crate::device::Vcpu;
use crate::statistics::Statistics;

/// All exits since the vCPU was made.
pub fn count(vcpu: &Vcpu) -> Option<u64> {
    vcpu.statistics().and_then(|statistics: Statistics| statistics.value("exits")).ok().flatten()
}

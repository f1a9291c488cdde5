// SPDX-License-Identifier: GPL-2.0

//! What of a VM is settled before its first vCPU.

use crate::device::{Device, Vm};
use crate::errno::Errno;
use crate::random::Random;
use crate::rusthv::*;

/// Chooses a NUMA policy, what becomes of frames, how writes are noticed, and perhaps bitmaps of its own for a
/// VM without vCPUs.
pub fn choose(device: &Device, vm: &Vm, random: &mut Random) -> Result<(), Errno> {
    // Taken in any case: a seed means the same on every device.
    let (policy, nodes) = (random.below(4) as u32, 1 + random.below(3));
    let intercepts = (random.below(12) as u32, random.edge() as u32, 1 + random.below(64) as u32);
    let tracking = random.below(4);
    let wipe = random.pick(&[RUSTHV_WIPE_NEVER, RUSTHV_WIPE_ZEROS, RUSTHV_WIPE_RANDOM]);
    if !device.has_extensions() {
        return Ok(());
    }
    let result = match policy {
        RUSTHV_NUMA_LOCAL => vm.set_numa_policy(policy, 0),
        RUSTHV_NUMA_BIND | RUSTHV_NUMA_INTERLEAVE => vm.set_numa_policy(policy, nodes),
        // As it comes.
        _ => Ok(0),
    };
    // There may be no second node.
    if !matches!(result, Ok(_) | Err(Errno::EINVAL)) {
        result?;
    }
    vm.set_wipe(wipe)?;
    match vm.enable_cap(RUSTHV_CAP_DIRTY_TRACKING, 0, tracking) {
        // There may be no such way, or none to choose.
        Ok(_) | Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {}
        Err(errno) => return Err(errno),
    }
    // Nothing is let through: what the guest would reach is the host's.
    let (what, first, count) = intercepts;
    match vm.set_intercepts(what, first, count, 1) {
        Ok(_) | Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

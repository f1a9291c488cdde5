// SPDX-License-Identifier: GPL-2.0

//! What a VMM that has died may have left behind.

use crate::check_eq;
use crate::device::Device;
use crate::harness::Outcome;
use crate::rusthv::HostStats;
use std::thread;
use std::time::Duration;

/// What is held of the host now, where the device can tell.
pub fn now(device: &Device) -> Result<Option<HostStats>, crate::errno::Errno> {
    device.has_extensions().then(|| device.host_stats()).transpose()
}

/// Objects and frames are back to what they were.
pub fn restored(device: &Device, before: &HostStats) -> Outcome {
    let mut after = device.host_stats()?;
    // The last one's objects go with its last file, which a worker may still have to close.
    for _ in 0..100 {
        if (after.vms, after.vcpus) == (before.vms, before.vcpus) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        after = device.host_stats()?;
    }
    check_eq!(
        (after.vms, after.vcpus, after.frames_in_use),
        (before.vms, before.vcpus, before.frames_in_use),
        "VMs, vCPUs and frames in use"
    );
    Ok(())
}

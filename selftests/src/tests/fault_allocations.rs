// SPDX-License-Identifier: GPL-2.0

//! Faults of a guest allocate nothing that may not sleep, as they would under a lock; and what they allocate can fail.

use crate::debugfs::MOUNT;
use crate::faults::{self, Injector};
use crate::numa::{machine, touch};
use crate::prelude::*;
use std::fs;

pub const TEST: Test = Test::new(120, run);

const TABLES: u64 = 64;

fn run(t: &Context) -> Outcome {
    if let Err(reason) = faults::enable() {
        skip!("{reason}");
    }
    let device = t.device()?;
    let injector = Injector::new()?;
    let before = if device.has_extensions() { Some(device.host_stats()?) } else { None };
    // Whoever allocates what may sleep under a lock is in the log of a kernel with DEBUG_ATOMIC_SLEEP; who
    // asks for what may not sleep is found here: nothing else fails.
    let outcome = set_waiting(true).and_then(|()| {
        let (machine, memory) = machine(&device, device.vm()?, TABLES)?;
        // The host's own faults are over before the guest's.
        for table in 0..TABLES as usize {
            memory.write(table * crate::memory::LARGE_PAGE, &[1]);
        }
        let (result, hit) = injector.with_failure(1, || touch(&machine, 0, TABLES))?;
        result?;
        check!(!hit, "a fault has allocated what may not sleep");
        Ok(())
    });
    set_waiting(false)?;
    outcome?;
    // The test can see allocations: of those that may sleep there are some.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let (machine, memory) = machine(&device, device.vm()?, TABLES)?;
    for table in 0..TABLES as usize {
        memory.write(table * crate::memory::LARGE_PAGE, &[1]);
    }
    let (result, hit) = injector.with_failure(1, || machine_run(&machine))?;
    check!(hit, "a fault without an allocation: {result:?}");
    // Without nested tables what is set aside for a fault may do without being filled up.
    let enough = result.is_ok() && !crate::emulator::is_nested();
    check!(enough || result == Err(Errno::ENOMEM), "{result:?}");
    touch(&machine, 0, TABLES)?;
    drop(machine);
    if let Some(before) = before {
        check_eq!(device.host_stats()?.frames_in_use, before.frames_in_use);
    }
    Ok(())
}

fn machine_run(machine: &Machine) -> Result<Exit, Errno> {
    machine.change_regs(|regs| (regs.rip, regs.rbx, regs.rcx) = (layout::CODE as u64, 0x4000_0000, 1))?;
    machine.run()
}

/// Spares allocations that may sleep, or no others.
fn set_waiting(spared: bool) -> Outcome {
    let value = if spared { "Y" } else { "N" };
    for kind in ["failslab", "fail_page_alloc"] {
        fs::write(format!("{MOUNT}/{kind}/ignore-gfp-wait"), value)?;
    }
    Ok(())
}

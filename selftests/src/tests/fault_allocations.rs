// SPDX-License-Identifier: GPL-2.0

//! Faults of a guest allocate nothing that may not sleep, as they would under a lock; and what they allocate can fail.

use crate::debugfs::MOUNT;
use crate::faults::{self, Injector};
use crate::numa::{machine, touch};
use crate::prelude::*;
use std::fs;

pub const TEST: Test = Test::new(120, run);

const TABLES: u64 = 64;
/// Fewer, where each of their allocations fails in turn.
const FEW: u64 = 8;

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
    // The test can see allocations: of those that may sleep there are some, and each can fail.
    let mut refused = 0;
    for n in 1.. {
        fs::write("/proc/sys/vm/drop_caches", "2")?;
        let (machine, memory) = machine(&device, device.vm()?, FEW)?;
        for table in 0..FEW as usize {
            memory.write(table * crate::memory::LARGE_PAGE, &[1]);
        }
        let (result, hit) = injector.with_failure(n, || machine_run(&machine))?;
        check!(matches!(result, Ok(Exit::Hlt) | Err(Errno::ENOMEM)), "allocation {n}: {result:?}");
        refused += u32::from(result.is_err());
        touch(&machine, 0, FEW)?;
        if !hit {
            check!(n > 1, "a fault without an allocation");
            check_eq!(result, Ok(Exit::Hlt));
            break;
        }
        check!(n < faults::MANY, "a fault has more than {n} allocations");
    }
    // A vCPU does without its control structure on the node where it runs, and without nested tables also
    // without filling up what is set aside for faults; not with nested ones.
    check!(refused > 0 || !crate::emulator::is_nested(), "every failed allocation was one to do without");
    if let Some(before) = before {
        check_eq!(device.host_stats()?.frames_in_use, before.frames_in_use);
    }
    Ok(())
}

fn machine_run(machine: &Machine) -> Result<Exit, Errno> {
    machine.change_regs(|regs| (regs.rip, regs.rbx, regs.rcx) = (layout::CODE as u64, 0x4000_0000, FEW))?;
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

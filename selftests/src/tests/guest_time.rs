// SPDX-License-Identifier: GPL-2.0

//! The host accounts the time that a guest runs as guest time of the VMM's thread.

use crate::prelude::*;
use std::fs;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(20, run);

guest!(guest_time, code64, "2: dec rbx", "jnz 2b", "hlt");

/// Ticks of USER_HZ.
const TICK: Duration = Duration::from_millis(10);
/// In /proc/PID/stat, behind the name.
const USER: usize = 11;
const SYSTEM: usize = 12;
const GUEST: usize = 40;

fn times() -> Result<[u64; 3], Failure> {
    let stat =
        fs::read_to_string("/proc/thread-self/stat").map_err(|error| Failure::failed(error.to_string()))?;
    let fields = stat.rsplit(") ").next().unwrap_or("").split(' ').collect::<Vec<_>>();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0);
    Ok([USER, SYSTEM, GUEST].map(field))
}

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, guest_time())?;
    let before = times()?;
    let begin = Instant::now();
    while begin.elapsed() < 30 * TICK {
        machine.change_regs(|regs| (regs.rip, regs.rbx) = (layout::CODE as u64, 1_000_000))?;
        check_eq!(machine.run()?, Exit::Hlt);
    }
    let passed = times()?;
    let [user, system, guest] = [0, 1, 2].map(|index| passed[index] - before[index]);
    println!("# {user} ticks of user time, {guest} of these in the guest, {system} of system time");
    // Others may have had the CPU for some time.
    check!(guest >= 3 && guest > system, "{guest} ticks in the guest, {system} in the system");
    // User time is scaled to what the scheduler has measured, guest time is not.
    check!(user + 3 >= guest, "guest time is user time: {user}, {guest}");
    Ok(())
}

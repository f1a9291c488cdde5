// SPDX-License-Identifier: GPL-2.0

//! Every allocation of the module's initialisation fails once: it is not loaded and nothing is left of it, or it works.

use crate::debugfs::MOUNT;
use crate::faults::{self, Injector};
use crate::module;
use crate::prelude::*;
use std::fs;

pub const TEST: Test = Test::new(900, run);

guest!(load_failures, code64, "mov [0x100000], al", "hlt");

/// Where the kernel says that it has read the module and is about to run it.
const TRACING: &str = "/sys/kernel/debug/tracing";
/// More than the module's own initialisation has, and what comes after it.
const ENOUGH: u64 = 500;
/// By so much one load differs from the next.
const SLACK: u64 = 8;
/// About as many as the module has at most.
const OURS: u64 = 100;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let path = t.module()?;
    if let Err(reason) = faults::enable() {
        skip!("{reason}");
    }
    if !module::is_loaded() {
        skip!("rust_hv is not a loaded module");
    }
    let switch = format!("{TRACING}/events/module/module_load/enable");
    if fs::write(&switch, "1").is_err() {
        skip!("the kernel does not trace what it loads");
    }
    let injector = Injector::new()?;
    module::unload()?;
    let outcome = each(t, &injector, path);
    fs::write(&switch, "0")?;
    // Whatever came of it, the next test has the module.
    if !module::is_loaded() {
        module::load(path)?;
    }
    let (failures, survived) = outcome?;
    println!("# {failures} failed allocations kept the module out, {survived} did not");
    let least = if t.repetitions(ENOUGH) < OURS { 3 } else { 21 };
    check!(failures >= least, "only {failures} allocations kept the module out");
    works(t)
}

/// How many failed allocations kept the module out, and how many did not. From the last one backwards, until
/// they are the loader's, which comes first.
fn each(t: &Context, injector: &Injector, path: &str) -> Result<(u64, u64), Failure> {
    let (result, last) = injector.count(|| module::load(path))?;
    result?;
    module::unload()?;
    // Where few are tried, they are from all of them.
    let tries = t.repetitions(ENOUGH);
    let step = (OURS / tries).max(1);
    let first = last.saturating_sub(tries * step).max(1);
    let (mut failures, mut survived) = (0, 0);
    for n in (first..=last + SLACK).rev().step_by(step as usize) {
        fs::write(format!("{TRACING}/trace"), "")?;
        let (result, hit) = injector.with_failure(n, || module::load(path))?;
        match result {
            Ok(()) => {
                check!(module::is_loaded());
                module::unload()?;
                survived += u64::from(hit);
            }
            Err(_) if !fs::read_to_string(format!("{TRACING}/trace"))?.contains("module_load: rust_hv") => {
                // Ours were all of those behind.
                return Ok((failures, survived));
            }
            Err(errno) => {
                check!(hit, "allocation {n} was not there, and loading failed with {errno}");
                check_eq!(errno, Errno::ENOMEM, "allocation {n}");
                failures += 1;
            }
        }
        nothing_left(n)?;
    }
    check!(t.repetitions(ENOUGH) < ENOUGH, "none of {ENOUGH} allocations was the loader's");
    Ok((failures, survived))
}

fn nothing_left(n: u64) -> Outcome {
    check!(!module::is_loaded(), "allocation {n}");
    let left = ["/dev/rusthv", "/sys/module/rust_hv", &format!("{MOUNT}/rust_hv")]
        .into_iter()
        .find(|path| fs::metadata(path).is_ok())
        .map(str::to_owned);
    check!(left.is_none(), "allocation {n} has left {left:?}");
    for list in ["/proc/misc", "/sys/devices/system/cpu/hotplug/states"] {
        let text = fs::read_to_string(list)?;
        check!(!text.contains("rusthv"), "allocation {n} has left something in {list}: {text}");
    }
    Ok(())
}

/// The module and KVM, each with a guest.
fn works(t: &Context) -> Outcome {
    for device in [Ok(t.device()?), t.reference()].into_iter().flatten() {
        check_eq!(Machine::long(&device, load_failures())?.run()?, Exit::Hlt, "{}", device.path());
    }
    Ok(())
}

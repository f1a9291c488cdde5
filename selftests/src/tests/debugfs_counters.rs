// SPDX-License-Identifier: GPL-2.0

//! A VM's counters can be read in debugfs as long as it lives, also while VMs come and go.

use crate::debugfs;
use crate::module;
use crate::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(60, run);

guest!(debugfs_counters, code64, "mov [0x100000], al", "hlt");

/// VMs that come and go while others look at them.
const VMS: u64 = 50;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let Some(root) = debugfs::module() else {
        skip!("the kernel has no debugfs");
    };
    let machine = Machine::long(&device, debugfs_counters())?;
    check_eq!(machine.run()?, Exit::Hlt);
    let dir = debugfs::of(&machine.vm)?;
    let lines = values(&fs::read_to_string(dir.join("stats"))?)?;
    // The same counters as in the file of KVM_GET_STATS_FD; nothing is running.
    let statistics = machine.vm.statistics()?;
    let names: Vec<String> = statistics.descriptors()?.into_iter().map(|one| one.name).collect();
    check_eq!(names.len(), lines.len());
    for name in &names {
        check_eq!(lines.get(name).copied(), statistics.value(name)?, "{name}");
    }
    check!(lines.get("pages_4k").zip(lines.get("pages_2m")).is_some_and(|(small, large)| small + large > 0));
    check!(
        File::create(dir.join("stats")).is_err() || fs::write(dir.join("stats"), "0").is_err(),
        "read-only"
    );

    // A file that stays open when the VM goes has nothing to say any more.
    let mut open = File::open(dir.join("stats"))?;
    drop((machine, statistics));
    check!(fs::metadata(&dir).is_err(), "{dir:?} is gone");
    let error = open.read(&mut [0; 16]).err().and_then(|error| error.raw_os_error());
    check_eq!(error, Some(libc::EIO), "read after the VM went");
    if t.is_exclusive() && module::is_loaded() {
        drop(device);
        check_err!(module::unload(), EAGAIN, "with a file open");
    }
    drop(open);

    let device = t.rusthv()?;
    let done = AtomicBool::new(false);
    let (made, seen) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0u64;
            while !done.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
                    // It may be gone by now.
                    if let Ok(text) = fs::read_to_string(entry.path().join("stats")) {
                        seen += u64::from(values(&text).is_ok_and(|values| !values.is_empty()));
                    }
                }
            }
            seen
        });
        let made = (0..t.repetitions(VMS)).try_for_each(|_| {
            let machine = Machine::long(&device, debugfs_counters())?;
            machine.run().map(drop)
        });
        done.store(true, Ordering::Relaxed);
        (made, reader.join().unwrap_or(0))
    });
    made?;
    check!(seen > 0, "nobody saw a VM");
    if t.is_exclusive() {
        let left = fs::read_dir(&root)?.flatten().filter(|entry| entry.path().is_dir()).count();
        check_eq!(left, 0, "directories are left");
    }
    Ok(())
}

/// Names and values of a file with one of each per line.
fn values(text: &str) -> Result<BTreeMap<String, u64>, Failure> {
    text.lines()
        .map(|line| match line.split_once(' ').map(|(name, value)| (name.to_owned(), value.parse())) {
            Some((name, Ok(value))) => Ok((name, value)),
            _ => Err(Failure::failed(format!("a line of {line:?}"))),
        })
        .collect()
}

// SPDX-License-Identifier: GPL-2.0

//! The host: processors, files of proc and sysfs.

use crate::errno::Errno;
use std::{fs, mem};

/// Binds this thread to one processor.
pub fn pin(cpu: usize) -> Result<(), Errno> {
    // SAFETY: an all-zero set is valid; the macros only write inside of it.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        Errno::check(libc::sched_setaffinity(0, mem::size_of_val(&set), &set))?;
    }
    Ok(())
}

/// The processors that are online, in order.
pub fn online_cpus() -> Vec<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    parse_list(&text)
}

/// Parses a list such as `0-2,5`.
fn parse_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let mut ends = part.split('-').map(str::parse::<usize>);
        match (ends.next(), ends.next()) {
            (Some(Ok(first)), Some(Ok(last))) => cpus.extend(first..=last),
            (Some(Ok(only)), None) => cpus.push(only),
            _ => {}
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    #[test]
    fn lists() {
        assert_eq!(super::parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(super::parse_list("3"), [3]);
        assert_eq!(super::parse_list(""), []);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The host kernel's log: did it complain while a test ran?

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// What the kernel writes when something is wrong with it.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "kernel BUG at",
    "general protection fault",
    "unable to handle",
    "rcu: INFO:",
    "detected stall",
    "soft lockup",
    "hung_task",
    "blocked for more than",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called from invalid context",
    "scheduling while atomic",
    "list_add corruption",
    "list_del corruption",
    "KASAN:",
    "UBSAN:",
    "memory leak",
    "refcount_t:",
    "panicked at",
    "Bad page state",
    "Bad rss-counter",
    "Unexpected reboot",
    "invalid opcode:",
    "unchecked MSR access",
];

/// A reader that has skipped what was there when it was opened.
pub struct KernelLog {
    file: Option<File>,
}

impl KernelLog {
    /// Without the right to read the log it stays silent.
    pub fn open() -> Self {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/kmsg")
            .ok()
            .and_then(|mut file| file.seek(SeekFrom::End(0)).is_ok().then_some(file));
        Self { file }
    }

    /// True when complaints would be seen.
    pub fn is_readable(&self) -> bool {
        self.file.is_some()
    }

    /// The complaints since the last call.
    pub fn complaints(&mut self) -> Vec<String> {
        let Some(file) = &mut self.file else { return Vec::new() };
        let mut found = Vec::new();
        let mut record = [0; 8192];
        loop {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    // "priority,number,time,flags;text": what user space wrote is no complaint.
                    let Some((prefix, message)) = text.split_once(';') else { continue };
                    if from_kernel(prefix) && is_complaint(message) {
                        found.push(message.lines().next().unwrap_or_default().to_owned());
                    }
                }
                // Records were overwritten before they were read: go on with the oldest.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => break,
            }
        }
        found
    }
}

/// The facility is above the three bits of the level; the kernel's own is 0.
fn from_kernel(prefix: &str) -> bool {
    prefix
        .split(',')
        .next()
        .and_then(|number| number.parse::<u32>().ok())
        .is_some_and(|number| number >> 3 == 0)
}

fn is_complaint(message: &str) -> bool {
    COMPLAINTS.iter().any(|complaint| message.contains(complaint))
}

#[cfg(test)]
mod tests {
    #[test]
    fn complaints() {
        assert!(super::is_complaint("WARNING: CPU: 0 PID: 1 at kernel/x.c:1"));
        assert!(!super::is_complaint("rust_hv: loaded"));
        assert!(super::from_kernel("4,100,2000,-"));
        assert!(!super::from_kernel("12,100,2000,-"));
    }
}

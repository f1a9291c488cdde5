// SPDX-License-Identifier: GPL-2.0

//! The host's merging of pages with the same contents.

use std::fs;
use std::thread;
use std::time::Duration;

const DIRECTORY: &str = "/sys/kernel/mm/ksm";

/// True if the kernel can merge pages.
pub fn is_there() -> bool {
    fs::metadata(DIRECTORY).is_ok()
}

/// Stops merging, and takes apart what was merged, when it is dropped.
pub struct Merging(());

impl Merging {
    /// Nothing is merged yet, and nothing held back from it.
    pub fn new() -> std::io::Result<Self> {
        // Pages of an earlier scan are not to be left out because they did not merge at once.
        let _ = set("smart_scan", "0");
        set("pages_to_scan", "10000")?;
        set("sleep_millisecs", "1")?;
        Ok(Self(()))
    }

    /// Lets the host merge pages, and waits until it has merged as many as `wanted`, or can merge no
    /// more. How many there are then.
    pub fn merge(&self, wanted: u64) -> std::io::Result<u64> {
        // In Bochs the merging thread's timer is lost now and then: it scans no more until it is told again.
        for _ in 0..3 {
            set("run", "1")?;
            for _ in 0..1500 {
                if sharing() >= wanted {
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
            set("run", "0")?;
            if sharing() >= wanted / 2 {
                break;
            }
            println!("# only {} pages are merged after {} scans", sharing(), count("full_scans"));
        }
        Ok(sharing())
    }

    /// Takes apart what was merged.
    pub fn unmerge(&self) -> std::io::Result<()> {
        set("run", "2")
    }

    /// What it has done, for a test that has expected more.
    pub fn describe(&self) -> String {
        format!(
            "{} looked at in {} scans, {} unshared, {} volatile",
            count("pages_scanned"),
            count("full_scans"),
            count("pages_unshared"),
            count("pages_volatile")
        )
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        let _ = self.unmerge();
    }
}

fn set(name: &str, value: &str) -> std::io::Result<()> {
    fs::write(format!("{DIRECTORY}/{name}"), value)
}

fn count(name: &str) -> u64 {
    let text = fs::read_to_string(format!("{DIRECTORY}/{name}")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Pages that are kept in one place together with others.
pub fn sharing() -> u64 {
    count("pages_sharing")
}

// SPDX-License-Identifier: GPL-2.0

//! Allocation failures on demand: the n-th one of this thread (debug kernels, CONFIG_FAULT_INJECTION).

use crate::debugfs::{self, MOUNT};
use crate::errno::Errno;
use crate::harness::Failure;
use crate::{check, check_eq};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

const FAIL_NTH: &str = "/proc/thread-self/fail-nth";

/// More allocations than any call has: past that, counting does not work.
pub const MANY: u64 = 2000;

/// Lets injection reach every kind of allocation; the reason when it is not there.
pub fn enable() -> Result<(), String> {
    if fs::metadata(FAIL_NTH).is_err() {
        return Err("the kernel has no fault injection".into());
    }
    debugfs::mount();
    // By default only allocations that may not sleep fail, and most of ours may.
    for (kind, setting, value) in [
        ("failslab", "ignore-gfp-wait", "N"),
        ("fail_page_alloc", "ignore-gfp-wait", "N"),
        ("fail_page_alloc", "ignore-gfp-highmem", "N"),
        ("fail_page_alloc", "min-order", "0"),
        ("failslab", "verbose", "0"),
        ("fail_page_alloc", "verbose", "0"),
    ] {
        let path = format!("{MOUNT}/{kind}/{setting}");
        if fs::write(&path, value).is_err() && setting == "ignore-gfp-wait" {
            return Err(format!("{path} cannot be written"));
        }
    }
    spare_kmemleak();
    Ok(())
}

/// Lets no object of kmemleak's own fail. It prints a warning then while it holds a lock of its own, which lockdep
/// rightly does not like, and which says nothing of the caller.
fn spare_kmemleak() {
    let Ok(caches) = fs::read_dir("/sys/kernel/slab") else { return };
    let mut chosen = 0;
    for cache in caches.flatten() {
        if !cache.file_name().to_string_lossy().starts_with("kmemleak") {
            // Caches that are one with others cannot be chosen; with KASAN there are none.
            chosen += u32::from(fs::write(cache.path().join("failslab"), "1").is_ok());
        }
    }
    if chosen > 0 {
        let _ = fs::write("/sys/kernel/debug/failslab/cache-filter", "Y");
    }
}

/// The file that sets and tells this thread's countdown.
///
/// It stays open: opening it allocates, and would be counted.
pub struct Injector(File);

impl Injector {
    pub fn new() -> Result<Self, Errno> {
        OpenOptions::new().read(true).write(true).open(FAIL_NTH).map(Self).map_err(errno)
    }

    /// How many allocations `work` has, none of which fails.
    pub fn count<T>(&self, work: impl FnOnce() -> T) -> Result<(T, u64), Errno> {
        const MANY: u64 = 1 << 30;
        self.0.write_at(MANY.to_string().as_bytes(), 0).map_err(errno)?;
        let result = work();
        let mut text = [0; 16];
        let read = self.0.read_at(&mut text, 0);
        self.0.write_at(b"0", 0).map_err(errno)?;
        let left =
            std::str::from_utf8(&text[..read.map_err(errno)?]).ok().and_then(|text| text.trim().parse().ok());
        Ok((result, MANY - left.unwrap_or(0u64).min(MANY)))
    }

    /// Runs `work` with its n-th allocation failing; true when there was an n-th one.
    pub fn with_failure<T>(&self, n: u64, work: impl FnOnce() -> T) -> Result<(T, bool), Errno> {
        self.0.write_at(n.to_string().as_bytes(), 0).map_err(errno)?;
        let result = work();
        let mut text = [0; 16];
        let read = self.0.read_at(&mut text, 0);
        self.0.write_at(b"0", 0).map_err(errno)?;
        // What is left of the countdown: nothing when it went off.
        Ok((result, text[..read.map_err(errno)?].starts_with(b"0")))
    }

    /// Fails the first allocation of `work`, then the second, until there is none to fail; how many
    /// there were.
    pub fn each(&self, what: &str, work: &mut dyn FnMut() -> Result<(), Errno>) -> Result<u64, Failure> {
        for n in 1..MANY {
            let (result, hit) = self.with_failure(n, &mut *work)?;
            if !hit {
                // With no failure it works.
                check_eq!(result, Ok(()), "{what} without a failure");
                return Ok(n - 1);
            }
            check!(matches!(result, Ok(()) | Err(Errno::ENOMEM)), "{what}, allocation {n}: {result:?}");
        }
        Err(Failure::failed(format!("{what} has more than {MANY} allocations")))
    }
}

fn errno(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

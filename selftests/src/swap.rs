// SPDX-License-Identifier: GPL-2.0

//! A swap device of compressed memory, and what the host does with it.

use crate::errno::Errno;
use crate::harness::Failure;
use crate::memory::{Memory, PAGE};
use crate::module;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

const CONTROL: &str = "/sys/class/zram-control";

/// zram and what it needs, in the order in which they are loaded; the test machine has them here.
const MODULES: [&str; 3] = ["lz4_compress", "zsmalloc", "zram"];

/// A swap device, which is gone when this is dropped.
pub struct Swap {
    number: u32,
    device: CString,
    on: bool,
}

impl Swap {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Result<Self, Failure> {
        let Some(number) = hot_add() else {
            return Err(Failure::Skipped("the host has no zram".into()));
        };
        let path = format!("/dev/zram{number}");
        let device = CString::new(path.clone()).map_err(|_| Failure::failed("a zero in a path"))?;
        let mut this = Self { number, device, on: false };
        fs::write(this.attribute("disksize"), bytes.to_string())?;
        mkswap(&path, bytes / PAGE)?;
        // SAFETY: a C string that outlives the call.
        Errno::check(unsafe { libc::swapon(this.device.as_ptr(), 0) })?;
        this.on = true;
        Ok(this)
    }

    fn attribute(&self, name: &str) -> String {
        format!("/sys/block/zram{}/{name}", self.number)
    }

    /// Bytes that are in it, and bytes that they take.
    pub fn compressed(&self) -> (u64, u64) {
        let text = fs::read_to_string(self.attribute("mm_stat")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if self.on {
            // SAFETY: as in `new`. What is out comes back.
            unsafe { libc::swapoff(self.device.as_ptr()) };
        }
        // Somebody may be looking at the device for a moment.
        for _ in 0..100 {
            let _ = fs::write(self.attribute("reset"), "1");
            if fs::write(format!("{CONTROL}/hot_remove"), self.number.to_string()).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A new device's number.
fn hot_add() -> Option<u32> {
    if !Path::new(CONTROL).exists() {
        for name in MODULES {
            // One that is loaded, or built in, is no reason to stop.
            let _ = module::load(&format!("/modules/{name}.ko"));
        }
    }
    fs::read_to_string(format!("{CONTROL}/hot_add")).ok()?.trim().parse().ok()
}

/// What the program of that name writes.
fn mkswap(path: &str, pages: usize) -> std::io::Result<()> {
    let mut header = [0; PAGE];
    let last = u32::try_from(pages - 1).unwrap_or(u32::MAX);
    header[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&last.to_le_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&header, 0)?;
    file.sync_all()
}

/// Pages that went out, and came in, since the host is up.
pub fn counts() -> (u64, u64) {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (count("pswpout"), count("pswpin"))
}

/// How many pages of anonymous memory are out at the moment.
pub fn pages_out(memory: &Memory) -> std::io::Result<usize> {
    /// The page is in swap; see the kernel's Documentation/admin-guide/mm/pagemap.rst.
    const SWAPPED: u64 = 1 << 62;
    let mut entries = vec![0; memory.size() / PAGE * 8];
    let map = File::open("/proc/self/pagemap")?;
    map.read_exact_at(&mut entries, memory.address() / PAGE as u64 * 8)?;
    let words = entries.chunks_exact(8).filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    Ok(words.filter(|entry| entry & SWAPPED != 0).count())
}

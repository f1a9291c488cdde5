// SPDX-License-Identifier: GPL-2.0

//! userfaultfd: the host's faults on some memory are for this process to settle.

use crate::errno::Errno;
use crate::ioctl::{ioctl, iowr};
use crate::memory::{Memory, PAGE};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

const UFFD: u64 = 0xAA;
const UFFDIO_API: u64 = iowr::<[u64; 3]>(UFFD, 0x3F);
const UFFDIO_REGISTER: u64 = iowr::<[u64; 4]>(UFFD, 0x00);
const UFFDIO_COPY: u64 = iowr::<[u64; 5]>(UFFD, 0x03);
const UFFDIO_WRITEPROTECT: u64 = iowr::<[u64; 3]>(UFFD, 0x06);

/// Of pages that are not there.
pub const MISSING: u64 = 1;
/// Of writes to pages that are write-protected.
pub const WRITE_PROTECT: u64 = 2;

/// A descriptor that hears of faults on some memory.
pub struct Faults<'a> {
    fd: OwnedFd,
    memory: &'a Memory,
}

impl<'a> Faults<'a> {
    /// Of these kinds, on all of the memory.
    pub fn of(memory: &'a Memory, kinds: u64) -> Result<Self, Errno> {
        Self::from(memory, 0, kinds)
    }

    /// The same, on the pages from one on.
    pub fn from(memory: &'a Memory, first: usize, kinds: u64) -> Result<Self, Errno> {
        // SAFETY: no memory is involved.
        let fd = Errno::check(unsafe {
            libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) as i32
        })?;
        // SAFETY: the descriptor is new, so it is ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let this = Self { fd, memory };
        // Write protection of anonymous memory needs to be asked for nowhere but here.
        this.call(UFFDIO_API, &mut [UFFD, 0, 0])?;
        let skip = (first * PAGE) as u64;
        let range = [memory.address() + skip, memory.size() as u64 - skip];
        this.call(UFFDIO_REGISTER, &mut [range[0], range[1], kinds, 0])?;
        Ok(this)
    }

    fn call<const N: usize>(&self, request: u64, words: &mut [u64; N]) -> Result<(), Errno> {
        // SAFETY: as many words as the number says, all of them the caller's.
        unsafe { ioctl(self.fd.as_raw_fd(), request, ptr::from_mut(words) as u64)? };
        Ok(())
    }

    /// The address of a fault that has come, if there is one.
    pub fn poll(&self) -> Option<u64> {
        // The kind of event, padding, flags, the address, the thread.
        let mut message = [0u64; 4];
        let place = message.as_mut_ptr().cast();
        // SAFETY: room for one message.
        let length = unsafe { libc::read(self.fd.as_raw_fd(), place, 32) };
        (length == 32).then_some(message[2])
    }

    /// The address of the next fault.
    pub fn next(&self) -> Option<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(address) = self.poll() {
                return Some(address);
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// The page of the memory that an address is in.
    pub fn page_of(&self, address: u64) -> usize {
        (address - self.memory.address()) as usize / PAGE
    }

    /// Puts a page there that starts with these words; true if none was there.
    pub fn fill(&self, page: usize, words: &[u64]) -> Result<bool, Errno> {
        let mut contents = vec![0u64; PAGE / 8];
        contents[..words.len()].copy_from_slice(words);
        let from = contents.as_ptr() as u64;
        let to = self.memory.address() + (page * PAGE) as u64;
        match self.call(UFFDIO_COPY, &mut [to, from, PAGE as u64, 0, 0]) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the right to write from pages, or gives it back and wakes who waits for it.
    pub fn protect(&self, page: usize, pages: usize, protect: bool) -> Result<(), Errno> {
        let start = self.memory.address() + (page * PAGE) as u64;
        self.call(UFFDIO_WRITEPROTECT, &mut [start, (pages * PAGE) as u64, protect.into()])
    }
}

// SPDX-License-Identifier: GPL-2.0
//! Memory that a process has mapped, read and written as words of 32 bits. Every access is one
//! that the compiler neither leaves out nor moves: which page is touched when is the point.

use core::sync::atomic::AtomicU32;

use minikernel_abi::call::prot;

use crate::calls;

pub const PAGE: usize = 4096;
pub const WORDS: usize = PAGE / 4;

/// A mapping.
#[derive(Clone, Copy)]
pub struct Memory {
    pub start: usize,
    pub size: usize,
}

impl Memory {
    /// Maps pages that can be written, and whatever `prot` says beyond that.
    #[track_caller]
    pub fn new(pages: usize, prot: usize) -> Self {
        let size = pages * PAGE;
        Self { start: calls::map(size, prot | prot::WRITE), size }
    }

    pub fn words(&self) -> usize {
        self.size / 4
    }

    pub fn address(&self, word: usize) -> usize {
        self.start + 4 * word
    }

    pub fn read(&self, word: usize) -> u32 {
        read(self.address(word))
    }

    pub fn write(&self, word: usize, value: u32) {
        write(self.address(word), value);
    }

    /// Reads a word that has to be this one.
    #[track_caller]
    pub fn check(&self, word: usize, expected: u32) -> u32 {
        let found = self.read(word);
        calls::expect(found as usize, expected as usize);
        found
    }

    #[track_caller]
    pub fn unmap(self) {
        calls::unmap(self.start, self.size);
    }
}

/// A word that several processes use.
pub fn atomic(address: usize) -> &'static AtomicU32 {
    // SAFETY: memory of mappings, as below, and never used but so while several use it.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }
}

pub fn read(address: usize) -> u32 {
    // SAFETY: if nothing is mapped there, the kernel ends the run and says where.
    unsafe { (address as *const u32).read_volatile() }
}

pub fn write(address: usize, value: u32) {
    // SAFETY: as above. Addresses come from mappings that hold nothing of Rust's.
    unsafe { (address as *mut u32).write_volatile(value) }
}

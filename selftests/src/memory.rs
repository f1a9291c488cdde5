// SPDX-License-Identifier: GPL-2.0

//! Anonymous memory that can be given to a guest.

use crate::errno::Errno;
use std::ptr;

/// The size of a page of the host and of the guests.
pub const PAGE: usize = 4096;
/// The size of a large page.
pub const LARGE_PAGE: usize = 2 << 20;

/// A private mapping, unmapped on drop.
///
/// Access is volatile: a guest may run on it at the same time.
pub struct Memory {
    address: *mut u8,
    size: usize,
}

// SAFETY: it is an address range; every access is volatile and bounds-checked.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Anonymous zeroed memory.
    pub fn new(size: usize) -> Result<Self, Errno> {
        Self::map(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)
    }

    /// A mapping with flags of the caller's choice.
    pub fn map(size: usize, flags: libc::c_int, fd: libc::c_int) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping where the kernel likes does not touch another.
        let address = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { address: address.cast(), size })
    }

    /// Anonymous memory whose address is a multiple of `alignment`.
    pub fn aligned(size: usize, alignment: usize) -> Result<Self, Errno> {
        let mut whole = Self::new(size + alignment)?;
        let start = whole.address as usize;
        let aligned = start.next_multiple_of(alignment);
        let end = start + whole.size;
        // SAFETY: both ranges are inside the mapping just made, and nothing refers to them.
        unsafe {
            if aligned > start {
                libc::munmap(start as *mut _, aligned - start);
            }
            if end > aligned + size {
                libc::munmap((aligned + size) as *mut _, end - aligned - size);
            }
        }
        whole.address = aligned as *mut u8;
        whole.size = size;
        Ok(whole)
    }

    pub fn address(&self) -> u64 {
        self.address as u64
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Where `offset` is; panics (which fails the test) when `length` bytes do not fit there.
    pub fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= self.size),
            "{length} bytes at {offset:#x} are outside of the guest's memory"
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.address.add(offset) }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let target = self.at(offset, bytes.len());
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: `at` checked the range.
            unsafe { target.add(index).write_volatile(*byte) };
        }
    }

    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let source = self.at(offset, length);
        // SAFETY: `at` checked the range.
        (0..length).map(|index| unsafe { source.add(index).read_volatile() }).collect()
    }

    /// Fills `to` with the words from `offset` on.
    pub fn copy_words(&self, offset: usize, to: &mut [u64]) {
        assert!(offset % 8 == 0, "misaligned words");
        let source = self.at(offset, 8 * to.len()).cast::<u64>();
        for (index, word) in to.iter_mut().enumerate() {
            // SAFETY: `at` checked the range, and the mapping is page-aligned.
            *word = unsafe { source.add(index).read_volatile() };
        }
    }

    pub fn fill(&self, offset: usize, length: usize, byte: u8) {
        // SAFETY: `at` checked the range.
        unsafe { ptr::write_bytes(self.at(offset, length), byte, length) };
    }

    pub fn write_u64(&self, offset: usize, value: u64) {
        // SAFETY: `at` checked the range; alignment is not asked for.
        unsafe { self.at(offset, 8).cast::<u64>().write_unaligned(value) };
    }

    pub fn read_u64(&self, offset: usize) -> u64 {
        assert!(offset % 8 == 0, "a misaligned word");
        // SAFETY: `at` checked the range, and the mapping is page-aligned.
        unsafe { self.at(offset, 8).cast::<u64>().read_volatile() }
    }

    pub fn read_u32(&self, offset: usize) -> u32 {
        assert!(offset % 4 == 0, "a misaligned word");
        // SAFETY: `at` checked the range, and the mapping is page-aligned.
        unsafe { self.at(offset, 4).cast::<u32>().read_volatile() }
    }

    /// madvise() of a part.
    pub fn advise(&self, offset: usize, length: usize, advice: libc::c_int) -> Result<(), Errno> {
        // SAFETY: the range is ours, and access to it is volatile.
        Errno::check(unsafe { libc::madvise(self.at(offset, length).cast(), length, advice) })?;
        Ok(())
    }

    /// mremap(): the pages of a part become those of another's, and leave a hole.
    pub fn move_to(&self, offset: usize, length: usize, to: &Memory, there: usize) -> Result<(), Errno> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (from, to) = (self.at(offset, length), to.at(there, length));
        // SAFETY: both ranges are of mappings of ours, and access to them is volatile. What was at the
        // target goes; whoever touches the hole wanted the fault.
        let moved = unsafe { libc::mremap(from.cast(), length, length, flags, to.cast::<libc::c_void>()) };
        if moved == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(())
    }

    /// The same, leaving fresh pages in their place: at no time is there a hole for another mapping.
    pub fn exchange(&self, offset: usize, length: usize, to: &Memory, there: usize) -> Result<(), Errno> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        let (from, to) = (self.at(offset, length), to.at(there, length));
        // SAFETY: as in `move_to`.
        let moved = unsafe { libc::mremap(from.cast(), length, length, flags, to.cast::<libc::c_void>()) };
        if moved == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(())
    }

    /// munmap() of a part.
    pub fn unmap(&self, offset: usize, length: usize) -> Result<(), Errno> {
        // SAFETY: the range is ours; whoever touches it afterwards wanted the fault.
        Errno::check(unsafe { libc::munmap(self.at(offset, length).cast(), length) })?;
        Ok(())
    }

    /// A new private mapping in the place of a part.
    pub fn map_anew(&self, offset: usize, length: usize, access: libc::c_int) -> Result<(), Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the range is ours, and what it held is given up.
        let mapped = unsafe { libc::mmap(self.at(offset, length).cast(), length, access, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(())
    }

    /// Which pages are present: what mincore() says of anonymous memory.
    pub fn present(&self) -> Result<Vec<bool>, Errno> {
        let mut pages = vec![0u8; self.size / PAGE];
        // SAFETY: a byte for each page of the range, which is ours.
        Errno::check(unsafe { libc::mincore(self.address.cast(), self.size, pages.as_mut_ptr()) })?;
        Ok(pages.into_iter().map(|page| page & 1 != 0).collect())
    }

    /// mprotect() of a part.
    pub fn protect(&self, offset: usize, length: usize, flags: libc::c_int) -> Result<(), Errno> {
        // SAFETY: the range is ours; whoever touches it afterwards wanted the fault.
        Errno::check(unsafe { libc::mprotect(self.at(offset, length).cast(), length, flags) })?;
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and this is its end.
        unsafe { libc::munmap(self.address.cast(), self.size) };
    }
}

// SPDX-License-Identifier: GPL-2.0

//! A frame in which a CPU logs what one vCPU writes to: see `model/memory/write_log.rs`.
//!
//! # Locks
//!
//! `WriteLog::reader` (a spinlock, after `Mmu::state`, and none after it): one reader at a time, who
//! has put what was read where it belongs before the next one looks.

use super::frame::{Frame, Place};
use crate::model::arch::addr::{Gfn, Hpa};
use crate::model::memory::write_log::Reader;
use core::sync::atomic::AtomicU64;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};

/// Entries of 8 bytes in a log of 4 KiB.
const WORDS: usize = 512;

/// The log of one vCPU.
#[pin_data]
pub struct WriteLog {
    frame: Frame,
    #[pin]
    reader: SpinLock<Reader>,
}

impl WriteLog {
    /// The index with which the CPU begins.
    pub const FIRST: u16 = Reader::first(WORDS);

    /// An empty log. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(place: Place) -> Result<Arc<Self>> {
        let frame = Frame::new(place)?;
        let reader = Reader::new(words(&frame));
        Arc::pin_init(
            pin_init!(Self {
                frame,
                reader <- new_spinlock!(reader, "WriteLog::reader"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Where it is.
    pub fn hpa(&self) -> Hpa {
        self.frame.hpa()
    }

    /// Tells of each page that was logged since the last time, and whether there was one; as
    /// [`Reader::take`].
    pub fn take(&self, page: impl FnMut(Gfn)) -> bool {
        self.reader.lock().take(words(&self.frame), page) != 0
    }

    /// The same for a log that is full, whose CPU begins again afterwards, at [`WriteLog::FIRST`].
    pub fn take_all(&self, page: impl FnMut(Gfn)) {
        let mut reader = self.reader.lock();
        reader.take(words(&self.frame), page);
        reader.restart(words(&self.frame));
    }
}

fn words(frame: &Frame) -> &[AtomicU64; WORDS] {
    // SAFETY: 4 KiB that live as long as `frame`, aligned, initialised by the allocator. CPU and
    // kernel access it as 64-bit words, and the kernel through this function only.
    unsafe { &*frame.as_ptr().cast() }
}

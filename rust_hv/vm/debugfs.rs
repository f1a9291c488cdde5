// SPDX-License-Identifier: GPL-2.0

//! A VM in debugfs: the directory `rust_hv/PID-ID`, where PID is the number of the task that has
//! created it, and ID the VM's own (`rusthv_vm_stats.id`).
//!
//! The directory goes first when the VM goes. Removal waits for readers under way: what a file
//! shows need only keep itself alive, never the VM.

use super::stats::Counts;
use crate::host::debugfs::{Content, Dir, File};
use crate::host::global::Global;
use crate::mmu::show::VmFiles;
use crate::mmu::Mmu;
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::seq_print;
use kernel::str::CString;
use kernel::sync::Arc;

/// The directory of all VMs.
pub static ROOT: Global<Dir> = Global::new();

/// Its name.
pub const NAME: &CStr = c"rust_hv";

/// The files of a VM.
pub struct Files {
    _stats: File<Counts>,
    _memory: VmFiles,
}

impl Files {
    /// Makes them.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(owner: i32, id: u64, counts: Counts, mmu: Arc<Mmu>) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("{owner}-{id}"))?;
        let dir = ROOT.get()?.sub(&name)?;
        Ok(Self {
            _stats: dir.file(c"stats", Arc::new(counts, GFP_KERNEL_ACCOUNT)?),
            _memory: VmFiles::new(&dir, mmu)?,
        })
    }
}

/// A line for each counter.
impl Content for Counts {
    fn show(&self, _record: u64, out: &SeqFile) {
        for stat in self.read() {
            seq_print!(out, "{} {}\n", stat.0, stat.2);
        }
    }
}

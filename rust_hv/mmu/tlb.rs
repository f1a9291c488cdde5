// SPDX-License-Identifier: GPL-2.0

//! The TLB protocol of an address space.
//!
//! Each CPU is in one of two states. *Current*: the VM has run there since the last change, and
//! may run there now. *Stale*: before the VM runs there (again), the CPU forgets what it knows.
//!
//! * An entry on a stale CPU makes it current (a full barrier), then flushes.
//! * A change first writes the tables, then makes every current CPU stale (a full barrier each)
//!   and interrupts it. A guest that was running exits for the interrupt, and its next entry
//!   finds the CPU stale.
//!
//! Whichever of the two exchanges comes first, the guest does not run on with an old translation:
//! if the entry's does, the change sees the CPU current and interrupts it; if the change's does,
//! the entry sees the CPU stale and flushes after the tables were written. The check is made with
//! interrupts off, so that the interrupt cannot slip in between check and entry.
//!
//! When [`Tlb::flush`] returns, no CPU uses a translation from before the change: frames may be
//! freed. An entry without changes costs one load of a line that is not written.

use super::MmuStats;
use crate::host::cpu::{self, Cpu};
use kernel::prelude::*;
use kernel::sync::atomic::{
    ordering::{Full, Relaxed},
    Atomic,
};

const STALE: u32 = 0;
const CURRENT: u32 = 1;

/// CPUs that one call interrupts: a bitmap of this many words.
const WORDS: usize = 8;

/// The states of all CPUs.
pub struct Tlb {
    cpus: KVec<Atomic<u32>>,
}

impl Tlb {
    /// All CPUs are stale: the root's address may have been another VM's.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let count = cpu::max_cpus();
        let mut cpus = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            cpus.push(Atomic::new(STALE), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self { cpus })
    }

    /// Whether the CPU must flush before the VM runs there. Interrupts are off.
    #[inline]
    pub fn must_flush(&self, cpu: Cpu) -> bool {
        let Some(state) = self.cpus.get(cpu as usize) else {
            return true;
        };
        if state.load(Relaxed) == CURRENT {
            return false;
        }
        state.xchg(CURRENT, Full);
        true
    }

    /// Makes a CPU stale again whose flush failed.
    pub fn spoil(&self, cpu: Cpu) {
        if let Some(state) = self.cpus.get(cpu as usize) {
            state.xchg(STALE, Full);
        }
    }

    /// Waits until no CPU uses a translation from before this call. The tables have been written.
    pub fn flush(&self, stats: &MmuStats) {
        stats.flushes.add(1, Relaxed);
        // The change of the tables comes before the look at the states.
        cpu::smp_mb();
        for (round, states) in self.cpus.chunks(WORDS * 64).enumerate() {
            let mut bits = [0u64; WORDS];
            let mut interrupted = 0;
            for (index, state) in states.iter().enumerate() {
                if state.load(Relaxed) == CURRENT && state.xchg(STALE, Full) == CURRENT {
                    if let Some(word) = bits.get_mut(index / 64) {
                        *word |= 1 << (index % 64);
                        interrupted += 1;
                    }
                }
            }
            if interrupted != 0 {
                stats.flush_ipis.add(interrupted, Relaxed);
                cpu::kick(round * WORDS * 64, &bits);
            }
        }
    }
}

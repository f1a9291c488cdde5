// SPDX-License-Identifier: GPL-2.0

//! What a CPU knows of an address space: one word of the TLB protocol.
//!
//! Each CPU is in one of two states. *Current*: the VM has run there since the last change, and
//! may run there now. *Stale*: before the VM runs there (again), the CPU forgets what it knows.
//! Beside the state stands the *epoch*, which counts how often the CPU became current: where each
//! vCPU has translations of its own (AMD-V), each has to forget them once per epoch.
//!
//! * An entry on a stale CPU makes it current (a full barrier), then flushes.
//! * A change first writes the tables, then makes every current CPU stale (a full barrier each)
//!   and interrupts it. A guest that was running exits for the interrupt, and its next entry
//!   finds the CPU stale. From the first CPU to the last interrupt the change holds a lock: who
//!   finds a CPU stale knows that nobody is still about to interrupt it.
//!
//! Whichever of the two exchanges comes first, the guest does not run on with an old translation:
//! if the entry's does, the change sees the CPU current and interrupts it; if the change's does,
//! the entry sees the CPU stale and flushes after the tables were written. The check is made with
//! interrupts off, so that the interrupt cannot slip in between check and entry.
//!
//! What a change takes out of the tables is gone for whoever looks there next, and not for the CPUs
//! until the change has flushed, which it does after the lock. So whoever promises that nobody uses a
//! translation any more, and finds that there is none, asks the [`Debt`] whether somebody still owes
//! the flush.
//!
//! Model-checked: `no_translation_outlives_a_flush`, `..._beside_another`, `..._of_somebody_else` and
//! `..._that_began_before` in `loom/tests/loom.rs`.

use crate::model::sync::{fence, AtomicU64, Ordering};

/// Bit 0: the CPU is current. The epoch is in the bits above, and changes on that CPU alone.
const CURRENT: u64 = 1;

/// A look at the state of a VM's translations on the CPU at hand, right before an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visit {
    /// The tables have changed since the VM ran here last, or it never did.
    pub stale: bool,
    /// Counts how often that was so on this CPU: a vCPU whose translations are its own has to
    /// forget them when the number is another than at its last visit.
    pub epoch: u64,
}

/// Changes of the tables that CPUs have not been told of.
#[derive(Debug)]
pub struct Debt {
    owed: AtomicU64,
    paid: AtomicU64,
}

impl Debt {
    /// None.
    pub fn new() -> Self {
        Self {
            owed: AtomicU64::new(0),
            paid: AtomicU64::new(0),
        }
    }

    /// Something was taken out of the tables, or made less. Called behind that, and before the lock is
    /// dropped under which it was done.
    pub fn owe(&self) {
        self.owed.fetch_add(1, Ordering::Release);
    }

    /// True when what somebody took out, before the caller last held that lock, may still be in use.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.paid.load(Ordering::Acquire) < self.owed.load(Ordering::Acquire)
    }

    /// What a flush that begins now will have paid for.
    pub fn begin(&self) -> u64 {
        self.owed.load(Ordering::Acquire)
    }

    /// The flush has reached all CPUs.
    pub fn end(&self, begun: u64) {
        self.paid.fetch_max(begun, Ordering::Release);
    }
}

impl Default for Debt {
    fn default() -> Self {
        Self::new()
    }
}

/// The state of one CPU.
#[derive(Debug)]
pub struct CpuState(AtomicU64);

impl CpuState {
    /// Stale.
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Makes the CPU current, and tells what it was. On that CPU, with interrupts off, which stay
    /// off until it has forgotten what it must.
    #[inline]
    pub fn visit(&self) -> Visit {
        let now = self.0.load(Ordering::Relaxed);
        if now & CURRENT != 0 {
            return Visit {
                stale: false,
                epoch: now >> 1,
            };
        }
        // Nobody else changes a stale state: the next epoch, and current.
        let next = now.wrapping_add(2);
        self.0.swap(next | CURRENT, Ordering::SeqCst);
        // The state comes before the walks of the tables. On x86 the exchange does it; the language
        // does not know that.
        fence(Ordering::SeqCst);
        Visit {
            stale: true,
            epoch: next >> 1,
        }
    }

    /// Makes the CPU stale, and tells whether it was current: then it is to be interrupted, before the
    /// next one calls this. What has changed was written before, with a full barrier in between.
    #[inline]
    pub fn make_stale(&self) -> bool {
        let mut now = self.0.load(Ordering::Relaxed);
        while now & CURRENT != 0 {
            let stale = now & !CURRENT;
            match self
                .0
                .compare_exchange(now, stale, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }
}

impl Default for CpuState {
    fn default() -> Self {
        Self::new()
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The TLB protocol of an address space.
//!
//! Each CPU is current or stale, see `model/paging/tlb.rs`. When [`Tlb::settle`] returns, no CPU
//! uses a translation that was gone from the tables before: frames may be freed, whoever took it out.
//! Every change says under `Mmu::state` that it owes a flush ([`Tlb::owe`]), and settles after it. An
//! entry without changes costs one load of a line that is not written.
//!
//! # Locks
//!
//! `interrupting` (a spinlock, after `Mmu::state`; none comes after it): changes make CPUs stale and
//! interrupt them one after the other. Without it one that meets a CPU which another has made stale,
//! and not interrupted yet, would be done while the guest is still running there. It waits for no
//! longer than its own interrupts would take, and sends none.

use super::MmuStats;
use crate::host::cpu::{self, Cpu};
use crate::model::paging::tlb::{CpuState, Debt, Visit};
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;
use kernel::sync::{new_spinlock, SpinLock};

/// CPUs that one call interrupts: a bitmap of this many words.
const WORDS: usize = 8;

/// The states of all CPUs.
#[pin_data]
pub struct Tlb {
    cpus: KVec<CpuState>,
    debt: Debt,
    #[pin]
    interrupting: SpinLock<()>,
}

impl Tlb {
    /// All CPUs are stale: the root's address may have been another VM's.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<impl PinInit<Self>> {
        let count = cpu::max_cpus();
        let mut cpus = KVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            cpus.push(CpuState::new(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(pin_init!(Self {
            cpus,
            debt: Debt::new(),
            interrupting <- new_spinlock!((), "Tlb::interrupting"),
        }))
    }

    /// What the VM finds on the CPU where it is about to run. Interrupts are off, and stay off
    /// until it has forgotten what it must.
    #[inline]
    pub fn visit(&self, cpu: Cpu) -> Visit {
        match self.cpus.get(cpu as usize) {
            Some(state) => state.visit(),
            None => Visit {
                stale: true,
                epoch: u64::MAX,
            },
        }
    }

    /// Makes a CPU stale again whose flush failed.
    pub fn spoil(&self, cpu: Cpu) {
        if let Some(state) = self.cpus.get(cpu as usize) {
            state.make_stale();
        }
    }

    /// Something has been taken out of the tables, or made less, under `Mmu::state`, which is still held.
    pub fn owe(&self) {
        self.debt.owe();
    }

    /// Waits until no CPU uses a translation that was gone from the tables when the caller last held
    /// `Mmu::state`, or that it had taken something from.
    #[inline]
    pub fn settle(&self, stats: &MmuStats) {
        if self.debt.is_due() {
            self.flush(stats);
        }
    }

    /// Waits until no CPU uses a translation from before this call. The tables have been written.
    pub fn flush(&self, stats: &MmuStats) {
        stats.flushes.add(1, Relaxed);
        let _one_at_a_time = self.interrupting.lock();
        let begun = self.debt.begin();
        // The change of the tables comes before the look at the states.
        cpu::smp_mb();
        for (round, states) in self.cpus.chunks(WORDS * 64).enumerate() {
            let mut bits = [0u64; WORDS];
            let mut current = 0;
            for (index, state) in states.iter().enumerate() {
                if state.make_stale() {
                    if let Some(word) = bits.get_mut(index / 64) {
                        *word |= 1 << (index % 64);
                        current += 1u64;
                    }
                }
            }
            if current != 0 {
                let interrupted = u64::from(cpu::kick(round * WORDS * 64, &bits));
                stats.flush_ipis.add(interrupted, Relaxed);
                let deferred = current.saturating_sub(interrupted);
                stats.flushes_deferred.add(deferred, Relaxed);
            }
        }
        self.debt.end(begun);
    }
}

#[kunit_tests(rusthv_tlb)]
mod tests {
    use super::*;
    use crate::host::cpu::call_on;
    use crate::host::kunit::Pinned;

    /// CPUs that were interrupted, and CPUs that flush later.
    fn told(stats: &MmuStats) -> (u64, u64) {
        (
            stats.flush_ipis.load(Relaxed),
            stats.flushes_deferred.load(Relaxed),
        )
    }

    fn new() -> Result<Pin<KBox<Tlb>>> {
        KBox::pin_init(Tlb::new()?, GFP_KERNEL)
    }

    fn cpus() -> impl Iterator<Item = Cpu> {
        0..cpu::max_cpus() as Cpu
    }

    #[test]
    fn new_cpus_flush_once() -> Result {
        let tlb = new()?;
        for cpu in cpus() {
            assert!(tlb.visit(cpu).stale);
            assert!(!tlb.visit(cpu).stale);
            assert!(!tlb.visit(cpu).stale);
        }
        Ok(())
    }

    #[test]
    fn a_cpu_that_is_not_there_always_flushes() -> Result {
        let tlb = new()?;
        let beyond = cpu::max_cpus() as Cpu;
        assert!(tlb.visit(beyond).stale);
        assert!(tlb.visit(beyond).stale);
        assert!(tlb.visit(Cpu::MAX).stale);
        tlb.spoil(beyond);
        Ok(())
    }

    #[test]
    fn a_flush_makes_every_cpu_stale() -> Result {
        let (tlb, stats) = (new()?, MmuStats::new());
        for turn in 1..4u64 {
            for cpu in cpus() {
                tlb.visit(cpu);
            }
            tlb.flush(&stats);
            assert_eq!(stats.flushes.load(Relaxed), turn);
            let (ipis, deferred) = told(&stats);
            assert_eq!(ipis + deferred, turn * cpu::max_cpus() as u64);
            // The CPU that flushes is in no guest.
            assert!(deferred >= turn);
            for cpu in cpus() {
                assert!(tlb.visit(cpu).stale);
            }
            // Stale again for the count of the next turn.
            for cpu in cpus() {
                tlb.spoil(cpu);
            }
        }
        Ok(())
    }

    /// Who owes nothing waits for what another owes; and nobody flushes twice for it.
    #[test]
    fn what_another_owes_is_settled_once() -> Result {
        let (tlb, stats) = (new()?, MmuStats::new());
        let flushes = |turn: &dyn Fn()| {
            let before = stats.flushes.load(Relaxed);
            turn();
            stats.flushes.load(Relaxed) - before
        };
        assert_eq!(flushes(&|| tlb.settle(&stats)), 0);
        tlb.owe();
        tlb.owe();
        assert_eq!(flushes(&|| tlb.settle(&stats)), 1);
        assert_eq!(flushes(&|| tlb.settle(&stats)), 0);
        tlb.owe();
        tlb.flush(&stats);
        assert_eq!(flushes(&|| tlb.settle(&stats)), 0);
        Ok(())
    }

    #[test]
    fn only_current_cpus_are_interrupted() -> Result {
        let (tlb, stats) = (new()?, MmuStats::new());
        tlb.flush(&stats);
        let nobody = told(&stats);
        let pinned = Pinned::new();
        let here = pinned.cpu();
        tlb.visit(here);
        tlb.flush(&stats);
        let ourselves = told(&stats);
        // Stale since, so not again.
        tlb.flush(&stats);
        let again = told(&stats);
        let other = cpus().find(|&cpu| cpu != here && call_on(cpu, |_| ()).is_ok());
        if let Some(other) = other {
            tlb.visit(other);
            tlb.flush(&stats);
        }
        let another = told(&stats);
        drop(pinned);
        assert_eq!((nobody, ourselves, again), ((0, 0), (0, 1), (0, 1)));
        assert_eq!(another, (u64::from(other.is_some()), 1));
        let turns = 3 + u64::from(other.is_some());
        assert_eq!(stats.flushes.load(Relaxed), turns);
        Ok(())
    }

    /// A flush that failed has to be done again, and its CPU need not be interrupted.
    #[test]
    fn a_spoilt_cpu_is_stale() -> Result {
        let (tlb, stats) = (new()?, MmuStats::new());
        tlb.visit(0);
        tlb.spoil(0);
        tlb.flush(&stats);
        assert_eq!(told(&stats), (0, 0));
        assert!(tlb.visit(0).stale);
        Ok(())
    }

    /// Each time a CPU becomes current is an epoch of its own there, and of no other CPU's.
    #[test]
    fn epochs_follow_the_flushes() -> Result {
        let (tlb, stats) = (new()?, MmuStats::new());
        let first = tlb.visit(0);
        assert!(first.stale);
        for turn in 1..5 {
            let same = tlb.visit(0);
            assert_eq!((same.stale, same.epoch), (false, first.epoch + turn - 1));
            // Two changes without a visit between them are forgotten at once.
            tlb.flush(&stats);
            tlb.flush(&stats);
            let next = tlb.visit(0);
            assert_eq!((next.stale, next.epoch), (true, first.epoch + turn));
        }
        Ok(())
    }
}

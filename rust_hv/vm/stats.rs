// SPDX-License-Identifier: GPL-2.0

//! A VM's counters, for whoever shows them. Counters that KVM has, too, have KVM's names.

use crate::mmu::Mmu;
use crate::model::stats::Kind::{Cumulative, Instant};
use crate::model::stats::Stat;
use kernel::sync::atomic::ordering::Relaxed;
use kernel::sync::Arc;

/// Where the counters are.
pub struct Counts {
    mmu: Arc<Mmu>,
}

impl Counts {
    /// Of the VM with this memory.
    pub fn new(mmu: Arc<Mmu>) -> Self {
        Self { mmu }
    }

    /// All of them as they are now. Nothing has to be stopped for it: each is right by itself.
    pub fn read(&self) -> [Stat; 26] {
        let (stats, tables) = (&self.mmu.stats, self.mmu.counts());
        let [small, large, huge] = tables.leaves;
        let [address, tag, all_tags, nested, all_nested] = stats.hardware.read();
        let shadow = self.mmu.shadow_counts();
        let (hits, misses) = self.mmu.supply().hits_and_misses();
        let value = |counter: &kernel::sync::atomic::Atomic<u64>| counter.load(Relaxed);
        [
            Stat("remote_tlb_flush", Cumulative, value(&stats.flushes)),
            Stat(
                "remote_tlb_flush_ipis",
                Cumulative,
                value(&stats.flush_ipis),
            ),
            Stat(
                "remote_tlb_flush_deferred",
                Cumulative,
                value(&stats.flushes_deferred),
            ),
            Stat("tlb_flush_address", Cumulative, address),
            Stat("tlb_flush_tag", Cumulative, tag),
            Stat("tlb_flush_all_tags", Cumulative, all_tags),
            Stat("tlb_flush_nested", Cumulative, nested),
            Stat("tlb_flush_all_nested", Cumulative, all_nested),
            Stat("tlb_invalidations", Cumulative, value(&stats.invalidations)),
            Stat("mmu_notifications", Cumulative, value(&stats.notifications)),
            Stat("mmu_fault_retries", Cumulative, value(&stats.retries)),
            Stat("table_pool_hits", Cumulative, hits),
            Stat("table_pool_misses", Cumulative, misses),
            Stat("table_pages", Instant, tables.tables),
            Stat("pages_4k", Instant, small),
            Stat("pages_2m", Instant, large),
            Stat("pages_1g", Instant, huge),
            Stat(
                "shadow_page_faults",
                Cumulative,
                value(&stats.shadow_faults),
            ),
            Stat(
                "shadow_table_writes",
                Cumulative,
                value(&stats.table_writes),
            ),
            Stat("shadow_root_hits", Cumulative, shadow.root_hits),
            Stat("shadow_root_misses", Cumulative, shadow.root_misses),
            Stat("shadow_evictions", Cumulative, shadow.evictions),
            Stat("shadow_released", Cumulative, shadow.released),
            Stat("shadow_loosened", Cumulative, shadow.loosened),
            Stat("shadow_compared", Cumulative, shadow.compared),
            Stat("shadow_changed", Cumulative, shadow.changed),
        ]
    }
}

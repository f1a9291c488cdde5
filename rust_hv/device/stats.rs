// SPDX-License-Identifier: GPL-2.0

//! The files behind `KVM_GET_STATS_FD` (KVM API section 4.133).
//!
//! Counters that KVM has, too, have KVM's names. Anybody who has got the file may read it, as with
//! KVM, and nothing has to be stopped for it: each counter is right by itself.

use crate::host::file::{FdObject, Reader};
use crate::model::stats::Kind::Cumulative;
use crate::model::stats::{self, Stat};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::vm::Vm;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// A VM's counters.
pub struct VmStats<V: Vendor> {
    id: CString,
    vm: Arc<Vm<V>>,
}

impl<V: Vendor> VmStats<V> {
    /// Of this VM, which lives as long as the file.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(vm: Arc<Vm<V>>) -> Result<Self> {
        let id = CString::try_from_fmt(fmt!("rusthv-{}", vm.owner()))?;
        Ok(Self { id, vm })
    }
}

impl<V: Vendor> FdObject for VmStats<V> {
    const NAME: &'static CStr = c"rusthv-vm-stats";
    const READABLE: bool = true;

    fn read(&self, reader: &mut Reader) -> Result {
        stats::write(self.id.to_bytes(), &self.vm.counts().read(), |piece| {
            reader.put(piece)
        })
    }
}

/// A vCPU's counters.
pub struct VcpuStats<V: Vendor> {
    id: CString,
    vcpu: Arc<Vcpu<V>>,
    _vm: Arc<Vm<V>>,
}

impl<V: Vendor> VcpuStats<V> {
    /// Of this vCPU of the VM; both live as long as the file.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(vm: Arc<Vm<V>>, vcpu: Arc<Vcpu<V>>) -> Result<Self> {
        let id = CString::try_from_fmt(fmt!("rusthv-{}/vcpu-{}", vm.owner(), vcpu.id))?;
        Ok(Self { id, vcpu, _vm: vm })
    }
}

impl<V: Vendor> FdObject for VcpuStats<V> {
    const NAME: &'static CStr = c"rusthv-vcpu-stats";
    const READABLE: bool = true;

    fn read(&self, reader: &mut Reader) -> Result {
        let now = self.vcpu.counters();
        let stats = [
            Stat("exits", Cumulative, now.exits.get()),
            Stat("io_exits", Cumulative, now.io.get()),
            Stat("mmio_exits", Cumulative, now.mmio.get()),
            Stat("pf_fixed", Cumulative, now.nested_faults.get()),
            Stat("cpuid_exits", Cumulative, now.cpuid.get()),
            Stat("halt_exits", Cumulative, now.hlt.get()),
            Stat("msr_exits", Cumulative, now.msr.get()),
            Stat("control_register_exits", Cumulative, now.cr.get()),
            Stat("irq_exits", Cumulative, now.interrupts.get()),
            Stat("exception_exits", Cumulative, now.exceptions.get()),
            Stat("other_exits", Cumulative, now.other.get()),
            Stat("user_exits", Cumulative, now.user_exits.get()),
            Stat("pf_taken", Cumulative, now.page_faults.get()),
            Stat("invlpg", Cumulative, now.invalidations.get()),
            Stat("pf_emulate", Cumulative, now.table_writes.get()),
            Stat("node_moves", Cumulative, now.node_moves.get()),
            Stat("guest_ticks", Cumulative, now.guest_ticks.get()),
        ];
        stats::write(self.id.to_bytes(), &stats, |piece| reader.put(piece))
    }
}

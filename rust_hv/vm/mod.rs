// SPDX-License-Identifier: GPL-2.0

//! Virtual machines: memory and vCPUs under one roof.
//!
//! # Locks
//!
//! `vcpus` (mutex): the list of vCPUs. Taken for creation and for look-ups by id; before no other
//! lock.
//!
//! # Life
//!
//! A VM lives as long as its file, or the file of one of its vCPUs, is open. vCPUs live as long as
//! their VM, as in KVM: an id is never free again. When the VM goes, the notifier goes first (it
//! waits for callbacks under way), then the vCPUs, then the tables.

use crate::host::bindings::rusthv_vm_stats;
use crate::host::notifier::Notifier;
use crate::host::tsc;
use crate::host::user::UserMm;
use crate::host::{bindings, cpu};
use crate::mmu::Mmu;
use crate::model::memory::slots::Request;
use crate::model::paging::ept::Ept;
use crate::model::paging::PageSize;
use crate::vcpu::{Machine, Vcpu};
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::sync::{new_mutex, Arc, Mutex};

/// vCPUs of one VM at most.
pub const MAX_VCPUS: usize = 1024;
/// vCPU ids are below this.
pub const MAX_VCPU_IDS: u64 = 4096;

static VMS: Atomic<i64> = Atomic::new(0);
static VCPUS: Atomic<i64> = Atomic::new(0);

/// VM and vCPU objects alive.
pub fn alive() -> (u64, u64) {
    (
        VMS.load(Relaxed).max(0) as u64,
        VCPUS.load(Relaxed).max(0) as u64,
    )
}

/// Counts one object while it lives.
struct Census(&'static Atomic<i64>);

impl Census {
    fn new(count: &'static Atomic<i64>) -> Self {
        count.add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.0.add(-1, Relaxed);
    }
}

/// A vCPU in its VM's list.
struct Member {
    vcpu: Arc<Vcpu>,
    _census: Census,
}

/// A virtual machine. Fields are dropped in the order in which they stand here.
#[pin_data(PinnedDrop)]
pub struct Vm {
    notifier: Pin<KBox<Notifier<Mmu>>>,
    #[pin]
    vcpus: Mutex<KVec<Member>>,
    mmu: Arc<Mmu>,
    machine: &'static Machine,
    /// Added to the host's TSC: the guest's starts at 0 with the VM.
    tsc_offset: u64,
    _census: Census,
}

impl Vm {
    /// A VM without memory or vCPUs, in the current task's address space.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR` when killed meanwhile.
    pub fn new(machine: &'static Machine) -> Result<Arc<Self>> {
        let caps = &machine.caps;
        let format = Ept {
            accessed_dirty: caps.has(bindings::RUSTHV_FEAT_EPT_AD),
            execute_only: caps.has(bindings::RUSTHV_FEAT_EPT_EXEC_ONLY),
            largest: if caps.has(bindings::RUSTHV_FEAT_EPT_2M) {
                PageSize::Size2M
            } else {
                PageSize::Size4K
            },
        };
        let mm = UserMm::current()?;
        let mmu = Mmu::new(
            format,
            cpu::phys_bits(),
            mm.clone(),
            &machine.pools,
            cpu::current_node(),
        )?;
        let mmu = Arc::pin_init(mmu, GFP_KERNEL_ACCOUNT)?;
        let notifier = KBox::pin_init(Notifier::new(mm, mmu.clone()), GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            try_pin_init!(Self {
                notifier,
                vcpus <- new_mutex!(KVec::new()),
                mmu,
                machine,
                tsc_offset: tsc::now().wrapping_neg(),
                _census: Census::new(&VMS),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// True for tasks of the process that created the VM. Others may hold the file, but not use
    /// it: its memory is elsewhere.
    #[inline]
    pub fn is_ours(&self) -> bool {
        self.mmu.mm().is_current()
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// # Errors
    ///
    /// As KVM: `EINVAL`, `EEXIST`, `ENOMEM`.
    pub fn set_memory_region(&self, region: &bindings::kvm_userspace_memory_region) -> Result {
        self.mmu.set_slot(&Request {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        })
    }

    /// True once a vCPU was created: what concerns all of them is settled then.
    pub fn has_vcpus(&self) -> bool {
        !self.vcpus.lock().is_empty()
    }

    /// `KVM_CREATE_VCPU`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id out of range or too many vCPUs, `EEXIST`, `ENOMEM`, `EIO`.
    pub fn create_vcpu(&self, id: usize) -> Result<Arc<Vcpu>> {
        if id as u64 >= MAX_VCPU_IDS {
            return Err(EINVAL);
        }
        let id = id as u32;
        let check = |vcpus: &KVec<Member>| {
            if vcpus.len() >= MAX_VCPUS {
                Err(EINVAL)
            } else if vcpus.iter().any(|member| member.vcpu.id == id) {
                Err(EEXIST)
            } else {
                Ok(())
            }
        };
        check(&self.vcpus.lock())?;
        let node = cpu::current_node();
        let vcpu = Vcpu::new(self.machine, self.mmu.clone(), id, self.tsc_offset, node)?;
        let member = Member {
            vcpu: vcpu.clone(),
            _census: Census::new(&VCPUS),
        };
        let mut vcpus = self.vcpus.lock();
        // Somebody may have been faster.
        check(&vcpus)?;
        vcpus.push(member, GFP_KERNEL_ACCOUNT)?;
        Ok(vcpu)
    }

    /// Takes back a vCPU for which there was no file descriptor: its id is free again.
    pub fn remove_vcpu(&self, vcpu: &Arc<Vcpu>) {
        let mut vcpus = self.vcpus.lock();
        let place = vcpus
            .iter()
            .position(|member| Arc::ptr_eq(&member.vcpu, vcpu));
        let removed = place.map(|index| vcpus.remove(index));
        drop(vcpus);
        drop(removed);
    }

    /// `RUSTHV_GET_VM_STATS`.
    pub fn stats(&self) -> rusthv_vm_stats {
        let counts = self.mmu.counts();
        let stats = &self.mmu.stats;
        let [mapped_4k, mapped_2m, _] = counts.leaves;
        rusthv_vm_stats {
            table_frames: counts.tables,
            mapped_4k,
            mapped_2m,
            flushes: stats.flushes.load(Relaxed),
            flush_ipis: stats.flush_ipis.load(Relaxed),
            invept: stats.invalidations.load(Relaxed),
            unmap_notifications: stats.notifications.load(Relaxed),
            fault_retries: stats.retries.load(Relaxed),
            reserved: [0; 8],
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Vm {
    fn drop(self: Pin<&mut Self>) {
        // In steps, while it may still reschedule.
        self.mmu.clear();
    }
}

#[kunit_tests(rusthv_vm)]
mod tests {
    use super::*;
    use crate::device::MACHINE;
    use crate::host::frame;
    use crate::host::kunit::UserMemory;
    use crate::host::pool;

    fn in_use() -> u64 {
        frame::alive().saturating_sub(pool::pooled())
    }

    #[test]
    fn ids_are_taken_once() -> Result {
        let _memory = UserMemory::new(1)?;
        let vm = Vm::new(MACHINE.get()?)?;
        assert!(!vm.has_vcpus());
        vm.create_vcpu(7)?;
        assert!(vm.has_vcpus());
        assert_eq!(vm.create_vcpu(7).err(), Some(EEXIST));
        assert_eq!(vm.create_vcpu(MAX_VCPU_IDS as usize).err(), Some(EINVAL));
        assert_eq!(vm.create_vcpu(usize::MAX).err(), Some(EINVAL));
        assert_eq!(vm.create_vcpu((1 << 32) + 8).err(), Some(EINVAL));
        vm.create_vcpu(MAX_VCPU_IDS as usize - 1)?;
        Ok(())
    }

    #[test]
    fn a_vcpu_without_a_file_goes() -> Result {
        let _memory = UserMemory::new(1)?;
        let vm = Vm::new(MACHINE.get()?)?;
        let kept = vm.create_vcpu(1)?;
        let (counts, frames) = (alive(), in_use());
        let vcpu = vm.create_vcpu(2)?;
        assert_eq!(alive(), (counts.0, counts.1 + 1));
        assert!(in_use() > frames);
        vm.remove_vcpu(&vcpu);
        // Again: there is no such one any more.
        vm.remove_vcpu(&vcpu);
        drop(vcpu);
        assert_eq!((alive(), in_use()), (counts, frames));
        assert_eq!(vm.create_vcpu(1).err(), Some(EEXIST));
        vm.create_vcpu(2)?;
        assert_eq!(kept.id, 1);
        Ok(())
    }

    #[test]
    fn everything_goes_with_the_vm() -> Result {
        let _memory = UserMemory::new(1)?;
        let (counts, frames) = (alive(), in_use());
        let vm = Vm::new(MACHINE.get()?)?;
        for id in 0..3 {
            vm.create_vcpu(id)?;
        }
        assert_eq!(alive(), (counts.0 + 1, counts.1 + 3));
        drop(vm);
        assert_eq!((alive(), in_use()), (counts, frames));
        Ok(())
    }
}

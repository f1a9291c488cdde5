// SPDX-License-Identifier: GPL-2.0

//! Virtual machines: memory and vCPUs under one roof.
//!
//! # Locks
//!
//! `vcpus` (mutex): the list of vCPUs, and what is settled before there is one. Taken for creation,
//! for look-ups by id, and by what has to come before the first vCPU, which takes `Mmu::state` inside
//! it for a moment; never with another mutex of ours.
//!
//! # Life
//!
//! A VM lives as long as its file, or the file of one of its vCPUs, is open. vCPUs live as long as
//! their VM, as in KVM: an id is never free again. When the VM goes, its memory is unmapped in steps,
//! then its files in debugfs go, then the notifier goes (it waits for callbacks under way), then the
//! vCPUs, then the tables.

pub mod debugfs;
mod intercepts;
pub mod stats;

use crate::host::bindings::{rusthv_paging_stats, rusthv_vm_stats};
use crate::host::digest::Sha256;
use crate::host::frame::Wipe;
use crate::host::notifier::Notifier;
use crate::host::supply::{Policy, Supply};
use crate::host::tsc;
use crate::host::user::{ClearLog, UserMm};
use crate::host::{bindings, task};
use crate::mmu::choice::PagingMode;
use crate::mmu::owners::Listed;
use crate::mmu::Mmu;
use crate::model::arch::addr::Hva;
use crate::model::arch::addr::{Gpa, PAGE_SIZE};
use crate::model::memory::slots::Request;
use crate::model::paging::format::Notice;
use crate::model::paging::Permissions;
use crate::vcpu::{Clock, Machine, Vcpu};
use crate::vendor::Vendor;
use intercepts::Own;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::sync::{new_mutex, Arc, Mutex};

/// vCPUs of one VM at most.
pub const MAX_VCPUS: usize = 1024;
/// vCPU ids are below this.
pub const MAX_VCPU_IDS: u64 = 4096;

static VMS: Atomic<i64> = Atomic::new(0);
static VCPUS: Atomic<i64> = Atomic::new(0);
/// VMs that there have been.
static NUMBERS: Atomic<i64> = Atomic::new(0);

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
struct Member<V: Vendor> {
    vcpu: Arc<Vcpu<V>>,
    _census: Census,
}

/// A virtual machine. Fields are dropped in the order in which they stand here.
#[pin_data(PinnedDrop)]
pub struct Vm<V: Vendor> {
    _files: debugfs::Files,
    notifier: Pin<KBox<Notifier<Mmu>>>,
    #[pin]
    vcpus: Mutex<KVec<Member<V>>>,
    _listed: Listed,
    /// Settled with the first vCPU. Locked inside of `vcpus`, or alone.
    #[pin]
    intercepts: Mutex<Own<V::Intercepts>>,
    /// The first vCPU was asked for: what concerns all of them stays as it is. Changes under the
    /// lock of `vcpus`.
    settled: Atomic<bool>,
    mmu: Arc<Mmu>,
    machine: Machine<V>,
    /// Added to the host's TSC: the guest's starts at 0 with the VM.
    tsc_offset: u64,
    /// vCPUs count how long they are in the guest. Settled with the first one.
    count_guest_ticks: Atomic<bool>,
    /// Number of the task that created it, for people.
    owner: i32,
    /// No other VM has it, before the module is loaded again.
    id: u64,
    _census: Census,
}

impl<V: Vendor> Vm<V> {
    /// A VM without memory or vCPUs, in the current task's address space.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR` when killed meanwhile.
    pub fn new(machine: Machine<V>) -> Result<Arc<Self>> {
        let mm = UserMm::current()?;
        let mmu = Mmu::new(
            machine.vendor.format(),
            machine.vendor.caps().phys_bits,
            mm.clone(),
            Arc::new(Supply::new(machine.pools), GFP_KERNEL_ACCOUNT)?,
        )?;
        let mmu = Arc::pin_init(mmu, GFP_KERNEL_ACCOUNT)?;
        let notifier = KBox::pin_init(Notifier::new(mm, mmu.clone()), GFP_KERNEL_ACCOUNT)?;
        let owner = kernel::current!().pid();
        let id = NUMBERS.fetch_add(1, Relaxed) as u64 + 1;
        let files = debugfs::Files::new(owner, id, stats::Counts::new(mmu.clone()), mmu.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                _files: files,
                notifier,
                vcpus <- new_mutex!(KVec::new()),
                _listed: Listed::new(mmu.clone(), owner, id),
                intercepts <- new_mutex!(Own::None),
                settled: Atomic::new(false),
                mmu,
                machine,
                tsc_offset: tsc::now().wrapping_neg(),
                count_guest_ticks: Atomic::new(false),
                owner,
                id,
                _census: Census::new(&VMS),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Number of the task that created it, in the first namespace.
    pub fn owner(&self) -> i32 {
        self.owner
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

    /// `KVM_GET_DIRTY_LOG`.
    ///
    /// # Errors
    ///
    /// As KVM: `EINVAL`, `ENOENT`, `EFAULT`; `ENOMEM`.
    pub fn dirty_log(&self, slot: u32, bitmap: Hva) -> Result {
        self.mmu.dirty_log(slot, bitmap)
    }

    /// `KVM_CLEAR_DIRTY_LOG`.
    ///
    /// # Errors
    ///
    /// As KVM: `EINVAL`, `ENOENT`, `EFAULT`; `ENOMEM`.
    pub fn clear_dirty_log(&self, wanted: &ClearLog) -> Result {
        self.mmu.clear_dirty_log(wanted)
    }

    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    ///
    /// # Errors
    ///
    /// `EINVAL`.
    pub fn set_manual_log(&self, flags: u64) -> Result {
        self.mmu.set_manual_log(flags)
    }

    /// True once a vCPU was created: what concerns all of them is settled then.
    pub fn has_vcpus(&self) -> bool {
        !self.vcpus.lock().is_empty()
    }

    /// Calls `f` if no vCPU was asked for yet, and none is while it runs.
    fn before_vcpus(&self, f: impl FnOnce() -> Result) -> Result {
        let _no_vcpu_comes = self.vcpus.lock();
        if self.settled.load(Relaxed) {
            return Err(EBUSY);
        }
        f()
    }

    /// `RUSTHV_SET_NUMA_POLICY`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there was a vCPU, `EINVAL` for nodes without memory, `ENOMEM`.
    pub fn set_numa_policy(&self, policy: Policy) -> Result {
        self.before_vcpus(|| {
            let supply = self.mmu.supply();
            let before = supply.policy();
            supply.set_policy(policy)?;
            self.mmu.renew_root().or_else(|error| {
                supply.set_policy(before)?;
                Err(error)
            })
        })
    }

    /// `RUSTHV_SET_WIPE`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there was a vCPU.
    pub fn set_wipe(&self, wipe: Wipe) -> Result {
        self.before_vcpus(|| {
            self.mmu.supply().set_wipe(wipe);
            Ok(())
        })
    }

    /// `RUSTHV_CAP_GUEST_TICKS`.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there was a vCPU.
    pub fn count_guest_ticks(&self, on: bool) -> Result {
        self.before_vcpus(|| {
            self.count_guest_ticks.store(on, Relaxed);
            Ok(())
        })
    }

    /// `RUSTHV_CAP_DIRTY_TRACKING`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a way that there is not, `EBUSY` when there was a vCPU, `EOPNOTSUPP` for what the CPU
    /// lacks or without nested paging; `ENOMEM`.
    pub fn choose_dirty_tracking(&self, tracking: u64) -> Result {
        let notice = match u32::try_from(tracking).map_err(|_| EINVAL)? {
            bindings::RUSTHV_TRACK_FAULTS => Notice::Fault,
            bindings::RUSTHV_TRACK_FLAGS => Notice::Flag,
            bindings::RUSTHV_TRACK_LOG => Notice::Log,
            _ => return Err(EINVAL),
        };
        self.before_vcpus(|| self.mmu.choose_notice(notice))
    }

    /// `KVM_CREATE_VCPU`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id out of range or too many vCPUs, `EEXIST`, `ENOMEM`, `EIO`.
    pub fn create_vcpu(&self, id: usize) -> Result<Arc<Vcpu<V>>> {
        if id as u64 >= MAX_VCPU_IDS {
            return Err(EINVAL);
        }
        let id = id as u32;
        let check = |vcpus: &KVec<Member<V>>| {
            if vcpus.len() >= MAX_VCPUS {
                Err(EINVAL)
            } else if vcpus.iter().any(|member| member.vcpu.id == id) {
                Err(EEXIST)
            } else {
                Ok(())
            }
        };
        {
            let vcpus = self.vcpus.lock();
            check(&vcpus)?;
            self.settled.store(true, Relaxed);
        }
        let intercepts = self.intercepts.lock().share();
        let mmu = self.mmu.clone();
        let clock = Clock {
            tsc_offset: self.tsc_offset,
            count_guest_ticks: self.count_guest_ticks.load(Relaxed),
        };
        let vcpu = Vcpu::new(self.machine, mmu, intercepts, id, clock)?;
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
    pub fn remove_vcpu(&self, vcpu: &Arc<Vcpu<V>>) {
        let mut vcpus = self.vcpus.lock();
        let place = vcpus
            .iter()
            .position(|member| Arc::ptr_eq(&member.vcpu, vcpu));
        let removed = place.map(|index| vcpus.remove(index));
        drop(vcpus);
        drop(removed);
    }

    /// `RUSTHV_MEASURE`: the digest of `size` bytes of guest memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no bytes, or more than there are addresses; `ENXIO` where the guest has no
    /// memory, `EFAULT` where the VMM has none behind it; `ENOMEM`; `EINTR` for a signal.
    pub fn measure(&self, gpa: Gpa, size: u64) -> Result<[u8; Sha256::SIZE]> {
        if size == 0 || gpa.raw().checked_add(size - 1).is_none() {
            return Err(EINVAL);
        }
        let mut digest = Sha256::new();
        let mut page = KVec::from_elem(0u8, PAGE_SIZE as usize, GFP_KERNEL_ACCOUNT)?;
        let (mut at, mut left) = (gpa, size);
        while left > 0 {
            let len = (PAGE_SIZE - at.page_offset()).min(left);
            // A page's worth at most: an error rather than a digest of less than was asked for.
            let bytes = page.get_mut(..len as usize).ok_or(EINVAL)?;
            self.mmu.read(at, bytes)?;
            digest.update(bytes);
            at = at.wrapping_add(len);
            left -= len;
            task::do_work_if_pending()?;
        }
        Ok(digest.finish())
    }

    /// `RUSTHV_CAP_PAGING`: how memory is virtualized, and with how many shadow tables.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a mode or a number that there is not, `EBUSY` when there are or were vCPUs,
    /// `ENOMEM`.
    pub fn choose_paging(&self, mode: u64, tables: usize) -> Result {
        let mode = match u32::try_from(mode).map_err(|_| EINVAL)? {
            bindings::RUSTHV_PAGING_NESTED => PagingMode::Nested,
            bindings::RUSTHV_PAGING_SHADOW => PagingMode::Shadow,
            bindings::RUSTHV_PAGING_TRAP => PagingMode::Trap,
            _ => return Err(EINVAL),
        };
        self.mmu.choose(mode, tables)
    }

    /// `RUSTHV_GET_PAGING_STATS`.
    pub fn paging_stats(&self) -> rusthv_paging_stats {
        let counts = self.mmu.shadow_counts();
        let [mapped_4k, mapped_2m] = counts.leaves;
        rusthv_paging_stats {
            mode: self.mmu.paging_mode() as u64,
            shadow_tables: counts.tables,
            mapped_4k,
            mapped_2m,
            root_hits: counts.root_hits,
            root_misses: counts.root_misses,
            evictions: counts.evictions,
            loosened: counts.loosened,
            compared: counts.compared,
            changed: counts.changed,
            released: counts.released,
            reserved: [0; 5],
        }
    }

    /// `RUSTHV_SET_RIGHTS`.
    ///
    /// # Errors
    ///
    /// As [`Mmu::set_rights`].
    pub fn set_rights(&self, slot: u16, rights: Permissions) -> Result {
        self.mmu.set_rights(slot, rights)
    }

    /// `RUSTHV_GET_GPA`.
    ///
    /// # Errors
    ///
    /// As [`Mmu::locate`].
    pub fn locate(&self, asked: &bindings::rusthv_gpa) -> Result<bindings::rusthv_gpa> {
        self.mmu.locate(asked)
    }

    /// `RUSTHV_GET_VM_STATS`.
    pub fn stats(&self) -> rusthv_vm_stats {
        let counts = self.mmu.counts();
        let stats = &self.mmu.stats;
        let [mapped_4k, mapped_2m, mapped_1g] = counts.leaves;
        rusthv_vm_stats {
            table_frames: counts.tables,
            mapped_4k,
            mapped_2m,
            flushes: stats.flushes.load(Relaxed),
            flush_ipis: stats.flush_ipis.load(Relaxed),
            // Its name in the UAPI, whoever made the CPU.
            invept: stats.invalidations.load(Relaxed),
            unmap_notifications: stats.notifications.load(Relaxed),
            fault_retries: stats.retries.load(Relaxed),
            id: self.id,
            mapped_1g,
            reserved: [0; 6],
        }
    }

    /// For `KVM_GET_STATS_FD`.
    pub fn counts(&self) -> stats::Counts {
        stats::Counts::new(self.mmu.clone())
    }
}

#[pinned_drop]
// The macro makes an `unsafe impl` of it.
#[allow(unsafe_code)]
impl<V: Vendor> PinnedDrop for Vm<V> {
    fn drop(self: Pin<&mut Self>) {
        // In steps, while it may still reschedule.
        self.mmu.clear();
    }
}

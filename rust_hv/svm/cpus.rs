// SPDX-License-Identifier: GPL-2.0

//! What each CPU keeps for its guests, and CPUs that come and go.
//!
//! The host counts the users of EFER.SVME. The MSR VM_HSAVE_PA, with the frame in which VMRUN
//! keeps host state, is for its users to care for: see `rhv_svm_load` (`enter.c`), which shares it
//! with other hypervisors.
//!
//! No lock: a CPU's share is touched on that CPU alone, with interrupts off.

use super::permissions::Permissions;
use super::segment;
use super::vmcb::{frame_for_cpu, intercept, virtual_interrupt, VmcbPage, NESTED_PAGING};
use crate::host::bindings::{self, rhv_svm_cpu};
use crate::host::cpu::{max_cpus, node_of, Cpu, CpuEvents, IrqsOff};
use crate::host::frame::Frame;
use crate::host::msr;
use crate::model::arch::regs::{Cr0, Efer, Rflags, DR6_RESET, DR7_RESET, PAT_RESET};
use crate::model::arch::segment::{AccessRights, Segment};
use crate::vendor::SegmentRegister;
use kernel::prelude::*;

const VM_HSAVE_PA: u32 = 0xc001_0117;

/// Calls `f` with the share of the CPU that runs this.
#[inline]
pub(super) fn with<R>(irqs: &IrqsOff, f: impl FnOnce(&mut rhv_svm_cpu) -> R) -> R {
    // SAFETY: The CPU exists. Its share is touched by itself alone, with interrupts off, and by no
    // `f` in here a second time: none calls back.
    f(unsafe { &mut *bindings::rhv_svm_cpu(irqs.cpu() as i32) })
}

/// True when SVM is on for us on the CPU that runs this.
#[inline]
pub(super) fn is_on(irqs: &IrqsOff) -> bool {
    with(irqs, |cpu| cpu.enabled)
}

/// The frames of a CPU.
struct CpuFrames {
    cpu: Cpu,
    hsave: Frame,
    host: Frame,
    purge: VmcbPage,
}

/// The frames of all CPUs, given back on drop.
pub struct AllFrames {
    cpus: KVec<CpuFrames>,
    /// Nested tables without an entry.
    _nothing: Frame,
}

impl AllFrames {
    /// Allocates them for every CPU that there can be.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(maps: &Permissions, node: i32) -> Result<Self> {
        let nothing = Frame::new(node)?;
        let mut cpus = KVec::with_capacity(max_cpus(), GFP_KERNEL)?;
        for cpu in 0..max_cpus() as Cpu {
            // SAFETY: No preconditions.
            if !unsafe { bindings::rhv_cpu_possible(cpu as i32) } {
                continue;
            }
            let node = node_of(cpu);
            let mut purge = VmcbPage::new(node)?;
            set_up_purge(&mut purge, maps, &nothing);
            let frames = CpuFrames {
                cpu,
                hsave: frame_for_cpu(node)?,
                host: frame_for_cpu(node)?,
                purge,
            };
            cpus.push(frames, GFP_KERNEL)?;
        }
        for frames in &cpus {
            let addresses = (
                frames.hsave.hpa().raw(),
                frames.host.hpa().raw(),
                frames.purge.hpa().raw(),
            );
            set_addresses(frames.cpu, addresses);
        }
        Ok(Self {
            cpus,
            _nothing: nothing,
        })
    }
}

/// Tells a CPU, on which SVM is not on for us, where its frames are.
fn set_addresses(cpu: Cpu, (hsave, host, purge): (u64, u64, u64)) {
    // SAFETY: The CPU exists, and nobody looks at its share before SVM is on for us, or after it
    // has gone off.
    unsafe {
        let share = bindings::rhv_svm_cpu(cpu as i32);
        (*share).hsave = hsave;
        (*share).host = host;
        (*share).purge = purge;
    }
}

impl Drop for AllFrames {
    fn drop(&mut self) {
        for frames in &self.cpus {
            set_addresses(frames.cpu, (0, 0, 0));
        }
    }
}

/// A VMCB whose guest exits before its first instruction, for a virtual interrupt; and for
/// whatever it could come to, which it does not. Its nested tables map nothing.
fn set_up_purge(page: &mut VmcbPage, maps: &Permissions, nothing: &Frame) {
    let vmcb = page.get_mut();
    vmcb.control.intercepts = [
        u32::MAX,
        u32::MAX,
        u32::MAX,
        intercept::INTR
            | intercept::NMI
            | intercept::SMI
            | intercept::INIT
            | intercept::VINTR
            | intercept::IO
            | intercept::MSR
            | intercept::SHUTDOWN,
        intercept::SVM_INSTRUCTIONS,
        0,
    ];
    vmcb.control.io_map = maps.ports().raw();
    vmcb.control.msr_map = maps.msrs().raw();
    vmcb.control.virtual_interrupt =
        virtual_interrupt::MASKING | virtual_interrupt::PENDING | virtual_interrupt::FOREMOST;
    vmcb.control.nested_control = NESTED_PAGING;
    vmcb.control.nested_cr3 = nothing.hpa().raw();
    let real_mode = |rights| {
        segment::pack(&Segment {
            base: 0,
            limit: 0xffff,
            selector: 0,
            rights,
        })
    };
    vmcb.save.segments = [real_mode(AccessRights::REAL_DATA); 6];
    if let Some(code) = vmcb.save.segments.get_mut(SegmentRegister::Cs as usize) {
        *code = real_mode(AccessRights::REAL_CODE);
    }
    vmcb.save.idtr.limit = 0xffff;
    vmcb.save.efer = Efer::SVME.raw();
    vmcb.save.cr0 = Cr0::ET.raw();
    vmcb.save.dr6 = DR6_RESET;
    vmcb.save.dr7 = DR7_RESET;
    vmcb.save.rflags = Rflags::FIXED.union(Rflags::IF).raw();
    vmcb.save.pat = PAT_RESET;
}

/// SVM on every CPU that is online, through the host's own reference count.
pub enum Virtualization {}

impl CpuEvents for Virtualization {
    fn online(irqs: &IrqsOff) -> Result {
        // SAFETY: No preconditions; sets EFER.SVME on this CPU, or counts one more user of it.
        kernel::error::to_result(unsafe {
            bindings::x86_virt_get_ref(bindings::X86_FEATURE_SVM as i32)
        })?;
        with(irqs, |cpu| {
            // Whatever was cached under our ASIDs when we were here before.
            cpu.generation += 1;
            cpu.next_asid = 1;
            cpu.flush_all = true;
            cpu.previous = 0;
            cpu.enabled = true;
        });
        Ok(())
    }

    fn offline(irqs: &IrqsOff) {
        with(irqs, |cpu| {
            if !cpu.enabled {
                return;
            }
            cpu.enabled = false;
            if msr::read(VM_HSAVE_PA) == cpu.hsave {
                // SAFETY: What another hypervisor has left there last, and still counts on; or 0,
                // when there is none.
                unsafe { msr::write(VM_HSAVE_PA, cpu.previous) };
            }
            // SAFETY: Paired with `online`.
            unsafe { bindings::x86_virt_put_ref(bindings::X86_FEATURE_SVM as i32) };
        });
    }
}

#[kunit_tests(rusthv_svm_cpus)]
mod tests {
    use super::*;
    use crate::host::kunit::{on_every_cpu, Pinned};
    use crate::svm::svm_or_skip;

    const EFER: u32 = 0xc000_0080;

    /// SVM is on wherever the host is.
    #[test]
    fn svm_is_on_everywhere() -> Result {
        svm_or_skip!();
        let on = on_every_cpu(|irqs| {
            is_on(irqs) && Efer::from_raw(msr::read(EFER)).contains(Efer::SVME)
        })?;
        assert!(on);
        Ok(())
    }

    /// The first entry after others have used the CPU takes the MSR over, and remembers theirs;
    /// going offline gives it back.
    #[test]
    fn the_host_save_area_is_shared() -> Result {
        svm_or_skip!();
        let theirs = Frame::new(node_of(crate::host::cpu::current_cpu()))?;
        let pinned = Pinned::new();
        let irqs = IrqsOff::new();
        let before = msr::read(VM_HSAVE_PA);
        let previous = with(&irqs, |cpu| cpu.previous);
        let ours = with(&irqs, |cpu| cpu.hsave);
        // SAFETY: A frame that nobody uses; no guest runs on this CPU before it is put back.
        unsafe { msr::write(VM_HSAVE_PA, theirs.hpa().raw()) };
        // SAFETY: Interrupts are off; `rhv_svm_put` follows.
        let shared = unsafe { bindings::rhv_svm_load() };
        let loaded = msr::read(VM_HSAVE_PA);
        let remembered = with(&irqs, |cpu| cpu.previous);
        let flushes = with(&irqs, |cpu| cpu.flush_all);
        // SAFETY: As above.
        let again = unsafe { bindings::rhv_svm_load() };
        let unchanged = with(&irqs, |cpu| cpu.previous);
        // A purge, as after a guest of ours.
        with(&irqs, |cpu| cpu.used_asid = 1);
        // SAFETY: As above.
        unsafe { bindings::rhv_svm_put() };
        let purged = with(&irqs, |cpu| (cpu.used_asid, exit_code_of_purge(cpu)));
        // Gone offline and come back.
        Virtualization::offline(&irqs);
        let given_back = msr::read(VM_HSAVE_PA);
        let online = Virtualization::online(&irqs);
        // SAFETY: As it was.
        unsafe { msr::write(VM_HSAVE_PA, before) };
        with(&irqs, |cpu| cpu.previous = previous);
        drop(irqs);
        drop(pinned);
        online?;
        assert!(shared && again && flushes);
        assert_eq!(loaded, ours);
        assert_eq!(remembered, theirs.hpa().raw());
        assert_eq!(unchanged, remembered);
        assert_eq!(given_back, remembered);
        // VMEXIT_VINTR, or what came first: VMEXIT_INTR, VMEXIT_NMI.
        assert_eq!(purged.0, 0);
        assert!(matches!(purged.1, 0x64 | 0x60 | 0x61));
        Ok(())
    }

    fn exit_code_of_purge(cpu: &rhv_svm_cpu) -> u64 {
        let vmcb: *const super::super::vmcb::Vmcb =
            Frame::direct_map(crate::model::arch::addr::Hpa::new(cpu.purge)).cast();
        // SAFETY: The CPU's own frame, which lives as long as the module.
        unsafe { (*vmcb).control.exit_code }
    }

    /// Alone on the CPU, nothing has to be purged.
    #[test]
    fn alone_nothing_is_shared() -> Result {
        svm_or_skip!();
        let pinned = Pinned::new();
        let irqs = IrqsOff::new();
        let before = msr::read(VM_HSAVE_PA);
        let previous = with(&irqs, |cpu| cpu.previous);
        // SAFETY: Nobody runs guests on this CPU before it is put back.
        unsafe { msr::write(VM_HSAVE_PA, 0) };
        // SAFETY: Interrupts are off; `rhv_svm_put` follows.
        let shared = unsafe { bindings::rhv_svm_load() };
        // SAFETY: As above.
        unsafe { bindings::rhv_svm_put() };
        // SAFETY: As it was.
        unsafe { msr::write(VM_HSAVE_PA, before) };
        with(&irqs, |cpu| cpu.previous = previous);
        drop(irqs);
        drop(pinned);
        assert!(!shared);
        Ok(())
    }
}

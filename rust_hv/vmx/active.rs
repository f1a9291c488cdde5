// SPDX-License-Identifier: GPL-2.0

//! Which VMCS is active where, and CPUs that come and go.
//!
//! A VMCS may be active on one CPU at a time (SDM Vol. 3C, "Overview of the VMCS"). It must be
//! cleared by VMCLEAR on that CPU before another one loads it, and before the CPU leaves VMX
//! operation. So each CPU has a list of the VMCSs that are active on it.
//!
//! No lock: a CPU's list, its `enabled` flag, and the `cpu` of a region that is active on it are
//! written on that CPU alone, with interrupts off.

use super::instr;
use crate::host::bindings::{self, rhv_cpu_state};
use crate::host::cpu::{call_on, Cpu, CpuEvents, IrqsOff};
use crate::host::frame::{Frame, Place};
use crate::model::arch::addr::Hpa;
use core::cell::UnsafeCell;
use core::marker::PhantomPinned;
use kernel::bindings::list_head;
use kernel::prelude::*;
use kernel::sync::atomic::{
    ordering::{Acquire, Relaxed, Release},
    Atomic,
};

/// `cpu` of a region that is clear.
const NOWHERE: i32 = -1;

/// A VMCS region: its frame, and where it is active.
///
/// # Invariants
///
/// `link` is in the list of CPU `cpu` exactly while `cpu` is not [`NOWHERE`]; the region stays in
/// place meanwhile.
pub struct Region {
    /// Address of `frame`.
    hpa: Hpa,
    frame: Frame,
    cpu: Atomic<i32>,
    launched: Atomic<bool>,
    link: UnsafeCell<list_head>,
    _pin: PhantomPinned,
}

// SAFETY: `link` is touched on the CPU of the list only, see the module's text.
unsafe impl Send for Region {}
// SAFETY: As above.
unsafe impl Sync for Region {}

/// The state of a CPU; only that CPU may look inside.
fn state_of(cpu: Cpu) -> *mut rhv_cpu_state {
    // SAFETY: `cpu` comes from the host.
    unsafe { bindings::rhv_cpu_state(cpu as i32) }
}

impl Region {
    /// A region for the CPU's VMCS revision, on a node, not active anywhere.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(revision: u32, place: impl Into<Place>) -> Result<Pin<KBox<Self>>> {
        let mut frame = Frame::new(place)?;
        // The revision identifier is the first word (SDM Vol. 3C, "Format of the VMCS Region").
        for (byte, value) in frame.bytes_mut().iter_mut().zip(revision.to_le_bytes()) {
            *byte = value;
        }
        // INVARIANT: `cpu` is `NOWHERE` and the link is in no list.
        let region = Self {
            hpa: frame.hpa(),
            frame,
            cpu: Atomic::new(NOWHERE),
            launched: Atomic::new(false),
            link: UnsafeCell::new(list_head::default()),
            _pin: PhantomPinned,
        };
        Ok(KBox::pin(region, GFP_KERNEL)?)
    }

    /// Address for the VMX instructions.
    #[inline]
    pub(super) fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// NUMA node of the region.
    pub(super) fn node(&self) -> i32 {
        self.frame.node()
    }

    /// True after a VMLAUNCH since the last VMCLEAR: the next entry is a VMRESUME.
    #[inline]
    pub(super) fn launched(&self) -> bool {
        self.launched.load(Relaxed)
    }

    /// Notes a successful VMLAUNCH.
    #[inline]
    pub(super) fn set_launched(&self) {
        self.launched.store(true, Relaxed);
    }

    /// True when the region is active on the CPU that asks.
    #[inline]
    pub(super) fn is_active_here(&self, irqs: &IrqsOff) -> bool {
        self.cpu.load(Relaxed) == irqs.cpu() as i32
    }

    /// The CPU on which the region is active.
    fn active_on(&self) -> Option<Cpu> {
        Cpu::try_from(self.cpu.load(Acquire)).ok()
    }

    /// Makes the region known as active on this CPU, ready for VMPTRLD.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when the CPU is not in VMX operation, as it is going offline; `EIO` when VMCLEAR
    /// failed.
    pub(super) fn activate(self: Pin<&Self>, irqs: &IrqsOff) -> Result {
        let state = state_of(irqs.cpu());
        // SAFETY: This CPU's own state, with interrupts off.
        if unsafe { !(*state).enabled } {
            return Err(EAGAIN);
        }
        // A region that is new, or was cleared, is cleared (again): VMPTRLD asks for it once.
        // SAFETY: Ours, and active nowhere: the caller has seen to it.
        unsafe { instr::vmclear(self.hpa()) }?;
        self.launched.store(false, Relaxed);
        // SAFETY: This CPU's list, with interrupts off. The region is pinned, and leaves the list
        // before it is freed.
        unsafe { list_add(self.link.get(), &raw mut (*state).active) };
        // INVARIANT: The link is in the list of this CPU.
        self.cpu.store(irqs.cpu() as i32, Release);
        Ok(())
    }

    /// Clears the region, which is active on this CPU.
    fn clear_here(&self, irqs: &IrqsOff) {
        if !self.is_active_here(irqs) {
            return;
        }
        // SAFETY: Ours, and active on no other CPU. A failure means that VMX is off (a reboot),
        // and then nothing is active.
        let _ = unsafe { instr::vmclear(self.hpa()) };
        // SAFETY: This CPU's list, with interrupts off; the link is in it by the invariant.
        unsafe { list_del(self.link.get()) };
        self.launched.store(false, Relaxed);
        // INVARIANT: The link is in no list. `Release`: what VMCLEAR wrote back is visible to the
        // CPU that loads the region next.
        self.cpu.store(NOWHERE, Release);
    }

    /// Clears the region wherever it is active. May wait for another CPU.
    pub(super) fn clear(&self) {
        // A CPU that goes offline clears its list by itself, so this ends.
        while let Some(cpu) = self.active_on() {
            // `ENXIO`: it went offline meanwhile; look again.
            let _ = call_on(cpu, |irqs| self.clear_here(irqs));
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Puts `link` behind `head`.
///
/// # Safety
///
/// Both are valid; nobody else touches the list.
unsafe fn list_add(link: *mut list_head, head: *mut list_head) {
    // SAFETY: By the contract, the list's links are valid and ours to change.
    unsafe {
        (*link).next = (*head).next;
        (*link).prev = head;
        (*(*head).next).prev = link;
        (*head).next = link;
    }
}

/// Takes `link` out of its list.
///
/// # Safety
///
/// It is in a list that nobody else touches.
unsafe fn list_del(link: *mut list_head) {
    // SAFETY: By the contract.
    unsafe {
        (*(*link).prev).next = (*link).next;
        (*(*link).next).prev = (*link).prev;
    }
}

/// VMX on every CPU that is online, through the host's own reference count.
pub enum Virtualization {}

impl CpuEvents for Virtualization {
    fn online(irqs: &IrqsOff) -> Result {
        let state = state_of(irqs.cpu());
        // SAFETY: No preconditions; turns VMX on, on this CPU, or counts one more user of it.
        kernel::error::to_result(unsafe {
            bindings::x86_virt_get_ref(bindings::X86_FEATURE_VMX as i32)
        })?;
        // SAFETY: This CPU's own state, with interrupts off.
        unsafe {
            let head = &raw mut (*state).active;
            (*head).next = head;
            (*head).prev = head;
            (*state).enabled = true;
        }
        Ok(())
    }

    fn offline(irqs: &IrqsOff) {
        let state = state_of(irqs.cpu());
        // SAFETY: This CPU's own state and list, with interrupts off. Every link in the list
        // belongs to a live region, which `clear_here` takes out of it.
        unsafe {
            if !(*state).enabled {
                return;
            }
            (*state).enabled = false;
            let head = &raw mut (*state).active;
            loop {
                let next = (*head).next;
                if next == head {
                    break;
                }
                let link: *mut UnsafeCell<list_head> = next.cast();
                let region = kernel::container_of!(link, Region, link);
                (*region).clear_here(irqs);
            }
            bindings::x86_virt_put_ref(bindings::X86_FEATURE_VMX as i32);
        }
    }
}

#[kunit_tests(rusthv_active)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;
    use crate::host::frame::alive;
    use crate::host::kunit::{on_every_cpu, Pinned};
    use crate::vmx::vmx_or_skip;
    use crate::vmx::VMX;

    /// CR4.VMXE
    const VMXE: u64 = 1 << 13;

    fn region() -> Result<Pin<KBox<Region>>> {
        Region::new(VMX.get()?.caps.common.revision, current_node())
    }

    /// Regions that are active on this CPU.
    fn active_here() -> usize {
        let irqs = IrqsOff::new();
        let mut count = 0;
        // SAFETY: This CPU's own list, with interrupts off.
        unsafe {
            let head = &raw mut (*state_of(irqs.cpu())).active;
            let mut next = (*head).next;
            while next != head {
                count += 1;
                next = (*next).next;
            }
        }
        count
    }

    fn activate(region: &Pin<KBox<Region>>) -> Result {
        let irqs = IrqsOff::new();
        let result = region.as_ref().activate(&irqs);
        drop(irqs);
        result
    }

    /// VMX is on wherever the host is.
    #[test]
    fn every_cpu_is_in_vmx_operation() -> Result {
        vmx_or_skip!();
        let on = on_every_cpu(|irqs| {
            // SAFETY: This CPU's own state, with interrupts off.
            let enabled = unsafe { (*state_of(irqs.cpu())).enabled };
            let works = instr::vmptrst().is_ok();
            enabled && crate::host::switch::host_cr4(irqs) & VMXE != 0 && works
        })?;
        assert!(on);
        Ok(())
    }

    #[test]
    fn revision_is_the_first_word() -> Result {
        vmx_or_skip!();
        let region = region()?;
        let revision = VMX.get()?.caps.common.revision;
        // SAFETY: The frame lives as long as the region, which the CPU does not have.
        let first = unsafe { Frame::direct_map(region.hpa()).cast::<u32>().read() };
        assert_eq!(first, revision);
        Ok(())
    }

    #[test]
    fn list_follows_the_region() -> Result {
        vmx_or_skip!();
        let region = region()?;
        let pinned = Pinned::new();
        let before = active_here();
        let result = activate(&region);
        let (inside, on) = (active_here(), region.active_on());
        region.clear();
        let (after, off) = (active_here(), region.active_on());
        let here = pinned.cpu();
        drop(pinned);
        result?;
        assert_eq!((inside, on), (before + 1, Some(here)));
        assert_eq!((after, off), (before, None));
        Ok(())
    }

    #[test]
    fn clearing_twice_is_harmless() -> Result {
        vmx_or_skip!();
        let (region, other) = (region()?, region()?);
        let pinned = Pinned::new();
        let before = active_here();
        let results = (activate(&other), activate(&region));
        region.clear();
        let once = active_here();
        region.clear();
        let irqs = IrqsOff::new();
        region.clear_here(&irqs);
        drop(irqs);
        let twice = active_here();
        other.clear();
        let none = active_here();
        drop(pinned);
        results.0?;
        results.1?;
        assert_eq!((once, twice, none), (before + 1, before + 1, before));
        Ok(())
    }

    /// A region that is freed while it is active leaves the list, and the frame goes.
    #[test]
    fn drop_while_active() -> Result {
        vmx_or_skip!();
        let frames = alive();
        let (first, second, third) = (region()?, region()?, region()?);
        let pinned = Pinned::new();
        let before = active_here();
        let results = (activate(&first), activate(&second), activate(&third));
        // From the middle, then from both ends.
        drop(second);
        let two = active_here();
        drop(first);
        let one = active_here();
        drop(third);
        let none = active_here();
        drop(pinned);
        results.0?;
        results.1?;
        results.2?;
        assert_eq!((two, one, none), (before + 2, before + 1, before));
        assert_eq!(alive(), frames);
        Ok(())
    }

    /// The next entry after a VMCLEAR is a VMLAUNCH.
    #[test]
    fn clearing_forgets_the_launch() -> Result {
        vmx_or_skip!();
        let region = region()?;
        activate(&region)?;
        region.set_launched();
        let launched = region.launched();
        region.clear();
        let cleared = region.launched();
        activate(&region)?;
        let again = region.launched();
        region.clear();
        assert_eq!((launched, cleared, again), (true, false, false));
        Ok(())
    }
}

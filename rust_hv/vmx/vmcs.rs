// SPDX-License-Identifier: GPL-2.0

//! A VMCS, and the window in which it is current.
//!
//! VMREAD and VMWRITE act on whatever VMCS is current on the CPU. [`Window`] is the proof that it
//! is ours: it borrows the VMCS, keeps interrupts off, and puts back what was current before, as
//! `kvm_intel` remembers which VMCS it loaded last and will not load it again.

use super::active::Region;
use super::fields::*;
use super::instr;
use crate::host::cpu::IrqsOff;
use crate::host::frame::{Frame, Place};
use crate::host::task;
use crate::model::arch::addr::{Hpa, PAGE_SIZE};
use crate::vendor::HwError;
use kernel::prelude::*;

/// A VMCS of ours.
pub struct Vmcs {
    region: Pin<KBox<Region>>,
}

/// Our VMCS is current on this CPU, and interrupts are off.
///
/// # Invariants
///
/// The current-VMCS pointer of this CPU is `vmcs`'s region.
pub struct Window<'a> {
    vmcs: &'a Vmcs,
    /// What was current before, when it was not ours.
    displaced: Option<Hpa>,
    /// Set when the VMCS has come to this CPU with this window.
    moved: bool,
    /// Last, so that interrupts come on after `drop` has put `displaced` back.
    irqs: IrqsOff,
}

/// VMREAD or VMWRITE of a field that the CPU does not have (SDM Vol. 3C, "VM Instruction Error
/// Numbers").
const UNSUPPORTED_FIELD: HwError = HwError::Instruction(12);

/// Fields on their way from one VMCS to another. They are the guest's registers, among others: the
/// frame is wiped like those of VMCSs.
struct Saved(Frame);

impl Saved {
    /// Bytes of a field: its value, its encoding, and that it is one.
    const BYTES: usize = 16;
    const IS_FIELD: u128 = 1 << 127;

    fn slots(&mut self) -> impl Iterator<Item = &mut [u8; Self::BYTES]> {
        let slots = self.0.bytes_mut().chunks_exact_mut(Self::BYTES);
        slots.take(FIELDS).filter_map(|slot| slot.first_chunk_mut())
    }

    fn bytes(encoding: u32, value: u64) -> [u8; Self::BYTES] {
        (Self::IS_FIELD | u128::from(encoding) << 64 | u128::from(value)).to_ne_bytes()
    }

    fn field(bytes: &[u8; Self::BYTES]) -> Option<(u32, u64)> {
        let saved = u128::from_ne_bytes(*bytes);
        (saved & Self::IS_FIELD != 0).then_some(((saved >> 64) as u32, saved as u64))
    }
}

const _: () = assert!(FIELDS * Saved::BYTES <= PAGE_SIZE as usize);

impl Vmcs {
    /// A VMCS whose fields are all still to be written.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(revision: u32, place: impl Into<Place>) -> Result<Self> {
        Ok(Self {
            region: Region::new(revision, place)?,
        })
    }

    /// NUMA node of its region.
    pub fn node(&self) -> i32 {
        self.region.node()
    }

    /// Moves the VMCS to another region, at `place`. How a region holds the fields is the CPU's
    /// secret: they go one by one. What the last exit has told does not go with them. The next window
    /// has the VMCS [moved](Window::moved), whether that was done or not.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EIO`, `EINTR`: the VMCS is where it was.
    pub fn move_to(&mut self, revision: u32, place: Place) -> Result {
        let mut new = Self::new(revision, place)?;
        let mut saved = Saved(Frame::new(place)?);
        let kept = self.open()?.save(&mut saved);
        // It may have come from another CPU, and has that one's host area.
        self.region.clear();
        kept?;
        let restored = new.open()?.restore(&mut saved);
        new.region.clear();
        restored?;
        *self = new;
        Ok(())
    }

    /// Makes the VMCS current until the window is dropped.
    ///
    /// Interrupts must be on; the call may wait for the CPU where the VMCS was active, and for the
    /// scheduler to take us off a CPU that is going offline.
    ///
    /// # Errors
    ///
    /// `EIO` when a VMX instruction failed, `EINTR` when the task was killed while it waited.
    #[inline]
    pub fn open(&mut self) -> Result<Window<'_>> {
        loop {
            let irqs = IrqsOff::new();
            let moved = !self.region.is_active_here(&irqs);
            if moved {
                // Slow path: bring it here. Waiting for another CPU needs interrupts on.
                drop(irqs);
                self.region.clear();
                let irqs = IrqsOff::new();
                match self.region.as_ref().activate(&irqs) {
                    Ok(()) => return self.load(irqs, true),
                    Err(error) if error == EAGAIN => {
                        drop(irqs);
                        if task::is_dying() {
                            return Err(EINTR);
                        }
                        task::sleep_a_tick();
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            return self.load(irqs, false);
        }
    }

    #[inline]
    fn load(&mut self, irqs: IrqsOff, moved: bool) -> Result<Window<'_>> {
        let ours = self.region.hpa();
        let current = instr::vmptrst()?;
        let displaced = current.filter(|&hpa| hpa != ours);
        if current != Some(ours) {
            // SAFETY: Active on this CPU or nowhere; interrupts are off, and the window's `drop`
            // puts back what is displaced.
            unsafe { instr::vmptrld(ours) }?;
        }
        // INVARIANT: It was current, or has just been loaded.
        Ok(Window {
            vmcs: self,
            displaced,
            moved,
            irqs,
        })
    }
}

impl Window<'_> {
    /// Reads a field.
    #[inline]
    pub fn read<F: Readable>(&self, field: F) -> Result<F::Value, HwError> {
        Ok(F::Value::from_raw(instr::vmread(field.encoding())?))
    }

    /// Writes a field of the guest's.
    #[inline]
    pub fn write<T: Width>(&mut self, field: Field<T>, value: T) -> Result<(), HwError> {
        // SAFETY: By the choice of `Field`, the guest alone has the consequences.
        unsafe { instr::vmwrite(field.encoding(), value.into_raw()) }
    }

    /// Writes a field of the host's.
    ///
    /// # Safety
    ///
    /// The host can live with the value at the next exit, and it opens nothing to the guest that
    /// is not the guest's.
    #[inline]
    pub unsafe fn write_host<T: Width>(
        &mut self,
        field: HostField<T>,
        value: T,
    ) -> Result<(), HwError> {
        // SAFETY: By the contract of this function.
        unsafe { instr::vmwrite(field.encoding(), value.into_raw()) }
    }

    /// Reads all fields of ours that the CPU has.
    fn save(&self, saved: &mut Saved) -> Result<(), HwError> {
        // The rest of the frame is zeros.
        for (slot, encoding) in saved.slots().zip(encodings()) {
            *slot = match instr::vmread(encoding) {
                Ok(value) => Saved::bytes(encoding, value),
                Err(UNSUPPORTED_FIELD) => continue,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// Writes what was read of another VMCS of the same vCPU.
    fn restore(&mut self, saved: &mut Saved) -> Result<(), HwError> {
        for (encoding, value) in saved.slots().filter_map(|slot| Saved::field(slot)) {
            // SAFETY: The host could live with it in the VMCS that it comes from.
            unsafe { instr::vmwrite(encoding, value) }?;
        }
        Ok(())
    }

    /// Interrupts are off while this lives.
    #[inline]
    pub fn irqs(&self) -> &IrqsOff {
        &self.irqs
    }

    /// Whether the VMCS came to this CPU with this window: per-CPU host state must be written.
    #[inline]
    pub fn moved(&self) -> bool {
        self.moved
    }

    /// True when the next entry is a VMRESUME.
    #[inline]
    pub(super) fn launched(&self) -> bool {
        self.vmcs.region.launched()
    }

    /// Notes a successful entry.
    #[inline]
    pub(super) fn set_launched(&mut self) {
        self.vmcs.region.set_launched();
    }
}

impl Drop for Window<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(theirs) = self.displaced {
            // SAFETY: It was current on this CPU when the window opened, and interrupts were off
            // since: it is still active here, and its owner expects it to be current. A failure
            // means that VMX is off (a reboot), when nobody expects anything.
            let _ = unsafe { instr::vmptrld(theirs) };
        }
    }
}

#[kunit_tests(rusthv_vmcs)]
mod tests {
    use super::*;
    use crate::host::cpu::{call_on, current_node, max_cpus, Cpu};
    use crate::host::kunit::Pinned;
    use crate::model::arch::addr::Gva;
    use crate::vmx::vmx_or_skip;
    use crate::vmx::VMX;
    use kernel::sync::atomic::{ordering::Relaxed, Atomic};

    /// VM-instruction errors (SDM Vol. 3C, "VM Instruction Error Numbers").
    const WRONG_REVISION: HwError = HwError::Instruction(11);
    const INVALID_OPERAND: HwError = HwError::Instruction(28);

    // Nothing is asserted while a window is open: a failed assertion ends the thread at once, and
    // would leave interrupts off.

    fn vmcs() -> Result<Vmcs> {
        Vmcs::new(VMX.get()?.caps.common.revision, current_node())
    }

    /// Makes a VMCS current and leaves it so, with interrupts on, as other hypervisors do.
    fn leave_current(vmcs: &Vmcs, irqs: &IrqsOff, rip: u64) -> Result {
        vmcs.region.as_ref().activate(irqs)?;
        // SAFETY: Ours and active here; what was current before is put back by the tests.
        unsafe {
            instr::vmptrld(vmcs.region.hpa())?;
            instr::vmwrite(GUEST_RIP.encoding(), rip)?;
        }
        Ok(())
    }

    /// Runs a test on one CPU and puts back what was current there.
    fn on_one_cpu<R>(test: impl FnOnce(&Pinned) -> Result<R>) -> Result<R> {
        let pinned = Pinned::new();
        let irqs = IrqsOff::new();
        let theirs = instr::vmptrst();
        drop(irqs);
        let result = test(&pinned);
        let irqs = IrqsOff::new();
        if let Ok(Some(theirs)) = theirs {
            // SAFETY: It was current here before, and we have stayed on the CPU.
            unsafe { instr::vmptrld(theirs) }?;
        }
        drop(irqs);
        drop(pinned);
        result
    }

    fn current() -> Result<Option<Hpa>> {
        let irqs = IrqsOff::new();
        let current = instr::vmptrst();
        drop(irqs);
        Ok(current?)
    }

    #[test]
    fn fields_keep_their_values() -> Result {
        vmx_or_skip!();
        let mut vmcs = vmcs()?;
        let mut window = vmcs.open()?;
        window.write(SegmentFields::CS.selector, 0xabcd)?;
        window.write(SegmentFields::CS.limit, 0x89ab_cdef)?;
        window.write(GUEST_RIP, 0x1234_5678_9abc_def0)?;
        window.write(GUEST_PAT, 0x0007_0406_0007_0406)?;
        let inside = (
            window.read(SegmentFields::CS.selector)?,
            window.read(SegmentFields::CS.limit)?,
            window.read(GUEST_RIP)?,
            window.read(GUEST_PAT)?,
        );
        drop(window);
        // Out of the CPU and back.
        vmcs.region.clear();
        let window = vmcs.open()?;
        let later = (
            window.read(SegmentFields::CS.selector)?,
            window.read(SegmentFields::CS.limit)?,
            window.read(GUEST_RIP)?,
            window.read(GUEST_PAT)?,
        );
        drop(window);
        let written = (
            0xabcd,
            0x89ab_cdef,
            0x1234_5678_9abc_def0,
            0x0007_0406_0007_0406,
        );
        assert_eq!(inside, written);
        assert_eq!(later, written);
        Ok(())
    }

    #[test]
    fn unknown_fields_are_refused() -> Result {
        vmx_or_skip!();
        /// Of the right shape, and no field's.
        const UNKNOWN: u32 = 0x2ffe;
        let mut vmcs = vmcs()?;
        let window = vmcs.open()?;
        let read = instr::vmread(UNKNOWN);
        // SAFETY: No field, no effect.
        let written = unsafe { instr::vmwrite(UNKNOWN, 1) };
        // The window goes on working.
        let known = window.read(EXIT_REASON);
        drop(window);
        assert_eq!(read, Err(UNSUPPORTED_FIELD));
        assert_eq!(written, Err(UNSUPPORTED_FIELD));
        assert!(known.is_ok());
        Ok(())
    }

    #[test]
    fn no_current_vmcs_is_an_error() -> Result {
        vmx_or_skip!();
        let mut vmcs = vmcs()?;
        let mut window = vmcs.open()?;
        let ours = window.vmcs.region.hpa();
        // SAFETY: Ours and active here alone; loaded again below.
        let cleared = unsafe { instr::vmclear(ours) };
        let current = instr::vmptrst();
        let read = window.read(GUEST_RIP);
        let written = window.write(GUEST_RIP, 1);
        // SAFETY: As above.
        let loaded = unsafe { instr::vmptrld(ours) };
        let again = window.write(GUEST_RIP, 1);
        drop(window);
        assert_eq!((cleared, loaded, again), (Ok(()), Ok(()), Ok(())));
        assert_eq!(current, Ok(None));
        assert_eq!(read, Err(HwError::NoCurrentState));
        assert_eq!(written, Err(HwError::NoCurrentState));
        Ok(())
    }

    #[test]
    fn failures_have_their_number() -> Result {
        let caps = &vmx_or_skip!().caps;
        let mut vmcs = vmcs()?;
        let foreign = Vmcs::new(caps.common.revision ^ 1, current_node())?;
        let window = vmcs.open()?;
        let ours = instr::vmptrst();
        // SAFETY: A region of ours with a revision that the CPU refuses.
        let loaded = unsafe { instr::vmptrld(foreign.region.hpa()) };
        let still_ours = instr::vmptrst();
        let number = match caps.has(crate::host::bindings::RUSTHV_FEAT_VPID) {
            // VPID 0 is the host's.
            true => instr::invvpid(instr::InvvpidKind::SingleContext, 0, Gva::new(0)),
            false => Err(INVALID_OPERAND),
        };
        drop(window);
        assert_eq!(loaded, Err(WRONG_REVISION));
        assert_eq!(ours, Ok(Some(vmcs.region.hpa())));
        assert_eq!(still_ours, ours);
        assert_eq!(number, Err(INVALID_OPERAND));
        Ok(())
    }

    /// All that can be written arrives, and what was allocated for it is freed.
    #[test]
    fn moves_to_another_frame() -> Result {
        let revision = vmx_or_skip!().caps.common.revision;
        let mut vmcs = vmcs()?;
        let alive = crate::host::frame::alive();
        let old = vmcs.region.hpa();
        let mut window = vmcs.open()?;
        // One of each kind and width.
        let written = (|| {
            window.write(SegmentFields::CS.selector, 0xabcd)?;
            window.write(SegmentFields::CS.limit, 0x89ab_cdef)?;
            window.write(GUEST_RIP, 0x1234_5678_9abc_def0)?;
            window.write(GUEST_PAT, 0x0007_0406_0007_0406)?;
            window.write(TSC_OFFSET, 0x1122_3344_5566_7788)?;
            window.write(ENTRY_INTERRUPTION_INFO, 0x8000_0321)?;
            // SAFETY: It is never entered.
            unsafe {
                window.write_host(HOST_CS_SELECTOR, 0x10)?;
                window.write_host(HOST_RIP, 0xffff_8765_4321_0000)?;
                window.write_host(HOST_RSP, 0xffff_8765_4321_1000)?;
                window.write_host(EXCEPTION_BITMAP, 0x5a5a_a5a5)
            }
        })();
        drop(window);
        written?;
        vmcs.move_to(revision, current_node().into())?;
        let window = vmcs.open()?;
        let moved = window.moved();
        let read = (|| {
            Ok::<_, HwError>((
                window.read(SegmentFields::CS.selector)?,
                window.read(SegmentFields::CS.limit)?,
                window.read(GUEST_RIP)?,
                window.read(GUEST_PAT)?,
                window.read(TSC_OFFSET)?,
                window.read(ENTRY_INTERRUPTION_INFO)?,
                window.read(HOST_CS_SELECTOR)?,
                (window.read(HOST_RIP)?, window.read(HOST_RSP)?),
                window.read(EXCEPTION_BITMAP)?,
            ))
        })();
        drop(window);
        let (cs, limit, rip, pat, tsc, event, host_cs, host_rip, exceptions) = read?;
        assert_eq!((cs, limit), (0xabcd, 0x89ab_cdef));
        assert_eq!(rip, 0x1234_5678_9abc_def0);
        assert_eq!((pat, tsc), (0x0007_0406_0007_0406, 0x1122_3344_5566_7788));
        assert_eq!((event, exceptions), (0x8000_0321, 0x5a5a_a5a5));
        assert_eq!(host_cs, 0x10);
        assert_eq!(host_rip, (0xffff_8765_4321_0000, 0xffff_8765_4321_1000));
        assert!(moved && vmcs.region.hpa() != old);
        assert_eq!(crate::host::frame::alive(), alive);
        Ok(())
    }

    /// What another hypervisor has left current is current again after the window, unchanged.
    #[test]
    fn displaced_vmcs_is_put_back() -> Result {
        vmx_or_skip!();
        let (theirs, mut ours) = (vmcs()?, vmcs()?);
        let (before, inside, after, rips) = on_one_cpu(|_| {
            let irqs = IrqsOff::new();
            let left = leave_current(&theirs, &irqs, 0x1111);
            drop(irqs);
            left?;
            let before = current()?;
            let mut window = ours.open()?;
            let inside = instr::vmptrst();
            let written = window.write(GUEST_RIP, 0x2222);
            drop(window);
            let after = current()?;
            let irqs = IrqsOff::new();
            let their_rip = instr::vmread(GUEST_RIP.encoding());
            drop(irqs);
            let our_rip = ours.open()?.read(GUEST_RIP);
            theirs.region.clear();
            written?;
            Ok((before, inside?, after, (their_rip?, our_rip?)))
        })?;
        assert_eq!(before, Some(theirs.region.hpa()));
        assert_eq!(inside, Some(ours.region.hpa()));
        assert_eq!(after, before);
        assert_eq!(rips, (0x1111, 0x2222));
        Ok(())
    }

    /// A window that follows one of the same VMCS on the same CPU loads nothing.
    #[test]
    fn moved_only_the_first_time() -> Result {
        vmx_or_skip!();
        let mut vmcs = vmcs()?;
        let (first, second, third) = on_one_cpu(|_| {
            let first = vmcs.open()?.moved();
            let second = vmcs.open()?.moved();
            vmcs.region.clear();
            let third = vmcs.open()?.moved();
            vmcs.region.clear();
            Ok((first, second, third))
        })?;
        assert_eq!((first, second, third), (true, false, true));
        Ok(())
    }

    /// A VMCS that is active on another CPU is cleared there and brought here, with its contents.
    /// On a machine with one CPU it stays.
    #[test]
    fn comes_from_another_cpu() -> Result {
        vmx_or_skip!();
        let mut vmcs = vmcs()?;
        let (elsewhere, moved, rip) = on_one_cpu(|pinned| {
            let here = pinned.cpu();
            let there = (0..max_cpus() as Cpu)
                .find(|&cpu| cpu != here && call_on(cpu, |_| ()).is_ok())
                .unwrap_or(here);
            let left = Atomic::new(false);
            let displaced = Atomic::new(u64::MAX);
            call_on(there, |irqs| {
                if let Ok(Some(theirs)) = instr::vmptrst() {
                    displaced.store(theirs.raw(), Relaxed);
                }
                left.store(leave_current(&vmcs, irqs, 0x3333).is_ok(), Relaxed);
            })?;
            if !left.load(Relaxed) {
                return Err(EIO);
            }
            let window = vmcs.open()?;
            let (moved, rip) = (window.moved(), window.read(GUEST_RIP));
            drop(window);
            vmcs.region.clear();
            call_on(there, |_| {
                let theirs = displaced.load(Relaxed);
                if theirs != u64::MAX {
                    // SAFETY: It was current there, and still is active there.
                    let _ = unsafe { instr::vmptrld(Hpa::new(theirs)) };
                }
            })?;
            Ok((there != here, moved, rip?))
        })?;
        assert_eq!(moved, elsewhere);
        assert_eq!(rip, 0x3333);
        Ok(())
    }
}

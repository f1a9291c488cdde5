// SPDX-License-Identifier: GPL-2.0

//! One vCPU's VMCB: its controls, and the entry. What the floors above see of it is in `window`.
//!
//! The VMCB is memory: it is read and written wherever the vCPU is. It belongs to a CPU from VMRUN
//! to the exit only, and to what the CPU may keep of it from one VMRUN to the next, as the clean
//! bits tell.

use super::asid::Asid;
use super::exit;
use super::permissions::Permissions;
use super::vmcb::{
    clean, intercept, tlb_control, virtual_interrupt, Save, VmcbPage, NESTED_PAGING,
};
use super::{cpus, Svm};
use crate::host::bindings::{self, rhv_regs};
use crate::host::cpu::IrqsOff;
use crate::host::debug;
use crate::host::fpu::FpuInUse;
use crate::host::frame::Place;
use crate::host::msr;
use crate::host::switch::Running;
use crate::host::task;
use crate::model::arch::regs::{Efer, Rflags, DR6_RESET};
use crate::model::arch::segment::AccessRights;
use crate::vendor::flush::FlushKind;
use crate::vendor::{self, HwError, ResetRights, Translation};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Whether the CR0 intercepts are lifted for an instruction that the CPU has to execute itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lifted {
    /// They are not.
    No,
    /// Until the next exit, which is a #DB behind the instruction if nothing else comes: the guest
    /// steps anyway, or only for this.
    Stepping { anyway: bool },
}

/// What a guest sees of registers that are the hypervisor's while it keeps the tables that the CPU
/// walks.
#[derive(Clone, Copy)]
pub(super) struct Software {
    pub(super) cr3: u64,
    pub(super) pat: u64,
}

/// A vCPU as the hardware sees it.
pub struct Guest {
    pub(super) vmcb: VmcbPage,
    pub(super) regs: rhv_regs,
    pub(super) svm: &'static Svm,
    pub(super) asid: Asid,
    /// Clean bits for the next entry on the CPU where the vCPU was last.
    pub(super) clean: u32,
    /// The virtual-interrupt word. The CPU writes its own back at each exit.
    pub(super) virtual_interrupt: u32,
    /// The registers before the last entry that could have failed.
    before: KBox<Save>,
    /// The last entry was one.
    can_fail: bool,
    /// CR0 as the guest sees it.
    pub(super) cr0: u64,
    /// CR4 as the guest sees it.
    pub(super) cr4: u64,
    /// EFER as the guest sees it.
    pub(super) efer: u64,
    pub(super) lifted: Lifted,
    /// Length of the instruction that exited, when it has been looked at.
    pub(super) identified: Option<u8>,
    /// The last exit was a #DB of our own.
    pub(super) stepped: bool,
    /// How far RIP was moved for the event to be injected.
    pub(super) skipped: u8,
    /// RDTSCP and INVPCID.
    pub(super) offered: (bool, bool),
    /// Without nested tables.
    pub(super) software: Option<Software>,
    pub(super) translation: Translation,
    /// The permission maps, where they are the VM's own.
    maps: Option<Arc<Permissions>>,
    tsc_offset: u64,
    host_xcr0: u64,
    host_debugctl: u64,
    /// See [`vendor::Guest::has_moved`].
    has_moved: bool,
}

/// A guest whose CPU stays the same: its registers can be reached, and it can be entered.
pub struct GuestWindow<'a> {
    pub(super) guest: &'a mut Guest,
    /// `Guest::host_debugctl` is the host's now: interrupt handlers may change it, and are off.
    debugctl_is_known: bool,
    /// Last, so that interrupts come on when all else is done.
    pub(super) irqs: IrqsOff,
}

impl Guest {
    /// A guest whose memory is behind `translation`, with its controls set and its registers all zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(
        svm: &'static Svm,
        translation: Translation,
        maps: Option<Arc<Permissions>>,
        tsc_offset: u64,
        place: Place,
    ) -> Result<Self> {
        let software = match &translation {
            Translation::Nested(_) => None,
            Translation::Software(_) => Some(Software { cr3: 0, pat: 0 }),
        };
        let vmcb = VmcbPage::new(place)?;
        let mut guest = Self {
            before: KBox::new(vmcb.get().save, GFP_KERNEL_ACCOUNT)?,
            can_fail: false,
            vmcb,
            regs: rhv_regs::default(),
            svm,
            asid: Asid::new(),
            clean: 0,
            virtual_interrupt: virtual_interrupt::MASKING,
            cr0: 0,
            cr4: 0,
            efer: 0,
            lifted: Lifted::No,
            identified: None,
            stepped: false,
            skipped: 0,
            offered: (false, false),
            software,
            translation,
            maps,
            tsc_offset,
            host_xcr0: msr::host_xcr0(),
            host_debugctl: 0,
            has_moved: false,
        };
        let save = &mut guest.vmcb.get_mut().save;
        save.efer = Efer::SVME.raw();
        save.rflags = Rflags::FIXED.raw();
        guest.set_up();
        Ok(guest)
    }

    /// Writes the whole control area.
    ///
    /// Everything of the host's exits, and whatever would let the guest reach anything but its
    /// own registers and memory.
    pub(super) fn set_up(&mut self) {
        let svm = self.svm;
        let nested = match &self.translation {
            Translation::Nested(root) => Some(root.table().raw()),
            Translation::Software(_) => None,
        };
        let [registers, exceptions, others] = match nested {
            Some(_) => [0; 3],
            None => [
                intercept::CR3_READ | intercept::CR3_WRITE,
                intercept::PAGE_FAULT,
                intercept::INVLPG,
            ],
        };
        let maps = self.maps.as_deref().unwrap_or(&svm.maps);
        let (io_map, msr_map) = (maps.ports().raw(), maps.msrs().raw());
        let control = &mut self.vmcb.get_mut().control;
        control.intercepts = [
            registers | intercept::CR0_WRITE | intercept::CR4_WRITE | intercept::CR8_WRITE,
            intercept::DEBUG_REGISTERS,
            exceptions | intercept::EXCEPTIONS,
            others
                | intercept::INTR
                | intercept::NMI
                | intercept::SMI
                | intercept::INIT
                | intercept::RDPMC
                | intercept::CPUID
                | intercept::RSM
                | intercept::INVD
                | intercept::HLT
                | intercept::INVLPGA
                | intercept::IO
                | intercept::MSR
                | intercept::TASK_SWITCH
                | intercept::SHUTDOWN,
            intercept::SVM_INSTRUCTIONS
                | intercept::INT1
                | intercept::WBINVD
                | intercept::MONITOR
                | intercept::MWAIT
                | intercept::XSETBV
                | intercept::RDPRU,
            0,
        ];
        control.io_map = io_map;
        control.msr_map = msr_map;
        control.tsc_offset = self.tsc_offset;
        control.tlb_control = tlb_control::NOTHING;
        control.interrupt_state = 0;
        control.nested_control = if nested.is_some() { NESTED_PAGING } else { 0 };
        control.nested_cr3 = nested.unwrap_or(0);
        control.event = 0;
        self.clean = 0;
        self.intercept_instructions();
        self.intercept_cr_reads();
    }

    /// Intercepts RDTSCP and INVPCID when the guest does not have them.
    pub(super) fn intercept_instructions(&mut self) {
        let (rdtscp, invpcid) = self.offered;
        // Without INVPCID in the CPU its bit is reserved.
        let invpcid = (invpcid && self.software.is_none()) || !self.svm.caps.invpcid;
        let [.., word4, word5] = &mut self.vmcb.get_mut().control.intercepts;
        *word4 = with(*word4, intercept::RDTSCP, !rdtscp);
        *word5 = with(*word5, intercept::INVPCID, !invpcid);
        self.dirty(clean::INTERCEPTS);
    }

    /// Intercepts reads of CR0 and CR4 where the CPU has other values than the guest sees.
    pub(super) fn intercept_cr_reads(&mut self) {
        let (cr0, cr4) = (self.cr0, self.cr4);
        let vmcb = self.vmcb.get_mut();
        let [word0, ..] = &mut vmcb.control.intercepts;
        let mut wanted = with(*word0, intercept::CR0_READ, vmcb.save.cr0 != cr0);
        wanted = with(wanted, intercept::CR4_READ, vmcb.save.cr4 != cr4);
        if wanted != *word0 {
            *word0 = wanted;
            self.dirty(clean::INTERCEPTS);
        }
    }

    /// Lets the guest's next instruction, which is one that reads or writes CR0 in a form that is
    /// not emulated, run without an exit. All exceptions exit meanwhile: none must store the flags
    /// with the trap flag in it.
    pub(super) fn lift_cr0(&mut self) {
        let vmcb = self.vmcb.get_mut();
        let [word0, _, exceptions, ..] = &mut vmcb.control.intercepts;
        *word0 &= !(intercept::CR0_READ | intercept::CR0_WRITE);
        *exceptions = u32::MAX;
        let anyway = Rflags::from_raw(vmcb.save.rflags).contains(Rflags::TF);
        vmcb.save.rflags |= Rflags::TF.raw();
        if self.software.is_none() {
            vmcb.save.efer = self.efer | Efer::SVME.raw();
        }
        self.dirty(clean::INTERCEPTS | clean::CONTROL_REGISTERS);
        self.lifted = Lifted::Stepping { anyway };
    }

    /// Exceptions that exit.
    pub(super) fn exceptions(&self) -> u32 {
        match self.software {
            None => intercept::EXCEPTIONS,
            Some(_) => intercept::EXCEPTIONS | intercept::PAGE_FAULT,
        }
    }

    /// Notes what has changed since the last entry.
    #[inline]
    pub(super) fn dirty(&mut self, bits: u32) {
        self.clean &= !bits;
    }
}

/// A word with some bits set or clear.
pub(super) const fn with(word: u32, bits: u32, on: bool) -> u32 {
    if on {
        word | bits
    } else {
        word & !bits
    }
}

impl vendor::Guest for Guest {
    type Window<'a> = GuestWindow<'a>;

    /// Code and stack that nothing has accessed yet, and a busy 16-bit TSS, as `kvm_amd` has it.
    const RESET: ResetRights = ResetRights {
        code: AccessRights::from_raw(0x9a),
        stack: AccessRights::from_raw(0x92),
        task: AccessRights::from_raw(0x83),
    };

    #[inline]
    fn open(&mut self) -> Result<GuestWindow<'_>> {
        let irqs = loop {
            let irqs = IrqsOff::new();
            if cpus::is_on(&irqs) {
                break irqs;
            }
            // The CPU is going offline: the scheduler is about to take us off it.
            drop(irqs);
            if task::is_dying() {
                return Err(EINTR);
            }
            task::sleep_a_tick();
        };
        if self.asid.come(&irqs) {
            // What this CPU has kept of the VMCB may be older than what another one wrote.
            self.clean = 0;
            self.has_moved = true;
        }
        Ok(GuestWindow {
            guest: self,
            debugctl_is_known: false,
            irqs,
        })
    }

    #[inline]
    fn has_moved(&mut self) -> bool {
        core::mem::take(&mut self.has_moved)
    }

    fn node(&self) -> i32 {
        self.vmcb.node()
    }

    fn move_to(&mut self, place: Place) -> Result {
        self.vmcb = self.vmcb.copy_to(place)?;
        // What CPUs have kept is of the other frame.
        self.clean = 0;
        Ok(())
    }

    #[inline]
    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.regs.gpr
    }

    #[inline]
    fn cr2(&self) -> u64 {
        self.regs.cr2
    }

    #[inline]
    fn set_cr2(&mut self, value: u64) {
        self.regs.cr2 = value;
    }
}

impl GuestWindow<'_> {
    /// Brings what is switched less often than at each exit to the CPU.
    #[inline]
    fn prepare_host(&mut self, running: &Running<'_>, fpu: &FpuInUse<'_>) {
        if running.load(&self.irqs).is_some() {
            // SAFETY: Interrupts are off, SVM is on; `rhv_svm_put` comes with the host switch's
            // own, before another task runs here.
            if unsafe { bindings::rhv_svm_load() } {
                self.guest.asid.flush();
            }
        }
        if !self.debugctl_is_known {
            // SAFETY: No preconditions.
            self.guest.host_debugctl = unsafe { bindings::rhv_host_debugctl() };
            self.debugctl_is_known = true;
        }
        fpu.load(&self.irqs);
    }

    /// Writes what VMRUN loads from the VMCB and the vCPU keeps elsewhere.
    #[inline]
    fn prepare_vmcb(&mut self) -> u32 {
        let caps = &self.guest.svm.caps;
        let tag = self
            .guest
            .asid
            .tag(&self.irqs, caps.asids, caps.flush_by_asid);
        let guest = &mut *self.guest;
        let injects = guest.vmcb.get().control.event != 0;
        guest.can_fail = injects || guest.clean & clean::CHECKED != clean::CHECKED;
        if guest.can_fail {
            *guest.before = guest.vmcb.get().save;
        }
        let (rax, cr2) = (guest.regs.gpr[0], guest.regs.cr2);
        let word = guest.virtual_interrupt;
        let vmcb = guest.vmcb.get_mut();
        vmcb.control.virtual_interrupt = word;
        let mut dirty = 0;
        if vmcb.control.asid != tag.number {
            vmcb.control.asid = tag.number;
            dirty |= clean::ASID;
        }
        vmcb.control.tlb_control = tag.control;
        match tag.control {
            tlb_control::NOTHING => {}
            tlb_control::ASID => guest.translation.count(FlushKind::Tag),
            _ => guest.translation.count(FlushKind::AllTags),
        }
        vmcb.save.rax = rax;
        if vmcb.save.cr2 != cr2 {
            vmcb.save.cr2 = cr2;
            dirty |= clean::CR2;
        }
        // With no condition in it, DR6 tells after the exit which ones a #DB has added.
        if vmcb.save.dr6 != DR6_RESET {
            vmcb.save.dr6 = DR6_RESET;
            dirty |= clean::DEBUG_REGISTERS;
        }
        guest.dirty(dirty);
        let bits = if guest.svm.caps.clean_bits {
            guest.clean
        } else {
            0
        };
        guest.vmcb.get_mut().control.clean = bits;
        tag.number
    }

    /// One entry and exit. Ticks in the guest are added to `ticks`.
    #[inline]
    pub(super) fn enter_raw(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
        ticks: Option<&mut u64>,
    ) -> Result<(), HwError> {
        self.prepare_host(running, fpu);
        let asid = self.prepare_vmcb();
        let guest = &mut *self.guest;
        guest.identified = None;
        let (vmcb, debugctl) = (guest.vmcb.hpa().raw(), guest.host_debugctl);
        let regs = &mut guest.regs;
        // SAFETY: The VMCB's controls keep the guest inside its memory and make every event of the
        // host's an exit; its maps and tables live as long as `svm` and `translation`. Interrupts
        // are off, no reference to the VMCB is alive, and the host's state is saved. Whoever sets
        // a guest's XCR0 checks it against the host's.
        let failed = unsafe {
            msr::with_xcr0(&self.irqs, guest.host_xcr0, xcr0, || match ticks {
                None => bindings::rhv_svm_enter(regs, vmcb, asid, debugctl),
                Some(ticks) => bindings::rhv_svm_enter_counted(regs, vmcb, asid, debugctl, ticks),
            })
        };
        debug::restore(&self.irqs);
        if failed != 0 {
            guest.clean = 0;
            return Err(HwError::Fault);
        }
        self.finish();
        Ok(())
    }

    /// Reads what VMRUN has stored and the vCPU keeps elsewhere.
    #[inline]
    fn finish(&mut self) {
        let guest = &mut *self.guest;
        let vmcb = guest.vmcb.get_mut();
        let code = vmcb.control.exit_code;
        if exit::is_failure(code) {
            // The CPU has looked at some of it and flushed nothing for sure. QEMU leaves registers
            // of the host's here.
            if guest.can_fail {
                vmcb.save = *guest.before;
            }
            guest.clean = 0;
        } else {
            guest.regs.gpr[0] = vmcb.save.rax;
            guest.regs.cr2 = vmcb.save.cr2;
            vmcb.control.event = 0;
            guest.skipped = 0;
            guest.clean = clean::ALL;
            guest.asid.entered(&self.irqs);
        }
        guest.stepped = false;
        if guest.lifted != Lifted::No {
            self.note_step();
            self.settle_cr0();
        }
        if code == exit::SHUTDOWN {
            // All of the VMCB is undefined then (APM Vol. 2, "Shutdown Intercept").
            self.guest.set_up();
        }
    }
}

/// A root that no entry ever walks.
#[cfg(CONFIG_KUNIT = "y")]
const NO_TABLES: u64 = 0x1000;

/// A guest for tests that do not enter it.
#[cfg(CONFIG_KUNIT = "y")]
pub(super) fn test_guest(svm: &'static Svm) -> Result<Guest> {
    struct Nothing;
    impl vendor::KeepAlive for Nothing {
        fn flushes(&self) -> &vendor::flush::Flushes {
            static FLUSHES: vendor::flush::Flushes = vendor::flush::Flushes::new();
            &FLUSHES
        }
    }
    let keep = kernel::sync::Arc::new(Nothing, GFP_KERNEL)?;
    let root = vendor::NestedRoot::new(crate::model::arch::addr::Hpa::new(NO_TABLES), keep);
    let translation = Translation::Nested(root);
    Guest::new(
        svm,
        translation,
        None,
        0x1234_5678,
        crate::host::cpu::current_node().into(),
    )
}

#[kunit_tests(rusthv_svm_guest)]
mod tests {
    use super::test_guest as guest;
    use super::*;
    use crate::svm::svm_or_skip;
    use crate::vendor::{Guest as _, Window};

    // Nothing is asserted while a window is open: a failed assertion ends the thread at once, and
    // would leave interrupts off.

    /// What must never be off, whatever is written to the registers.
    #[test]
    fn guests_are_kept_in() -> Result {
        let svm = svm_or_skip!();
        let mut guest = guest(svm)?;
        let control = &guest.vmcb.get().control;
        let [cr, dr, exceptions, word3, word4, _] = control.intercepts;
        assert_eq!(guest.virtual_interrupt, 1 << 24);
        // Writes of CR0, CR4 and CR8, not reads of CR8; all debug registers; #DB, #AC, #MC.
        assert_eq!(cr & 0x0111_0100, 0x0111_0000);
        assert_eq!(dr & 0x00ff_00ff, 0x00ff_00ff);
        assert_eq!(exceptions, 1 << 1 | 1 << 17 | 1 << 18);
        // INTR, NMI, SMI, INIT, HLT, ports, MSRs, task switch, shutdown; VMRUN and its kin.
        assert_eq!(word3 & 0xb900_000f, 0xb900_000f);
        assert_eq!(word4 & 0x7f, 0x7f);
        assert_eq!(control.nested_control, 1);
        assert_eq!(control.nested_cr3, NO_TABLES);
        assert_eq!(control.io_map, svm.maps.ports().raw());
        assert_eq!(control.msr_map, svm.maps.msrs().raw());
        assert_eq!(control.tsc_offset, 0x1234_5678);
        // The same after all of it was undefined.
        let intercepts = control.intercepts;
        guest.vmcb.get_mut().control.intercepts = [0; 6];
        guest.vmcb.get_mut().control.nested_control = 0;
        guest.set_up();
        let control = &guest.vmcb.get().control;
        assert_eq!(control.intercepts, intercepts);
        assert_eq!(control.nested_control, 1);
        Ok(())
    }

    #[test]
    fn optional_intercepts_go_on_and_off() -> Result {
        let svm = svm_or_skip!();
        let mut guest = guest(svm)?;
        let mut window = guest.open()?;
        let none = window.guest.vmcb.get().control.intercepts;
        window.offer(true, true)?;
        let both = window.guest.vmcb.get().control.intercepts;
        window.want_interrupt_window(true)?;
        let wanted = window.guest.vmcb.get().control.intercepts;
        let pending = window.guest.virtual_interrupt;
        window.want_interrupt_window(false)?;
        let unwanted = window.guest.vmcb.get().control.intercepts;
        let idle = window.guest.virtual_interrupt;
        window.guest.clean = clean::ALL;
        window.set_task_priority(9)?;
        let raised = (window.guest.virtual_interrupt, window.guest.clean);
        window.want_interrupt_window(true)?;
        let both_in_one = window.guest.virtual_interrupt;
        window.set_task_priority(0)?;
        let lowered = window.guest.virtual_interrupt;
        drop(window);
        let word = |words: [u32; 6], index: usize| words.get(index).copied().unwrap_or(0);
        assert_eq!(word(none, 4) ^ word(both, 4), 1 << 7);
        assert_eq!(word(none, 4) & 1 << 7, 1 << 7);
        let invpcid = u32::from(svm.caps.invpcid) << 2;
        assert_eq!((word(none, 5), word(both, 5)), (invpcid, 0));
        assert_eq!(word(wanted, 3) ^ word(unwanted, 3), 1 << 4);
        assert_eq!(word(wanted, 3) & 1 << 4, 1 << 4);
        assert_eq!(both, unwanted);
        assert_eq!(pending & 0x0100_0100, 0x0100_0100);
        assert_eq!(idle, 0x0100_0000);
        let dirty = clean::ALL & !clean::VIRTUAL_INTERRUPT;
        assert_eq!(raised, (0x0100_0009, dirty));
        assert_eq!((both_in_one, lowered), (pending | 9, pending));
        Ok(())
    }

    /// What is written is not taken from the CPU's copy.
    #[test]
    fn writes_make_dirty() -> Result {
        let svm = svm_or_skip!();
        let mut guest = guest(svm)?;
        let mut window = guest.open()?;
        let mut dirtied = [0u32; 8];
        let mut note = |index: usize, window: &mut GuestWindow<'_>| {
            if let Some(place) = dirtied.get_mut(index) {
                *place = clean::ALL & !window.guest.clean;
            }
            window.guest.clean = clean::ALL;
        };
        window.guest.clean = clean::ALL;
        window.set_cr3(0x1000)?;
        note(0, &mut window);
        window.set_efer(0)?;
        note(1, &mut window);
        window.set_dr7(0x401)?;
        note(2, &mut window);
        window.set_pat(0)?;
        note(3, &mut window);
        window.set_gdtr(vendor::TableRegister::default())?;
        note(4, &mut window);
        window.set_segment(vendor::SegmentRegister::Cs, &Default::default())?;
        note(5, &mut window);
        window.want_interrupt_window(true)?;
        note(6, &mut window);
        window.set_rip(0)?;
        note(7, &mut window);
        drop(window);
        let (cr, dr, np) = (
            clean::CONTROL_REGISTERS,
            clean::DEBUG_REGISTERS,
            clean::NESTED_PAGING,
        );
        let window = clean::INTERCEPTS | clean::VIRTUAL_INTERRUPT;
        let wanted = [cr, cr, dr, np, clean::TABLES, clean::SEGMENTS, window, 0];
        assert_eq!(dirtied, wanted);
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The seam's view of a vCPU that is on this CPU: entry, events, registers.
//!
//! Nothing here can fail but the entry: the registers are memory.

use super::exit;
use super::guest::{with, GuestWindow, Lifted};
use super::segment;
use super::vmcb::{self, clean, intercept, virtual_interrupt, Save, INTERRUPT_SHADOW};
use crate::host::cpu::IrqsOff;
use crate::host::debug;
use crate::host::fpu::FpuInUse;
use crate::host::switch::{self, HostSwitch, Running, UserMsr};
use crate::host::tsc;
use crate::model::arch::addr::{Gva, Hpa};
use crate::model::arch::intercept::SwitchedMsr;
use crate::model::arch::regs::{Cr0, Cr4, Efer, Rflags, DR6_RESET};
use crate::model::arch::segment::{AccessRights, Segment};
use crate::model::exit::{Event, EventKind, Exit};
use crate::vendor::flush::FlushKind;
use crate::vendor::{HwError, More, SegmentRegister, TableRegister, Visit, Window};
use kernel::prelude::*;

/// CR0 bits that are never on in the CPU: the caches are the host's.
const CR0_NEVER: Cr0 = Cr0::NW.union(Cr0::CD);

/// CR0 as the CPU has it for a guest that sees `value`.
const fn real_cr0(value: u64, software: bool) -> u64 {
    let real = Cr0::from_raw(value)
        .intersection(Cr0::NAMED)
        .without(CR0_NEVER);
    if software {
        return real.union(CR0_OF_TABLES).raw();
    }
    real.raw()
}

/// CR0 bits that are always on in the CPU without nested tables: paging, and write protection, as
/// rights to write are withheld to notice writes.
const CR0_OF_TABLES: Cr0 = Cr0::PG.union(Cr0::WP);

/// CR4 in a CPU that walks the hypervisor's tables: they have entries of 8 bytes and know neither
/// PCIDs nor keys; while the guest does not page, all is a user's, and is executed by the kernel.
const fn software_cr4(value: u64, paged: bool) -> u64 {
    let real = Cr4::from_raw(value).union(Cr4::PAE).without(Cr4::PCIDE);
    match paged {
        true => real.without(Cr4::PKE).raw(),
        false => real
            .without(Cr4::PKE)
            .without(Cr4::SMEP)
            .without(Cr4::SMAP)
            .raw(),
    }
}

/// CR0 as a guest sees it that has seen `shadow`, after the CPU has executed an instruction of its
/// own on `real`.
const fn seen_cr0(shadow: u64, real: u64, software: bool) -> u64 {
    let own = Cr0::NAMED.without(CR0_NEVER);
    let own = if software {
        own.without(CR0_OF_TABLES).raw()
    } else {
        own.raw()
    };
    real & own | shadow & !own | real & CR0_NEVER.raw()
}

/// EFER as the CPU has it for a guest that sees `value`.
///
/// VMRUN wants SVME on; the guest has no SVM instructions, whatever it writes. LME matters when
/// paging is switched on, which exits: until then it is kept from the CPU, as QEMU 7.2 forgets the
/// host's CR0 at the exit of a guest that has LME and neither paging nor PAE.
const fn real_efer(value: u64) -> u64 {
    let efer = Efer::from_raw(value).union(Efer::SVME);
    efer.with(Efer::LME, efer.contains(Efer::LME.union(Efer::LMA)))
        .raw()
}

impl GuestWindow<'_> {
    fn save(&self) -> &Save {
        &self.guest.vmcb.get().save
    }

    fn save_mut(&mut self) -> &mut Save {
        &mut self.guest.vmcb.get_mut().save
    }

    /// What the last exit was.
    fn last_exit(&self) -> Exit {
        if self.guest.stepped {
            // There is nothing to do but to enter again.
            return Exit::HostEvent;
        }
        let control = &self.guest.vmcb.get().control;
        if self.guest.software.is_some() {
            if let Some(exit) = exit::of_tables(control, &self.guest.svm.caps, self.guest.offered.1)
            {
                return exit;
            }
        }
        exit::decode(control, &self.guest.svm.caps)
    }

    /// Looks at the exit that follows [`super::guest::Guest::lift_cr0`].
    pub(super) fn note_step(&mut self) {
        const DR6_BS: u64 = 1 << 14;
        let vmcb = self.guest.vmcb.get();
        match vmcb.control.exit_code {
            exit::code::DEBUG => {
                self.guest.stepped = self.steps_for_us() && vmcb.save.dr6 ^ DR6_RESET == DR6_BS;
            }
            // Where a page fault that exits has its address.
            exit::code::PAGE_FAULT => self.guest.regs.cr2 = vmcb.control.exit_info2,
            _ => {}
        }
    }

    /// True while RFLAGS.TF is not the guest's.
    fn steps_for_us(&self) -> bool {
        self.guest.lifted == (Lifted::Stepping { anyway: false })
    }

    /// Gives up [`super::guest::Guest::lift_cr0`]: the guest goes on elsewhere, or otherwise.
    fn drop_lift(&mut self) {
        if self.guest.lifted != Lifted::No {
            self.settle_cr0();
        }
    }

    /// Puts the CR0 intercepts back after [`super::guest::Guest::lift_cr0`].
    pub(super) fn settle_cr0(&mut self) {
        if self.steps_for_us() {
            self.save_mut().rflags &= !Rflags::TF.raw();
        }
        self.guest.lifted = Lifted::No;
        let software = self.guest.software.is_some();
        let seen = seen_cr0(self.guest.cr0, self.save().cr0, software);
        if !software {
            // Should it have switched paging on in the same breath.
            self.write_efer(self.save().efer & !Efer::SVME.raw());
        }
        let intercepted = self.guest.exceptions();
        let [word0, _, exceptions, ..] = &mut self.guest.vmcb.get_mut().control.intercepts;
        *word0 |= intercept::CR0_WRITE;
        *exceptions = intercepted;
        self.guest.dirty(clean::INTERCEPTS);
        self.write_cr0(seen);
    }

    fn write_efer(&mut self, value: u64) {
        self.guest.efer = value;
        let mut real = real_efer(value);
        if self.guest.software.is_some() {
            // The CPU pages already, and with PG the two have to go together.
            let efer = Efer::from_raw(real).union(Efer::NXE);
            real = efer.with(Efer::LME, efer.contains(Efer::LMA)).raw();
        }
        self.save_mut().efer = real;
        self.guest.dirty(clean::CONTROL_REGISTERS);
    }

    fn write_cr0(&mut self, value: u64) {
        let software = self.guest.software.is_some();
        self.guest.cr0 = value;
        self.save_mut().cr0 = real_cr0(value, software);
        if software {
            // What CR4 may say depends on whether the guest pages.
            self.write_cr4(self.guest.cr4);
        }
        self.guest.intercept_cr_reads();
        self.guest.dirty(clean::CONTROL_REGISTERS);
    }

    fn write_cr4(&mut self, value: u64) {
        // Machine checks are the host's, whatever the guest wants: without CR4.MCE one of them
        // shuts the CPU down.
        let machine_checks = switch::host_cr4(&self.irqs) & Cr4::MCE.raw();
        let mut real = value | machine_checks;
        if self.guest.software.is_some() {
            let paged = Cr0::from_raw(self.guest.cr0).contains(Cr0::PG);
            real = software_cr4(real, paged);
        }
        self.guest.cr4 = value;
        self.save_mut().cr4 = real;
        self.guest.intercept_cr_reads();
        self.guest.dirty(clean::CONTROL_REGISTERS);
    }

    /// Moves RIP behind the instruction whose event is injected, from wherever an injection that
    /// was not entered with has put it.
    fn skip_injected(&mut self, len: u8) {
        let before = core::mem::replace(&mut self.guest.skipped, len);
        let save = self.save_mut();
        let at = save.rip.wrapping_sub(before.into());
        save.rip = at.wrapping_add(len.into());
    }

    fn packed(&self, which: SegmentRegister) -> &vmcb::Segment {
        let save = self.save();
        let [es, cs, ss, ds, fs, gs] = &save.segments;
        match which {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
            SegmentRegister::Ldtr => &save.ldtr,
            SegmentRegister::Tr => &save.tr,
        }
    }

    fn packed_mut(&mut self, which: SegmentRegister) -> &mut vmcb::Segment {
        let save = self.save_mut();
        let [es, cs, ss, ds, fs, gs] = &mut save.segments;
        match which {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
            SegmentRegister::Ldtr => &mut save.ldtr,
            SegmentRegister::Tr => &mut save.tr,
        }
    }
}

/// A descriptor-table register out of the VMCB.
const fn table(packed: &vmcb::Segment) -> TableRegister {
    TableRegister {
        base: packed.base,
        limit: packed.limit as u16,
    }
}

/// A descriptor-table register for the VMCB.
fn set_table(packed: &mut vmcb::Segment, table: TableRegister) {
    packed.base = table.base;
    packed.limit = table.limit.into();
}

impl Window for GuestWindow<'_> {
    #[inline]
    fn irqs(&self) -> &IrqsOff {
        &self.irqs
    }

    #[inline]
    fn follow(&mut self, visit: Visit) -> Result<bool, HwError> {
        Ok(self.guest.asid.follow(visit))
    }

    fn restart_log(&mut self) -> Result<(), HwError> {
        // There is none.
        Ok(())
    }

    #[inline]
    fn enter(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
    ) -> Result<Exit, HwError> {
        self.enter_raw(running, fpu, xcr0, None)?;
        Ok(self.last_exit())
    }

    /// VMRUN loads a DR6 without conditions whatever the guest's is: see
    /// [`Window::debug_conditions`].
    fn enter_with(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
        more: More<'_>,
    ) -> Result<Exit, HwError> {
        if let Some((addresses, _)) = more.breakpoints {
            debug::load(&self.irqs, addresses, DR6_RESET);
        }
        let entered = self.enter_raw(running, fpu, xcr0, more.ticks);
        if more.breakpoints.is_some() {
            debug::clear(&self.irqs);
        }
        entered?;
        Ok(self.last_exit())
    }

    fn identify(&mut self, code: &[u8]) -> Result<Option<Exit>, HwError> {
        self.identify_exit(code)
    }

    #[inline]
    fn interrupted_event(&self) -> Result<Option<Event>, HwError> {
        let word = self.guest.vmcb.get().control.exit_event;
        Ok(exit::interrupted_event(word))
    }

    fn delivery_details(&self, event: Option<&Event>) -> Result<[u64; 3], HwError> {
        let control = &self.guest.vmcb.get().control;
        // Without the error code, as there is room for in VT-x's word.
        let word = event.map_or(0, exit::event_word) & 0xffff_ffff;
        Ok([word, control.exit_code, control.exit_info1])
    }

    fn inject(&mut self, event: &Event) -> Result<(), HwError> {
        // The instruction comes later, and exits again.
        self.drop_lift();
        if exit::runs_again(event) {
            return Ok(());
        }
        match event.kind {
            // What is pushed is RIP as it stands.
            EventKind::SoftwareInterrupt
            | EventKind::PrivilegedSoftwareException
            | EventKind::SoftwareException => self.skip_injected(event.instruction_len),
            EventKind::Interrupt | EventKind::Nmi | EventKind::Exception => {}
        }
        self.guest.vmcb.get_mut().control.event = exit::event_word(event);
        Ok(())
    }

    fn cancel_injection(&mut self) -> Result<(), HwError> {
        self.guest.vmcb.get_mut().control.event = 0;
        self.skip_injected(0);
        Ok(())
    }

    /// A virtual interrupt, which exits when it would be taken.
    #[inline]
    fn want_interrupt_window(&mut self, want: bool) -> Result<(), HwError> {
        let bits = virtual_interrupt::PENDING | virtual_interrupt::FOREMOST;
        let word = with(self.guest.virtual_interrupt, bits, want);
        if word != self.guest.virtual_interrupt {
            self.guest.virtual_interrupt = word;
            let [_, _, _, word3, ..] = &mut self.guest.vmcb.get_mut().control.intercepts;
            *word3 = with(*word3, intercept::VINTR, want);
            self.guest
                .dirty(clean::INTERCEPTS | clean::VIRTUAL_INTERRUPT);
        }
        Ok(())
    }

    /// V_TPR, which is what CR8 is to a guest with virtual interrupt masking.
    #[inline]
    fn set_task_priority(&mut self, cr8: u64) -> Result<(), HwError> {
        let old = self.guest.virtual_interrupt;
        let word = with(old, virtual_interrupt::TASK_PRIORITY, false)
            | cr8 as u32 & virtual_interrupt::TASK_PRIORITY;
        if word != old {
            self.guest.virtual_interrupt = word;
            self.guest.dirty(clean::VIRTUAL_INTERRUPT);
        }
        Ok(())
    }

    fn offer(&mut self, rdtscp: bool, invpcid: bool) -> Result<(), HwError> {
        self.guest.offered = (rdtscp, invpcid);
        self.guest.intercept_instructions();
        Ok(())
    }

    #[inline]
    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.guest.regs.gpr
    }

    #[inline]
    fn set_cr2(&mut self, value: u64) {
        self.guest.regs.cr2 = value;
    }

    #[inline]
    fn rip(&self) -> Result<u64, HwError> {
        Ok(self.save().rip)
    }

    #[inline]
    fn set_rip(&mut self, value: u64) -> Result<(), HwError> {
        self.drop_lift();
        self.save_mut().rip = value;
        Ok(())
    }

    #[inline]
    fn rsp(&self) -> Result<u64, HwError> {
        Ok(self.save().rsp)
    }

    #[inline]
    fn set_rsp(&mut self, value: u64) -> Result<(), HwError> {
        self.save_mut().rsp = value;
        Ok(())
    }

    #[inline]
    fn rflags(&self) -> Result<u64, HwError> {
        let hidden = if self.steps_for_us() {
            Rflags::TF
        } else {
            Rflags::NONE
        };
        Ok(self.save().rflags & !hidden.raw())
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) -> Result<(), HwError> {
        self.drop_lift();
        self.save_mut().rflags = value | Rflags::FIXED.raw();
        Ok(())
    }

    #[inline]
    fn instruction_len(&self) -> Result<u32, HwError> {
        if let Some(len) = self.guest.identified {
            return Ok(len.into());
        }
        let vmcb = self.guest.vmcb.get();
        let next = match vmcb.control.exit_code {
            exit::code::IO => vmcb.control.exit_info2,
            _ => vmcb.control.next_rip,
        };
        // No instruction is longer than 15 bytes; IP may have wrapped at any width.
        Ok(next.wrapping_sub(vmcb.save.rip) as u32 & 0xf)
    }

    fn debug_conditions(&self) -> Result<u64, HwError> {
        Ok(self.save().dr6 ^ DR6_RESET)
    }

    fn exited_by_int1(&self) -> Result<bool, HwError> {
        Ok(self.guest.vmcb.get().control.exit_code == exit::code::INT1)
    }

    #[inline]
    fn interrupt_shadow(&self) -> Result<bool, HwError> {
        Ok(self.guest.vmcb.get().control.interrupt_state & INTERRUPT_SHADOW != 0)
    }

    #[inline]
    fn clear_interrupt_shadow(&mut self) -> Result<(), HwError> {
        self.guest.vmcb.get_mut().control.interrupt_state &= !INTERRUPT_SHADOW;
        Ok(())
    }

    fn cr0(&self) -> Result<u64, HwError> {
        Ok(self.guest.cr0)
    }

    fn set_cr0(&mut self, value: u64) -> Result<(), HwError> {
        self.drop_lift();
        self.write_cr0(value);
        Ok(())
    }

    fn set_root(&mut self, root: Hpa) -> Result<(), HwError> {
        self.save_mut().cr3 = root.raw();
        self.guest.dirty(clean::CONTROL_REGISTERS);
        self.guest.asid.flush();
        Ok(())
    }

    fn cr3(&self) -> Result<u64, HwError> {
        Ok(match &self.guest.software {
            Some(software) => software.cr3,
            None => self.save().cr3,
        })
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), HwError> {
        if let Some(software) = &mut self.guest.software {
            software.cr3 = value;
            return Ok(());
        }
        self.save_mut().cr3 = value;
        self.guest.dirty(clean::CONTROL_REGISTERS);
        Ok(())
    }

    fn cr4(&self) -> Result<u64, HwError> {
        Ok(self.guest.cr4)
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), HwError> {
        self.write_cr4(value);
        Ok(())
    }

    fn efer(&self) -> Result<u64, HwError> {
        Ok(self.guest.efer)
    }

    fn set_efer(&mut self, value: u64) -> Result<(), HwError> {
        self.drop_lift();
        self.write_efer(value);
        Ok(())
    }

    /// They are read from memory when they are needed (APM Vol. 2, "Nested Paging, PDPE").
    fn set_pdptes(&mut self, _entries: [u64; 4]) -> Result<(), HwError> {
        Ok(())
    }

    fn dr7(&self) -> Result<u64, HwError> {
        Ok(self.save().dr7)
    }

    fn set_dr7(&mut self, value: u64) -> Result<(), HwError> {
        self.save_mut().dr7 = value;
        self.guest.dirty(clean::DEBUG_REGISTERS);
        Ok(())
    }

    fn pat(&self) -> Result<u64, HwError> {
        Ok(match &self.guest.software {
            Some(software) => software.pat,
            None => self.save().pat,
        })
    }

    fn set_pat(&mut self, value: u64) -> Result<(), HwError> {
        if let Some(software) = &mut self.guest.software {
            // The entries that the CPU sees are ours, and it looks them up in the host's.
            software.pat = value;
            return Ok(());
        }
        self.save_mut().pat = value;
        self.guest.dirty(clean::NESTED_PAGING);
        Ok(())
    }

    fn time_stamp(&self) -> Result<u64, HwError> {
        let offset = self.guest.vmcb.get().control.tsc_offset;
        Ok(tsc::now().wrapping_add(offset))
    }

    #[cold]
    fn switched_msr(&self, _switch: &HostSwitch, which: SwitchedMsr) -> Result<u64, HwError> {
        let save = self.save();
        Ok(match which {
            SwitchedMsr::SysenterCs => save.sysenter_cs,
            SwitchedMsr::SysenterEsp => save.sysenter_esp,
            SwitchedMsr::SysenterEip => save.sysenter_eip,
            SwitchedMsr::FsBase => self.packed(SegmentRegister::Fs).base,
            SwitchedMsr::GsBase => self.packed(SegmentRegister::Gs).base,
            SwitchedMsr::KernelGsBase => save.kernel_gs_base,
        })
    }

    #[cold]
    fn set_switched_msr(
        &mut self,
        _switch: &HostSwitch,
        which: SwitchedMsr,
        value: u64,
    ) -> Result<(), HwError> {
        match which {
            // The upper half does not exist.
            SwitchedMsr::SysenterCs => self.save_mut().sysenter_cs = value & 0xffff_ffff,
            SwitchedMsr::SysenterEsp => self.save_mut().sysenter_esp = value,
            SwitchedMsr::SysenterEip => self.save_mut().sysenter_eip = value,
            SwitchedMsr::FsBase => self.packed_mut(SegmentRegister::Fs).base = value,
            SwitchedMsr::GsBase => self.packed_mut(SegmentRegister::Gs).base = value,
            SwitchedMsr::KernelGsBase => self.save_mut().kernel_gs_base = value,
        }
        Ok(())
    }

    fn set_sysenter(&mut self, cs: u32, esp: u64, eip: u64) -> Result<(), HwError> {
        let save = self.save_mut();
        save.sysenter_cs = cs.into();
        save.sysenter_esp = esp;
        save.sysenter_eip = eip;
        Ok(())
    }

    /// VMLOAD and VMSAVE switch all but TSC_AUX.
    fn user_msr(&self, switch: &HostSwitch, which: UserMsr) -> u64 {
        let save = self.save();
        match which {
            UserMsr::Star => save.star,
            UserMsr::Lstar => save.lstar,
            UserMsr::Cstar => save.cstar,
            UserMsr::Fmask => save.sfmask,
            UserMsr::TscAux => switch.user_msr(which),
        }
    }

    fn set_user_msr(&mut self, switch: &HostSwitch, which: UserMsr, value: u64) {
        let save = self.save_mut();
        match which {
            UserMsr::Star => save.star = value,
            UserMsr::Lstar => save.lstar = value,
            UserMsr::Cstar => save.cstar = value,
            UserMsr::Fmask => save.sfmask = value,
            UserMsr::TscAux => switch.set_user_msr(which, value),
        }
    }

    fn segment(&self, which: SegmentRegister) -> Result<Segment, HwError> {
        Ok(segment::unpack(which, self.packed(which), self.save().cpl))
    }

    fn segment_base(&self, which: SegmentRegister) -> Result<u64, HwError> {
        Ok(self.packed(which).base)
    }

    fn set_segment(&mut self, which: SegmentRegister, segment: &Segment) -> Result<(), HwError> {
        *self.packed_mut(which) = segment::pack(segment);
        if which == SegmentRegister::Ss {
            self.save_mut().cpl = segment.rights.dpl();
        }
        self.guest.dirty(clean::SEGMENTS);
        Ok(())
    }

    fn code_rights_and_cpl(&self) -> Result<(AccessRights, u8), HwError> {
        let code = self.segment(SegmentRegister::Cs)?.rights;
        Ok((code, self.save().cpl))
    }

    fn gdtr(&self) -> Result<TableRegister, HwError> {
        Ok(table(&self.save().gdtr))
    }

    fn set_gdtr(&mut self, table: TableRegister) -> Result<(), HwError> {
        set_table(&mut self.save_mut().gdtr, table);
        self.guest.dirty(clean::TABLES);
        Ok(())
    }

    fn idtr(&self) -> Result<TableRegister, HwError> {
        Ok(table(&self.save().idtr))
    }

    fn set_idtr(&mut self, table: TableRegister) -> Result<(), HwError> {
        set_table(&mut self.save_mut().idtr, table);
        self.guest.dirty(clean::TABLES);
        Ok(())
    }

    fn flush_address(&mut self, address: Gva) -> Result<(), HwError> {
        if self.guest.asid.flush_address(&self.irqs, address)? {
            self.guest.translation.count(FlushKind::Address);
        }
        Ok(())
    }

    fn flush_guest_tables(&mut self) -> Result<(), HwError> {
        self.guest.asid.flush();
        Ok(())
    }
}

#[kunit_tests(rusthv_svm_window)]
mod tests {
    use super::*;
    use crate::svm::guest::test_guest as guest;
    use crate::svm::svm_or_skip;
    use crate::vendor::{checks, Guest as _};

    // Nothing is asserted while a window is open: a failed assertion ends the thread at once, and
    // would leave interrupts off.

    #[test]
    fn registers_round_trip() -> Result {
        let mut guest = guest(svm_or_skip!())?;
        for (found, wanted) in checks::registers(&mut guest)? {
            assert_eq!(found, wanted);
        }
        Ok(())
    }

    /// Each segment register has a place of its own.
    #[test]
    fn segments_do_not_mix() -> Result {
        let mut guest = guest(svm_or_skip!())?;
        for (found, wanted) in checks::segments(&mut guest, |_| 0x4093)? {
            assert_eq!(found, wanted);
        }
        Ok(())
    }

    #[test]
    fn cpl_is_the_stack_segments() -> Result {
        let mut guest = guest(svm_or_skip!())?;
        let mut window = guest.open()?;
        let user = Segment {
            rights: AccessRights::from_raw(0xc0f3),
            limit: u32::MAX,
            ..Segment::default()
        };
        window.set_segment(SegmentRegister::Ss, &user)?;
        let (_, user) = window.code_rights_and_cpl()?;
        window.set_segment(SegmentRegister::Ss, &Segment::default())?;
        let (_, kernel) = window.code_rights_and_cpl()?;
        drop(window);
        assert_eq!((user, kernel), (3, 0));
        Ok(())
    }

    /// The guest reads what it wrote; the CPU gets what the host wants, and reads exit where the
    /// two differ.
    #[test]
    fn control_registers_have_two_faces() -> Result {
        const CD_NW: u64 = 3 << 29;
        let mut guest = guest(svm_or_skip!())?;
        let mut seen = KVec::with_capacity(4, GFP_KERNEL)?;
        for value in [0, 1, 0x6000_0010, 0x8005_003b, 0xe005_003b, 0x1010] {
            let mut window = guest.open()?;
            window.set_cr0(value)?;
            let found = (window.cr0()?, window.save().cr0, cr_reads(&window) & 1);
            drop(window);
            seen.push((value, found), GFP_KERNEL)?;
        }
        for (value, (guests, cpus, exits)) in seen {
            assert_eq!(guests, value);
            assert_eq!(cpus & CD_NW, 0);
            assert_eq!((cpus ^ value) & !CD_NW & Cr0::NAMED.raw(), 0);
            assert_eq!((exits != 0), (cpus != value));
        }
        let mut window = guest.open()?;
        window.set_cr4(0x6a0)?;
        let host = switch::host_cr4(&window.irqs) & Cr4::MCE.raw();
        let (guests, cpus) = (window.cr4()?, window.save().cr4);
        let exits = cr_reads(&window) & 1 << 4;
        window.set_efer(0xd01)?;
        let long = (window.efer()?, window.save().efer);
        window.set_efer(0x901)?;
        let unpaged = (window.efer()?, window.save().efer);
        drop(window);
        assert_eq!((guests, cpus), (0x6a0, 0x6a0 | host));
        assert_eq!((exits != 0), (host != 0));
        assert_eq!(long, (0xd01, 0x1d01));
        assert_eq!(unpaged, (0x901, 0x1801));
        Ok(())
    }

    fn cr_reads(window: &GuestWindow<'_>) -> u32 {
        let [word0, ..] = window.guest.vmcb.get().control.intercepts;
        word0
    }

    fn exceptions(window: &GuestWindow<'_>) -> u32 {
        let [_, _, word2, ..] = window.guest.vmcb.get().control.intercepts;
        word2
    }

    /// LMSW from memory, executed by the CPU: what it wrote is seen, and caching stays as it was.
    #[test]
    fn lifted_intercepts_come_back() -> Result {
        let mut guest = guest(svm_or_skip!())?;
        let mut window = guest.open()?;
        window.set_cr0(0x6000_0010)?;
        window.set_efer(0x901)?;
        let before = cr_reads(&window);
        window.guest.lift_cr0();
        let efer = window.save().efer;
        let stepping = (window.save().rflags, window.rflags()?, exceptions(&window));
        let lifted = cr_reads(&window);
        window.save_mut().cr0 |= 1;
        window.settle_cr0();
        let after = (window.cr0()?, window.save().cr0, cr_reads(&window));
        let efers = (efer, window.efer()?, window.save().efer);
        let stopped = (window.save().rflags, exceptions(&window));
        drop(window);
        assert_eq!(stepping, (0x102, 2, u32::MAX));
        assert_eq!(stopped, (2, 1 << 1 | 1 << 17 | 1 << 18));
        assert_eq!(efers, (0x1901, 0x901, 0x1801));
        assert_eq!(before ^ lifted, 1 << 0 | 1 << 16);
        assert_eq!(after, (0x6000_0011, 0x11, before));
        Ok(())
    }

    #[test]
    fn injections_are_written_and_taken_back() -> Result {
        let page_fault = Event {
            vector: 14,
            kind: EventKind::Exception,
            error_code: Some(0x1f),
            instruction_len: 0,
        };
        let int1 = Event {
            vector: 1,
            kind: EventKind::PrivilegedSoftwareException,
            error_code: None,
            instruction_len: 2,
        };
        let mut guest = guest(svm_or_skip!())?;
        let mut window = guest.open()?;
        window.set_rip(0x1000)?;
        window.inject(&page_fault)?;
        let first = (window.guest.vmcb.get().control.event, window.rip()?);
        window.inject(&int1)?;
        let second = (window.guest.vmcb.get().control.event, window.rip()?);
        window.cancel_injection()?;
        let third = (window.guest.vmcb.get().control.event, window.rip()?);
        drop(window);
        assert_eq!(first, (0x1f_8000_0b0e, 0x1000));
        assert_eq!(second, (0x8000_0301, 0x1002));
        assert_eq!(third, (0, 0x1000));
        Ok(())
    }

    #[test]
    fn lengths_of_instructions() -> Result {
        let mut guest = guest(svm_or_skip!())?;
        let mut window = guest.open()?;
        window.set_rip(0x1000)?;
        let control = &mut window.guest.vmcb.get_mut().control;
        control.exit_code = exit::code::CPUID;
        control.next_rip = 0x1003;
        control.exit_info2 = 0x1001;
        let told = window.instruction_len()?;
        window.guest.vmcb.get_mut().control.exit_code = exit::code::IO;
        let port = window.instruction_len()?;
        window.guest.identified = Some(4);
        let identified = window.instruction_len()?;
        drop(window);
        assert_eq!((told, port, identified), (3, 1, 4));
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The seam's view of a vCPU whose VMCS is current: entry, events, registers.

use super::caps::{entry, primary, secondary};
use super::exit;
use super::fields::*;
use super::guest::GuestWindow;
use super::tlb;
use crate::host::cpu::IrqsOff;
use crate::host::debug;
use crate::host::fpu::FpuInUse;
use crate::host::switch::{self, HostSwitch, Running, UserMsr};
use crate::host::tsc;
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::{Gva, Hpa};
use crate::model::arch::exception::Vector;
use crate::model::arch::intercept::SwitchedMsr;
use crate::model::arch::regs::{Cr0, Cr4, Efer, Rflags};
use crate::model::arch::segment::{AccessRights, Segment};
use crate::model::exit::{Event, Exit};
use crate::vendor::flush::FlushKind;
use crate::vendor::{HwError, More, SegmentRegister, TableRegister, Visit, Window};
use kernel::prelude::*;

/// Interruptibility bits 1:0: blocking by STI and by MOV SS.
const INTERRUPT_SHADOW: u32 = 3;

/// CR0 bits that are never on in the CPU: NW and CD, the caches are the host's.
const CR0_NEVER: u64 = 1 << 29 | 1 << 30;

/// CR0 bits that are always on without EPT: protection, paging, and write protection, as rights to
/// write are withheld to notice writes.
const CR0_OF_SOFTWARE: u64 = 1 << 0 | 1 << 16 | 1 << 31;

const EFER_LMA: u64 = 1 << 10;

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

/// What an entry came to: what the hardware refused before it looked at the guest is an exit, too.
fn exit_of(window: &GuestWindow<'_>, reason: Result<u32, HwError>) -> Result<Exit, HwError> {
    match reason {
        Ok(reason) => exit::decode(&window.window, reason),
        Err(HwError::Instruction(number)) => Ok(Exit::EntryFailed {
            reason: number.into(),
        }),
        Err(error) => Err(error),
    }
}

/// Pending debug exceptions: the single step, where DR6 has it.
const PENDING_SINGLE_STEP: u64 = 1 << 14;

impl GuestWindow<'_> {
    /// With RFLAGS.TF in the shadow of STI or MOV SS the entry takes it that a single step is pending,
    /// and fails where it is not, whatever is injected (SDM Vol. 3C, "Checks on Guest Non-Register
    /// State").
    #[cold]
    fn expect_single_step(&mut self) -> Result<(), HwError> {
        let steps = Rflags::from_raw(self.rflags()?).contains(Rflags::TF);
        if steps && self.interrupt_shadow()? {
            let pending = self.window.read(GUEST_PENDING_DEBUG)?;
            self.window
                .write(GUEST_PENDING_DEBUG, pending | PENDING_SINGLE_STEP)?;
        }
        Ok(())
    }

    /// CR4 in the CPU, for a guest that sees `value`.
    fn write_real_cr4(&mut self, value: u64) -> Result<(), HwError> {
        // Machine checks are the host's, whatever the guest wants: without CR4.MCE one of them shuts
        // the CPU down.
        let machine_checks = switch::host_cr4(self.window.irqs()) & Cr4::MCE.raw();
        let mut real = value | machine_checks | self.caps.common.cr4.ones;
        if self.software.is_some() {
            let paged = Cr0::from_raw(self.cr0()?).contains(Cr0::PG);
            real = software_cr4(real, paged);
        }
        self.window.write(GUEST_CR4, real)
    }

    /// IA-32e mode has come on: the task register must then hold a 64-bit TSS, which is what a
    /// busy 32-bit one becomes.
    fn make_task_64_bit(&mut self) -> Result<(), HwError> {
        let mut task = self.segment(SegmentRegister::Tr)?;
        let busy = AccessRights::BUSY_TSS.segment_type();
        if task.rights.segment_type() != busy {
            task.rights = AccessRights::from_raw(task.rights.raw() & !0xf | u32::from(busy));
            self.set_segment(SegmentRegister::Tr, &task)?;
        }
        Ok(())
    }
}

impl Window for GuestWindow<'_> {
    #[inline]
    fn enter(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
    ) -> Result<Exit, HwError> {
        let reason = self.enter_raw(running, fpu, xcr0, None);
        exit_of(self, reason)
    }

    fn enter_with(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
        more: More<'_>,
    ) -> Result<Exit, HwError> {
        if let Some((addresses, dr6)) = more.breakpoints {
            debug::load(self.window.irqs(), addresses, dr6);
        }
        let reason = self.enter_raw(running, fpu, xcr0, more.ticks);
        if more.breakpoints.is_some() {
            debug::clear(self.window.irqs());
        }
        exit_of(self, reason)
    }

    /// VT-x tells with each exit what made it.
    fn identify(&mut self, _code: &[u8]) -> Result<Option<Exit>, HwError> {
        Ok(None)
    }

    #[inline]
    fn interrupted_event(&self) -> Result<Option<Event>, HwError> {
        exit::interrupted_event(&self.window)
    }

    fn delivery_details(&self, event: Option<&Event>) -> Result<[u64; 3], HwError> {
        Ok([
            event.map_or(0, exit::interruption_info).into(),
            self.window.read(EXIT_REASON)?.into(),
            self.window.read(EXIT_QUALIFICATION)?,
        ])
    }

    fn inject(&mut self, event: &Event) -> Result<(), HwError> {
        if event.vector == Vector::DB.raw() {
            self.expect_single_step()?;
        }
        if let Some(code) = event.error_code {
            self.window.write(ENTRY_ERROR_CODE, code)?;
        }
        if event.instruction_len != 0 {
            self.window
                .write(ENTRY_INSTRUCTION_LENGTH, u32::from(event.instruction_len))?;
        }
        self.window
            .write(ENTRY_INTERRUPTION_INFO, exit::interruption_info(event))
    }

    fn cancel_injection(&mut self) -> Result<(), HwError> {
        self.window.write(ENTRY_INTERRUPTION_INFO, 0)
    }

    /// Reads of CR8 exit as well.
    #[inline]
    fn set_task_priority(&mut self, _cr8: u64) -> Result<(), HwError> {
        Ok(())
    }

    #[inline]
    fn want_interrupt_window(&mut self, want: bool) -> Result<(), HwError> {
        let controls = if want {
            *self.primary_controls | primary::INTERRUPT_WINDOW
        } else {
            *self.primary_controls & !primary::INTERRUPT_WINDOW
        };
        if controls != *self.primary_controls {
            // SAFETY: One more exit.
            unsafe { self.window.write_host(PRIMARY_CONTROLS, controls) }?;
            *self.primary_controls = controls;
        }
        Ok(())
    }

    fn offer(&mut self, rdtscp: bool, invpcid: bool) -> Result<(), HwError> {
        let mut controls = *self.secondary_controls & !(secondary::RDTSCP | secondary::INVPCID);
        if rdtscp {
            controls |= self.caps.secondary & secondary::RDTSCP;
        }
        if invpcid {
            controls |= self.caps.secondary & secondary::INVPCID;
        }
        if controls != *self.secondary_controls {
            // SAFETY: Two instructions that act on the guest's state alone.
            unsafe { self.window.write_host(SECONDARY_CONTROLS, controls) }?;
            *self.secondary_controls = controls;
        }
        Ok(())
    }

    #[inline]
    fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.regs.gpr
    }

    #[inline]
    fn set_cr2(&mut self, value: u64) {
        self.regs.cr2 = value;
    }

    #[inline]
    fn rip(&self) -> Result<u64, HwError> {
        self.window.read(GUEST_RIP)
    }

    #[inline]
    fn set_rip(&mut self, value: u64) -> Result<(), HwError> {
        self.window.write(GUEST_RIP, value)
    }

    #[inline]
    fn rsp(&self) -> Result<u64, HwError> {
        self.window.read(GUEST_RSP)
    }

    #[inline]
    fn set_rsp(&mut self, value: u64) -> Result<(), HwError> {
        self.window.write(GUEST_RSP, value)
    }

    #[inline]
    fn rflags(&self) -> Result<u64, HwError> {
        self.window.read(GUEST_RFLAGS)
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) -> Result<(), HwError> {
        self.window.write(GUEST_RFLAGS, value | 2)
    }

    #[inline]
    fn instruction_len(&self) -> Result<u32, HwError> {
        self.window.read(EXIT_INSTRUCTION_LENGTH)
    }

    fn debug_conditions(&self) -> Result<u64, HwError> {
        self.window.read(EXIT_QUALIFICATION)
    }

    fn exited_by_int1(&self) -> Result<bool, HwError> {
        exit::by_int1(&self.window)
    }

    #[inline]
    fn interrupt_shadow(&self) -> Result<bool, HwError> {
        Ok(self.window.read(GUEST_INTERRUPTIBILITY)? & INTERRUPT_SHADOW != 0)
    }

    #[inline]
    fn clear_interrupt_shadow(&mut self) -> Result<(), HwError> {
        let state = self.window.read(GUEST_INTERRUPTIBILITY)?;
        if state & INTERRUPT_SHADOW != 0 {
            self.window
                .write(GUEST_INTERRUPTIBILITY, state & !INTERRUPT_SHADOW)?;
        }
        Ok(())
    }

    fn cr0(&self) -> Result<u64, HwError> {
        let (owned, _) = self.owned();
        Ok(self.window.read(GUEST_CR0)? & owned | self.window.read(CR0_SHADOW)? & !owned)
    }

    fn set_cr0(&mut self, value: u64) -> Result<(), HwError> {
        self.window.write(CR0_SHADOW, value)?;
        let meant = value & Cr0::NAMED.raw();
        let mut real = (meant | self.caps.common.cr0.ones) & !CR0_NEVER;
        if self.software.is_some() {
            real |= CR0_OF_SOFTWARE;
        }
        self.window.write(GUEST_CR0, real)?;
        if self.software.is_some() {
            // What CR4 may say depends on whether the guest pages.
            self.write_real_cr4(self.cr4()?)?;
        }
        Ok(())
    }

    fn set_root(&mut self, root: Hpa) -> Result<(), HwError> {
        self.window.write(GUEST_CR3, root.raw())?;
        self.flush_guest_tables()
    }

    fn cr3(&self) -> Result<u64, HwError> {
        match &self.software {
            Some(software) => Ok(software.cr3),
            None => self.window.read(GUEST_CR3),
        }
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), HwError> {
        match &mut self.software {
            Some(software) => {
                software.cr3 = value;
                Ok(())
            }
            None => self.window.write(GUEST_CR3, value),
        }
    }

    fn cr4(&self) -> Result<u64, HwError> {
        let (_, owned) = self.owned();
        Ok(self.window.read(GUEST_CR4)? & owned | self.window.read(CR4_SHADOW)? & !owned)
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), HwError> {
        self.window.write(CR4_SHADOW, value)?;
        self.write_real_cr4(value)
    }

    fn efer(&self) -> Result<u64, HwError> {
        match &self.software {
            Some(software) => Ok(software.efer),
            None => self.window.read(GUEST_EFER),
        }
    }

    fn set_efer(&mut self, value: u64) -> Result<(), HwError> {
        let controls = if value & EFER_LMA != 0 {
            *self.entry_controls | entry::IA32E_GUEST
        } else {
            *self.entry_controls & !entry::IA32E_GUEST
        };
        if controls != *self.entry_controls {
            // SAFETY: The guest's own mode.
            unsafe { self.window.write_host(ENTRY_CONTROLS, controls) }?;
            *self.entry_controls = controls;
            if value & EFER_LMA != 0 {
                self.make_task_64_bit()?;
            }
        }
        let real = match &mut self.software {
            None => value,
            Some(software) => {
                software.efer = value;
                let efer = Efer::from_raw(value).union(Efer::NXE);
                // The CPU pages already, and with PG the two have to go together.
                efer.with(Efer::LME, efer.contains(Efer::LMA)).raw()
            }
        };
        self.window.write(GUEST_EFER, real)
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), HwError> {
        if self.software.is_some() {
            // The CPU loads them from the root at each entry.
            return Ok(());
        }
        let [zero, one, two, three] = entries;
        self.window.write(GUEST_PDPTE0, zero)?;
        self.window.write(GUEST_PDPTE1, one)?;
        self.window.write(GUEST_PDPTE2, two)?;
        self.window.write(GUEST_PDPTE3, three)
    }

    fn dr7(&self) -> Result<u64, HwError> {
        self.window.read(GUEST_DR7)
    }

    fn set_dr7(&mut self, value: u64) -> Result<(), HwError> {
        self.window.write(GUEST_DR7, value)
    }

    fn pat(&self) -> Result<u64, HwError> {
        match &self.software {
            Some(software) => Ok(software.pat),
            None => self.window.read(GUEST_PAT),
        }
    }

    fn set_pat(&mut self, value: u64) -> Result<(), HwError> {
        let real = match &mut self.software {
            None => value,
            Some(software) => {
                // The entries that the CPU sees are ours: what they mean is up to the host's.
                software.pat = value;
                switch::host_state(self.window.irqs()).pat
            }
        };
        self.window.write(GUEST_PAT, real)
    }

    fn time_stamp(&self) -> Result<u64, HwError> {
        Ok(tsc::now().wrapping_add(self.window.read(TSC_OFFSET)?))
    }

    #[cold]
    fn switched_msr(&self, switch: &HostSwitch, which: SwitchedMsr) -> Result<u64, HwError> {
        match which {
            SwitchedMsr::SysenterCs => self.window.read(GUEST_SYSENTER_CS).map(u64::from),
            SwitchedMsr::SysenterEsp => self.window.read(GUEST_SYSENTER_ESP),
            SwitchedMsr::SysenterEip => self.window.read(GUEST_SYSENTER_EIP),
            SwitchedMsr::FsBase => self.segment_base(SegmentRegister::Fs),
            SwitchedMsr::GsBase => self.segment_base(SegmentRegister::Gs),
            SwitchedMsr::KernelGsBase => Ok(switch.kernel_gs_base()),
        }
    }

    #[cold]
    fn set_switched_msr(
        &mut self,
        switch: &HostSwitch,
        which: SwitchedMsr,
        value: u64,
    ) -> Result<(), HwError> {
        let base = |which: SegmentRegister| SegmentFields::ALL[which as usize].base;
        match which {
            // The upper half does not exist.
            SwitchedMsr::SysenterCs => self.window.write(GUEST_SYSENTER_CS, value as u32),
            SwitchedMsr::SysenterEsp => self.window.write(GUEST_SYSENTER_ESP, value),
            SwitchedMsr::SysenterEip => self.window.write(GUEST_SYSENTER_EIP, value),
            SwitchedMsr::FsBase => self.window.write(base(SegmentRegister::Fs), value),
            SwitchedMsr::GsBase => self.window.write(base(SegmentRegister::Gs), value),
            SwitchedMsr::KernelGsBase => {
                switch.set_kernel_gs_base(value);
                Ok(())
            }
        }
    }

    fn set_sysenter(&mut self, cs: u32, esp: u64, eip: u64) -> Result<(), HwError> {
        self.window.write(GUEST_SYSENTER_CS, cs)?;
        self.window.write(GUEST_SYSENTER_ESP, esp)?;
        self.window.write(GUEST_SYSENTER_EIP, eip)
    }

    #[inline]
    fn user_msr(&self, switch: &HostSwitch, which: UserMsr) -> u64 {
        switch.user_msr(which)
    }

    #[inline]
    fn set_user_msr(&mut self, switch: &HostSwitch, which: UserMsr, value: u64) {
        switch.set_user_msr(which, value);
    }

    fn segment(&self, which: SegmentRegister) -> Result<Segment, HwError> {
        let fields = &SegmentFields::ALL[which as usize];
        Ok(Segment {
            selector: self.window.read(fields.selector)?,
            base: self.window.read(fields.base)?,
            limit: self.window.read(fields.limit)?,
            rights: AccessRights::from_raw(self.window.read(fields.access_rights)?),
        })
    }

    fn segment_base(&self, which: SegmentRegister) -> Result<u64, HwError> {
        self.window.read(SegmentFields::ALL[which as usize].base)
    }

    fn set_segment(&mut self, which: SegmentRegister, segment: &Segment) -> Result<(), HwError> {
        let fields = &SegmentFields::ALL[which as usize];
        // The entry wants the accessed bit of what can be used; VMMs forget it.
        let rights = match which {
            SegmentRegister::Ldtr => segment.rights,
            _ if segment.rights.unusable() => segment.rights,
            _ => segment.rights.with_accessed(),
        };
        self.window.write(fields.selector, segment.selector)?;
        self.window.write(fields.base, segment.base)?;
        self.window.write(fields.limit, segment.limit)?;
        self.window.write(fields.access_rights, rights.raw())
    }

    fn code_rights_and_cpl(&self) -> Result<(AccessRights, u8), HwError> {
        let cs = self.window.read(SegmentFields::CS.access_rights)?;
        let ss = self.window.read(SegmentFields::SS.access_rights)?;
        Ok((AccessRights::from_raw(cs), AccessRights::from_raw(ss).dpl()))
    }

    fn gdtr(&self) -> Result<TableRegister, HwError> {
        Ok(TableRegister {
            base: self.window.read(GUEST_GDTR_BASE)?,
            limit: self.window.read(GUEST_GDTR_LIMIT)? as u16,
        })
    }

    fn set_gdtr(&mut self, table: TableRegister) -> Result<(), HwError> {
        self.window.write(GUEST_GDTR_BASE, table.base)?;
        self.window.write(GUEST_GDTR_LIMIT, u32::from(table.limit))
    }

    fn idtr(&self) -> Result<TableRegister, HwError> {
        Ok(TableRegister {
            base: self.window.read(GUEST_IDTR_BASE)?,
            limit: self.window.read(GUEST_IDTR_LIMIT)? as u16,
        })
    }

    fn set_idtr(&mut self, table: TableRegister) -> Result<(), HwError> {
        self.window.write(GUEST_IDTR_BASE, table.base)?;
        self.window.write(GUEST_IDTR_LIMIT, u32::from(table.limit))
    }

    fn flush_guest_tables(&mut self) -> Result<(), HwError> {
        if self.vpid == 0 {
            // Without a VPID every entry flushes.
            return Ok(());
        }
        tlb::flush_vpid(self.window.irqs(), self.vpid)?;
        self.translation.count(FlushKind::Tag);
        Ok(())
    }

    fn flush_address(&mut self, address: Gva) -> Result<(), HwError> {
        if self.vpid != 0 {
            let irqs = self.window.irqs();
            let kind = tlb::flush_address(self.caps, irqs, self.vpid, address)?;
            self.translation.count(kind);
        }
        Ok(())
    }

    fn restart_log(&mut self) -> Result<(), HwError> {
        self.window.write(PML_INDEX, WriteLog::FIRST)
    }

    /// INVEPT reaches every VPID: once for each change is enough for all vCPUs. Without EPT it is
    /// each vCPU's VPID, once in each epoch.
    #[inline]
    fn follow(&mut self, visit: Visit) -> Result<bool, HwError> {
        if let Some(software) = &mut self.software {
            if !visit.stale && software.epoch == visit.epoch {
                return Ok(false);
            }
            software.epoch = visit.epoch;
            self.flush_guest_tables()?;
            return Ok(true);
        }
        if visit.stale {
            let kind = tlb::flush_ept(self.caps, self.window.irqs(), self.eptp)?;
            self.translation.count(kind);
        }
        Ok(visit.stale)
    }

    #[inline]
    fn irqs(&self) -> &IrqsOff {
        self.window.irqs()
    }
}

#[kunit_tests(rusthv_guest)]
mod tests {
    use super::*;
    use crate::host::bindings;
    use crate::host::cpu::current_node;
    use crate::model::arch::addr::Hpa;
    use crate::model::exit::EventKind;
    use crate::vendor::flush::Flushes;
    use crate::vendor::{checks, Guest as _, KeepAlive, NestedRoot, Translation, Vendor};
    use crate::vmx::guest::{Guest, EXCEPTIONS};
    use crate::vmx::vmx_or_skip;
    use crate::vmx::VMX;
    use kernel::sync::Arc;

    /// A frame that no entry ever walks.
    const NO_TABLES: u64 = 0x1000;

    struct Nothing;

    impl KeepAlive for Nothing {
        fn flushes(&self) -> &Flushes {
            static FLUSHES: Flushes = Flushes::new();
            &FLUSHES
        }
    }

    fn guest() -> Result<Guest> {
        let root = NestedRoot::new(Hpa::new(NO_TABLES), Arc::new(Nothing, GFP_KERNEL)?);
        VMX.get()?.guest(
            Translation::Nested(root),
            None,
            0x1234_5678,
            current_node().into(),
        )
    }

    // Nothing is asserted while a window is open: a failed assertion ends the thread at once, and
    // would leave interrupts off.

    #[test]
    fn controls_reach_the_vmcs() -> Result {
        let machine = vmx_or_skip!();
        let caps = &machine.caps;
        let mut guest = guest()?;
        // Write-back, walk length 4, and flags where the CPU has them.
        let flags = u64::from(caps.has(bindings::RUSTHV_FEAT_EPT_AD)) << 6;
        let eptp = NO_TABLES | 3 << 3 | 6 | flags;
        let window = guest.open()?;
        let vpid = window.vpid;
        let w = &window.window;
        let words = [
            (w.read(PIN_CONTROLS)?, caps.pin),
            (w.read(PRIMARY_CONTROLS)?, caps.primary),
            (w.read(SECONDARY_CONTROLS)?, caps.secondary),
            (w.read(EXIT_CONTROLS)?, caps.exit),
            (w.read(ENTRY_CONTROLS)?, caps.entry),
            (w.read(EXCEPTION_BITMAP)?, EXCEPTIONS),
            (w.read(EXIT_MSR_LOAD_COUNT)?, 0),
            (w.read(EXIT_MSR_STORE_COUNT)?, 0),
            (w.read(ENTRY_MSR_LOAD_COUNT)?, 0),
        ];
        let wide = [
            (w.read(MSR_BITMAP)?, machine.bitmap.hpa().raw()),
            (w.read(EPT_POINTER)?, eptp),
            (w.read(VMCS_LINK_POINTER)?, u64::MAX),
            (w.read(TSC_OFFSET)?, 0x1234_5678),
            (u64::from(w.read(VPID)?), u64::from(vpid)),
        ];
        drop(window);
        for (found, wanted) in words {
            assert_eq!(found, wanted);
        }
        for (found, wanted) in wide {
            assert_eq!(found, wanted);
        }
        // The VPID is the guest's own.
        assert_eq!((vpid != 0), (caps.secondary & secondary::VPID != 0));
        Ok(())
    }

    #[test]
    fn registers_round_trip() -> Result {
        vmx_or_skip!();
        let mut guest = guest()?;
        for (found, wanted) in checks::registers(&mut guest)? {
            assert_eq!(found, wanted);
        }
        Ok(())
    }

    /// Each segment register has fields of its own.
    #[test]
    fn segments_do_not_mix() -> Result {
        vmx_or_skip!();
        let mut guest = guest()?;
        for (found, wanted) in checks::segments(&mut guest, |index| 0xc093 + 4 * (index & 1))? {
            assert_eq!(found, wanted);
        }
        Ok(())
    }

    /// The guest reads what it wrote; the CPU gets what VMX operation and the host want.
    #[test]
    fn control_registers_have_two_faces() -> Result {
        const PE: u64 = 1 << 0;
        const CD_NW: u64 = 3 << 29;
        const CR4_VMXE: u64 = 1 << 13;
        let caps = &vmx_or_skip!().caps;
        let mut guest = guest()?;
        let mut seen = KVec::with_capacity(4, GFP_KERNEL)?;
        for value in [0, PE, 0x6000_0010, 0x8005_003b] {
            let mut window = guest.open()?;
            window.set_cr0(value)?;
            let found = (window.cr0()?, window.window.read(GUEST_CR0)?);
            drop(window);
            seen.push((value, found), GFP_KERNEL)?;
        }
        for (value, (guests, cpus)) in seen {
            assert_eq!(guests, value);
            assert!(caps.common.cr0.allow(cpus));
            assert_eq!(cpus & CD_NW, 0);
            assert_eq!((cpus ^ value) & (PE | 1 << 31), 0);
        }
        let mut window = guest.open()?;
        window.set_cr4(0x6a0)?;
        let (guests, cpus) = (window.cr4()?, window.window.read(GUEST_CR4)?);
        drop(window);
        assert_eq!(guests, 0x6a0);
        // Machine checks may be on as they are for the host.
        let theirs = caps.common.cr4.ones | Cr4::MCE.raw();
        assert_eq!(cpus & !theirs, 0x6a0 & !theirs);
        assert!(caps.common.cr4.allow(cpus));
        assert!(cpus & CR4_VMXE != 0);
        Ok(())
    }

    /// The entry control "IA-32e mode guest" says what EFER.LMA says.
    #[test]
    fn long_mode_is_an_entry_control() -> Result {
        vmx_or_skip!();
        const LONG: u64 = 0xd01;
        let mut guest = guest()?;
        let mut window = guest.open()?;
        let before = window.window.read(ENTRY_CONTROLS)?;
        window.set_efer(LONG)?;
        let (on, efer) = (window.window.read(ENTRY_CONTROLS)?, window.efer()?);
        window.set_efer(LONG & !EFER_LMA)?;
        let off = window.window.read(ENTRY_CONTROLS)?;
        drop(window);
        assert_eq!(before & entry::IA32E_GUEST, 0);
        assert_eq!(on, before | entry::IA32E_GUEST);
        assert_eq!(off, before);
        assert_eq!(efer, LONG);
        Ok(())
    }

    #[test]
    fn optional_controls_go_on_and_off() -> Result {
        let caps = &vmx_or_skip!().caps;
        let optional = caps.secondary & (secondary::RDTSCP | secondary::INVPCID);
        let mut guest = guest()?;
        let mut window = guest.open()?;
        window.want_interrupt_window(true)?;
        let wanted = window.window.read(PRIMARY_CONTROLS)?;
        window.want_interrupt_window(false)?;
        let unwanted = window.window.read(PRIMARY_CONTROLS)?;
        window.offer(false, false)?;
        let none = window.window.read(SECONDARY_CONTROLS)?;
        window.offer(true, true)?;
        let both = window.window.read(SECONDARY_CONTROLS)?;
        drop(window);
        assert_eq!(wanted, caps.primary | primary::INTERRUPT_WINDOW);
        assert_eq!(unwanted, caps.primary & !primary::INTERRUPT_WINDOW);
        assert_eq!(none & (secondary::RDTSCP | secondary::INVPCID), 0);
        assert_eq!(both, none | optional);
        Ok(())
    }

    #[test]
    fn injections_are_written_and_taken_back() -> Result {
        vmx_or_skip!();
        let page_fault = Event {
            vector: 14,
            kind: EventKind::Exception,
            error_code: Some(0x1f),
            instruction_len: 0,
        };
        let int3 = Event {
            vector: 3,
            kind: EventKind::SoftwareException,
            error_code: None,
            instruction_len: 1,
        };
        let mut guest = guest()?;
        let mut window = guest.open()?;
        window.inject(&page_fault)?;
        let w = &window.window;
        let first = (w.read(ENTRY_INTERRUPTION_INFO)?, w.read(ENTRY_ERROR_CODE)?);
        window.inject(&int3)?;
        let w = &window.window;
        let second = (
            w.read(ENTRY_INTERRUPTION_INFO)?,
            w.read(ENTRY_INSTRUCTION_LENGTH)?,
        );
        window.cancel_injection()?;
        let third = window.window.read(ENTRY_INTERRUPTION_INFO)?;
        drop(window);
        assert_eq!(first, (0x8000_0b0e, 0x1f));
        assert_eq!(second, (0x8000_0603, 1));
        assert_eq!(third, 0);
        Ok(())
    }

    /// The host area is that of the CPU that the guest is on.
    #[test]
    fn host_area_is_this_cpus() -> Result {
        vmx_or_skip!();
        let mut guest = guest()?;
        let window = guest.open()?;
        let host = switch::host_state(window.window.irqs());
        let w = &window.window;
        let found = [
            (w.read(HOST_CR0)?, host.cr0),
            (w.read(HOST_TR_BASE)?, host.tr_base),
            (w.read(HOST_GDTR_BASE)?, host.gdtr_base),
            (w.read(HOST_IDTR_BASE)?, host.idtr_base),
            (w.read(HOST_EFER)?, host.efer),
            (w.read(HOST_PAT)?, host.pat),
            (w.read(HOST_SYSENTER_ESP)?, host.sysenter_esp),
            (w.read(HOST_SYSENTER_EIP)?, host.sysenter_eip),
        ];
        let selectors = (
            w.read(HOST_CS_SELECTOR)?,
            w.read(HOST_SS_SELECTOR)?,
            w.read(HOST_TR_SELECTOR)?,
        );
        let data = w.read(HOST_DS_SELECTOR)? | w.read(HOST_FS_SELECTOR)?;
        drop(window);
        for (field, host) in found {
            assert_eq!(field, host);
        }
        assert_eq!(selectors, (host.cs, host.ss, host.tr));
        assert_eq!(data, 0);
        Ok(())
    }
}

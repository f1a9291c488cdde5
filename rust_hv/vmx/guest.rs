// SPDX-License-Identifier: GPL-2.0

//! One vCPU's VMCS: its controls, the host area, and the entry. What the floors above see of it is
//! in `window`.

use super::bitmap::{Intercepts, MsrBitmap};
use super::caps::{primary, secondary, Caps};
use super::fields::*;
use super::tlb::Vpid;
use super::vmcs::{Vmcs, Window};
use super::Vmx;
use crate::host::bindings::{self, rhv_regs};
use crate::host::debug;
use crate::host::fpu::FpuInUse;
use crate::host::frame::{Frame, Place};
use crate::host::msr;
use crate::host::switch::{self, Running};
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::Hpa;
use crate::model::arch::segment::AccessRights;
use crate::vendor::flush::FlushKind;
use crate::vendor::{self, Guest as _, HwError, ResetRights, Translation};
use kernel::prelude::*;
use kernel::sync::Arc;

/// CR0 bits that the guest writes without an exit: TS, EM, MP, WP, AM.
pub(super) const CR0_GUEST_OWNED: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18;
/// CR4 bits that the guest writes without an exit: PVI, TSD, DE, PGE, OSFXSR, OSXMMEXCPT.
pub(super) const CR4_GUEST_OWNED: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 7 | 1 << 9 | 1 << 10;

/// Of those bits, the ones that an exit is needed for where the hypervisor keeps the tables that the
/// CPU walks: CR0.WP and CR4.PGE.
pub(super) const CR0_OF_TABLES: u64 = 1 << 16;
pub(super) const CR4_OF_TABLES: u64 = 1 << 7;

/// #PF exits there, too.
const PAGE_FAULT: u32 = 1 << 14;

/// Exceptions that exit: #DB and #AC, as a guest can raise them without end while one is being
/// delivered; #MC, which is the host's.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// What the host area holds, to write only what changed.
#[derive(Default)]
pub(super) struct HostShadow {
    cr3: u64,
    cr4: u64,
    fs: u64,
    gs: u64,
}

/// What a guest sees of registers that are the hypervisor's while it keeps the tables that the CPU
/// walks.
pub(super) struct Software {
    pub(super) cr3: u64,
    pub(super) efer: u64,
    pub(super) pat: u64,
    /// [`vendor::Visit::epoch`] at the last visit.
    pub(super) epoch: u64,
}

/// A vCPU as the hardware sees it.
pub struct Guest {
    vmcs: Vmcs,
    vpid: Option<Vpid>,
    regs: rhv_regs,
    host: HostShadow,
    caps: &'static Caps,
    eptp: u64,
    translation: Translation,
    /// The bitmaps, where they are the VM's own; in memory as long as the VMCS has their addresses.
    _intercepts: Option<Arc<Intercepts>>,
    software: Option<Software>,
    entry_controls: u32,
    primary_controls: u32,
    secondary_controls: u32,
    host_xcr0: u64,
    /// See [`vendor::Guest::has_moved`].
    has_moved: bool,
}

/// A guest's VMCS is current: its registers can be reached, and it can be entered.
pub struct GuestWindow<'a> {
    pub(super) window: Window<'a>,
    pub(super) regs: &'a mut rhv_regs,
    pub(super) host: &'a mut HostShadow,
    pub(super) caps: &'static Caps,
    pub(super) eptp: u64,
    pub(super) software: Option<&'a mut Software>,
    pub(super) translation: &'a Translation,
    pub(super) entry_controls: &'a mut u32,
    pub(super) primary_controls: &'a mut u32,
    pub(super) secondary_controls: &'a mut u32,
    pub(super) vpid: u16,
    pub(super) host_xcr0: u64,
    pub(super) host_debugctl: u64,
    pub(super) debugctl_is_known: bool,
}

impl Guest {
    /// A guest whose memory is behind `translation`, with its controls set and its registers all zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EIO` when the CPU refuses a control.
    pub fn new(
        vmx: &'static Vmx,
        translation: Translation,
        intercepts: Option<Arc<Intercepts>>,
        tsc_offset: u64,
        place: Place,
    ) -> Result<Self> {
        let caps = &vmx.caps;
        let vpid = if caps.has(bindings::RUSTHV_FEAT_VPID) {
            Vpid::new()
        } else {
            None
        };
        let mut secondary_controls = caps.secondary;
        if vpid.is_none() {
            secondary_controls &= !secondary::VPID;
        }
        let mut primary_controls = caps.primary;
        let own = intercepts.clone();
        let ports = own.as_deref().and_then(|own| own.ports.as_ref());
        if ports.is_some() {
            primary_controls |= primary::IO_BITMAPS;
        }
        let (eptp, software) = match &translation {
            Translation::Nested(root) => (vmx.ept.pointer(root.table()), None),
            Translation::Software(_) => {
                secondary_controls &= !secondary::NESTED;
                primary_controls |= primary::TRANSLATION;
                let software = Software {
                    cr3: 0,
                    efer: 0,
                    pat: 0,
                    epoch: 0,
                };
                (0, Some(software))
            }
        };
        let log = match &translation {
            Translation::Nested(root) => root.log().map(WriteLog::hpa),
            Translation::Software(_) => None,
        };
        if log.is_none() {
            secondary_controls &= !secondary::PML;
        }
        let mut guest = Self {
            vmcs: Vmcs::new(caps.common.revision, place)?,
            vpid,
            regs: rhv_regs::default(),
            host: HostShadow::default(),
            caps,
            eptp,
            translation,
            _intercepts: intercepts,
            software,
            entry_controls: caps.entry,
            primary_controls,
            secondary_controls,
            host_xcr0: msr::host_xcr0(),
            has_moved: false,
        };
        let mut window = guest.open()?;
        let msrs = own.as_deref().map_or(&vmx.bitmap, |own| &own.msrs);
        window.set_up(msrs, ports, log)?;
        window.window.write(TSC_OFFSET, tsc_offset)?;
        drop(window);
        Ok(guest)
    }
}

impl vendor::Guest for Guest {
    type Window<'a> = GuestWindow<'a>;

    const RESET: ResetRights = ResetRights {
        code: AccessRights::REAL_CODE,
        stack: AccessRights::REAL_DATA,
        task: AccessRights::BUSY_TSS,
    };

    #[inline]
    fn open(&mut self) -> Result<GuestWindow<'_>> {
        let window = self.vmcs.open()?;
        if window.moved() {
            self.has_moved = true;
            if let Some(vpid) = &self.vpid {
                // Translations from when the vCPU was here last would be stale.
                vpid.flush(window.irqs())?;
                self.translation.count(FlushKind::Tag);
            }
        }
        let mut window = GuestWindow {
            window,
            regs: &mut self.regs,
            host: &mut self.host,
            caps: self.caps,
            eptp: self.eptp,
            software: self.software.as_mut(),
            translation: &self.translation,
            entry_controls: &mut self.entry_controls,
            primary_controls: &mut self.primary_controls,
            secondary_controls: &mut self.secondary_controls,
            vpid: self.vpid.as_ref().map_or(0, Vpid::number),
            host_xcr0: self.host_xcr0,
            host_debugctl: 0,
            debugctl_is_known: false,
        };
        if window.window.moved() {
            window.write_host_state()?;
        }
        Ok(window)
    }

    #[inline]
    fn has_moved(&mut self) -> bool {
        core::mem::take(&mut self.has_moved)
    }

    fn node(&self) -> i32 {
        self.vmcs.node()
    }

    fn move_to(&mut self, place: Place) -> Result {
        self.vmcs.move_to(self.caps.common.revision, place)
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
    /// The bits of CR0 and CR4 that the guest writes without an exit.
    #[inline]
    pub(super) fn owned(&self) -> (u64, u64) {
        match self.software {
            None => (CR0_GUEST_OWNED, CR4_GUEST_OWNED),
            Some(_) => (
                CR0_GUEST_OWNED & !CR0_OF_TABLES,
                CR4_GUEST_OWNED & !CR4_OF_TABLES,
            ),
        }
    }

    /// Writes every control field. The bitmaps and the log live as long as the guest.
    fn set_up(
        &mut self,
        msrs: &MsrBitmap,
        ports: Option<&[Frame; 2]>,
        log: Option<Hpa>,
    ) -> Result<(), HwError> {
        let (pin, exit) = (self.caps.pin, self.caps.exit);
        let (primary, secondary) = (*self.primary_controls, *self.secondary_controls);
        let (entry, eptp, vpid) = (*self.entry_controls, self.eptp, self.vpid);
        let (cr0_owned, cr4_owned) = self.owned();
        let exceptions = match self.software {
            None => EXCEPTIONS,
            Some(_) => EXCEPTIONS | PAGE_FAULT,
        };
        let w = &mut self.window;
        // SAFETY: Controls that keep the guest inside its memory and make every event of the
        // host's an exit, as `caps` lists them; no MSR lists. The bitmaps are never freed, or the
        // guest holds them, and let nothing of the host's be written but by whose VMM may do that. The
        // log is a frame of its own, which the guest's translation holds. The tables live as long as
        // the guest holds that: nested ones, or those that alone CR3 is ever set to.
        unsafe {
            w.write_host(PIN_CONTROLS, pin)?;
            w.write_host(PRIMARY_CONTROLS, primary)?;
            w.write_host(SECONDARY_CONTROLS, secondary)?;
            w.write_host(EXIT_CONTROLS, exit)?;
            w.write_host(ENTRY_CONTROLS, entry)?;
            w.write_host(EXCEPTION_BITMAP, exceptions)?;
            w.write_host(EXIT_MSR_STORE_COUNT, 0)?;
            w.write_host(EXIT_MSR_LOAD_COUNT, 0)?;
            w.write_host(ENTRY_MSR_LOAD_COUNT, 0)?;
            w.write_host(MSR_BITMAP, msrs.hpa().raw())?;
            if let Some([low, high]) = ports {
                w.write_host(IO_BITMAP_A, low.hpa().raw())?;
                w.write_host(IO_BITMAP_B, high.hpa().raw())?;
            }
            if let Some(log) = log {
                w.write_host(PML_ADDRESS, log.raw())?;
            }
            w.write_host(EPT_POINTER, eptp)?;
            w.write_host(VMCS_LINK_POINTER, u64::MAX)?;
            if vpid != 0 {
                w.write_host(VPID, vpid)?;
            }
            if secondary & secondary::ENCLS_EXITING != 0 {
                w.write_host(ENCLS_EXITING_BITMAP, u64::MAX)?;
            }
            w.write_host(CR0_MASK, !cr0_owned)?;
            w.write_host(CR4_MASK, !cr4_owned)?;
        }
        if log.is_some() {
            w.write(PML_INDEX, WriteLog::FIRST)?;
        }
        w.write(PAGE_FAULT_MASK, 0)?;
        w.write(PAGE_FAULT_MATCH, 0)?;
        w.write(CR3_TARGET_COUNT, 0)?;
        w.write(GUEST_DEBUGCTL, 0)?;
        w.write(GUEST_ACTIVITY, 0)?;
        w.write(GUEST_PENDING_DEBUG, 0)?;
        w.write(GUEST_INTERRUPTIBILITY, 0)?;
        w.write(ENTRY_INTERRUPTION_INFO, 0)
    }

    /// Writes the host area for the CPU that we are on.
    fn write_host_state(&mut self) -> Result<(), HwError> {
        extern "C" {
            /// The host's first instruction after an exit: `entry.S`.
            fn rhv_vmx_exit();
        }
        let host = switch::host_state(self.window.irqs());
        let w = &mut self.window;
        // SAFETY: All of it is the state that this CPU runs with now, but for the null selectors:
        // kernel code uses no DS, ES, FS and GS selectors, and `host::switch` restores those of
        // user space.
        unsafe {
            w.write_host(HOST_CR0, host.cr0)?;
            w.write_host(HOST_CS_SELECTOR, host.cs)?;
            w.write_host(HOST_SS_SELECTOR, host.ss)?;
            w.write_host(HOST_DS_SELECTOR, 0)?;
            w.write_host(HOST_ES_SELECTOR, 0)?;
            w.write_host(HOST_FS_SELECTOR, 0)?;
            w.write_host(HOST_GS_SELECTOR, 0)?;
            w.write_host(HOST_TR_SELECTOR, host.tr)?;
            w.write_host(HOST_TR_BASE, host.tr_base)?;
            w.write_host(HOST_GDTR_BASE, host.gdtr_base)?;
            w.write_host(HOST_IDTR_BASE, host.idtr_base)?;
            w.write_host(HOST_SYSENTER_CS, host.sysenter_cs)?;
            w.write_host(HOST_SYSENTER_ESP, host.sysenter_esp)?;
            w.write_host(HOST_SYSENTER_EIP, host.sysenter_eip)?;
            w.write_host(HOST_EFER, host.efer)?;
            w.write_host(HOST_PAT, host.pat)?;
            w.write_host(HOST_RIP, rhv_vmx_exit as *const () as u64)
        }
    }

    /// Brings the host area and the CPU up to date for an entry now.
    #[inline]
    fn prepare_host(&mut self, running: &Running<'_>, fpu: &FpuInUse<'_>) -> Result<(), HwError> {
        let w = &mut self.window;
        let bases = running.load(w.irqs());
        fpu.load(w.irqs());
        let cr3 = switch::host_cr3(w.irqs());
        let cr4 = switch::host_cr4(w.irqs());
        if !self.debugctl_is_known {
            // Interrupt handlers may change it; they are off from here to the last exit of the
            // window.
            // SAFETY: No preconditions.
            self.host_debugctl = unsafe { bindings::rhv_host_debugctl() };
            self.debugctl_is_known = true;
        }
        let host = &mut *self.host;
        // SAFETY: The values that the host runs with now.
        unsafe {
            if let Some(bases) = bases {
                if bases.fs != host.fs {
                    w.write_host(HOST_FS_BASE, bases.fs)?;
                    host.fs = bases.fs;
                }
                if bases.gs != host.gs {
                    w.write_host(HOST_GS_BASE, bases.gs)?;
                    host.gs = bases.gs;
                }
            }
            if cr3 != host.cr3 {
                w.write_host(HOST_CR3, cr3)?;
                host.cr3 = cr3;
            }
            if cr4 != host.cr4 {
                w.write_host(HOST_CR4, cr4)?;
                host.cr4 = cr4;
            }
        }
        Ok(())
    }

    /// One entry and exit; the exit reason. Ticks in the guest are added to `ticks`.
    #[inline]
    pub(super) fn enter_raw(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
        ticks: Option<&mut u64>,
    ) -> Result<u32, HwError> {
        self.prepare_host(running, fpu)?;
        let launched = self.window.launched();
        let nested = self.software.is_none();
        let mut reason = 0;
        // SAFETY: Our VMCS is current and complete, interrupts are off, the host area is up to
        // date. Whoever sets a guest's XCR0 checks it against the host's.
        let failed = unsafe {
            msr::with_xcr0(self.window.irqs(), self.host_xcr0, xcr0, || match ticks {
                None => bindings::rhv_enter_guest(self.regs, launched, nested, &mut reason),
                Some(ticks) => bindings::rhv_enter_guest_counted(
                    self.regs,
                    launched,
                    nested,
                    &mut reason,
                    ticks,
                ),
            })
        };
        if self.host_debugctl != 0 {
            // SAFETY: The host's own value, which the exit has cleared.
            unsafe { bindings::rhv_set_debugctl(self.host_debugctl) };
        }
        debug::restore(self.window.irqs());
        match failed {
            0 => {}
            1 => return Err(self.entry_error()),
            _ => return Err(HwError::Fault),
        }
        // Bit 31: the entry failed; the VMCS stays as it was, not launched.
        if !launched && reason >> 31 == 0 {
            self.window.set_launched();
        }
        Ok(reason)
    }

    #[cold]
    fn entry_error(&self) -> HwError {
        /// VM-instruction error
        const VM_INSTRUCTION_ERROR: u32 = 0x4400;
        match super::instr::vmread(VM_INSTRUCTION_ERROR) {
            Ok(number) => HwError::Instruction(number as u32),
            Err(error) => error,
        }
    }
}

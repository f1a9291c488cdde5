// SPDX-License-Identifier: GPL-2.0

//! One vCPU's VMCS: its controls, the guest's registers, events, and the entry.
//!
//! [`GuestWindow`] is what the floors above see of it. Its words are the architecture's, not
//! VT-x's: nothing in its interface names a VMCS.

use super::caps::{entry, primary, secondary, Caps};
use super::exit;
use super::fields::*;
use super::instr::VmxError;
use super::tlb::{self, Vpid};
use super::vmcs::{Vmcs, Window};
use crate::host::bindings::{self, rhv_regs};
use crate::host::cpu::IrqsOff;
use crate::host::debug;
use crate::host::fpu::FpuInUse;
use crate::host::frame::Frame;
use crate::host::msr;
use crate::host::switch::{self, Running};
use crate::model::arch::regs::{Cr0, Cr4};
use crate::model::arch::segment::{AccessRights, Segment};
use crate::model::exit::{Event, Exit};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Interruptibility bits 1:0: blocking by STI and by MOV SS.
const INTERRUPT_SHADOW: u32 = 3;

/// CR0 bits that the guest writes without an exit: TS, EM, MP, WP, AM.
const CR0_GUEST_OWNED: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18;
/// CR0 bits that are never on in the CPU: NW and CD, the caches are the host's.
const CR0_NEVER: u64 = 1 << 29 | 1 << 30;
/// CR4 bits that the guest writes without an exit: PVI, TSD, DE, PGE, OSFXSR, OSXMMEXCPT.
const CR4_GUEST_OWNED: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 7 | 1 << 9 | 1 << 10;

/// Exceptions that exit: #DB and #AC, as a guest can raise them without end while one is being
/// delivered; #MC, which is the host's.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

const EFER_LMA: u64 = 1 << 10;
/// Segment registers, in the order of [`SegmentFields::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// What the host area holds, to write only what changed.
#[derive(Default)]
struct HostShadow {
    cr3: u64,
    cr4: u64,
    fs: u64,
    gs: u64,
}

/// MSRs that guests read and write without an exit: those that VMCS or the host switch hold.
const PASSTHROUGH: [u32; 6] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xc000_0100, // IA32_FS_BASE
    0xc000_0101, // IA32_GS_BASE
    0xc000_0102, // IA32_KERNEL_GS_BASE
];
/// IA32_TIME_STAMP_COUNTER, which guests read without an exit: the TSC offset applies.
const READABLE: u32 = 0x10;

/// The MSR bitmap that all guests share.
pub struct MsrBitmap(Frame);

impl MsrBitmap {
    /// Everything exits but [`PASSTHROUGH`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(node: i32) -> Result<Self> {
        let mut frame = Frame::new(node)?;
        let bits = frame.bytes_mut();
        bits.fill(0xff);
        // SDM Vol. 3C, "MSR-Bitmap Address": reads of low and high MSRs, then writes of both.
        let mut clear = |quarter: usize, msr: u32| {
            let bit = (msr & 0x1fff) as usize;
            if let Some(byte) = bits.get_mut(quarter * 1024 + bit / 8) {
                *byte &= !(1 << (bit % 8));
            }
        };
        for msr in PASSTHROUGH {
            let high = usize::from(msr >= 0xc000_0000);
            clear(high, msr);
            clear(2 + high, msr);
        }
        clear(0, READABLE);
        Ok(Self(frame))
    }
}

/// Readiness to keep the host's L1 data cache from guests (L1TF), by the host's policy.
pub struct CacheGuard(());

impl CacheGuard {
    /// Sets up what the policy needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: Once, at module initialisation; undone in `drop`.
        kernel::error::to_result(unsafe { bindings::rhv_l1d_setup() })?;
        Ok(Self(()))
    }
}

impl Drop for CacheGuard {
    fn drop(&mut self) {
        // SAFETY: At module exit, when no guest runs.
        unsafe { bindings::rhv_l1d_cleanup() };
    }
}

/// What keeps nested tables alive.
pub trait KeepAlive: Send + Sync {}

/// The nested tables of a guest.
#[derive(Clone)]
pub struct NestedRoot {
    pointer: u64,
    _keep: Arc<dyn KeepAlive>,
}

impl NestedRoot {
    /// `pointer` leads the hardware to tables that map memory of this guest alone, and that live
    /// as long as `keep`. Only the room that edits the tables makes one.
    pub fn new(pointer: u64, keep: Arc<dyn KeepAlive>) -> Self {
        Self {
            pointer,
            _keep: keep,
        }
    }
}

/// A vCPU as the hardware sees it.
pub struct Guest {
    vmcs: Vmcs,
    vpid: Option<Vpid>,
    regs: rhv_regs,
    host: HostShadow,
    caps: &'static Caps,
    root: NestedRoot,
    entry_controls: u32,
    primary_controls: u32,
    secondary_controls: u32,
    host_xcr0: u64,
    host_debugctl: u64,
}

/// A guest's VMCS is current: its registers can be reached, and it can be entered.
pub struct GuestWindow<'a> {
    window: Window<'a>,
    regs: &'a mut rhv_regs,
    host: &'a mut HostShadow,
    caps: &'static Caps,
    eptp: u64,
    entry_controls: &'a mut u32,
    primary_controls: &'a mut u32,
    secondary_controls: &'a mut u32,
    vpid: u16,
    host_xcr0: u64,
    host_debugctl: &'a mut u64,
}

impl Guest {
    /// A guest whose memory is behind `root`, with its controls set and its registers all zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EIO` when the CPU refuses a control.
    pub fn new(
        caps: &'static Caps,
        bitmap: &'static MsrBitmap,
        root: NestedRoot,
        tsc_offset: u64,
        node: i32,
    ) -> Result<Self> {
        let vpid = if caps.has(bindings::RUSTHV_FEAT_VPID) {
            Vpid::new()
        } else {
            None
        };
        let mut secondary_controls = caps.secondary;
        if vpid.is_none() {
            secondary_controls &= !secondary::VPID;
        }
        let mut guest = Self {
            vmcs: Vmcs::new(caps.revision, node)?,
            vpid,
            regs: rhv_regs::default(),
            host: HostShadow::default(),
            caps,
            root,
            entry_controls: caps.entry,
            primary_controls: caps.primary,
            secondary_controls,
            host_xcr0: msr::host_xcr0(),
            host_debugctl: 0,
        };
        let mut window = guest.open()?;
        window.set_up(bitmap)?;
        window.window.write(TSC_OFFSET, tsc_offset)?;
        drop(window);
        Ok(guest)
    }

    /// Makes the guest current; interrupts are off until the window is dropped.
    ///
    /// # Errors
    ///
    /// `EIO` when a VMX instruction failed.
    #[inline]
    pub fn open(&mut self) -> Result<GuestWindow<'_>> {
        let window = self.vmcs.open()?;
        if window.moved() {
            if let Some(vpid) = &self.vpid {
                // Translations from when the vCPU was here last would be stale.
                vpid.flush(window.irqs())?;
            }
        }
        let mut window = GuestWindow {
            window,
            regs: &mut self.regs,
            host: &mut self.host,
            caps: self.caps,
            eptp: self.root.pointer,
            entry_controls: &mut self.entry_controls,
            primary_controls: &mut self.primary_controls,
            secondary_controls: &mut self.secondary_controls,
            vpid: self.vpid.as_ref().map_or(0, Vpid::number),
            host_xcr0: self.host_xcr0,
            host_debugctl: &mut self.host_debugctl,
        };
        if window.window.moved() {
            window.write_host_state()?;
        }
        Ok(window)
    }

    /// General-purpose registers in the order of the instruction encoding. RSP is not among them:
    /// see [`GuestWindow::rsp`].
    #[inline]
    pub fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.regs.gpr
    }

    /// CR2 of the guest.
    #[inline]
    pub fn cr2(&self) -> u64 {
        self.regs.cr2
    }

    /// Sets CR2 of the guest.
    #[inline]
    pub fn set_cr2(&mut self, value: u64) {
        self.regs.cr2 = value;
    }
}

impl GuestWindow<'_> {
    /// Writes every control field.
    fn set_up(&mut self, bitmap: &'static MsrBitmap) -> Result<(), VmxError> {
        let (pin, exit) = (self.caps.pin, self.caps.exit);
        let (primary, secondary) = (*self.primary_controls, *self.secondary_controls);
        let (entry, eptp, vpid) = (*self.entry_controls, self.eptp, self.vpid);
        let w = &mut self.window;
        // SAFETY: Controls that keep the guest inside its memory and make every event of the
        // host's an exit, as `caps` lists them; no MSR lists. The bitmap is never freed, the
        // nested tables live as long as the guest holds `root`.
        unsafe {
            w.write_host(PIN_CONTROLS, pin)?;
            w.write_host(PRIMARY_CONTROLS, primary)?;
            w.write_host(SECONDARY_CONTROLS, secondary)?;
            w.write_host(EXIT_CONTROLS, exit)?;
            w.write_host(ENTRY_CONTROLS, entry)?;
            w.write_host(EXCEPTION_BITMAP, EXCEPTIONS)?;
            w.write_host(EXIT_MSR_STORE_COUNT, 0)?;
            w.write_host(EXIT_MSR_LOAD_COUNT, 0)?;
            w.write_host(ENTRY_MSR_LOAD_COUNT, 0)?;
            w.write_host(MSR_BITMAP, bitmap.0.hpa().raw())?;
            w.write_host(EPT_POINTER, eptp)?;
            w.write_host(VMCS_LINK_POINTER, u64::MAX)?;
            if vpid != 0 {
                w.write_host(VPID, vpid)?;
            }
            if secondary & secondary::ENCLS_EXITING != 0 {
                w.write_host(ENCLS_EXITING_BITMAP, u64::MAX)?;
            }
            w.write_host(CR0_MASK, !CR0_GUEST_OWNED)?;
            w.write_host(CR4_MASK, !CR4_GUEST_OWNED)?;
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
    fn write_host_state(&mut self) -> Result<(), VmxError> {
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
    fn prepare_host(&mut self, running: &Running<'_>, fpu: &FpuInUse<'_>) -> Result<(), VmxError> {
        let w = &mut self.window;
        let bases = running.load(w.irqs());
        fpu.load(w.irqs());
        let cr3 = switch::host_cr3(w.irqs());
        let cr4 = switch::host_cr4(w.irqs());
        let host = &mut *self.host;
        // SAFETY: The values that the host runs with now.
        unsafe {
            if let Some(bases) = bases {
                *self.host_debugctl = bindings::rhv_host_debugctl();
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

    /// Runs the guest until it exits.
    ///
    /// # Errors
    ///
    /// A [`VmxError`] when the entry was refused before the guest's state was looked at; an
    /// invalid guest state is an [`Exit::EntryFailed`].
    #[inline]
    pub fn enter(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
    ) -> Result<Exit, VmxError> {
        let reason = self.enter_raw(running, fpu, xcr0)?;
        exit::decode(&self.window, reason)
    }

    /// As [`GuestWindow::enter`], with the guest's breakpoints in the CPU.
    pub fn enter_with_breakpoints(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
        addresses: &[u64; 4],
        dr6: u64,
    ) -> Result<Exit, VmxError> {
        debug::load(self.window.irqs(), addresses, dr6);
        let reason = self.enter_raw(running, fpu, xcr0);
        debug::clear(self.window.irqs());
        exit::decode(&self.window, reason?)
    }

    #[inline]
    fn enter_raw(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
    ) -> Result<u32, VmxError> {
        self.prepare_host(running, fpu)?;
        let launched = self.window.launched();
        let own_xcr0 = xcr0 != msr::SAME_XCR0 && xcr0 != self.host_xcr0;
        if own_xcr0 {
            // SAFETY: The host uses XSAVE; whoever sets a guest's XCR0 checks it against the
            // host's. Restored below, with interrupts still off.
            unsafe { msr::write_xcr0(self.window.irqs(), xcr0) };
        }
        let mut reason = 0;
        // SAFETY: Our VMCS is current and complete, interrupts are off, the host area is up to
        // date.
        let failed = unsafe { bindings::rhv_enter_guest(self.regs, launched, &mut reason) };
        if own_xcr0 {
            // SAFETY: The host's own value.
            unsafe { msr::write_xcr0(self.window.irqs(), self.host_xcr0) };
        }
        if *self.host_debugctl != 0 {
            // SAFETY: The host's own value, which the exit has cleared.
            unsafe { bindings::rhv_set_debugctl(*self.host_debugctl) };
        }
        debug::restore(self.window.irqs());
        match failed {
            0 => {}
            1 => return Err(self.entry_error()),
            _ => return Err(VmxError::Fault),
        }
        // Bit 31: the entry failed; the VMCS stays as it was, not launched.
        if !launched && reason >> 31 == 0 {
            self.window.set_launched();
        }
        Ok(reason)
    }

    #[cold]
    fn entry_error(&self) -> VmxError {
        /// VM-instruction error
        const VM_INSTRUCTION_ERROR: u32 = 0x4400;
        match super::instr::vmread(VM_INSTRUCTION_ERROR) {
            Ok(number) => VmxError::Instruction(number as u32),
            Err(error) => error,
        }
    }

    /// The event whose delivery the last exit interrupted.
    #[inline]
    pub fn interrupted_event(&self) -> Result<Option<Event>, VmxError> {
        exit::interrupted_event(&self.window)
    }

    /// What hardware says of an event whose delivery failed: the event, exit reason and
    /// qualification.
    pub fn delivery_details(&self, event: Option<&Event>) -> Result<[u64; 3], VmxError> {
        Ok([
            event.map_or(0, exit::interruption_info).into(),
            self.window.read(EXIT_REASON)?.into(),
            self.window.read(EXIT_QUALIFICATION)?,
        ])
    }

    /// Injects an event at the next entry.
    pub fn inject(&mut self, event: &Event) -> Result<(), VmxError> {
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

    /// Takes back an injection that was not entered with.
    pub fn cancel_injection(&mut self) -> Result<(), VmxError> {
        self.window.write(ENTRY_INTERRUPTION_INFO, 0)
    }

    /// Asks for an exit as soon as the guest can take an interrupt.
    #[inline]
    pub fn want_interrupt_window(&mut self, want: bool) -> Result<(), VmxError> {
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

    /// Which of RDTSCP and INVPCID the guest has; without, they are undefined instructions.
    pub fn offer(&mut self, rdtscp: bool, invpcid: bool) -> Result<(), VmxError> {
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

    /// General-purpose registers but RSP, as [`Guest::gprs_mut`].
    #[inline]
    pub fn gprs_mut(&mut self) -> &mut [u64; 16] {
        &mut self.regs.gpr
    }

    /// CR2 of the guest.
    #[inline]
    pub fn set_cr2(&mut self, value: u64) {
        self.regs.cr2 = value;
    }

    /// Instruction pointer.
    #[inline]
    pub fn rip(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_RIP)
    }

    /// Sets the instruction pointer.
    #[inline]
    pub fn set_rip(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_RIP, value)
    }

    /// Stack pointer.
    #[inline]
    pub fn rsp(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_RSP)
    }

    /// Sets the stack pointer.
    #[inline]
    pub fn set_rsp(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_RSP, value)
    }

    /// RFLAGS.
    #[inline]
    pub fn rflags(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_RFLAGS)
    }

    /// Sets RFLAGS; bit 1 is always set in the CPU.
    #[inline]
    pub fn set_rflags(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_RFLAGS, value | 2)
    }

    /// Length of the instruction that exited.
    #[inline]
    pub fn instruction_len(&self) -> Result<u32, VmxError> {
        self.window.read(EXIT_INSTRUCTION_LENGTH)
    }

    /// The exit's details, for exceptions: what a #DB adds to DR6.
    pub fn debug_conditions(&self) -> Result<u64, VmxError> {
        self.window.read(EXIT_QUALIFICATION)
    }

    /// True when the exit's exception was raised by INT1.
    pub fn exited_by_int1(&self) -> Result<bool, VmxError> {
        exit::by_int1(&self.window)
    }

    /// True while STI or MOV SS keeps interrupts from the next instruction.
    #[inline]
    pub fn interrupt_shadow(&self) -> Result<bool, VmxError> {
        Ok(self.window.read(GUEST_INTERRUPTIBILITY)? & INTERRUPT_SHADOW != 0)
    }

    /// Ends such a shadow: an instruction has been completed.
    #[inline]
    pub fn clear_interrupt_shadow(&mut self) -> Result<(), VmxError> {
        let state = self.window.read(GUEST_INTERRUPTIBILITY)?;
        if state & INTERRUPT_SHADOW != 0 {
            self.window
                .write(GUEST_INTERRUPTIBILITY, state & !INTERRUPT_SHADOW)?;
        }
        Ok(())
    }

    /// CR0 as the guest sees it.
    pub fn cr0(&self) -> Result<u64, VmxError> {
        Ok(self.window.read(GUEST_CR0)? & CR0_GUEST_OWNED
            | self.window.read(CR0_SHADOW)? & !CR0_GUEST_OWNED)
    }

    /// Sets CR0 as the guest sees it; the caller has checked it. Bits without a meaning are kept
    /// for reading only.
    pub fn set_cr0(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(CR0_SHADOW, value)?;
        let meant = value & Cr0::NAMED.raw();
        self.window
            .write(GUEST_CR0, (meant | self.caps.cr0.ones) & !CR0_NEVER)
    }

    /// CR3.
    pub fn cr3(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_CR3)
    }

    /// Sets CR3.
    pub fn set_cr3(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_CR3, value)
    }

    /// CR4 as the guest sees it.
    pub fn cr4(&self) -> Result<u64, VmxError> {
        Ok(self.window.read(GUEST_CR4)? & CR4_GUEST_OWNED
            | self.window.read(CR4_SHADOW)? & !CR4_GUEST_OWNED)
    }

    /// Sets CR4 as the guest sees it; the caller has checked it.
    pub fn set_cr4(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(CR4_SHADOW, value)?;
        // Machine checks are the host's, whatever the guest wants: without CR4.MCE one of them shuts
        // the CPU down.
        let machine_checks = switch::host_cr4(self.window.irqs()) & Cr4::MCE.raw();
        let value = value | machine_checks | self.caps.cr4.ones;
        self.window.write(GUEST_CR4, value)
    }

    /// EFER.
    pub fn efer(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_EFER)
    }

    /// Sets EFER, with LMA as the guest's mode is now.
    pub fn set_efer(&mut self, value: u64) -> Result<(), VmxError> {
        let controls = if value & EFER_LMA != 0 {
            *self.entry_controls | entry::IA32E_GUEST
        } else {
            *self.entry_controls & !entry::IA32E_GUEST
        };
        if controls != *self.entry_controls {
            // SAFETY: The guest's own mode.
            unsafe { self.window.write_host(ENTRY_CONTROLS, controls) }?;
            *self.entry_controls = controls;
        }
        self.window.write(GUEST_EFER, value)
    }

    /// The four page-directory-pointer entries of PAE paging.
    pub fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), VmxError> {
        let [zero, one, two, three] = entries;
        self.window.write(GUEST_PDPTE0, zero)?;
        self.window.write(GUEST_PDPTE1, one)?;
        self.window.write(GUEST_PDPTE2, two)?;
        self.window.write(GUEST_PDPTE3, three)
    }

    /// DR7.
    pub fn dr7(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_DR7)
    }

    /// Sets DR7.
    pub fn set_dr7(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_DR7, value)
    }

    /// IA32_PAT.
    pub fn pat(&self) -> Result<u64, VmxError> {
        self.window.read(GUEST_PAT)
    }

    /// Sets IA32_PAT.
    pub fn set_pat(&mut self, value: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_PAT, value)
    }

    /// Sets IA32_SYSENTER_CS, ESP and EIP.
    pub fn set_sysenter(&mut self, cs: u32, esp: u64, eip: u64) -> Result<(), VmxError> {
        self.window.write(GUEST_SYSENTER_CS, cs)?;
        self.window.write(GUEST_SYSENTER_ESP, esp)?;
        self.window.write(GUEST_SYSENTER_EIP, eip)
    }

    /// A segment register.
    pub fn segment(&self, which: SegmentRegister) -> Result<Segment, VmxError> {
        let fields = &SegmentFields::ALL[which as usize];
        Ok(Segment {
            selector: self.window.read(fields.selector)?,
            base: self.window.read(fields.base)?,
            limit: self.window.read(fields.limit)?,
            rights: AccessRights::from_raw(self.window.read(fields.access_rights)?),
        })
    }

    /// Base of a segment register.
    pub fn segment_base(&self, which: SegmentRegister) -> Result<u64, VmxError> {
        self.window.read(SegmentFields::ALL[which as usize].base)
    }

    /// Sets a segment register.
    pub fn set_segment(
        &mut self,
        which: SegmentRegister,
        segment: &Segment,
    ) -> Result<(), VmxError> {
        let fields = &SegmentFields::ALL[which as usize];
        self.window.write(fields.selector, segment.selector)?;
        self.window.write(fields.base, segment.base)?;
        self.window.write(fields.limit, segment.limit)?;
        self.window
            .write(fields.access_rights, segment.rights.raw())
    }

    /// Access rights of CS, and CPL from those of SS.
    pub fn code_rights_and_cpl(&self) -> Result<(AccessRights, u8), VmxError> {
        let cs = self.window.read(SegmentFields::CS.access_rights)?;
        let ss = self.window.read(SegmentFields::SS.access_rights)?;
        Ok((AccessRights::from_raw(cs), AccessRights::from_raw(ss).dpl()))
    }

    /// GDTR.
    pub fn gdtr(&self) -> Result<TableRegister, VmxError> {
        Ok(TableRegister {
            base: self.window.read(GUEST_GDTR_BASE)?,
            limit: self.window.read(GUEST_GDTR_LIMIT)? as u16,
        })
    }

    /// Sets GDTR.
    pub fn set_gdtr(&mut self, table: TableRegister) -> Result<(), VmxError> {
        self.window.write(GUEST_GDTR_BASE, table.base)?;
        self.window.write(GUEST_GDTR_LIMIT, u32::from(table.limit))
    }

    /// IDTR.
    pub fn idtr(&self) -> Result<TableRegister, VmxError> {
        Ok(TableRegister {
            base: self.window.read(GUEST_IDTR_BASE)?,
            limit: self.window.read(GUEST_IDTR_LIMIT)? as u16,
        })
    }

    /// Sets IDTR.
    pub fn set_idtr(&mut self, table: TableRegister) -> Result<(), VmxError> {
        self.window.write(GUEST_IDTR_BASE, table.base)?;
        self.window.write(GUEST_IDTR_LIMIT, u32::from(table.limit))
    }

    /// Forgets what this CPU has cached of the guest's own tables, as a change of CR0 or CR4
    /// demands.
    pub fn flush_guest_tables(&self) -> Result<(), VmxError> {
        if self.vpid == 0 {
            // Without a VPID every entry flushes.
            return Ok(());
        }
        tlb::flush_vpid(self.window.irqs(), self.vpid)
    }

    /// Forgets what this CPU has cached of the guest's nested tables.
    #[inline]
    pub fn flush_nested(&self) -> Result<(), VmxError> {
        tlb::flush_ept(self.caps, self.window.irqs(), self.eptp)
    }

    /// Interrupts are off while this lives.
    #[inline]
    pub fn irqs(&self) -> &IrqsOff {
        self.window.irqs()
    }
}

#[kunit_tests(rusthv_guest)]
mod tests {
    use super::*;
    use crate::device::MACHINE;
    use crate::host::cpu::current_node;
    use crate::model::exit::EventKind;

    /// Write-back tables, walk length 4, at a frame that no entry ever walks.
    const NO_TABLES: u64 = 0x1000 | 3 << 3 | 6;

    struct Nothing;

    impl KeepAlive for Nothing {}

    fn guest() -> Result<Guest> {
        let machine = MACHINE.get()?;
        let root = NestedRoot::new(NO_TABLES, Arc::new(Nothing, GFP_KERNEL)?);
        Guest::new(
            &machine.caps,
            &machine.bitmap,
            root,
            0x1234_5678,
            current_node(),
        )
    }

    // Nothing is asserted while a window is open: a failed assertion ends the thread at once, and
    // would leave interrupts off.

    /// Reads of low and high MSRs, then writes of both, bit by bit.
    #[test]
    fn bitmap_lets_through_what_is_listed() -> Result {
        const BOTH: [u32; 6] = [0x174, 0x175, 0x176, 0xc000_0100, 0xc000_0101, 0xc000_0102];
        const TSC: u32 = 0x10;
        let mut bitmap = MsrBitmap::new(current_node())?;
        let bits = bitmap.0.bytes_mut();
        let mut wrong = 0;
        for (quarter, bytes) in bits.chunks(1024).enumerate() {
            let first = if quarter % 2 == 0 { 0 } else { 0xc000_0000 };
            let write = quarter >= 2;
            for index in 0..8192u32 {
                let byte = bytes.get(index as usize / 8).copied().unwrap_or(0);
                let exits = byte >> (index % 8) & 1 != 0;
                let msr = first + index;
                let free = BOTH.contains(&msr) || (msr == TSC && !write);
                wrong += u32::from(exits == free);
            }
        }
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn controls_reach_the_vmcs() -> Result {
        let machine = MACHINE.get()?;
        let caps = &machine.caps;
        let mut guest = guest()?;
        let vpid = guest.vpid.as_ref().map_or(0, Vpid::number);
        let window = guest.open()?;
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
            (w.read(MSR_BITMAP)?, machine.bitmap.0.hpa().raw()),
            (w.read(EPT_POINTER)?, NO_TABLES),
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
        let mut guest = guest()?;
        let mut window = guest.open()?;
        window.set_rip(0xffff_8000_0000_1000)?;
        window.set_rsp(0x7fff_ffff_f000)?;
        window.set_rflags(0x246 & !2)?;
        window.set_cr3(0x1234_5000)?;
        window.set_dr7(0x400)?;
        window.set_pat(0x0007_0406_0007_0406)?;
        window.set_gdtr(TableRegister {
            base: 0xffff_8000_0000_2000,
            limit: 0x7f,
        })?;
        window.set_idtr(TableRegister {
            base: 0x3000,
            limit: 0xffff,
        })?;
        let scalars = [
            (window.rip()?, 0xffff_8000_0000_1000),
            (window.rsp()?, 0x7fff_ffff_f000),
            // Bit 1 is always set.
            (window.rflags()?, 0x246),
            (window.cr3()?, 0x1234_5000),
            (window.dr7()?, 0x400),
            (window.pat()?, 0x0007_0406_0007_0406),
        ];
        let tables = (window.gdtr()?, window.idtr()?);
        drop(window);
        for (found, wanted) in scalars {
            assert_eq!(found, wanted);
        }
        assert_eq!(tables.0.base, 0xffff_8000_0000_2000);
        assert_eq!(tables.0.limit, 0x7f);
        assert_eq!((tables.1.base, tables.1.limit), (0x3000, 0xffff));
        Ok(())
    }

    /// Each segment register has fields of its own.
    #[test]
    fn segments_do_not_mix() -> Result {
        const ALL: [SegmentRegister; 8] = [
            SegmentRegister::Es,
            SegmentRegister::Cs,
            SegmentRegister::Ss,
            SegmentRegister::Ds,
            SegmentRegister::Fs,
            SegmentRegister::Gs,
            SegmentRegister::Ldtr,
            SegmentRegister::Tr,
        ];
        let segment = |index: usize| Segment {
            selector: 0x100 + 8 * index as u16,
            base: 0x1_0000 * (index as u64 + 1),
            limit: 0xfff + index as u32,
            rights: AccessRights::from_raw(0xc093 + (index as u32 & 1)),
        };
        let mut guest = guest()?;
        let mut window = guest.open()?;
        for (index, &which) in ALL.iter().enumerate() {
            window.set_segment(which, &segment(index))?;
        }
        let mut right = 0;
        for (index, &which) in ALL.iter().enumerate() {
            let (found, wanted) = (window.segment(which)?, segment(index));
            right += usize::from(
                found.selector == wanted.selector
                    && found.base == wanted.base
                    && found.limit == wanted.limit
                    && found.rights.raw() == wanted.rights.raw(),
            );
        }
        drop(window);
        assert_eq!(right, ALL.len());
        Ok(())
    }

    /// The guest reads what it wrote; the CPU gets what VMX operation and the host want.
    #[test]
    fn control_registers_have_two_faces() -> Result {
        const PE: u64 = 1 << 0;
        const CD_NW: u64 = 3 << 29;
        const CR4_VMXE: u64 = 1 << 13;
        let caps = &MACHINE.get()?.caps;
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
            assert!(caps.cr0.allow(cpus));
            assert_eq!(cpus & CD_NW, 0);
            assert_eq!((cpus ^ value) & (PE | 1 << 31), 0);
        }
        let mut window = guest.open()?;
        window.set_cr4(0x6a0)?;
        let (guests, cpus) = (window.cr4()?, window.window.read(GUEST_CR4)?);
        drop(window);
        assert_eq!(guests, 0x6a0);
        // Machine checks may be on as they are for the host.
        let theirs = caps.cr4.ones | Cr4::MCE.raw();
        assert_eq!(cpus & !theirs, 0x6a0 & !theirs);
        assert!(caps.cr4.allow(cpus));
        assert!(cpus & CR4_VMXE != 0);
        Ok(())
    }

    /// The entry control "IA-32e mode guest" says what EFER.LMA says.
    #[test]
    fn long_mode_is_an_entry_control() -> Result {
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
        let caps = &MACHINE.get()?.caps;
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

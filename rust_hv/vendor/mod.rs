// SPDX-License-Identifier: GPL-2.0

//! The seam: what the hypervisor asks of a CPU vendor's virtualization.
//!
//! The rooms below it (`vmx`, `svm`) implement [`Vendor`]; the rooms above it (`mmu`, `vcpu`, `vm`)
//! are generic over it and name no vendor. Which one it is, is settled once, at load: there is no
//! choice left to make on the way of an exit.
//!
//! The words of the interface are the architecture's. Where the vendors' hardware differs in kind,
//! the difference is in the type: [`Exit::Fetch`] for CPUs that do not say what instruction made
//! the exit, [`Visit`] for translations that are tagged by VM or by vCPU.

#[cfg(CONFIG_KUNIT = "y")]
pub mod checks;
pub mod flush;

use crate::host::cpu::{CpuEvents, IrqsOff};
use crate::host::fpu::FpuInUse;
use crate::host::frame::Place;
use crate::host::switch::{HostSwitch, Leaves, Running, UserMsr};
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::{Gva, Hpa};
use crate::model::arch::intercept::{Intercepted, Numbers, SwitchedMsr};
use crate::model::arch::segment::{AccessRights, Segment};
use crate::model::emulate::SegmentName;
use crate::model::exit::{Event, Exit};
use crate::model::paging::nested::Nested;
pub use crate::model::paging::tlb::Visit;
use flush::{FlushKind, Flushes};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Why a virtualization instruction failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HwError {
    /// There is no current guest state to act on (VT-x: VMfailInvalid).
    NoCurrentState,
    /// The CPU's own number for the error (VT-x: VMfailValid with the VM-instruction error; SDM
    /// Vol. 3C, "VM Instruction Error Numbers").
    Instruction(u32),
    /// The instruction faulted: virtualization is off on the CPU, as in a reboot.
    Fault,
}

impl From<HwError> for Error {
    fn from(error: HwError) -> Self {
        log(error);
        EIO
    }
}

#[cold]
fn log(error: HwError) {
    use kernel::sync::atomic::{ordering::Relaxed, Atomic};
    // A guest must not be able to fill the log, whatever makes its state fail.
    static LEFT: Atomic<i32> = Atomic::new(16);
    if LEFT.fetch_sub(1, Relaxed) > 0 {
        pr_err!("a virtualization instruction failed: {:?}\n", error);
    } else {
        LEFT.store(0, Relaxed);
    }
}

/// Bits of a control register that guest operation fixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedBits {
    /// Bits that must be 1.
    pub ones: u64,
    /// Bits that may be 1.
    pub allowed: u64,
}

impl FixedBits {
    /// True when the CPU can run a guest with the value.
    #[inline]
    pub const fn allow(&self, value: u64) -> bool {
        value & self.ones == self.ones && value & !self.allowed == 0
    }
}

/// What the CPUs of this machine can do for guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// CR0 of guests; real mode and unpaged mode are always possible.
    pub cr0: FixedBits,
    /// CR4 of guests.
    pub cr4: FixedBits,
    /// `RUSTHV_FEAT_*` that are used.
    pub present: u64,
    /// `RUSTHV_FEAT_*` that the CPU lacks.
    pub missing: u64,
    /// What the CPU calls the layout of its guest states.
    pub revision: u32,
    /// Width of a guest-physical address, in bits: what CPU and nested tables both have.
    pub phys_bits: u32,
    /// Guests without nested tables can be in real mode.
    pub software_real_mode: bool,
}

impl Caps {
    /// True when a `RUSTHV_FEAT_*` is used.
    #[inline]
    pub const fn has(&self, feature: u32) -> bool {
        self.present & feature as u64 != 0
    }
}

/// Segment registers; the first six in the order of the instruction encoding.
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

impl From<SegmentName> for SegmentRegister {
    fn from(name: SegmentName) -> Self {
        match name {
            SegmentName::Es => Self::Es,
            SegmentName::Cs => Self::Cs,
            SegmentName::Ss => Self::Ss,
            SegmentName::Ds => Self::Ds,
            SegmentName::Fs => Self::Fs,
            SegmentName::Gs => Self::Gs,
        }
    }
}

/// Rights of the segments after a reset in which the vendors' CPUs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRights {
    /// CS.
    pub code: AccessRights,
    /// SS.
    pub stack: AccessRights,
    /// TR.
    pub task: AccessRights,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// What keeps nested tables alive.
pub trait KeepAlive: Send + Sync {
    /// Where flushes of what comes from them are counted.
    fn flushes(&self) -> &Flushes;
}

/// The nested tables of a guest.
#[derive(Clone)]
pub struct NestedRoot {
    table: Hpa,
    keep: Arc<dyn KeepAlive>,
    log: Option<Arc<WriteLog>>,
}

impl NestedRoot {
    /// `table` is the root of tables in the vendor's format that map memory of this guest alone,
    /// and that live as long as `keep`. Only the room that edits the tables makes one.
    pub fn new(table: Hpa, keep: Arc<dyn KeepAlive>) -> Self {
        Self {
            table,
            keep,
            log: None,
        }
    }

    /// The same, for a vCPU whose writes the CPU is to log: see `Notice::Log`.
    pub fn with_log(mut self, log: Option<Arc<WriteLog>>) -> Self {
        self.log = log;
        self
    }

    /// Where the CPU is to log the vCPU's writes.
    pub fn log(&self) -> Option<&WriteLog> {
        self.log.as_deref()
    }

    /// Address of the root table.
    pub fn table(&self) -> Hpa {
        self.table
    }

    /// Counts a flush.
    #[inline]
    pub fn count(&self, kind: FlushKind) {
        self.keep.flushes().count(kind);
    }
}

/// How a guest's addresses become the host's.
#[derive(Clone)]
pub enum Translation {
    /// The CPU walks the guest's own tables, and these behind them.
    Nested(NestedRoot),
    /// The CPU walks tables from guest-linear to host-physical addresses, at
    /// [`Window::set_root`]; they live as long as what is here. The guest's own are walked by the
    /// hypervisor: page faults, INVLPG, INVPCID and accesses to CR3 exit.
    Software(Arc<dyn KeepAlive>),
}

impl Translation {
    /// Counts a flush.
    #[inline]
    pub fn count(&self, kind: FlushKind) {
        match self {
            Self::Nested(root) => root.count(kind),
            Self::Software(keep) => keep.flushes().count(kind),
        }
    }
}

/// A CPU vendor's virtualization.
pub trait Vendor: Sized + Send + Sync + 'static {
    /// A vCPU's state in the form of the hardware.
    type Guest: Guest;
    /// What happens when CPUs come and go.
    type Cpus: CpuEvents;

    /// What exits of the guests of a VM that has a say in it.
    type Intercepts: Intercepts;

    /// What an exit leaves as the guest had it.
    const LEAVES: Leaves;

    /// What guests can have.
    fn caps(&self) -> &Caps;

    /// Format of the nested tables.
    fn format(&self) -> Nested;

    /// What exits of guests that have no say in it, to be changed.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn intercepts(&self, place: Place) -> Result<Self::Intercepts>;

    /// A guest whose memory is behind `translation`, with its controls set and its registers all zero.
    /// `tsc_offset` is added to the host's time-stamp counter.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EIO` when the CPU refuses a control.
    fn guest(
        &'static self,
        translation: Translation,
        intercepts: Option<Arc<Self::Intercepts>>,
        tsc_offset: u64,
        place: Place,
    ) -> Result<Self::Guest>;
}

/// What exits: accesses to ports and MSRs, by their numbers.
pub trait Intercepts: Send + Sync + 'static {
    /// Makes accesses exit from now on, or not. Whoever lets some through has checked that the guest
    /// may have them ([`crate::model::arch::intercept::may_pass`]).
    ///
    /// # Errors
    ///
    /// `EINVAL` for numbers about which the CPU cannot be told; nothing has changed then.
    /// `EOPNOTSUPP` where it cannot be told at all.
    fn set(&mut self, what: Intercepted, numbers: Numbers, exits: bool) -> Result;
}

/// A vCPU as the hardware sees it.
pub trait Guest: Send + 'static {
    /// See [`Window`].
    type Window<'a>: Window
    where
        Self: 'a;

    /// Segments after a reset.
    const RESET: ResetRights;

    /// Makes the guest current; interrupts are off until the window is dropped.
    ///
    /// # Errors
    ///
    /// `EIO` when an instruction failed.
    fn open(&mut self) -> Result<Self::Window<'_>>;

    /// True once after the guest has come to another CPU.
    fn has_moved(&mut self) -> bool;

    /// NUMA node of the frame that the CPU keeps the guest's state in.
    fn node(&self) -> i32;

    /// Moves the state to a frame at another place. What the last exit has told is lost.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EIO`, `EINTR`: the state stays where it is.
    fn move_to(&mut self, place: Place) -> Result;

    /// General-purpose registers in the order of the instruction encoding. RSP is not among them:
    /// see [`Window::rsp`].
    fn gprs_mut(&mut self) -> &mut [u64; 16];

    /// CR2 of the guest.
    fn cr2(&self) -> u64;

    /// Sets CR2 of the guest.
    fn set_cr2(&mut self, value: u64);
}

/// What few entries do.
pub struct More<'a> {
    /// The guest's breakpoint addresses and DR6 are in the CPU.
    pub breakpoints: Option<(&'a [u64; 4], u64)>,
    /// Ticks of the time-stamp counter from just before the entry to just after the exit are
    /// added here.
    pub ticks: Option<&'a mut u64>,
}

/// A guest that is current on this CPU: its registers can be reached, and it can be entered.
///
/// Setters do not check: whoever calls them has checked that the guest's CPU could hold the value.
/// Whatever they are given, the host is safe: a state that the CPU refuses is an
/// [`Exit::EntryFailed`].
pub trait Window {
    /// Interrupts are off while this lives.
    fn irqs(&self) -> &IrqsOff;

    /// Makes sure that the next entry uses no translation from before the last change of the
    /// nested tables. True when something had to be forgotten for it.
    fn follow(&mut self, visit: Visit) -> Result<bool, HwError>;

    /// Runs the guest until it exits. With `xcr0` other than [`crate::host::msr::SAME_XCR0`] the
    /// guest has an XCR0 of its own.
    ///
    /// # Errors
    ///
    /// [`HwError::Fault`] and [`HwError::NoCurrentState`]. What the CPU has against the guest is
    /// an [`Exit::EntryFailed`].
    fn enter(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
    ) -> Result<Exit, HwError>;

    /// As [`Window::enter`], and more than most entries do.
    fn enter_with(
        &mut self,
        running: &Running<'_>,
        fpu: &FpuInUse<'_>,
        xcr0: u64,
        more: More<'_>,
    ) -> Result<Exit, HwError>;

    /// After [`Exit::LogFull`], when the log has been emptied: the CPU is to fill it again.
    fn restart_log(&mut self) -> Result<(), HwError>;

    /// After [`Exit::Fetch`]: what the exit is, now that the instruction's bytes are there. `None`
    /// when they are not those of an instruction that could have made it: another CPU has changed
    /// them, and the guest has to be entered again.
    fn identify(&mut self, code: &[u8]) -> Result<Option<Exit>, HwError>;

    /// The event whose delivery the last exit interrupted.
    fn interrupted_event(&self) -> Result<Option<Event>, HwError>;

    /// What `KVM_INTERNAL_ERROR_DELIVERY_EV` tells of an event whose delivery failed: vectoring
    /// information, exit reason and qualification, in the hardware's encoding.
    fn delivery_details(&self, event: Option<&Event>) -> Result<[u64; 3], HwError>;

    /// Injects an event at the next entry.
    fn inject(&mut self, event: &Event) -> Result<(), HwError>;

    /// Takes back an injection that was not entered with.
    fn cancel_injection(&mut self) -> Result<(), HwError>;

    /// Asks for an exit as soon as the guest can take an interrupt.
    fn want_interrupt_window(&mut self, want: bool) -> Result<(), HwError>;

    /// Tells the CPU of CR8, where it answers the guest's reads of CR8 itself. Writes exit.
    fn set_task_priority(&mut self, cr8: u64) -> Result<(), HwError>;

    /// Which of RDTSCP and INVPCID the guest has; without, they are undefined instructions.
    fn offer(&mut self, rdtscp: bool, invpcid: bool) -> Result<(), HwError>;

    /// As [`Guest::gprs_mut`].
    fn gprs_mut(&mut self) -> &mut [u64; 16];

    /// As [`Guest::set_cr2`].
    fn set_cr2(&mut self, value: u64);

    /// Instruction pointer.
    fn rip(&self) -> Result<u64, HwError>;

    /// Sets the instruction pointer.
    fn set_rip(&mut self, value: u64) -> Result<(), HwError>;

    /// Stack pointer.
    fn rsp(&self) -> Result<u64, HwError>;

    /// Sets the stack pointer.
    fn set_rsp(&mut self, value: u64) -> Result<(), HwError>;

    /// RFLAGS.
    fn rflags(&self) -> Result<u64, HwError>;

    /// Sets RFLAGS; bit 1 is always set in the CPU.
    fn set_rflags(&mut self, value: u64) -> Result<(), HwError>;

    /// Length of the instruction that exited, in bytes; for exits by instructions.
    fn instruction_len(&self) -> Result<u32, HwError>;

    /// After a #DB: what it adds to DR6.
    fn debug_conditions(&self) -> Result<u64, HwError>;

    /// True when the exit's exception was raised by INT1.
    fn exited_by_int1(&self) -> Result<bool, HwError>;

    /// True while STI or MOV SS keeps interrupts from the next instruction.
    fn interrupt_shadow(&self) -> Result<bool, HwError>;

    /// Ends such a shadow: an instruction has been completed.
    fn clear_interrupt_shadow(&mut self) -> Result<(), HwError>;

    /// CR0 as the guest sees it.
    fn cr0(&self) -> Result<u64, HwError>;

    /// Sets CR0 as the guest sees it. Bits without a meaning are kept for reading only.
    fn set_cr0(&mut self, value: u64) -> Result<(), HwError>;

    /// With [`Translation::Software`]: the root of the tables that the CPU walks; as for CR3, it is
    /// four pointers below 4 GiB for a guest that is not in long mode. Forgets translations.
    fn set_root(&mut self, root: Hpa) -> Result<(), HwError>;

    /// CR3 as the guest sees it.
    fn cr3(&self) -> Result<u64, HwError>;

    /// Sets CR3 as the guest sees it.
    fn set_cr3(&mut self, value: u64) -> Result<(), HwError>;

    /// CR4 as the guest sees it.
    fn cr4(&self) -> Result<u64, HwError>;

    /// Sets CR4 as the guest sees it.
    fn set_cr4(&mut self, value: u64) -> Result<(), HwError>;

    /// EFER as the guest sees it.
    fn efer(&self) -> Result<u64, HwError>;

    /// Sets EFER, with LMA as the guest's mode is now.
    fn set_efer(&mut self, value: u64) -> Result<(), HwError>;

    /// The four page-directory-pointer entries of PAE paging, where the CPU holds them.
    fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), HwError>;

    /// DR7.
    fn dr7(&self) -> Result<u64, HwError>;

    /// Sets DR7.
    fn set_dr7(&mut self, value: u64) -> Result<(), HwError>;

    /// IA32_PAT.
    fn pat(&self) -> Result<u64, HwError>;

    /// Sets IA32_PAT.
    fn set_pat(&mut self, value: u64) -> Result<(), HwError>;

    /// IA32_TIME_STAMP_COUNTER as the guest would read it now.
    fn time_stamp(&self) -> Result<u64, HwError>;

    /// An MSR that is switched with the guest, which otherwise reaches it without an exit.
    fn switched_msr(&self, switch: &HostSwitch, which: SwitchedMsr) -> Result<u64, HwError>;

    /// Sets such an MSR; addresses are canonical.
    fn set_switched_msr(
        &mut self,
        switch: &HostSwitch,
        which: SwitchedMsr,
        value: u64,
    ) -> Result<(), HwError>;

    /// Sets IA32_SYSENTER_CS, ESP and EIP.
    fn set_sysenter(&mut self, cs: u32, esp: u64, eip: u64) -> Result<(), HwError>;

    /// An MSR of the guest's that matters in user space alone.
    fn user_msr(&self, switch: &HostSwitch, which: UserMsr) -> u64;

    /// Sets such an MSR, which the CPU must accept.
    fn set_user_msr(&mut self, switch: &HostSwitch, which: UserMsr, value: u64);

    /// A segment register.
    fn segment(&self, which: SegmentRegister) -> Result<Segment, HwError>;

    /// Base of a segment register.
    fn segment_base(&self, which: SegmentRegister) -> Result<u64, HwError>;

    /// Sets a segment register.
    fn set_segment(&mut self, which: SegmentRegister, segment: &Segment) -> Result<(), HwError>;

    /// Access rights of CS, and CPL.
    fn code_rights_and_cpl(&self) -> Result<(AccessRights, u8), HwError>;

    /// GDTR.
    fn gdtr(&self) -> Result<TableRegister, HwError>;

    /// Sets GDTR.
    fn set_gdtr(&mut self, table: TableRegister) -> Result<(), HwError>;

    /// IDTR.
    fn idtr(&self) -> Result<TableRegister, HwError>;

    /// Sets IDTR.
    fn set_idtr(&mut self, table: TableRegister) -> Result<(), HwError>;

    /// Forgets what this CPU has cached of one linear address of the guest's.
    fn flush_address(&mut self, address: Gva) -> Result<(), HwError>;

    /// Forgets what this CPU has cached of the guest's own tables, as a change of CR0 or CR4
    /// demands; or of those that stand for them.
    fn flush_guest_tables(&mut self) -> Result<(), HwError>;
}

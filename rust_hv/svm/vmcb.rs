// SPDX-License-Identifier: GPL-2.0

//! The virtual machine control block (APM Vol. 2, appendix "Layout of VMCB"), as a type, and the
//! page that holds one.

use crate::host::frame::{Frame, Place};
use crate::model::arch::addr::{Hpa, PAGE_SIZE};
use core::mem::offset_of;
use core::ptr::copy_nonoverlapping;
use kernel::prelude::*;

/// Intercept bits, by word of the vector (APM Vol. 2, table "VMCB Layout, Control Area").
pub mod intercept {
    /// Word 0: reads of CR0.
    pub const CR0_READ: u32 = 1 << 0;
    /// Word 0: reads of CR3.
    pub const CR3_READ: u32 = 1 << 3;
    /// Word 0: reads of CR4.
    pub const CR4_READ: u32 = 1 << 4;
    /// Word 0: writes of CR0, CLTS and LMSW among them.
    pub const CR0_WRITE: u32 = 1 << 16;
    /// Word 0: writes of CR3.
    pub const CR3_WRITE: u32 = 1 << 19;
    /// Word 0: writes of CR4.
    pub const CR4_WRITE: u32 = 1 << 20;
    /// Word 0: writes of CR8.
    pub const CR8_WRITE: u32 = 1 << 24;
    /// Word 1: reads and writes of all debug registers.
    pub const DEBUG_REGISTERS: u32 = 0x00ff_00ff;
    /// Word 2: #DB and #AC, as a guest can raise them without end while one is being delivered;
    /// #MC, which is the host's.
    pub const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
    /// Word 2: #PF, where the hypervisor keeps the tables that the CPU walks.
    pub const PAGE_FAULT: u32 = 1 << 14;
    /// Word 3: physical interrupts.
    pub const INTR: u32 = 1 << 0;
    /// Word 3: NMIs.
    pub const NMI: u32 = 1 << 1;
    /// Word 3: SMIs.
    pub const SMI: u32 = 1 << 2;
    /// Word 3: INIT.
    pub const INIT: u32 = 1 << 3;
    /// Word 3: virtual interrupts.
    pub const VINTR: u32 = 1 << 4;
    /// Word 3: RDPMC.
    pub const RDPMC: u32 = 1 << 15;
    /// Word 3: CPUID.
    pub const CPUID: u32 = 1 << 18;
    /// Word 3: RSM.
    pub const RSM: u32 = 1 << 19;
    /// Word 3: INVD.
    pub const INVD: u32 = 1 << 22;
    /// Word 3: HLT.
    pub const HLT: u32 = 1 << 24;
    /// Word 3: INVLPG.
    pub const INVLPG: u32 = 1 << 25;
    /// Word 3: INVLPGA.
    pub const INVLPGA: u32 = 1 << 26;
    /// Word 3: ports, by the map.
    pub const IO: u32 = 1 << 27;
    /// Word 3: MSRs, by the map.
    pub const MSR: u32 = 1 << 28;
    /// Word 3: task switches.
    pub const TASK_SWITCH: u32 = 1 << 29;
    /// Word 3: triple faults.
    pub const SHUTDOWN: u32 = 1 << 31;
    /// Word 4: VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
    pub const SVM_INSTRUCTIONS: u32 = 0x7f;
    /// Word 4: RDTSCP.
    pub const RDTSCP: u32 = 1 << 7;
    /// Word 4: INT1.
    pub const INT1: u32 = 1 << 8;
    /// Word 4: WBINVD and WBNOINVD.
    pub const WBINVD: u32 = 1 << 9;
    /// Word 4: MONITOR.
    pub const MONITOR: u32 = 1 << 10;
    /// Word 4: MWAIT, whether a monitor is armed or not.
    pub const MWAIT: u32 = 1 << 11 | 1 << 12;
    /// Word 4: XSETBV.
    pub const XSETBV: u32 = 1 << 13;
    /// Word 4: RDPRU.
    pub const RDPRU: u32 = 1 << 14;
    /// Word 5: INVPCID.
    pub const INVPCID: u32 = 1 << 2;
}

/// Bits of the virtual-interrupt word.
pub mod virtual_interrupt {
    /// The guest's CR8.
    pub const TASK_PRIORITY: u32 = 0xf;
    /// An interrupt is pending.
    pub const PENDING: u32 = 1 << 8;
    /// It has the highest priority, and the guest's task priority does not hold it back.
    pub const FOREMOST: u32 = 15 << 16 | 1 << 20;
    /// The guest's RFLAGS.IF and TPR have no say over physical interrupts.
    pub const MASKING: u32 = 1 << 24;
}

/// VMCB clean bits: what the CPU may take from its own copy (APM Vol. 2, "VMCB Clean Field").
pub mod clean {
    /// Intercepts and TSC offset.
    pub const INTERCEPTS: u32 = 1 << 0;
    /// The ASID.
    pub const ASID: u32 = 1 << 2;
    /// The virtual interrupt.
    pub const VIRTUAL_INTERRUPT: u32 = 1 << 3;
    /// Nested paging, and PAT.
    pub const NESTED_PAGING: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL_REGISTERS: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG_REGISTERS: u32 = 1 << 6;
    /// GDTR, IDTR.
    pub const TABLES: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEGMENTS: u32 = 1 << 8;
    /// CR2.
    pub const CR2: u32 = 1 << 9;
    /// Registers that VMRUN checks. With all of them clean, an entry does not fail: the guest has
    /// run with them, or has changed them by itself.
    pub const CHECKED: u32 = NESTED_PAGING | CONTROL_REGISTERS | DEBUG_REGISTERS | SEGMENTS;
    /// All of these, and the addresses of the permission maps, which never change.
    pub const ALL: u32 = 0x3ff;
}

/// What the next VMRUN flushes of the TLB.
pub mod tlb_control {
    /// Nothing.
    pub const NOTHING: u8 = 0;
    /// All translations of all ASIDs, the host's among them.
    pub const ALL: u8 = 1;
    /// Those of the guest's ASID.
    pub const ASID: u8 = 3;
}

/// Interrupt state: an interrupt shadow.
pub const INTERRUPT_SHADOW: u32 = 1 << 0;
/// Nested paging is on.
pub const NESTED_PAGING: u64 = 1 << 0;

/// The control area.
#[repr(C)]
pub struct Control {
    /// Intercepts: control registers, debug registers, exceptions, and three words of others.
    pub intercepts: [u32; 6],
    _reserved0: [u32; 9],
    _pause: [u16; 2],
    /// Map of ports.
    pub io_map: u64,
    /// Map of MSRs.
    pub msr_map: u64,
    /// Added to the time-stamp counter.
    pub tsc_offset: u64,
    /// Tag of the guest's translations.
    pub asid: u32,
    /// See [`tlb_control`].
    pub tlb_control: u8,
    _reserved1: [u8; 3],
    /// See [`virtual_interrupt`].
    pub virtual_interrupt: u32,
    _virtual_vector: u32,
    /// See [`INTERRUPT_SHADOW`].
    pub interrupt_state: u32,
    _reserved2: u32,
    /// Why the guest exited.
    pub exit_code: u64,
    /// Depends on the exit.
    pub exit_info1: u64,
    /// Depends on the exit.
    pub exit_info2: u64,
    /// The event whose delivery the exit interrupted.
    pub exit_event: u64,
    /// See [`NESTED_PAGING`].
    pub nested_control: u64,
    _avic_bar: u64,
    _ghcb: u64,
    /// The event to be injected.
    pub event: u64,
    /// Root of the nested tables.
    pub nested_cr3: u64,
    _virtualization: u64,
    /// See [`clean`].
    pub clean: u32,
    _reserved3: u32,
    /// Where execution goes on behind the instruction that exited, or 0.
    pub next_rip: u64,
    _fetched: [u8; 16],
    _reserved4: [u64; 100],
}

/// A segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Segment {
    /// What was loaded.
    pub selector: u16,
    /// Attributes; see `segment`.
    pub attributes: u16,
    /// Highest offset, in bytes.
    pub limit: u32,
    /// First byte.
    pub base: u64,
}

/// The state-save area.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Save {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// GDTR: limit and base.
    pub gdtr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR: limit and base.
    pub idtr: Segment,
    /// TR.
    pub tr: Segment,
    _reserved0: [u8; 43],
    /// Current privilege level.
    pub cpl: u8,
    _reserved1: u32,
    /// EFER; SVME is always on.
    pub efer: u64,
    _reserved2: [u64; 14],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    _reserved3: [u64; 11],
    /// RSP.
    pub rsp: u64,
    _shadow_stack: [u64; 3],
    /// RAX.
    pub rax: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    _reserved4: [u64; 4],
    /// PAT.
    pub pat: u64,
    _debugctl: u64,
    _branches: [u64; 4],
    _reserved5: [u64; 9],
    _spec_ctrl: u64,
}

/// A VMCB. Every bit pattern is a value of the type; what the CPU has against it, it says.
#[repr(C)]
pub struct Vmcb {
    /// How the guest runs.
    pub control: Control,
    /// The guest's registers.
    pub save: Save,
    _reserved: [u64; 291],
}

/// Offsets as in the APM.
const _: () = {
    assert!(offset_of!(Control, io_map) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, virtual_interrupt) == 0x60);
    assert!(offset_of!(Control, interrupt_state) == 0x68);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_event) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(size_of::<Segment>() == 16);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, sysenter_cs) == 0x228);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(offset_of!(Save, _spec_ctrl) == 0x2e0);
    assert!(size_of::<Vmcb>() == PAGE_SIZE as usize);
};

/// A zeroed frame that a CPU may be given for its own use while guests run.
///
/// CPUs with SEV-SNP mark such a frame as in use, and some mark the whole large page by mistake
/// when the frame is its first one.
///
/// # Errors
///
/// `ENOMEM`.
pub fn frame_for_cpu(place: impl Into<Place>) -> Result<Frame> {
    const LARGE_PAGE: u64 = 1 << 21;
    // Kept until there is another one.
    let mut refused = KVec::new();
    let place = place.into();
    loop {
        let frame = Frame::new(place)?;
        if frame.hpa().raw() % LARGE_PAGE != 0 {
            return Ok(frame);
        }
        refused.push(frame, GFP_KERNEL)?;
    }
}

/// A VMCB in a frame of its own.
pub struct VmcbPage {
    frame: Frame,
    hpa: Hpa,
}

impl VmcbPage {
    /// All zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(place: impl Into<Place>) -> Result<Self> {
        let frame = frame_for_cpu(place)?;
        let hpa = frame.hpa();
        Ok(Self { frame, hpa })
    }

    /// The same in another frame: all of it, as the CPU may keep more than is known here.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn copy_to(&self, place: impl Into<Place>) -> Result<Self> {
        let new = Self::new(place)?;
        // SAFETY: Two whole frames; nobody else knows the new one, and what writes the old one asks for a
        // mutable borrow.
        unsafe { copy_nonoverlapping(self.frame.as_ptr(), new.frame.as_ptr(), PAGE_SIZE as usize) };
        Ok(new)
    }

    /// Its address for the CPU.
    #[inline]
    pub fn hpa(&self) -> Hpa {
        self.hpa
    }

    /// NUMA node of its frame.
    pub fn node(&self) -> i32 {
        self.frame.node()
    }

    /// The VMCB. The CPU writes it in VMRUN and VMSAVE, for which a mutable borrow of the guest is
    /// asked.
    #[inline]
    pub fn get(&self) -> &Vmcb {
        // SAFETY: A whole frame, aligned, initialised, and borrowed with `self`.
        unsafe { &*self.frame.as_ptr().cast() }
    }

    /// The VMCB, to be written.
    #[inline]
    pub fn get_mut(&mut self) -> &mut Vmcb {
        // SAFETY: As in `get`; the borrow is exclusive.
        unsafe { &mut *self.frame.as_ptr().cast() }
    }
}

#[kunit_tests(rusthv_vmcb)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;

    /// Fields that the offsets above do not pin, found by writing them.
    #[test]
    fn fields_are_where_the_manual_has_them() -> Result {
        let mut page = VmcbPage::new(current_node())?;
        let vmcb = page.get_mut();
        vmcb.control.intercepts = [1, 2, 3, 4, 5, 6];
        vmcb.control.tlb_control = 0x11;
        vmcb.control.nested_cr3 = 0x2222;
        vmcb.save.gdtr.limit = 0x33;
        vmcb.save.idtr.base = 0x44;
        vmcb.save.cr0 = 0x55;
        vmcb.save.dr6 = 0x66;
        vmcb.save.rflags = 0x77;
        vmcb.save.star = 0x88;
        vmcb.save.sfmask = 0x99;
        let bytes = page.frame.bytes_mut();
        let word = |at: usize| {
            let mut word = [0u8; 4];
            for (to, from) in word.iter_mut().zip(bytes.iter().skip(at)) {
                *to = *from;
            }
            u32::from_le_bytes(word)
        };
        assert_eq!((word(0x00), word(0x08), word(0x14)), (1, 3, 6));
        assert_eq!((word(0x5c), word(0xb0)), (0x11, 0x2222));
        assert_eq!((word(0x464), word(0x488)), (0x33, 0x44));
        assert_eq!((word(0x558), word(0x568), word(0x570)), (0x55, 0x66, 0x77));
        assert_eq!((word(0x600), word(0x618)), (0x88, 0x99));
        Ok(())
    }

    #[test]
    fn frames_for_the_cpu_start_no_large_page() -> Result {
        let mut frames = KVec::new();
        for _ in 0..600 {
            frames.push(frame_for_cpu(current_node())?, GFP_KERNEL)?;
        }
        assert!(frames
            .iter()
            .all(|frame| frame.hpa().raw() % (1 << 21) != 0));
        Ok(())
    }
}

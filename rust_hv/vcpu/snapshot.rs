// SPDX-License-Identifier: GPL-2.0

//! A vCPU's registers outside the window: for work that may sleep, such as emulation.

use super::code::Code;
use super::cpuid::Facts;
use crate::model::arch::addr::Gva;
use crate::model::arch::regs::{Cr0, Cr4, Efer, Rflags};
use crate::model::arch::segment::Segment;
use crate::model::emulate::{Gpr, Mode, SegmentName};
use crate::model::paging::state::{Features, PagingState, Registers};
use crate::vendor::{HwError, SegmentRegister, Window};

/// The registers that an instruction can read or change.
pub struct Snapshot {
    gprs: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: Rflags,
    /// Current privilege level.
    pub cpl: u8,
    /// What a walk of the guest's tables depends on.
    pub paging: PagingState,
    /// STI or MOV SS keeps interrupts from the next instruction.
    pub interrupt_shadow: bool,
    cr0: Cr0,
    long: bool,
    segments: [Segment; 6],
}

const SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

const RSP: usize = 4;

/// What a walk of the guest's tables depends on.
#[inline]
pub fn paging_state(window: &impl Window, facts: &Facts) -> Result<PagingState, HwError> {
    let registers = Registers {
        cr0: Cr0::from_raw(window.cr0()?),
        cr3: window.cr3()?,
        cr4: Cr4::from_raw(window.cr4()?),
        efer: Efer::from_raw(window.efer()?),
        // No protection keys are offered.
        pkru: 0,
    };
    let features = Features {
        phys_bits: facts.phys_bits,
        pages_1g: facts.pages_1g,
        pse36: facts.pse36,
    };
    Ok(PagingState::new(registers, features, None))
}

impl Snapshot {
    /// Reads all of it into its place.
    pub fn take_into<'s>(
        place: &'s mut Option<Self>,
        window: &mut impl Window,
        facts: &Facts,
    ) -> Result<&'s mut Self, HwError> {
        *place = None;
        Ok(place.insert(Self::take(window, facts)?))
    }

    /// Reads all of it.
    #[inline]
    pub fn take(window: &mut impl Window, facts: &Facts) -> Result<Self, HwError> {
        let mut gprs = *window.gprs_mut();
        if let Some(rsp) = gprs.get_mut(RSP) {
            *rsp = window.rsp()?;
        }
        let efer = Efer::from_raw(window.efer()?);
        let (code, cpl) = window.code_rights_and_cpl()?;
        let mut segments = [Segment::default(); 6];
        for (segment, register) in segments.iter_mut().zip(SEGMENTS) {
            // 64-bit code looks at the bases of FS and GS, and at nothing else of any segment.
            let flat = efer.contains(Efer::LMA) && code.long();
            *segment = match register {
                SegmentRegister::Fs | SegmentRegister::Gs if flat => Segment {
                    base: window.segment_base(register)?,
                    ..Segment::default()
                },
                SegmentRegister::Cs if flat => Segment {
                    rights: code,
                    ..Segment::default()
                },
                _ if flat => Segment::default(),
                _ => window.segment(register)?,
            };
        }
        Ok(Self {
            gprs,
            rip: window.rip()?,
            rflags: Rflags::from_raw(window.rflags()?),
            cpl,
            paging: paging_state(window, facts)?,
            interrupt_shadow: window.interrupt_shadow()?,
            cr0: Cr0::from_raw(window.cr0()?),
            long: efer.contains(Efer::LMA),
            segments,
        })
    }

    /// Writes back what an instruction can change: general-purpose registers, RIP and RFLAGS.
    pub fn put(&self, window: &mut impl Window) -> Result<(), HwError> {
        *window.gprs_mut() = self.gprs;
        window.set_rsp(self.gprs.get(RSP).copied().unwrap_or(0))?;
        window.set_rip(self.rip)?;
        window.set_rflags(self.rflags.raw())
    }

    /// A general-purpose register.
    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gprs
            .get(usize::from(register.number()))
            .copied()
            .unwrap_or(0)
    }

    /// Sets a general-purpose register.
    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        if let Some(place) = self.gprs.get_mut(usize::from(register.number())) {
            *place = value;
        }
    }

    fn raw_segment(&self, name: SegmentName) -> &Segment {
        let [es, cs, ss, ds, fs, gs] = &self.segments;
        match name {
            SegmentName::Es => es,
            SegmentName::Cs => cs,
            SegmentName::Ss => ss,
            SegmentName::Ds => ds,
            SegmentName::Fs => fs,
            SegmentName::Gs => gs,
        }
    }

    /// A segment register.
    pub fn segment(&self, name: SegmentName) -> Segment {
        *self.raw_segment(name)
    }

    /// Protected mode, where segment types are checked.
    pub fn is_protected(&self) -> bool {
        self.cr0.contains(Cr0::PE) && !self.rflags.contains(Rflags::VM)
    }

    /// Misaligned accesses fault.
    pub fn is_alignment_checked(&self) -> bool {
        self.cr0.contains(Cr0::AM) && self.rflags.contains(Rflags::AC) && self.cpl == 3
    }

    /// Default sizes of the code that runs.
    pub fn mode(&self) -> Mode {
        let code = self.raw_segment(SegmentName::Cs).rights;
        Mode::new(self.long, code.long(), code.default_big())
    }

    /// A linear address as the mode has it: outside 64-bit mode they wrap at 4 GiB.
    pub fn wrap(&self, gva: Gva) -> Gva {
        match self.mode() {
            Mode::Bits64 => gva,
            Mode::Bits32 | Mode::Bits16 => Gva::new(gva.raw() & 0xffff_ffff),
        }
    }

    /// Where the instruction is.
    pub fn code(&self) -> Code<'_> {
        Code {
            mode: self.mode(),
            rip: self.rip,
            base: self.raw_segment(SegmentName::Cs).base,
            cpl: self.cpl,
            paging: &self.paging,
        }
    }
}

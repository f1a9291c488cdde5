// SPDX-License-Identifier: GPL-2.0

//! Control registers, EFER, RFLAGS and the debug registers' fixed bits.

use super::bits::bits;

bits! {
    /// CR0 (SDM Vol. 3A, "Control Registers").
    pub struct Cr0(u64) {
        /// Protection enable.
        PE = 1 << 0;
        /// Monitor coprocessor.
        MP = 1 << 1;
        /// Emulation.
        EM = 1 << 2;
        /// Task switched.
        TS = 1 << 3;
        /// Extension type; always 1.
        ET = 1 << 4;
        /// Numeric error.
        NE = 1 << 5;
        /// Write protect: supervisor writes honour read-only pages.
        WP = 1 << 16;
        /// Alignment mask.
        AM = 1 << 18;
        /// Not write-through.
        NW = 1 << 29;
        /// Cache disable.
        CD = 1 << 30;
        /// Paging.
        PG = 1 << 31;
    }
}

impl Cr0 {
    /// After a reset (SDM Vol. 3A, "Processor State After Reset").
    pub const RESET: Self = Self::from_raw(0x6000_0010);

    /// True when a MOV to CR0 of the value would not fault by itself: no reserved bit in the upper
    /// half, paging only with protection, not-write-through only without caching.
    pub const fn is_consistent(self) -> bool {
        self.raw() >> 32 == 0
            && (!self.contains(Self::PG) || self.contains(Self::PE))
            && (!self.contains(Self::NW) || self.contains(Self::CD))
    }
}

bits! {
    /// CR4 (SDM Vol. 3A, "Control Registers").
    pub struct Cr4(u64) {
        /// Virtual-8086 extensions.
        VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        PVI = 1 << 1;
        /// RDTSC at CPL 0 only.
        TSD = 1 << 2;
        /// Debugging extensions.
        DE = 1 << 3;
        /// 4 MiB pages in 32-bit paging.
        PSE = 1 << 4;
        /// 64-bit page-table entries.
        PAE = 1 << 5;
        /// Machine checks.
        MCE = 1 << 6;
        /// Global pages.
        PGE = 1 << 7;
        /// RDPMC at any CPL.
        PCE = 1 << 8;
        /// FXSAVE and SSE.
        OSFXSR = 1 << 9;
        /// SIMD floating-point exceptions.
        OSXMMEXCPT = 1 << 10;
        /// SGDT and the like at CPL 0 only.
        UMIP = 1 << 11;
        /// 57-bit linear addresses.
        LA57 = 1 << 12;
        /// VMX.
        VMXE = 1 << 13;
        /// SMX.
        SMXE = 1 << 14;
        /// RDFSBASE and the like at any CPL.
        FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        PCIDE = 1 << 17;
        /// XSAVE.
        OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        SMAP = 1 << 21;
        /// Protection keys of user pages.
        PKE = 1 << 22;
        /// Control-flow enforcement.
        CET = 1 << 23;
        /// Protection keys of supervisor pages.
        PKS = 1 << 24;
    }
}

impl Cr4 {
    /// Bits whose change makes TLB entries of the current address space stale (SDM Vol. 3A,
    /// "Operations that Invalidate TLBs and Paging-Structure Caches").
    pub const PAGING: Self = Self::from_raw(
        Self::PSE.raw()
            | Self::PAE.raw()
            | Self::PGE.raw()
            | Self::LA57.raw()
            | Self::PCIDE.raw()
            | Self::SMEP.raw()
            | Self::SMAP.raw()
            | Self::PKE.raw()
            | Self::PKS.raw(),
    );
}

bits! {
    /// IA32_EFER (SDM Vol. 4).
    pub struct Efer(u64) {
        /// SYSCALL enable.
        SCE = 1 << 0;
        /// Long mode enable.
        LME = 1 << 8;
        /// Long mode active.
        LMA = 1 << 10;
        /// No-execute enable.
        NXE = 1 << 11;
        /// AMD: SVM enable.
        SVME = 1 << 12;
    }
}

bits! {
    /// RFLAGS (SDM Vol. 1, "EFLAGS Register").
    pub struct Rflags(u64) {
        /// Carry.
        CF = 1 << 0;
        /// Always 1.
        FIXED = 1 << 1;
        /// Parity.
        PF = 1 << 2;
        /// Auxiliary carry.
        AF = 1 << 4;
        /// Zero.
        ZF = 1 << 6;
        /// Sign.
        SF = 1 << 7;
        /// Trap after the next instruction.
        TF = 1 << 8;
        /// Interrupts enabled.
        IF = 1 << 9;
        /// String instructions go down.
        DF = 1 << 10;
        /// Overflow.
        OF = 1 << 11;
        /// I/O privilege level, two bits.
        IOPL = 3 << 12;
        /// Nested task.
        NT = 1 << 14;
        /// Resume: no instruction breakpoint.
        RF = 1 << 16;
        /// Virtual-8086 mode.
        VM = 1 << 17;
        /// Alignment checks; with SMAP, supervisor access to user pages.
        AC = 1 << 18;
        /// Virtual interrupt flag.
        VIF = 1 << 19;
        /// Virtual interrupt pending.
        VIP = 1 << 20;
        /// CPUID may be used.
        ID = 1 << 21;
    }
}

/// DR6 with no condition in it.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 with no breakpoint in it.
pub const DR7_RESET: u64 = 0x400;
/// PAT after a reset: WB, WT, UC-, UC, twice (SDM Vol. 3A, "Page Attribute Table (PAT)").
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

// SPDX-License-Identifier: GPL-2.0

//! CPUID leaves and feature bits (SDM Vol. 2A, "CPUID").

/// Vendor, and the highest basic leaf.
pub const LEAF_VENDOR: u32 = 0;
/// Family, model, stepping; features.
pub const LEAF_FEATURES: u32 = 1;
/// Caches.
pub const LEAF_CACHES: u32 = 4;
/// MONITOR and MWAIT.
pub const LEAF_MWAIT: u32 = 5;
/// Power management.
pub const LEAF_POWER: u32 = 6;
/// More features.
pub const LEAF_EXTENDED_FEATURES: u32 = 7;
/// Performance counters.
pub const LEAF_PERFMON: u32 = 0xa;
/// Topology.
pub const LEAF_TOPOLOGY: u32 = 0xb;
/// XSAVE components.
pub const LEAF_XSAVE: u32 = 0xd;
/// Topology with dies and modules.
pub const LEAF_TOPOLOGY_V2: u32 = 0x1f;
/// Signature of the hypervisor, and its highest leaf.
pub const LEAF_HYPERVISOR: u32 = 0x4000_0000;
/// Features of the interface for KVM guests.
pub const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
/// Highest extended leaf.
pub const LEAF_EXTENDED_MAX: u32 = 0x8000_0000;
/// Extended features.
pub const LEAF_EXTENDED: u32 = 0x8000_0001;
/// First of the three leaves with the brand string.
pub const LEAF_BRAND: u32 = 0x8000_0002;
/// Advanced power management: invariant TSC.
pub const LEAF_ADVANCED_POWER: u32 = 0x8000_0007;
/// Widths of physical and linear addresses.
pub const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
/// AMD: SVM revision and features.
pub const LEAF_SVM: u32 = 0x8000_000a;

/// An output register of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// What CPUID returned for a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Registers {
    /// One of the registers.
    #[inline]
    pub const fn get(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// One of the registers, to change it.
    #[inline]
    pub fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// A feature: one bit of one register of one leaf (of subleaf 0, where there are some).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature {
    /// Leaf.
    pub leaf: u32,
    /// Register.
    pub register: Register,
    /// The bit, as a mask.
    pub mask: u32,
}

impl Feature {
    const fn new(leaf: u32, register: Register, bit: u32) -> Self {
        Self {
            leaf,
            register,
            mask: 1 << bit,
        }
    }

    /// True when the registers, which must be those of the feature's leaf, have it.
    #[inline]
    pub const fn is_in(&self, registers: &Registers) -> bool {
        registers.get(self.register) & self.mask != 0
    }

    /// Sets or clears the feature in the registers of its leaf.
    #[inline]
    pub fn set_in(&self, registers: &mut Registers, on: bool) {
        let register = registers.get_mut(self.register);
        if on {
            *register |= self.mask;
        } else {
            *register &= !self.mask;
        }
    }

    /// SSE3.
    pub const SSE3: Self = Self::new(LEAF_FEATURES, Register::Ecx, 0);
    /// PCLMULQDQ.
    pub const PCLMULQDQ: Self = Self::new(LEAF_FEATURES, Register::Ecx, 1);
    /// MONITOR and MWAIT.
    pub const MONITOR: Self = Self::new(LEAF_FEATURES, Register::Ecx, 3);
    /// VMX.
    pub const VMX: Self = Self::new(LEAF_FEATURES, Register::Ecx, 5);
    /// SSSE3.
    pub const SSSE3: Self = Self::new(LEAF_FEATURES, Register::Ecx, 9);
    /// FMA.
    pub const FMA: Self = Self::new(LEAF_FEATURES, Register::Ecx, 12);
    /// CMPXCHG16B.
    pub const CX16: Self = Self::new(LEAF_FEATURES, Register::Ecx, 13);
    /// IA32_PERF_CAPABILITIES.
    pub const PDCM: Self = Self::new(LEAF_FEATURES, Register::Ecx, 15);
    /// Process-context identifiers.
    pub const PCID: Self = Self::new(LEAF_FEATURES, Register::Ecx, 17);
    /// SSE4.1.
    pub const SSE4_1: Self = Self::new(LEAF_FEATURES, Register::Ecx, 19);
    /// SSE4.2.
    pub const SSE4_2: Self = Self::new(LEAF_FEATURES, Register::Ecx, 20);
    /// x2APIC mode.
    pub const X2APIC: Self = Self::new(LEAF_FEATURES, Register::Ecx, 21);
    /// MOVBE.
    pub const MOVBE: Self = Self::new(LEAF_FEATURES, Register::Ecx, 22);
    /// POPCNT.
    pub const POPCNT: Self = Self::new(LEAF_FEATURES, Register::Ecx, 23);
    /// The APIC timer's TSC-deadline mode.
    pub const TSC_DEADLINE: Self = Self::new(LEAF_FEATURES, Register::Ecx, 24);
    /// AES instructions.
    pub const AES: Self = Self::new(LEAF_FEATURES, Register::Ecx, 25);
    /// XSAVE and XCR0.
    pub const XSAVE: Self = Self::new(LEAF_FEATURES, Register::Ecx, 26);
    /// Follows CR4.OSXSAVE.
    pub const OSXSAVE: Self = Self::new(LEAF_FEATURES, Register::Ecx, 27);
    /// AVX.
    pub const AVX: Self = Self::new(LEAF_FEATURES, Register::Ecx, 28);
    /// Half-precision conversions.
    pub const F16C: Self = Self::new(LEAF_FEATURES, Register::Ecx, 29);
    /// RDRAND.
    pub const RDRAND: Self = Self::new(LEAF_FEATURES, Register::Ecx, 30);
    /// A hypervisor is present.
    pub const HYPERVISOR: Self = Self::new(LEAF_FEATURES, Register::Ecx, 31);
    /// Virtual-8086 extensions.
    pub const VME: Self = Self::new(LEAF_FEATURES, Register::Edx, 1);
    /// Debugging extensions.
    pub const DE: Self = Self::new(LEAF_FEATURES, Register::Edx, 2);
    /// 4 MiB pages.
    pub const PSE: Self = Self::new(LEAF_FEATURES, Register::Edx, 3);
    /// Time-stamp counter.
    pub const TSC: Self = Self::new(LEAF_FEATURES, Register::Edx, 4);
    /// RDMSR and WRMSR.
    pub const MSR: Self = Self::new(LEAF_FEATURES, Register::Edx, 5);
    /// 64-bit page-table entries.
    pub const PAE: Self = Self::new(LEAF_FEATURES, Register::Edx, 6);
    /// Machine-check exception.
    pub const MCE: Self = Self::new(LEAF_FEATURES, Register::Edx, 7);
    /// A local APIC that is switched on.
    pub const APIC: Self = Self::new(LEAF_FEATURES, Register::Edx, 9);
    /// SYSENTER.
    pub const SEP: Self = Self::new(LEAF_FEATURES, Register::Edx, 11);
    /// Memory type range registers.
    pub const MTRR: Self = Self::new(LEAF_FEATURES, Register::Edx, 12);
    /// Global pages.
    pub const PGE: Self = Self::new(LEAF_FEATURES, Register::Edx, 13);
    /// Machine-check banks.
    pub const MCA: Self = Self::new(LEAF_FEATURES, Register::Edx, 14);
    /// Page attribute table.
    pub const PAT: Self = Self::new(LEAF_FEATURES, Register::Edx, 16);
    /// 40-bit addresses in 4 MiB pages.
    pub const PSE36: Self = Self::new(LEAF_FEATURES, Register::Edx, 17);
    /// FXSAVE, and CR4.OSFXSR.
    pub const FXSR: Self = Self::new(LEAF_FEATURES, Register::Edx, 24);
    /// SSE.
    pub const SSE: Self = Self::new(LEAF_FEATURES, Register::Edx, 25);
    /// SSE2.
    pub const SSE2: Self = Self::new(LEAF_FEATURES, Register::Edx, 26);
    /// RDFSBASE and the like.
    pub const FSGSBASE: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 0);
    /// IA32_TSC_ADJUST.
    pub const TSC_ADJUST: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 1);
    /// First group of bit manipulation.
    pub const BMI1: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 3);
    /// Hardware lock elision.
    pub const HLE: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 4);
    /// AVX2.
    pub const AVX2: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 5);
    /// Supervisor-mode execution prevention.
    pub const SMEP: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 7);
    /// Second group of bit manipulation.
    pub const BMI2: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 8);
    /// Fast string operations.
    pub const ERMS: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 9);
    /// INVPCID.
    pub const INVPCID: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 10);
    /// Restricted transactional memory.
    pub const RTM: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 11);
    /// RDSEED.
    pub const RDSEED: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 18);
    /// ADCX and ADOX.
    pub const ADX: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 19);
    /// Supervisor-mode access prevention.
    pub const SMAP: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 20);
    /// CLFLUSHOPT.
    pub const CLFLUSHOPT: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 23);
    /// CLWB.
    pub const CLWB: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 24);
    /// SHA instructions.
    pub const SHA_NI: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ebx, 29);
    /// User-mode instruction prevention.
    pub const UMIP: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ecx, 2);
    /// Protection keys of user pages.
    pub const PKU: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ecx, 3);
    /// Follows CR4.PKE.
    pub const OSPKE: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ecx, 4);
    /// 57-bit linear addresses.
    pub const LA57: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ecx, 16);
    /// RDPID.
    pub const RDPID: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Ecx, 22);
    /// IA32_SPEC_CTRL and IA32_PRED_CMD.
    pub const SPEC_CTRL: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Edx, 26);
    /// Single-thread indirect branch predictors.
    pub const STIBP: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Edx, 27);
    /// IA32_FLUSH_CMD.
    pub const FLUSH_L1D: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Edx, 28);
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Edx, 29);
    /// Speculative store bypass disable.
    pub const SSBD: Self = Self::new(LEAF_EXTENDED_FEATURES, Register::Edx, 31);
    /// LAHF and SAHF in 64-bit mode.
    pub const LAHF_LM: Self = Self::new(LEAF_EXTENDED, Register::Ecx, 0);
    /// AMD: SVM.
    pub const SVM: Self = Self::new(LEAF_EXTENDED, Register::Ecx, 2);
    /// LZCNT.
    pub const LZCNT: Self = Self::new(LEAF_EXTENDED, Register::Ecx, 5);
    /// PREFETCHW.
    pub const PREFETCHW: Self = Self::new(LEAF_EXTENDED, Register::Ecx, 8);
    /// SYSCALL.
    pub const SYSCALL: Self = Self::new(LEAF_EXTENDED, Register::Edx, 11);
    /// No-execute pages.
    pub const NX: Self = Self::new(LEAF_EXTENDED, Register::Edx, 20);
    /// 1 GiB pages.
    pub const PAGES_1G: Self = Self::new(LEAF_EXTENDED, Register::Edx, 26);
    /// RDTSCP and IA32_TSC_AUX.
    pub const RDTSCP: Self = Self::new(LEAF_EXTENDED, Register::Edx, 27);
    /// 64-bit mode.
    pub const LM: Self = Self::new(LEAF_EXTENDED, Register::Edx, 29);
    /// The TSC ticks at one rate in every power state.
    pub const INVARIANT_TSC: Self = Self::new(LEAF_ADVANCED_POWER, Register::Edx, 8);
}

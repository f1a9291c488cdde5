// SPDX-License-Identifier: GPL-2.0

//! Numbers of model-specific registers (SDM Vol. 4; the last ones are AMD's, and those of KVM's
//! interface for guests).

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// KVM's first wall clock.
pub const KVM_WALL_CLOCK: u32 = 0x11;
/// KVM's first clock.
pub const KVM_SYSTEM_TIME: u32 = 0x12;
/// IA32_PLATFORM_ID.
pub const PLATFORM_ID: u32 = 0x17;
/// IA32_APIC_BASE: where the local APIC is, and whether.
pub const APIC_BASE: u32 = 0x1b;
/// MSR_EBL_CR_POWERON, which old firmware reads for the bus clock.
pub const EBL_CR_POWERON: u32 = 0x2a;
/// IA32_FEATURE_CONTROL: whether firmware allows VMX.
pub const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3b;
/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_BIOS_UPDT_TRIG: loads microcode.
pub const BIOS_UPDT_TRIG: u32 = 0x79;
/// IA32_BIOS_SIGN_ID: microcode revision.
pub const BIOS_SIGN_ID: u32 = 0x8b;
/// IA32_PMC0: first general performance counter.
pub const PMC0: u32 = 0xc1;
/// MSR_PLATFORM_INFO: TSC ratio and CPUID faulting.
pub const PLATFORM_INFO: u32 = 0xce;
/// IA32_MTRRCAP.
pub const MTRR_CAP: u32 = 0xfe;
/// IA32_ARCH_CAPABILITIES: which CPU flaws are absent.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_FLUSH_CMD.
pub const FLUSH_CMD: u32 = 0x10b;
/// MSR_BBL_CR_CTL3: second-level cache of old CPUs, read by firmware.
pub const BBL_CR_CTL3: u32 = 0x11e;
/// MSR_MISC_FEATURES_ENABLES: CPUID faulting.
pub const MISC_FEATURES_ENABLES: u32 = 0x140;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP.
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_MCG_CAP: machine-check banks.
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS.
pub const MCG_STATUS: u32 = 0x17a;
/// IA32_MCG_CTL.
pub const MCG_CTL: u32 = 0x17b;
/// IA32_PERFEVTSEL0: first event select.
pub const PERFEVTSEL0: u32 = 0x186;
/// IA32_PERF_STATUS.
pub const PERF_STATUS: u32 = 0x198;
/// IA32_PERF_CTL.
pub const PERF_CTL: u32 = 0x199;
/// IA32_THERM_STATUS.
pub const THERM_STATUS: u32 = 0x19c;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_ENERGY_PERF_BIAS.
pub const ENERGY_PERF_BIAS: u32 = 0x1b0;
/// IA32_DEBUGCTL.
pub const DEBUGCTL: u32 = 0x1d9;
/// LASTBRANCHFROMIP.
pub const LAST_BRANCH_FROM: u32 = 0x1db;
/// LASTBRANCHTOIP.
pub const LAST_BRANCH_TO: u32 = 0x1dc;
/// LASTINTFROMIP.
pub const LAST_INT_FROM: u32 = 0x1dd;
/// LASTINTTOIP.
pub const LAST_INT_TO: u32 = 0x1de;
/// IA32_MTRR_PHYSBASE0; base and mask of each variable range follow in turn.
pub const MTRR_PHYSBASE0: u32 = 0x200;
/// IA32_MTRR_FIX64K_00000.
pub const MTRR_FIX64K: u32 = 0x250;
/// IA32_MTRR_FIX16K_80000.
pub const MTRR_FIX16K_80000: u32 = 0x258;
/// IA32_MTRR_FIX16K_A0000.
pub const MTRR_FIX16K_A0000: u32 = 0x259;
/// IA32_MTRR_FIX4K_C0000; seven more follow.
pub const MTRR_FIX4K_C0000: u32 = 0x268;
/// IA32_MTRR_FIX4K_F8000.
pub const MTRR_FIX4K_F8000: u32 = 0x26f;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_PERF_CAPABILITIES.
pub const PERF_CAPABILITIES: u32 = 0x345;
/// IA32_PERF_GLOBAL_CTRL.
pub const PERF_GLOBAL_CTRL: u32 = 0x38f;
/// IA32_MC0_CTL; control, status, address and misc of each bank follow in turn.
pub const MC0_CTL: u32 = 0x400;
/// IA32_VMX_BASIC.
pub const VMX_BASIC: u32 = 0x480;
/// IA32_VMX_PINBASED_CTLS.
pub const VMX_PINBASED_CTLS: u32 = 0x481;
/// IA32_VMX_PROCBASED_CTLS.
pub const VMX_PROCBASED_CTLS: u32 = 0x482;
/// IA32_VMX_EXIT_CTLS.
pub const VMX_EXIT_CTLS: u32 = 0x483;
/// IA32_VMX_ENTRY_CTLS.
pub const VMX_ENTRY_CTLS: u32 = 0x484;
/// IA32_VMX_MISC.
pub const VMX_MISC: u32 = 0x485;
/// IA32_VMX_CR0_FIXED0: bits that must be 1.
pub const VMX_CR0_FIXED0: u32 = 0x486;
/// IA32_VMX_CR0_FIXED1: bits that may be 1.
pub const VMX_CR0_FIXED1: u32 = 0x487;
/// IA32_VMX_CR4_FIXED0: bits that must be 1.
pub const VMX_CR4_FIXED0: u32 = 0x488;
/// IA32_VMX_CR4_FIXED1: bits that may be 1.
pub const VMX_CR4_FIXED1: u32 = 0x489;
/// IA32_VMX_VMCS_ENUM.
pub const VMX_VMCS_ENUM: u32 = 0x48a;
/// IA32_VMX_PROCBASED_CTLS2.
pub const VMX_PROCBASED_CTLS2: u32 = 0x48b;
/// IA32_VMX_EPT_VPID_CAP.
pub const VMX_EPT_VPID_CAP: u32 = 0x48c;
/// IA32_VMX_TRUE_PINBASED_CTLS.
pub const VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
/// IA32_VMX_TRUE_PROCBASED_CTLS.
pub const VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
/// IA32_VMX_TRUE_EXIT_CTLS.
pub const VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
/// IA32_VMX_TRUE_ENTRY_CTLS.
pub const VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
/// IA32_VMX_VMFUNC.
pub const VMX_VMFUNC: u32 = 0x491;
/// IA32_VMX_PROCBASED_CTLS3.
pub const VMX_PROCBASED_CTLS3: u32 = 0x492;
/// MSR_RAPL_POWER_UNIT.
pub const RAPL_POWER_UNIT: u32 = 0x606;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First of the x2APIC range: register at offset 16 * n of the APIC page is at n.
pub const X2APIC_FIRST: u32 = 0x800;
/// x2APIC task priority.
pub const X2APIC_TPR: u32 = 0x808;
/// x2APIC end of interrupt.
pub const X2APIC_EOI: u32 = 0x80b;
/// x2APIC interrupt command.
pub const X2APIC_ICR: u32 = 0x830;
/// x2APIC self IPI.
pub const X2APIC_SELF_IPI: u32 = 0x83f;
/// Last of the x2APIC range.
pub const X2APIC_LAST: u32 = 0x8ff;
/// IA32_XSS.
pub const XSS: u32 = 0xda0;
/// KVM's wall clock.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// KVM's clock.
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// KVM's asynchronous page faults.
pub const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
/// KVM's account of time that others took.
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;
/// KVM's end of interrupt without an exit.
pub const KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
/// KVM's polling of the host on HLT.
pub const KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// IA32_STAR.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_CSTAR.
pub const CSTAR: u32 = 0xc000_0083;
/// IA32_FMASK.
pub const FMASK: u32 = 0xc000_0084;
/// IA32_FS_BASE.
pub const FS_BASE: u32 = 0xc000_0100;
/// IA32_GS_BASE.
pub const GS_BASE: u32 = 0xc000_0101;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;
/// AMD: hardware configuration.
pub const HWCR: u32 = 0xc001_0015;
/// AMD: host save area of SVM.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// AMD: decode configuration.
pub const DE_CFG: u32 = 0xc001_1029;

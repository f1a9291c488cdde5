// SPDX-License-Identifier: GPL-2.0

//! What the CPU can do (APM Vol. 3, "Function 8000_000Ah—SVM Features").
//!
//! A feature that is missing and required fails the load with its name in the log; an optional one
//! is named in the log and reported to user space.

use crate::host::bindings;
use crate::host::cpu;
use crate::host::cpuid::cpuid;
use crate::host::errno::unsupported;
use crate::host::msr;
use crate::model::arch::cpuid::{Feature, LEAF_SVM};
use crate::model::arch::regs::Cr4;
use crate::vendor::{self, FixedBits};
use kernel::fmt;
use kernel::prelude::*;

/// A feature in EDX of [`LEAF_SVM`] that is used when it is there.
struct Optional {
    bit: u32,
    name: &'static str,
    feature: u32,
}

const NESTED_PAGING: u32 = 1 << 0;

const OPTIONAL: [Optional; 4] = [
    Optional {
        bit: 3,
        name: "next-RIP saving",
        feature: bindings::RUSTHV_FEAT_NRIPS,
    },
    Optional {
        bit: 5,
        name: "VMCB clean bits",
        feature: bindings::RUSTHV_FEAT_VMCB_CLEAN,
    },
    Optional {
        bit: 6,
        name: "TLB flush by ASID",
        feature: bindings::RUSTHV_FEAT_ASID_FLUSH,
    },
    Optional {
        bit: 7,
        name: "decode assists",
        feature: bindings::RUSTHV_FEAT_DECODE_ASSISTS,
    },
];

/// Bits of CR4 that every CPU with long mode has.
const CR4_ALWAYS: u64 = 0x7ff;

/// Bits of CR4 that are there with a feature.
const CR4_BITS: [(Cr4, Feature); 8] = [
    (Cr4::UMIP, Feature::UMIP),
    (Cr4::LA57, Feature::LA57),
    (Cr4::FSGSBASE, Feature::FSGSBASE),
    (Cr4::PCIDE, Feature::PCID),
    (Cr4::OSXSAVE, Feature::XSAVE),
    (Cr4::SMEP, Feature::SMEP),
    (Cr4::SMAP, Feature::SMAP),
    (Cr4::PKE, Feature::PKU),
];

/// What the CPU can do.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// What all vendors' CPUs have; the SVM revision.
    pub common: vendor::Caps,
    /// One more than the highest ASID; 0 is the host's.
    pub asids: u32,
    /// VMRUN can flush the guest's ASID alone.
    pub flush_by_asid: bool,
    /// An exit by an instruction tells where the next one is.
    pub next_rip: bool,
    /// An exit by a MOV of control or debug registers tells the other register.
    pub decode_assists: bool,
    /// VMRUN looks at the VMCB clean bits.
    pub clean_bits: bool,
    /// INVPCID exists, and can be intercepted.
    pub invpcid: bool,
}

impl Caps {
    /// Asks the CPU that runs this; they are the same on all.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`, with the reasons in the log.
    pub fn read() -> Result<Self> {
        let leaf = cpuid(LEAF_SVM, 0);
        Self::from_cpuid(leaf.eax, leaf.ebx, leaf.edx)
    }

    fn from_cpuid(revision: u32, asids: u32, features: u32) -> Result<Self> {
        if features & NESTED_PAGING == 0 {
            pr_err!("the CPU lacks nested paging, which is required\n");
            return Err(unsupported());
        }
        if asids < 2 {
            pr_err!("the CPU has no address-space identifiers for guests\n");
            return Err(unsupported());
        }
        let mut present = bindings::RUSTHV_FEAT_NPT | bindings::RUSTHV_FEAT_MSR_BITMAP;
        let mut missing = 0;
        for optional in &OPTIONAL {
            if features & 1 << optional.bit != 0 {
                present |= optional.feature;
            } else {
                missing |= optional.feature;
                pr_info!("the CPU lacks {}; going on without\n", optional.name);
            }
        }
        for (optional, name, feature) in [
            (Feature::RDTSCP, "RDTSCP", bindings::RUSTHV_FEAT_RDTSCP),
            (Feature::INVPCID, "INVPCID", bindings::RUSTHV_FEAT_INVPCID),
            (
                Feature::PAGES_1G,
                "1 GiB pages",
                bindings::RUSTHV_FEAT_NPT_1G,
            ),
        ] {
            if optional.is_in(&cpuid(optional.leaf, 0)) {
                present |= feature;
            } else {
                missing |= feature;
                pr_info!("the CPU lacks {}; going on without\n", name);
            }
        }
        let has = |feature| present & feature != 0;
        Ok(Self {
            common: vendor::Caps {
                cr0: FixedBits {
                    ones: 0,
                    // VMRUN refuses bits of the upper half.
                    allowed: 0xffff_ffff,
                },
                cr4: FixedBits {
                    ones: 0,
                    allowed: cr4_bits(),
                },
                present: present.into(),
                missing: missing.into(),
                revision: revision & 0xff,
                // Until the tables are known.
                phys_bits: 0,
                // VMRUN lets paging be on there (APM Vol. 2, "Paged Real Mode").
                software_real_mode: true,
            },
            asids,
            flush_by_asid: has(bindings::RUSTHV_FEAT_ASID_FLUSH),
            next_rip: has(bindings::RUSTHV_FEAT_NRIPS),
            decode_assists: has(bindings::RUSTHV_FEAT_DECODE_ASSISTS),
            clean_bits: has(bindings::RUSTHV_FEAT_VMCB_CLEAN),
            invpcid: has(bindings::RUSTHV_FEAT_INVPCID),
        })
    }
}

/// CR4 bits that the CPU has.
fn cr4_bits() -> u64 {
    CR4_BITS
        .iter()
        .filter(|(_, feature)| feature.is_in(&cpuid(feature.leaf, 0)))
        .fold(Cr4::from_raw(CR4_ALWAYS), |bits, (bit, _)| bits | *bit)
        .raw()
}

/// True when the CPU has SVM, whether it is switched on or not.
fn is_there() -> bool {
    Feature::SVM.is_in(&cpuid(Feature::SVM.leaf, 0))
}

/// What says whether the host offers SVM.
#[derive(Clone, Copy)]
struct Facts {
    /// The host takes interrupts and NMIs by FRED.
    fred: bool,
    /// CPUID has SVM.
    in_cpuid: bool,
    /// Neither firmware nor the host has switched it off.
    host_has: bool,
    /// VM_CR, where that can be read.
    vm_cr: Option<u64>,
    /// What `rhv_memory_encryption` says.
    encryption: i32,
}

/// Why the host offers no SVM, or none that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    Fred,
    NotThere,
    /// With what VM_CR holds.
    Locked(u64),
    NotWanted,
    EncryptedGuest,
    EncryptedHost,
}

impl Absence {
    /// `None` when there is SVM.
    fn of(facts: Facts) -> Option<Self> {
        const DISABLED: u64 = 1 << 4;
        match (facts.vm_cr, facts.encryption) {
            _ if facts.fred => Some(Self::Fred),
            _ if !facts.in_cpuid => Some(Self::NotThere),
            (Some(value), _) if !facts.host_has && value & DISABLED != 0 => {
                Some(Self::Locked(value))
            }
            _ if !facts.host_has => Some(Self::NotWanted),
            (_, 0) => None,
            (_, 1) => Some(Self::EncryptedGuest),
            _ => Some(Self::EncryptedHost),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fred => write!(f, "the host uses FRED, which is not supported yet"),
            Self::NotThere => write!(f, "the CPU has no SVM"),
            Self::Locked(value) => {
                write!(f, "firmware has switched SVM off (VM_CR {value:#x})")
            }
            Self::NotWanted => write!(f, "the host kernel has switched SVM off"),
            Self::EncryptedGuest => {
                write!(f, "guests cannot run in a guest whose memory is encrypted")
            }
            Self::EncryptedHost => write!(
                f,
                "the host's memory is encrypted, which is not supported yet"
            ),
        }
    }
}

/// Says in the log why the host offers no SVM, or none that can be used. True when it does.
pub fn is_usable() -> bool {
    const VM_CR: u32 = 0xc001_0114;
    // SAFETY: No preconditions, neither of them.
    let (host_has, encryption) =
        unsafe { (bindings::rhv_has_svm(), bindings::rhv_memory_encryption()) };
    let why = Absence::of(Facts {
        fred: cpu::host_uses_fred(),
        in_cpuid: is_there(),
        host_has,
        vm_cr: msr::read_safe(VM_CR),
        encryption,
    });
    if let Some(why) = why {
        pr_err!("{}\n", why);
    }
    why.is_none()
}

#[kunit_tests(rusthv_svm_caps)]
mod tests {
    use super::*;
    use crate::svm::svm_or_skip;

    const ALL: u32 = NESTED_PAGING | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7;

    #[test]
    fn features_become_flags() -> Result {
        let all = Caps::from_cpuid(1, 16, ALL)?;
        assert_eq!(all.common.revision, 1);
        assert_eq!(all.asids, 16);
        assert!(all.flush_by_asid && all.next_rip && all.decode_assists && all.clean_bits);
        // The log names what this test leaves out.
        for (bit, feature) in [
            (3, bindings::RUSTHV_FEAT_NRIPS),
            (5, bindings::RUSTHV_FEAT_VMCB_CLEAN),
            (6, bindings::RUSTHV_FEAT_ASID_FLUSH),
            (7, bindings::RUSTHV_FEAT_DECODE_ASSISTS),
        ] {
            let caps = Caps::from_cpuid(1, 16, ALL & !(1 << bit))?;
            assert_eq!(caps.flush_by_asid, bit != 6);
            assert_eq!(caps.next_rip, bit != 3);
            assert_eq!(caps.decode_assists, bit != 7);
            assert_eq!(caps.clean_bits, bit != 5);
            assert!(!caps.common.has(feature));
            assert_eq!(caps.common.missing, all.common.missing | u64::from(feature));
        }
        Ok(())
    }

    /// On a host without FRED.
    fn absence(
        in_cpuid: bool,
        host_has: bool,
        vm_cr: Option<u64>,
        encryption: i32,
    ) -> Option<Absence> {
        Absence::of(Facts {
            fred: false,
            in_cpuid,
            host_has,
            vm_cr,
            encryption,
        })
    }

    /// VM_CR: bit 4 switches SVM off, bit 3 locks that.
    #[test]
    fn absence_has_the_right_reason() {
        for (value, locked) in [(0, false), (0x08, false), (0x10, true), (0x18, true)] {
            let wanted = match locked {
                true => Absence::Locked(value),
                false => Absence::NotWanted,
            };
            assert_eq!(absence(true, false, Some(value), 0), Some(wanted));
            assert_eq!(absence(true, false, Some(value), 2), Some(wanted));
            let absent = absence(false, false, Some(value), 0);
            assert_eq!(absent, Some(Absence::NotThere));
        }
        assert_eq!(absence(true, false, None, 0), Some(Absence::NotWanted));
        assert_eq!(absence(false, false, None, 1), Some(Absence::NotThere));
    }

    #[test]
    fn encrypted_memory_is_refused() {
        assert_eq!(absence(true, true, Some(0), 0), None);
        assert_eq!(absence(true, true, None, 0), None);
        for (encryption, why) in [(1, Absence::EncryptedGuest), (2, Absence::EncryptedHost)] {
            assert_eq!(absence(true, true, Some(0), encryption), Some(why));
        }
    }

    /// Whatever else there is or is not.
    #[test]
    fn fred_is_refused() {
        for (in_cpuid, host_has, encryption) in [
            (true, true, 0),
            (true, true, 2),
            (true, false, 0),
            (false, false, 0),
        ] {
            let why = Absence::of(Facts {
                fred: true,
                in_cpuid,
                host_has,
                vm_cr: Some(0),
                encryption,
            });
            assert_eq!(why, Some(Absence::Fred));
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        assert_eq!(Caps::from_cpuid(1, 16, ALL & !1).err(), Some(unsupported()));
        assert_eq!(Caps::from_cpuid(1, 1, ALL).err(), Some(unsupported()));
        assert!(Caps::from_cpuid(1, 2, NESTED_PAGING).is_ok());
    }

    /// The host runs with values that its guests may have, too.
    #[test]
    fn control_registers_are_as_the_cpu_has_them() -> Result {
        const SVM_MISSES: u64 = 1 << 13;
        let caps = svm_or_skip!().caps.common;
        let irqs = crate::host::cpu::IrqsOff::new();
        let cr4 = crate::host::switch::host_cr4(&irqs);
        let cr0 = crate::host::switch::host_state(&irqs).cr0;
        drop(irqs);
        assert!(caps.cr0.allow(cr0));
        assert!(!caps.cr0.allow(1 << 32));
        // Control-flow enforcement is not for guests yet.
        assert!(caps.cr4.allow(cr4 & !Cr4::CET.raw()));
        assert!(!caps.cr4.allow(SVM_MISSES));
        assert!(!caps.cr4.allow(1 << 63));
        Ok(())
    }

    #[test]
    fn features_are_present_or_missing() -> Result {
        let caps = svm_or_skip!().caps.common;
        assert_eq!(caps.present & caps.missing, 0);
        assert!(caps.has(bindings::RUSTHV_FEAT_NPT));
        assert!(!caps.has(bindings::RUSTHV_FEAT_EPT));
        // EDX bit 26 of CPUID 0x8000_0001.
        let large = cpuid(0x8000_0001, 0).edx >> 26 & 1 != 0;
        assert_eq!(caps.has(bindings::RUSTHV_FEAT_NPT_1G), large);
        Ok(())
    }
}

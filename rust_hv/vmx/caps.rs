// SPDX-License-Identifier: GPL-2.0

//! What the CPU can do, and the control words that follow from it.
//!
//! Each control that we want is named once, as required, optional or refused. The capability MSRs
//! say which bits may be 0 and which may be 1 (SDM Vol. 3D, appendix "VMX Capability Reporting").
//! A required control that is missing fails the load with its name in the log; an optional one is
//! named in the log and reported to user space.

use crate::host::bindings;
use crate::host::cpu;
use crate::host::cpuid::cpuid;
use crate::host::errno::unsupported;
use crate::host::msr;
use crate::model::arch::cpuid::Feature;
use crate::vendor::{self, FixedBits};
use kernel::fmt;
use kernel::prelude::*;

const IA32_VMX_BASIC: u32 = 0x480;
const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
const IA32_VMX_EXIT_CTLS: u32 = 0x483;
const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
const IA32_VMX_CR0_FIXED0: u32 = 0x486;
const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;

/// How much we want a control.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Without it we do not load.
    Required,
    /// Used when there; its `RUSTHV_FEAT_*`.
    Optional(u64),
    /// Used when there. Without it there is nothing that it could keep from the guest.
    IfThere,
    /// May be switched on later; must be possible.
    Later,
    /// Must be possible to leave off.
    Refused,
}

struct Control {
    bit: u32,
    name: &'static str,
    need: Need,
}

const fn control(bit: u32, name: &'static str, need: Need) -> Control {
    Control { bit, name, need }
}

use Need::{IfThere, Later, Optional, Refused, Required};

/// Pin-based controls.
pub mod pin {
    /// Exit on external interrupts.
    pub const EXTERNAL_INTERRUPT: u32 = 1 << 0;
    /// Exit on NMIs.
    pub const NMI: u32 = 1 << 3;
}

/// Primary processor-based controls.
pub mod primary {
    /// Exit when the guest can take an interrupt.
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    /// Exit on INVLPG and INVPCID, and on MOV to and from CR3. The latter two are among the controls
    /// that every CPU lets be 1.
    pub const TRANSLATION: u32 = 1 << 9 | 1 << 15 | 1 << 16;
    /// I/O exits as bitmaps say, and not each.
    pub const IO_BITMAPS: u32 = 1 << 25;
}

/// Secondary processor-based controls.
pub mod secondary {
    /// EPT, and unrestricted guests, which need it.
    pub const NESTED: u32 = 1 << 1 | 1 << 7;
    /// RDTSCP works.
    pub const RDTSCP: u32 = 1 << 3;
    /// Translations are tagged with a VPID.
    pub const VPID: u32 = 1 << 5;
    /// INVPCID works.
    pub const INVPCID: u32 = 1 << 12;
    /// ENCLS exits as its bitmap says.
    pub const ENCLS_EXITING: u32 = 1 << 15;
    /// Pages whose dirty flag the CPU sets are logged.
    pub const PML: u32 = 1 << 17;
}

/// VM-entry controls.
pub mod entry {
    /// The guest is in IA-32e mode.
    pub const IA32E_GUEST: u32 = 1 << 9;
}

const PIN: &[Control] = &[
    control(0, "external-interrupt exiting", Required),
    control(3, "NMI exiting", Required),
];

const PRIMARY: &[Control] = &[
    control(2, "interrupt-window exiting", Later),
    control(3, "TSC offsetting", Required),
    control(7, "HLT exiting", Required),
    control(9, "INVLPG exiting", Later),
    control(10, "MWAIT exiting", Required),
    control(11, "RDPMC exiting", Required),
    control(15, "CR3-load exiting", Refused),
    control(16, "CR3-store exiting", Refused),
    control(19, "CR8-load exiting", Required),
    control(20, "CR8-store exiting", Required),
    control(23, "MOV-DR exiting", Required),
    control(24, "unconditional I/O exiting", Required),
    control(25, "I/O bitmaps", Later),
    control(28, "MSR bitmaps", Required),
    control(29, "MONITOR exiting", Required),
    control(31, "secondary controls", Required),
];

const SECONDARY: &[Control] = &[
    control(1, "EPT", Required),
    control(3, "RDTSCP", Optional(bindings::RUSTHV_FEAT_RDTSCP as u64)),
    control(5, "VPID", Optional(bindings::RUSTHV_FEAT_VPID as u64)),
    // A guest that empties the caches holds everybody up.
    control(6, "WBINVD exiting", Required),
    control(7, "unrestricted guest", Required),
    control(
        12,
        "INVPCID",
        Optional(bindings::RUSTHV_FEAT_INVPCID as u64),
    ),
    // CPUs with SGX have it, and there ENCLS would run for the guest.
    control(15, "ENCLS exiting", IfThere),
    control(
        17,
        "page-modification logging",
        Optional(bindings::RUSTHV_FEAT_PML as u64),
    ),
];

const EXIT: &[Control] = &[
    control(2, "save debug controls", Required),
    control(9, "host address-space size", Required),
    control(15, "acknowledge interrupt on exit", Refused),
    control(19, "load IA32_PAT on exit", Required),
    control(21, "load IA32_EFER on exit", Required),
];

const ENTRY: &[Control] = &[
    control(2, "load debug controls", Required),
    control(9, "IA-32e mode guest", Later),
    control(14, "load IA32_PAT on entry", Required),
    control(15, "load IA32_EFER on entry", Required),
];

/// What of EPT and VPID we want (IA32_VMX_EPT_VPID_CAP).
const EPT_VPID: &[Control] = &[
    control(
        0,
        "execute-only EPT",
        Optional(bindings::RUSTHV_FEAT_EPT_EXEC_ONLY as u64),
    ),
    control(6, "4-level EPT", Required),
    control(
        7,
        "5-level EPT",
        Optional(bindings::RUSTHV_FEAT_EPT_5L as u64),
    ),
    control(14, "write-back EPT tables", Required),
    control(
        16,
        "2 MiB EPT pages",
        Optional(bindings::RUSTHV_FEAT_EPT_2M as u64),
    ),
    control(
        17,
        "1 GiB EPT pages",
        Optional(bindings::RUSTHV_FEAT_EPT_1G as u64),
    ),
    control(20, "INVEPT", Required),
    control(
        21,
        "EPT accessed/dirty flags",
        Optional(bindings::RUSTHV_FEAT_EPT_AD as u64),
    ),
    control(26, "all-context INVEPT", Required),
];

/// EPT accessed and dirty flags.
const EPT_DIRTY_FLAGS: u64 = 1 << 21;
/// INVVPID with the two kinds that we use (bits 32, 41, 42).
const INVVPID_BITS: u64 = 1 << 32 | 1 << 41 | 1 << 42;

/// The control words, and the facts behind them.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// What all vendors' CPUs have: CR0 and CR4 in VMX operation (PE and PG are free with
    /// unrestricted guests), features, the VMCS revision identifier.
    pub common: vendor::Caps,
    /// Pin-based controls.
    pub pin: u32,
    /// Primary processor-based controls.
    pub primary: u32,
    /// Secondary processor-based controls, with everything optional that the CPU has.
    pub secondary: u32,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls.
    pub entry: u32,
    /// INVEPT of one EPT pointer; all of them otherwise.
    pub invept_single: bool,
    /// A bit for each type of INVVPID, from 0 on: individual address, single context, all contexts.
    pub invvpid_kinds: u8,
}

struct Reader {
    present: u64,
    missing: u64,
    refused: bool,
}

impl Reader {
    fn lacks(&mut self, control: &Control) {
        match control.need {
            Optional(feature) => {
                self.missing |= feature;
                pr_info!("the CPU lacks {}; going on without\n", control.name);
            }
            Refused => {
                self.refused = true;
                pr_err!("the CPU cannot do without {}\n", control.name);
            }
            Required | Later | IfThere => {
                self.refused = true;
                pr_err!("the CPU lacks {}, which is required\n", control.name);
            }
        }
    }

    /// A feature that is there and cannot be used.
    fn lost(&mut self, feature: u32) {
        self.present &= !u64::from(feature);
        self.missing |= u64::from(feature);
    }

    /// One control word: `may_be_0` has a bit set where 0 is not allowed.
    fn word(&mut self, must: u32, may: u32, wanted: &[Control]) -> u32 {
        let mut word = must;
        for control in wanted {
            let bit = 1u32 << control.bit;
            match control.need {
                Required | IfThere if may & bit != 0 => word |= bit,
                IfThere => {}
                Optional(feature) if may & bit != 0 => {
                    word |= bit;
                    self.present |= feature;
                }
                Later if may & bit != 0 => {}
                Refused if must & bit == 0 => {}
                _ => self.lacks(control),
            }
        }
        word
    }

    fn msr(&mut self, number: u32, wanted: &[Control]) -> u32 {
        let value = msr::read(number);
        self.word(value as u32, (value >> 32) as u32, wanted)
    }
}

impl Caps {
    /// Reads the capabilities of the CPU that runs this; they are the same on all.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`, with the reasons in the log.
    pub fn read() -> Result<Self> {
        let basic = msr::read(IA32_VMX_BASIC);
        // Bit 55: the TRUE MSRs exist, which allow more controls to be 0.
        let shift = if basic & 1 << 55 != 0 {
            IA32_VMX_TRUE_PINBASED_CTLS - IA32_VMX_PINBASED_CTLS
        } else {
            0
        };
        let mut reader = Reader {
            present: 0,
            missing: 0,
            refused: false,
        };
        let pin = reader.msr(IA32_VMX_PINBASED_CTLS + shift, PIN);
        let primary = reader.msr(IA32_VMX_PROCBASED_CTLS + shift, PRIMARY);
        let exit = reader.msr(IA32_VMX_EXIT_CTLS + shift, EXIT);
        let entry = reader.msr(IA32_VMX_ENTRY_CTLS + shift, ENTRY);
        if reader.refused {
            return Err(unsupported());
        }
        // With secondary controls required, these MSRs exist from here on.
        let mut secondary = reader.msr(IA32_VMX_PROCBASED_CTLS2, SECONDARY);
        if reader.refused {
            return Err(unsupported());
        }
        let ept_vpid = msr::read(IA32_VMX_EPT_VPID_CAP);
        reader.word(0, ept_vpid as u32, EPT_VPID);
        let used = bindings::RUSTHV_FEAT_EPT
            | bindings::RUSTHV_FEAT_UNRESTRICTED_GUEST
            | bindings::RUSTHV_FEAT_MSR_BITMAP
            | bindings::RUSTHV_FEAT_LOAD_EFER
            | bindings::RUSTHV_FEAT_LOAD_PAT;
        reader.present |= u64::from(used);
        if secondary & secondary::VPID != 0 && ept_vpid & INVVPID_BITS != INVVPID_BITS {
            pr_info!("the CPU has VPID without a usable INVVPID; going on without\n");
            secondary &= !secondary::VPID;
            reader.lost(bindings::RUSTHV_FEAT_VPID);
        }
        if secondary & secondary::PML != 0 && ept_vpid & EPT_DIRTY_FLAGS == 0 {
            pr_info!(
                "the CPU has page-modification logging without dirty flags; going on without\n"
            );
            secondary &= !secondary::PML;
            reader.lost(bindings::RUSTHV_FEAT_PML);
        }
        if reader.refused {
            return Err(unsupported());
        }
        // With unrestricted guests, PE and PG need not be set.
        let unrestricted = 1 << 0 | 1 << 31;
        Ok(Self {
            common: vendor::Caps {
                cr0: FixedBits {
                    ones: msr::read(IA32_VMX_CR0_FIXED0) & !unrestricted,
                    allowed: msr::read(IA32_VMX_CR0_FIXED0 + 1),
                },
                cr4: FixedBits {
                    ones: msr::read(IA32_VMX_CR0_FIXED0 + 2),
                    allowed: msr::read(IA32_VMX_CR0_FIXED0 + 3),
                },
                present: reader.present,
                missing: reader.missing,
                revision: basic as u32 & 0x7fff_ffff,
                // Until the tables are known.
                phys_bits: 0,
                // Unrestricted guests need EPT.
                software_real_mode: false,
            },
            pin,
            primary,
            secondary,
            exit,
            entry,
            invept_single: ept_vpid & 1 << 25 != 0,
            invvpid_kinds: (ept_vpid >> 40) as u8 & 7,
        })
    }

    /// True when a `RUSTHV_FEAT_*` is used.
    #[inline]
    pub fn has(&self, feature: u32) -> bool {
        self.common.has(feature)
    }
}

/// What says whether the host offers VMX.
#[derive(Clone, Copy)]
struct Facts {
    /// The host takes interrupts and NMIs by FRED.
    fred: bool,
    /// CPUID has VMX.
    in_cpuid: bool,
    /// Neither firmware nor the host has switched it off.
    host_has: bool,
    /// IA32_FEATURE_CONTROL, where that can be read.
    feature_control: Option<u64>,
}

/// Why the host offers no VMX, or none that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    Fred,
    NotThere,
    /// With what IA32_FEATURE_CONTROL holds.
    Locked(u64),
    NotWanted,
}

impl Absence {
    /// `None` when there is VMX.
    fn of(facts: Facts) -> Option<Self> {
        const LOCKED: u64 = 1 << 0;
        const VMX_OUTSIDE_SMX: u64 = 1 << 2;
        match facts.feature_control {
            _ if facts.fred => Some(Self::Fred),
            _ if facts.host_has => None,
            _ if !facts.in_cpuid => Some(Self::NotThere),
            Some(value) if value & (LOCKED | VMX_OUTSIDE_SMX) == LOCKED => {
                Some(Self::Locked(value))
            }
            _ => Some(Self::NotWanted),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fred => write!(f, "the host uses FRED, which is not supported yet"),
            Self::NotThere => write!(f, "the CPU has no VMX"),
            Self::Locked(value) => write!(
                f,
                "firmware has locked VMX off (IA32_FEATURE_CONTROL {value:#x})"
            ),
            Self::NotWanted => write!(f, "the host kernel has switched VMX off"),
        }
    }
}

/// Says in the log why the host offers no VMX, or none that can be used. True when it does.
pub fn is_usable() -> bool {
    const IA32_FEATURE_CONTROL: u32 = 0x3a;
    let why = Absence::of(Facts {
        fred: cpu::host_uses_fred(),
        in_cpuid: Feature::VMX.is_in(&cpuid(Feature::VMX.leaf, 0)),
        host_has: cpu::host_has_vmx(),
        feature_control: msr::read_safe(IA32_FEATURE_CONTROL),
    });
    if let Some(why) = why {
        pr_err!("{}\n", why);
    }
    why.is_none()
}

#[kunit_tests(rusthv_caps)]
mod tests {
    use super::*;
    use crate::vmx::vmx_or_skip;

    /// Each bit that must be 1, taken away; each that may not be 1, added; each other one both
    /// ways.
    fn obeys(fixed: &FixedBits) -> bool {
        let free = fixed.allowed & !fixed.ones;
        (0..64).map(|bit| 1u64 << bit).all(|bit| {
            if fixed.ones & bit != 0 {
                !fixed.allow(fixed.ones & !bit) && !fixed.allow((fixed.ones | free) & !bit)
            } else if fixed.allowed & bit == 0 {
                !fixed.allow(fixed.ones | bit) && !fixed.allow(fixed.ones | free | bit)
            } else {
                fixed.allow(fixed.ones | bit) && fixed.allow((fixed.ones | free) & !bit)
            }
        })
    }

    /// IA32_FEATURE_CONTROL: bit 0 locks it, bit 1 is VMX inside SMX, bit 2 outside.
    #[test]
    fn absence_has_the_right_reason() {
        let absence = |in_cpuid, feature_control| {
            Absence::of(Facts {
                fred: false,
                in_cpuid,
                host_has: false,
                feature_control,
            })
        };
        for value in 0..8 {
            let wanted = match value {
                0b001 | 0b011 => Absence::Locked(value),
                _ => Absence::NotWanted,
            };
            assert_eq!(absence(true, Some(value)), Some(wanted));
            assert_eq!(absence(false, Some(value)), Some(Absence::NotThere));
        }
        let locked = Some(Absence::Locked(0xff_0001));
        assert_eq!(absence(true, Some(0xff_0001)), locked);
        assert_eq!(absence(true, None), Some(Absence::NotWanted));
        assert_eq!(absence(false, None), Some(Absence::NotThere));
    }

    #[test]
    fn fred_is_refused_and_nothing_else_that_works() {
        let good = Facts {
            fred: false,
            in_cpuid: true,
            host_has: true,
            feature_control: Some(0b101),
        };
        assert_eq!(Absence::of(good), None);
        assert_eq!(
            Absence::of(Facts {
                feature_control: None,
                ..good
            }),
            None
        );
        // Whatever else there is or is not.
        for (in_cpuid, host_has) in [(true, true), (true, false), (false, false)] {
            let facts = Facts {
                fred: true,
                in_cpuid,
                host_has,
                ..good
            };
            assert_eq!(Absence::of(facts), Some(Absence::Fred));
        }
    }

    #[test]
    fn fixed_bits_refuse_each_wrong_bit() {
        let made_up = FixedBits {
            ones: 0x8000_0000_0000_2021,
            allowed: 0x8000_0000_ffff_3fff,
        };
        assert!(made_up.allow(made_up.ones));
        assert!(made_up.allow(made_up.allowed));
        assert!(!made_up.allow(0));
        assert!(!made_up.allow(u64::MAX));
        assert!(obeys(&made_up));
    }

    #[test]
    fn control_registers_are_as_vmx_operation_wants() -> Result {
        const CR0_PE_PG: u64 = 1 << 0 | 1 << 31;
        const CR0_NE: u64 = 1 << 5;
        const CR4_VMXE: u64 = 1 << 13;
        let caps = &vmx_or_skip!().caps;
        for fixed in [&caps.common.cr0, &caps.common.cr4] {
            assert_eq!(fixed.ones & !fixed.allowed, 0);
            assert!(fixed.allow(fixed.ones));
            assert!(obeys(fixed));
        }
        // Unrestricted guests start in real mode; these two are fixed on every CPU so far.
        assert_eq!(caps.common.cr0.ones & CR0_PE_PG, 0);
        assert_eq!(caps.common.cr0.allowed & CR0_PE_PG, CR0_PE_PG);
        assert!(!caps.common.cr0.allow(caps.common.cr0.ones & !CR0_NE));
        assert!(!caps.common.cr4.allow(caps.common.cr4.ones & !CR4_VMXE));
        // The host's own values run in VMX operation now.
        let irqs = crate::host::cpu::IrqsOff::new();
        let cr4 = crate::host::switch::host_cr4(&irqs);
        let cr0 = crate::host::switch::host_state(&irqs).cr0;
        drop(irqs);
        assert!(caps.common.cr0.allow(cr0));
        assert!(caps.common.cr4.allow(cr4));
        Ok(())
    }

    #[test]
    fn words_obey_the_capability_msrs() -> Result {
        let caps = &vmx_or_skip!().caps;
        let basic = msr::read(0x480);
        assert_eq!(u64::from(caps.common.revision), basic & 0x7fff_ffff);
        // The MSRs by their numbers (SDM Vol. 4), the TRUE ones where they exist.
        let exact = basic >> 55 & 1 != 0;
        let words = [
            (if exact { 0x48d } else { 0x481 }, caps.pin),
            (if exact { 0x48e } else { 0x482 }, caps.primary),
            (0x48b, caps.secondary),
            (if exact { 0x48f } else { 0x483 }, caps.exit),
            (if exact { 0x490 } else { 0x484 }, caps.entry),
        ];
        for (number, word) in words {
            let msr = msr::read(number);
            let (must, may) = (msr as u32, (msr >> 32) as u32);
            assert_eq!(word & must, must);
            assert_eq!(word & !may, 0);
        }
        Ok(())
    }

    /// What must never be off or on, whatever the tables above say.
    #[test]
    fn guests_are_kept_in() -> Result {
        let caps = &vmx_or_skip!().caps;
        // External interrupts and NMIs exit; HLT, DR and I/O exits, MSR bitmaps, secondary
        // controls; EPT, WBINVD exits, unrestricted guest; 64-bit host, EFER and PAT back at the
        // exit.
        assert_eq!(caps.pin & 0b1001, 0b1001);
        let primary = 1 << 7 | 1 << 23 | 1 << 24 | 1 << 28 | 1 << 31;
        assert_eq!(caps.primary & primary, primary);
        assert_eq!(caps.secondary & 0b1100_0010, 0b1100_0010);
        let exit = 1 << 9 | 1 << 19 | 1 << 21;
        assert_eq!(caps.exit & exit, exit);
        // "Acknowledge interrupt on exit" would take the host's interrupts from it, an I/O bitmap
        // that is not there would let ports through.
        assert_eq!(caps.exit & 1 << 15, 0);
        assert_eq!(caps.primary & 1 << 25, 0);
        Ok(())
    }

    #[test]
    fn features_are_present_or_missing() -> Result {
        let caps = &vmx_or_skip!().caps;
        assert_eq!(caps.common.present & caps.common.missing, 0);
        let vpid = u64::from(bindings::RUSTHV_FEAT_VPID);
        let in_use = caps.secondary & secondary::VPID != 0;
        assert_eq!(in_use, (caps.common.present & vpid != 0));
        assert!(caps.has(bindings::RUSTHV_FEAT_EPT));
        assert!(caps.has(bindings::RUSTHV_FEAT_UNRESTRICTED_GUEST));
        for feature in (0..32).map(|bit| 1u32 << bit) {
            assert_eq!(
                caps.has(feature),
                (caps.common.present & u64::from(feature) != 0)
            );
        }
        Ok(())
    }

    fn reader() -> Reader {
        Reader {
            present: 0,
            missing: 0,
            refused: false,
        }
    }

    #[test]
    fn needs_become_control_words() {
        let wanted = [
            control(0, "KUnit 0", Required),
            control(1, "KUnit 1", Optional(1 << 40)),
            control(2, "KUnit 2", Later),
            control(3, "KUnit 3", Refused),
            control(5, "KUnit 5", IfThere),
        ];
        let mut all = reader();
        // Bit 4 is forced, as the default-1 controls are.
        assert_eq!(all.word(0b01_0000, 0b11_1111, &wanted), 0b11_0011);
        assert_eq!((all.present, all.missing, all.refused), (1 << 40, 0, false));
        let mut some = reader();
        assert_eq!(some.word(0, 0b0_0101, &wanted), 0b0_0001);
        assert_eq!(
            (some.present, some.missing, some.refused),
            (0, 1 << 40, false)
        );
    }

    /// The log names what this test makes up.
    #[test]
    fn what_cannot_be_done_is_refused() {
        let cases = [
            (0, 0b1110, control(0, "KUnit's made-up control", Required)),
            (0, 0b1101, control(1, "KUnit's made-up control", Later)),
            (
                0b1000,
                0b1111,
                control(3, "KUnit's made-up control", Refused),
            ),
        ];
        for (must, may, wanted) in cases {
            let mut reader = reader();
            let word = reader.word(must, may, &[wanted]);
            assert!(reader.refused);
            assert_eq!(word, must);
        }
    }
}

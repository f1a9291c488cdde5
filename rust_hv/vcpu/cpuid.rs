// SPDX-License-Identifier: GPL-2.0

//! CPUID: what we can offer, and what a VMM has chosen.

use crate::host::bindings::{self, kvm_cpuid_entry2};
use crate::host::cpuid::{cpuid, host_features};
use crate::host::msr;
use crate::model::arch::cpuid::*;
use crate::model::arch::regs::{Cr4, Efer};
use crate::vendor::Caps;
use kernel::prelude::*;

/// Entries of a guest's CPUID at most: KVM's limit.
pub const MAX_ENTRIES: usize = 256;

/// The subleaf counts (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
const INDEXED: u32 = 1;

/// Leaf 1, EDX: the bits that have no feature name of their own in `model::arch::cpuid`, as every
/// 64-bit CPU has them: FPU, CX8, CMOV, CLFLUSH, MMX.
const BASE_EDX: u32 = 1 << 0 | 1 << 8 | 1 << 15 | 1 << 19 | 1 << 23;
/// Leaf 1, EBX bits 15:8: the CLFLUSH line size; the rest depends on the vCPU.
const CLFLUSH_LINE: u32 = 0xff00;

const LEAF_1: &[Feature] = &[
    Feature::SSE3,
    Feature::PCLMULQDQ,
    Feature::SSSE3,
    Feature::FMA,
    Feature::CX16,
    Feature::PCID,
    Feature::SSE4_1,
    Feature::SSE4_2,
    Feature::MOVBE,
    Feature::POPCNT,
    Feature::AES,
    Feature::XSAVE,
    Feature::AVX,
    Feature::F16C,
    Feature::RDRAND,
    Feature::VME,
    Feature::DE,
    Feature::PSE,
    Feature::TSC,
    Feature::MSR,
    Feature::PAE,
    Feature::MCE,
    Feature::SEP,
    Feature::MTRR,
    Feature::PGE,
    Feature::MCA,
    Feature::PAT,
    Feature::PSE36,
    Feature::FXSR,
    Feature::SSE,
    Feature::SSE2,
];

const LEAF_7: &[Feature] = &[
    Feature::FSGSBASE,
    Feature::BMI1,
    Feature::AVX2,
    Feature::SMEP,
    Feature::BMI2,
    Feature::ERMS,
    Feature::INVPCID,
    Feature::RDSEED,
    Feature::ADX,
    Feature::SMAP,
    Feature::CLFLUSHOPT,
    Feature::CLWB,
    Feature::SHA_NI,
    Feature::UMIP,
];

const LEAF_80000001: &[Feature] = &[
    Feature::LAHF_LM,
    Feature::LZCNT,
    Feature::PREFETCHW,
    Feature::SYSCALL,
    Feature::NX,
    Feature::PAGES_1G,
    Feature::RDTSCP,
    Feature::LM,
];

/// XCR0 components that guests may use: x87, SSE, AVX, and AVX-512's three.
const XFEATURES: u64 = 0b1110_0111;
/// Leaf 0xD, subleaf 1, EAX: XSAVEOPT, XSAVEC, XGETBV with ECX = 1. Not XSAVES: IA32_XSS stays 0.
const XSAVE_EXTENSIONS: u32 = 0b111;
/// XSAVEC or XSAVES, of those.
const COMPACTS: u32 = 0b1010;
/// Leaf 0xD, ECX of a component: it begins at a multiple of 64 bytes in the compacted format.
const COMPONENT_ALIGNED: u32 = 1 << 1;

/// XCR0 bits that a guest can have at most.
pub fn supported_xcr0() -> u64 {
    msr::host_xcr0() & XFEATURES
}

fn entry(function: u32, index: u32, flags: u32, registers: Registers) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax: registers.eax,
        ebx: registers.ebx,
        ecx: registers.ecx,
        edx: registers.edx,
        padding: [0; 3],
    }
}

/// Keeps the named features of a leaf and clears every other bit of the registers they are in.
/// What the host kernel has switched off for itself is not offered either.
fn keep(leaf: u32, wanted: &[Feature]) -> Registers {
    let host = host_features(leaf);
    let mut kept = Registers::default();
    for feature in wanted {
        feature.set_in(&mut kept, feature.is_in(&host));
    }
    kept
}

/// A list of at most so many entries.
struct List {
    entries: KVec<kvm_cpuid_entry2>,
    room: usize,
}

impl List {
    fn push(&mut self, function: u32, index: u32, flags: u32, registers: Registers) -> Result {
        if self.entries.len() >= self.room {
            return Err(E2BIG);
        }
        self.entries
            .push(entry(function, index, flags, registers), GFP_KERNEL)?;
        Ok(())
    }

    fn plain(&mut self, function: u32, registers: Registers) -> Result {
        self.push(function, 0, 0, registers)
    }
}

/// `KVM_GET_SUPPORTED_CPUID`, of at most `room` entries.
///
/// # Errors
///
/// `E2BIG` when they are more, `ENOMEM`.
pub fn supported(caps: &Caps, room: usize) -> Result<KVec<kvm_cpuid_entry2>> {
    let mut list = List {
        entries: KVec::new(),
        room,
    };
    basic(caps, &mut list)?;
    extended(caps, &mut list)?;
    list.plain(
        LEAF_HYPERVISOR,
        Registers {
            eax: LEAF_KVM_FEATURES,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        },
    )?;
    list.plain(LEAF_KVM_FEATURES, Registers::default())?;
    Ok(list.entries)
}

fn basic(caps: &Caps, list: &mut List) -> Result {
    let host = cpuid(LEAF_VENDOR, 0);
    let last = host.eax.min(LEAF_XSAVE);
    list.plain(LEAF_VENDOR, Registers { eax: last, ..host })?;

    let xcr0 = supported_xcr0();
    let host = cpuid(LEAF_FEATURES, 0);
    let mut ours = keep(LEAF_FEATURES, LEAF_1);
    ours.eax = host.eax;
    ours.ebx = host.ebx & CLFLUSH_LINE;
    ours.edx |= host.edx & BASE_EDX;
    Feature::HYPERVISOR.set_in(&mut ours, true);
    if xcr0 & 1 == 0 {
        Feature::XSAVE.set_in(&mut ours, false);
    }
    if xcr0 & 1 << 2 == 0 {
        for feature in [Feature::AVX, Feature::F16C, Feature::FMA] {
            feature.set_in(&mut ours, false);
        }
    }
    list.plain(LEAF_FEATURES, ours)?;

    if last >= LEAF_CACHES {
        for index in 0..8 {
            let mut host = cpuid(LEAF_CACHES, index);
            if host.eax & 0x1f == 0 {
                break;
            }
            // Bits 31:14: who shares the cache. A vCPU shares it with nobody that it knows of.
            host.eax &= 0x3fff;
            list.push(LEAF_CACHES, index, INDEXED, host)?;
        }
    }
    if last >= LEAF_EXTENDED_FEATURES {
        let mut ours = keep(LEAF_EXTENDED_FEATURES, LEAF_7);
        if !caps.has(bindings::RUSTHV_FEAT_INVPCID) {
            Feature::INVPCID.set_in(&mut ours, false);
        }
        if xcr0 & 1 << 2 == 0 {
            Feature::AVX2.set_in(&mut ours, false);
        }
        list.push(LEAF_EXTENDED_FEATURES, 0, INDEXED, ours)?;
    }
    if last >= LEAF_XSAVE && xcr0 != 0 {
        xsave(xcr0, list)?;
    }
    Ok(())
}

fn xsave(xcr0: u64, list: &mut List) -> Result {
    let component = |component| Some(cpuid(LEAF_XSAVE, component));
    let size = standard_size(xcr0, component);
    let ours = Registers {
        eax: xcr0 as u32,
        ebx: size,
        ecx: size,
        edx: (xcr0 >> 32) as u32,
    };
    list.push(LEAF_XSAVE, 0, INDEXED, ours)?;
    let host = cpuid(LEAF_XSAVE, 1);
    let mut ours = Registers {
        eax: host.eax & XSAVE_EXTENSIONS,
        ..Registers::default()
    };
    ours.ebx = compacted_size(ours.eax, xcr0, component);
    list.push(LEAF_XSAVE, 1, INDEXED, ours)?;
    for bit in 2..63 {
        if xcr0 & 1 << bit != 0 {
            list.push(LEAF_XSAVE, bit, INDEXED, cpuid(LEAF_XSAVE, bit))?;
        }
    }
    Ok(())
}

/// Bytes of an XSAVE area without components beyond SSE: legacy region and header.
const XSAVE_BASE: u32 = 576;

/// Components of XSAVE beyond SSE that XCR0 has, by their subleaf.
fn components(
    xcr0: u64,
    leaf: impl Fn(u32) -> Option<Registers>,
) -> impl Iterator<Item = Registers> {
    (2..63)
        .filter(move |component| xcr0 & 1 << component != 0)
        .filter_map(leaf)
}

/// Bytes that XSAVE writes with this XCR0, in the standard format: each component has its place.
fn standard_size(xcr0: u64, leaf: impl Fn(u32) -> Option<Registers>) -> u32 {
    components(xcr0, leaf).fold(XSAVE_BASE, |size, component| {
        size.max(component.eax.saturating_add(component.ebx))
    })
}

/// The same in the compacted format, one behind the other; 0 on CPUs that have none (SDM Vol. 1,
/// "Compacted Format of the Extended Region").
fn compacted_size(extensions: u32, xcr0: u64, leaf: impl Fn(u32) -> Option<Registers>) -> u32 {
    if extensions & COMPACTS == 0 {
        return 0;
    }
    components(xcr0, leaf).fold(XSAVE_BASE, |size, component| {
        let start = match component.ecx & COMPONENT_ALIGNED {
            0 => size,
            _ => size.checked_next_multiple_of(64).unwrap_or(u32::MAX),
        };
        start.saturating_add(component.eax)
    })
}

fn extended(caps: &Caps, list: &mut List) -> Result {
    let last = cpuid(LEAF_EXTENDED_MAX, 0).eax.min(LEAF_ADDRESS_SIZES);
    if last < LEAF_EXTENDED {
        return Ok(());
    }
    let max = Registers {
        eax: last,
        ..Registers::default()
    };
    list.plain(LEAF_EXTENDED_MAX, max)?;
    let mut ours = keep(LEAF_EXTENDED, LEAF_80000001);
    if !caps.has(bindings::RUSTHV_FEAT_RDTSCP) {
        Feature::RDTSCP.set_in(&mut ours, false);
    }
    list.plain(LEAF_EXTENDED, ours)?;
    for leaf in LEAF_BRAND..=last.min(0x8000_0006) {
        list.plain(leaf, cpuid(leaf, 0))?;
    }
    if last >= LEAF_ADVANCED_POWER {
        let ours = keep(LEAF_ADVANCED_POWER, &[Feature::INVARIANT_TSC]);
        list.plain(LEAF_ADVANCED_POWER, ours)?;
    }
    if last >= LEAF_ADDRESS_SIZES {
        let host = cpuid(LEAF_ADDRESS_SIZES, 0);
        // Physical and linear address widths.
        let phys = (host.eax & 0xff).min(caps.phys_bits);
        let ours = Registers {
            eax: host.eax & 0xff00 | phys,
            ..Registers::default()
        };
        list.plain(LEAF_ADDRESS_SIZES, ours)?;
    }
    Ok(())
}

/// What follows from a guest's CPUID for its registers.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// CR4 bits that the guest may set.
    pub cr4: u64,
    /// EFER bits that the guest may set, LMA aside.
    pub efer: u64,
    /// XCR0 bits that the guest may set.
    pub xcr0: u64,
    /// MAXPHYADDR.
    pub phys_bits: u8,
    /// 1 GiB pages.
    pub pages_1g: bool,
    /// RDTSCP, and so IA32_TSC_AUX.
    pub rdtscp: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// PSE-36.
    pub pse36: bool,
}

/// What CPUID follows at the moment of its execution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// IA32_APIC_BASE has the APIC enabled.
    pub apic: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// A guest's CPUID.
pub struct Cpuid {
    entries: KVec<kvm_cpuid_entry2>,
    facts: Facts,
}

impl Cpuid {
    /// None: every leaf reads as zeros.
    pub fn empty() -> Self {
        let entries = KVec::new();
        let facts = facts(&entries);
        Self { entries, facts }
    }

    /// As the VMM sets it. Flags but the one for subleaves are dropped.
    pub fn new(mut entries: KVec<kvm_cpuid_entry2>) -> Self {
        for entry in entries.iter_mut() {
            entry.flags &= INDEXED;
        }
        let facts = facts(&entries);
        Self { entries, facts }
    }

    /// True when both have the same entries.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |entry: &kvm_cpuid_entry2| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            (entry.function, entry.index, entry.flags, registers)
        };
        self.entries
            .iter()
            .map(key)
            .eq(other.entries.iter().map(key))
    }

    /// True when the linear addresses are of a width that CPUs have, or of none in particular.
    pub fn is_possible(&self) -> bool {
        self.find(LEAF_ADDRESS_SIZES, 0)
            .is_none_or(|sizes| matches!(sizes.eax >> 8 & 0xff, 0 | 48 | 57))
    }

    /// What follows from it.
    #[inline]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Option<Registers> {
        find(&self.entries, leaf, subleaf)
    }

    /// What CPUID returns to the guest, with the registers as they are now.
    #[inline]
    pub fn query(&self, leaf: u32, subleaf: u32, now: &Now) -> Registers {
        let found = self.find(leaf, subleaf);
        let (leaf, found) = match found {
            Some(registers) => (leaf, Some(registers)),
            None => self.out_of_range(leaf, subleaf),
        };
        match leaf {
            LEAF_FEATURES | LEAF_XSAVE | LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
                self.follow(leaf, subleaf, found, now)
            }
            _ => found.unwrap_or_default(),
        }
    }

    /// The same of leaves that follow something.
    #[inline(never)]
    fn follow(&self, leaf: u32, subleaf: u32, found: Option<Registers>, now: &Now) -> Registers {
        let mut registers = found.unwrap_or_default();
        let component = |component| self.find(LEAF_XSAVE, component);
        match (leaf, subleaf, found.is_some()) {
            (LEAF_FEATURES, _, true) => {
                if Feature::XSAVE.is_in(&registers) {
                    Feature::OSXSAVE.set_in(&mut registers, now.osxsave);
                }
                Feature::APIC.set_in(&mut registers, now.apic);
            }
            (LEAF_XSAVE, 0, true) => registers.ebx = standard_size(now.xcr0, component),
            (LEAF_XSAVE, 1, true) => {
                registers.ebx = compacted_size(registers.eax, now.xcr0, component);
            }
            (LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2, _, false) => {
                // Of a level that there is not: what was asked for, and the vCPU's id (SDM Vol. 2A,
                // "CPUID—CPU Identification").
                if let Some(level) = self.find(leaf, 1) {
                    (registers.ecx, registers.edx) = (subleaf & 0xff, level.edx);
                }
            }
            _ => {}
        }
        registers
    }

    /// Intel CPUs answer a leaf beyond the last with the last basic one (SDM Vol. 2A, "CPUID—CPU
    /// Identification"); other vendors with zeros.
    fn out_of_range(&self, leaf: u32, subleaf: u32) -> (u32, Option<Registers>) {
        let Some(basic) = self.find(LEAF_VENDOR, 0) else {
            return (leaf, None);
        };
        let genuine_intel = [basic.ebx, basic.edx, basic.ecx]
            == [
                u32::from_le_bytes(*b"Genu"),
                u32::from_le_bytes(*b"ineI"),
                u32::from_le_bytes(*b"ntel"),
            ];
        let class = match leaf {
            LEAF_HYPERVISOR..=0x4fff_ffff => leaf & 0xffff_ff00,
            LEAF_EXTENDED_MAX..=0xbfff_ffff => LEAF_EXTENDED_MAX,
            0xc000_0000.. => 0xc000_0000,
            _ => LEAF_VENDOR,
        };
        let in_range = self
            .find(class, 0)
            .is_some_and(|registers| leaf <= registers.eax);
        if in_range || !genuine_intel {
            (leaf, None)
        } else {
            (basic.eax, self.find(basic.eax, subleaf))
        }
    }
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<Registers> {
    entries
        .iter()
        .find(|entry| {
            entry.function == leaf && (entry.flags & INDEXED == 0 || entry.index == subleaf)
        })
        .map(|entry| Registers {
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        })
}

/// CR4 bits that need no feature here: PVI and TSD come with VME and TSC, PCE with any counter,
/// OSFXSR and OSXMMEXCPT with SSE. All 64-bit CPUs have them.
const CR4_ALWAYS: Cr4 = Cr4::from_raw(
    Cr4::VME.raw()
        | Cr4::PVI.raw()
        | Cr4::TSD.raw()
        | Cr4::DE.raw()
        | Cr4::PSE.raw()
        | Cr4::PAE.raw()
        | Cr4::MCE.raw()
        | Cr4::PGE.raw()
        | Cr4::PCE.raw()
        | Cr4::OSFXSR.raw()
        | Cr4::OSXMMEXCPT.raw(),
);

fn facts(entries: &[kvm_cpuid_entry2]) -> Facts {
    let has = |feature: Feature| {
        find(entries, feature.leaf, 0).is_some_and(|registers| feature.is_in(&registers))
    };
    let mut cr4 = CR4_ALWAYS;
    for (bit, feature) in [
        (Cr4::OSXSAVE, Feature::XSAVE),
        (Cr4::SMEP, Feature::SMEP),
        (Cr4::SMAP, Feature::SMAP),
        (Cr4::FSGSBASE, Feature::FSGSBASE),
        (Cr4::UMIP, Feature::UMIP),
        (Cr4::PCIDE, Feature::PCID),
    ] {
        cr4 = cr4.with(bit, has(feature));
    }
    let mut efer = Efer::NONE;
    for (bit, feature) in [
        (Efer::SCE, Feature::SYSCALL),
        (Efer::LME, Feature::LM),
        (Efer::NXE, Feature::NX),
    ] {
        efer = efer.with(bit, has(feature));
    }
    let xcr0 = find(entries, LEAF_XSAVE, 0)
        .map_or(0, |leaf| u64::from(leaf.eax) | u64::from(leaf.edx) << 32);
    let phys_bits = find(entries, LEAF_ADDRESS_SIZES, 0).map_or(36, |leaf| leaf.eax as u8);
    Facts {
        cr4: cr4.raw(),
        efer: efer.raw(),
        xcr0: xcr0 & supported_xcr0(),
        phys_bits: phys_bits.clamp(32, 52),
        pages_1g: has(Feature::PAGES_1G),
        rdtscp: has(Feature::RDTSCP),
        invpcid: has(Feature::INVPCID),
        pse36: has(Feature::PSE36),
    }
}

#[kunit_tests(rusthv_cpuid)]
mod tests {
    use super::*;

    /// Guests can have whatever the host has.
    fn everything() -> Caps {
        Caps {
            present: u64::MAX,
            phys_bits: 52,
            ..Caps::default()
        }
    }

    fn offered() -> Result<KVec<kvm_cpuid_entry2>> {
        supported(&everything(), MAX_ENTRIES)
    }

    fn leaf(entries: &[kvm_cpuid_entry2], number: u32) -> Result<Registers> {
        find(entries, number, 0).ok_or(ENOENT)
    }

    #[test]
    fn no_entry_twice() -> Result {
        let entries = offered()?;
        assert!(entries.len() > 8);
        for (index, one) in entries.iter().enumerate() {
            for other in entries.iter().skip(index + 1) {
                assert!((one.function, one.index) != (other.function, other.index));
            }
        }
        // A leaf with subleaves says so in each of them, or a look-up takes the first.
        for entry in entries.iter() {
            assert_eq!(entry.flags & !INDEXED, 0);
            assert!(entry.flags == INDEXED || entry.index == 0);
            assert_eq!(entry.padding, [0; 3]);
        }
        Ok(())
    }

    #[test]
    fn too_little_room() -> Result {
        let caps = &everything();
        let entries = offered()?;
        for room in 0..entries.len() {
            assert_eq!(supported(caps, room).err(), Some(E2BIG));
        }
        assert_eq!(supported(caps, entries.len())?.len(), entries.len());
        Ok(())
    }

    /// Bits that depend on the vCPU's state, or that nothing here implements.
    #[test]
    fn what_is_never_offered() -> Result {
        let entries = offered()?;
        let features = leaf(&entries, LEAF_FEATURES)?;
        for feature in [
            Feature::OSXSAVE,
            Feature::VMX,
            Feature::MONITOR,
            Feature::X2APIC,
            Feature::TSC_DEADLINE,
            Feature::PDCM,
        ] {
            assert!(!feature.is_in(&features));
        }
        assert!(Feature::HYPERVISOR.is_in(&features));
        let extended = leaf(&entries, LEAF_EXTENDED_FEATURES).unwrap_or_default();
        for feature in [
            Feature::PKU,
            Feature::OSPKE,
            Feature::LA57,
            Feature::SPEC_CTRL,
        ] {
            assert!(!feature.is_in(&extended));
        }
        // APIC id and number of logical processors are the vCPU's.
        assert_eq!(features.ebx & !CLFLUSH_LINE, 0);
        Ok(())
    }

    /// Nothing that the host's CPU lacks, the hypervisor bit and leaves aside.
    #[test]
    fn no_more_than_the_host_has() -> Result {
        let entries = offered()?;
        for number in [LEAF_FEATURES, LEAF_EXTENDED_FEATURES, LEAF_EXTENDED] {
            let Some(mut ours) = find(&entries, number, 0) else {
                continue;
            };
            if number == LEAF_FEATURES {
                Feature::HYPERVISOR.set_in(&mut ours, false);
            }
            let host = cpuid(number, 0);
            assert_eq!(ours.ecx & !host.ecx, 0);
            assert_eq!(ours.edx & !host.edx, 0);
            if number == LEAF_EXTENDED_FEATURES {
                assert_eq!(ours.ebx & !host.ebx, 0);
            }
        }
        let host = supported_xcr0();
        let xsave = find(&entries, LEAF_XSAVE, 0).unwrap_or_default();
        assert_eq!(u64::from(xsave.eax) | u64::from(xsave.edx) << 32, host);
        Ok(())
    }

    #[test]
    fn ranges_end_where_they_say() -> Result {
        let entries = offered()?;
        for first in [LEAF_VENDOR, LEAF_HYPERVISOR, LEAF_EXTENDED_MAX] {
            let last = leaf(&entries, first)?.eax;
            let beyond = |entry: &&kvm_cpuid_entry2| {
                entry.function & 0xc000_0000 == first & 0xc000_0000 && entry.function > last
            };
            assert_eq!(entries.iter().filter(beyond).count(), 0);
        }
        Ok(())
    }

    #[test]
    fn queries_follow_the_registers() -> Result {
        let guest = Cpuid::new(offered()?);
        let (off, on) = (
            Now::default(),
            Now {
                osxsave: true,
                apic: true,
                xcr0: 1,
            },
        );
        let with = |feature: Feature, now: &Now| feature.is_in(&guest.query(feature.leaf, 0, now));
        let has_xsave = with(Feature::XSAVE, &off);
        assert!(!with(Feature::OSXSAVE, &off) && !with(Feature::APIC, &off));
        assert_eq!(with(Feature::OSXSAVE, &on), has_xsave);
        assert!(with(Feature::APIC, &on));
        // Without any CPUID, every leaf reads as zeros.
        let none = Cpuid::empty();
        assert!(none.query(LEAF_FEATURES, 0, &on) == Registers::default());
        assert_eq!(none.facts().cr4 & Cr4::OSXSAVE.raw(), 0);
        assert_eq!(none.facts().efer, 0);
        Ok(())
    }

    /// The compacted format, which no CPU model has that the tests run on: AVX (256 bytes, at 576), and
    /// a component that is aligned.
    #[test]
    fn the_compacted_size_follows_xcr0() -> Result {
        let component = |index, eax, ecx| kvm_cpuid_entry2 {
            function: LEAF_XSAVE,
            index,
            flags: INDEXED,
            eax,
            ebx: 0x1000 * index,
            ecx,
            ..kvm_cpuid_entry2::default()
        };
        let size = |extensions: u32, xcr0: u64| -> Result<[u32; 2]> {
            let mut entries = KVec::new();
            for entry in [
                component(0, 0xff, 0),
                component(1, extensions, 0),
                component(2, 256, 0),
                component(3, 8, 0),
                component(5, 64, COMPONENT_ALIGNED),
            ] {
                entries.push(entry, GFP_KERNEL)?;
            }
            let guest = Cpuid::new(entries);
            let now = Now {
                xcr0,
                ..Now::default()
            };
            Ok([0, 1].map(|subleaf| guest.query(LEAF_XSAVE, subleaf, &now).ebx))
        };
        assert_eq!(size(0b0101, 0b111)?, [0x2100, 0]);
        assert_eq!(size(0b0010, 0b011)?, [576, 576]);
        assert_eq!(size(0b0010, 0b111)?, [0x2100, 832]);
        assert_eq!(size(0b0010, 0b1111)?, [0x3008, 840]);
        assert_eq!(size(0b1000, 0b10_1111)?, [0x5040, 960]);
        Ok(())
    }

    /// A level of the topology that there is not still tells the vCPU's id.
    #[test]
    fn absent_topology_levels() -> Result {
        let level = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            flags: INDEXED,
            ecx: index | 0x100,
            edx: 7,
            ..kvm_cpuid_entry2::default()
        };
        let mut entries = KVec::new();
        for entry in [level(LEAF_TOPOLOGY, 0), level(LEAF_TOPOLOGY, 1)] {
            entries.push(entry, GFP_KERNEL)?;
        }
        let guest = Cpuid::new(entries);
        let query = |leaf, subleaf| {
            let found = guest.query(leaf, subleaf, &Now::default());
            (found.eax, found.ebx, found.ecx, found.edx)
        };
        assert_eq!(query(LEAF_TOPOLOGY, 1), (0, 0, 0x101, 7));
        assert_eq!(query(LEAF_TOPOLOGY, 0x1234), (0, 0, 0x34, 7));
        assert_eq!(query(LEAF_TOPOLOGY_V2, 2), (0, 0, 0, 0));
        Ok(())
    }

    #[test]
    fn same_and_possible() -> Result {
        let (one, two) = (Cpuid::new(offered()?), Cpuid::new(offered()?));
        assert!(one.is_same(&two) && one.is_possible());
        let mut entries = offered()?;
        if let Some(entry) = entries.iter_mut().next() {
            entry.edx ^= 1;
        }
        assert!(!one.is_same(&Cpuid::new(entries)));
        let mut entries = offered()?;
        entries.pop();
        assert!(!one.is_same(&Cpuid::new(entries)));
        for (bits, possible) in [
            (0u32, true),
            (47, false),
            (48, true),
            (57, true),
            (64, false),
        ] {
            let mut entries = offered()?;
            for entry in entries.iter_mut() {
                if entry.function == LEAF_ADDRESS_SIZES {
                    entry.eax = entry.eax & !0xff00 | bits << 8;
                }
            }
            assert_eq!(Cpuid::new(entries).is_possible(), possible);
        }
        Ok(())
    }
}

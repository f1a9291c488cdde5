// SPDX-License-Identifier: GPL-2.0

//! Segment registers as a VMCB has them (APM Vol. 2, "VMCB, State Save Area"): the attributes are
//! those of the descriptor, packed into twelve bits, and a register that cannot be used is one
//! that is not present.

use super::vmcb;
use crate::model::arch::segment::{AccessRights, Segment};
use crate::vendor::SegmentRegister;
use kernel::prelude::*;

const PRESENT: u16 = 1 << 7;
const DPL_SHIFT: u32 = 5;
const DPL: u32 = 3 << DPL_SHIFT;
const ACCESSED: u32 = 1 << 0;
const BUSY: u32 = 1 << 1;
const DEFAULT_BIG: u32 = 1 << 14;
const GRANULAR: u32 = 1 << 15;
/// The highest limit that a descriptor can have which counts bytes.
const BYTE_LIMIT: u32 = 0xf_ffff;

/// Type, S, DPL and P in bits 7:0; AVL, L, D/B and G in bits 11:8.
pub(super) const fn attributes(rights: AccessRights) -> u16 {
    let raw = rights.raw();
    let attributes = (raw & 0xff | raw >> 4 & 0xf00) as u16;
    if rights.unusable() {
        attributes & !PRESENT
    } else {
        attributes
    }
}

/// The opposite of [`attributes`].
const fn rights(attributes: u16) -> AccessRights {
    let raw = attributes as u32;
    let spread = raw & 0xff | (raw & 0xf00) << 4;
    if attributes & PRESENT != 0 {
        AccessRights::from_raw(spread)
    } else {
        AccessRights::from_raw(spread | AccessRights::UNUSABLE.raw())
    }
}

/// As the VMCB has it.
pub(super) const fn pack(segment: &Segment) -> vmcb::Segment {
    vmcb::Segment {
        selector: segment.selector,
        attributes: attributes(segment.rights),
        limit: segment.limit,
        base: segment.base,
    }
}

/// A segment register out of the VMCB.
///
/// CPUs do not keep all attributes that have no meaning to them. They are made up here as they
/// must have been, and as VT-x would have them.
pub(super) const fn unpack(which: SegmentRegister, packed: &vmcb::Segment, cpl: u8) -> Segment {
    let found = rights(packed.attributes);
    let mut raw = found.raw() & !GRANULAR;
    if packed.limit > BYTE_LIMIT {
        raw |= GRANULAR;
    }
    match which {
        SegmentRegister::Tr => raw |= BUSY,
        SegmentRegister::Ss => {
            // SS.DPL is the CPL, which has a place of its own.
            raw = raw & !DPL | (cpl as u32 & 3) << DPL_SHIFT;
            if found.unusable() {
                raw &= !DEFAULT_BIG;
            }
        }
        SegmentRegister::Cs | SegmentRegister::Ldtr => {}
        _ if !found.unusable() => raw |= ACCESSED,
        _ => {}
    }
    Segment {
        base: packed.base,
        limit: packed.limit,
        selector: packed.selector,
        rights: AccessRights::from_raw(raw),
    }
}

#[kunit_tests(rusthv_svm_segment)]
mod tests {
    use super::*;

    fn segment(limit: u32, raw: u32) -> Segment {
        Segment {
            base: 0x1234_5000,
            limit,
            selector: 0x18,
            rights: AccessRights::from_raw(raw),
        }
    }

    /// Descriptors of flat segments and a TSS, and their attributes after APM Vol. 2, figure
    /// "VMCB segment attribute format".
    #[test]
    fn known_words() {
        let words = [
            (0xa09b, 0xa9b),
            (0xc093, 0xc93),
            (0x009b, 0x09b),
            (0x008b, 0x08b),
            (0x1093, 0x193),
            (0xf0fb, 0xffb),
        ];
        for (raw, packed) in words {
            assert_eq!(attributes(AccessRights::from_raw(raw)), packed);
            assert_eq!(rights(packed).raw(), raw);
        }
        assert_eq!(attributes(AccessRights::UNUSABLE), 0);
        assert_eq!(attributes(AccessRights::from_raw(0x1_c093)), 0xc13);
        assert!(rights(0).unusable());
    }

    #[test]
    fn round_trip() {
        let wide = segment(0xffff_ffff, 0xc093);
        let narrow = segment(0xffff, 0x4093);
        for which in [SegmentRegister::Ds, SegmentRegister::Fs] {
            assert_eq!(unpack(which, &pack(&wide), 0), wide);
            assert_eq!(unpack(which, &pack(&narrow), 3), narrow);
        }
        let code = segment(0xffff_ffff, 0xa0fb);
        assert_eq!(unpack(SegmentRegister::Cs, &pack(&code), 3), code);
        let stack = segment(0xffff_ffff, 0xc0f3);
        assert_eq!(unpack(SegmentRegister::Ss, &pack(&stack), 3), stack);
    }

    /// What CPUs may have dropped is there again.
    #[test]
    fn meaningless_attributes_are_made_up() {
        let dropped = segment(0xffff_ffff, 0x4092);
        let data = unpack(SegmentRegister::Es, &pack(&dropped), 0);
        assert_eq!(data.rights.raw(), 0xc093);
        let available = segment(0x67, 0x89);
        let task = unpack(SegmentRegister::Tr, &pack(&available), 0);
        assert_eq!(task.rights.raw(), 0x8b);
        let null = segment(0, 0x1_4013);
        let stack = unpack(SegmentRegister::Ss, &pack(&null), 2);
        assert_eq!(stack.rights.raw(), 0x1_0053);
        let null = unpack(SegmentRegister::Ds, &pack(&null), 2);
        assert!(null.rights.unusable());
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Register bits, error codes and segment attributes.

use rusthv_model::arch::cpuid::{Feature, Registers};
use rusthv_model::arch::exception::Vector;
use rusthv_model::arch::regs::{Cr0, Cr4, Rflags};
use rusthv_model::arch::segment::{AccessRights, SegmentFields};

#[test]
fn cr0_combinations() {
    assert!(Cr0::RESET.is_consistent());
    assert!((Cr0::PG | Cr0::PE).is_consistent());
    assert!(!Cr0::PG.is_consistent());
    assert!(!Cr0::NW.is_consistent());
    assert!((Cr0::NW | Cr0::CD).is_consistent());
    assert!(!Cr0::from_raw(1 << 32).is_consistent());
}

#[test]
fn words_of_bits() {
    let mut cr4 = Cr4::PAE | Cr4::SMEP;
    assert_eq!(cr4.raw(), 0x10_0020);
    assert!(cr4.contains(Cr4::PAE) && !cr4.contains(Cr4::PAE | Cr4::PGE));
    assert!(cr4.intersects(Cr4::PAE | Cr4::PGE) && !cr4.intersects(Cr4::PGE));
    cr4 |= Cr4::PGE;
    assert_eq!(cr4.with(Cr4::SMEP, false).without(Cr4::PAE), Cr4::PGE);
    // Bits without a name stay.
    assert_eq!(
        Cr4::from_raw(1 << 63).with(Cr4::PGE, true).raw(),
        1 << 63 | 0x80
    );
    assert_eq!(Rflags::NAMED.raw(), 0x3f_7fd7);
    assert!(Cr4::NONE.is_empty());
}

#[test]
fn error_codes_are_pushed_by_the_right_vectors() {
    let with: Vec<u8> = (0..=255)
        .filter(|&v| Vector::new(v).has_error_code())
        .collect();
    assert_eq!(with, [8, 10, 11, 12, 13, 14, 17, 21]);
    let contributory: Vec<u8> = (0..=255)
        .filter(|&v| Vector::new(v).is_contributory())
        .collect();
    assert_eq!(contributory, [0, 10, 11, 12, 13, 21]);
    assert!(Vector::CP.is_exception() && !Vector::new(32).is_exception());
}

#[test]
fn segments_keep_their_attributes() {
    for raw in 0..0x2_0000u32 {
        let rights = AccessRights::from_raw(raw);
        assert_eq!(rights.raw(), raw & 0x1_f0ff);
        let fields = rights.fields();
        let back = AccessRights::from_fields(&fields);
        // Present follows usable in what user space sees.
        let present = if rights.unusable() { 0 } else { 0x80 };
        assert_eq!(back.raw(), rights.raw() & !0x80 | present);
    }
}

#[test]
fn segment_fields_are_taken_bit_by_bit() {
    let fields = SegmentFields {
        type_: 0xfb,
        present: 1,
        dpl: 0xff,
        db: 2,
        s: 3,
        l: 1,
        g: 1,
        avl: 0,
        unusable: 0,
    };
    // Type 11, S, DPL 3, P, L, G.
    assert_eq!(AccessRights::from_fields(&fields).raw(), 0xa0fb);
    let absent = SegmentFields {
        present: 0,
        ..fields
    };
    assert!(AccessRights::from_fields(&absent).unusable());
}

#[test]
fn segment_kinds() {
    let code = AccessRights::REAL_CODE;
    assert!(code.is_code() && code.is_readable() && !code.is_writable());
    let data = AccessRights::REAL_DATA;
    assert!(!data.is_code() && data.is_readable() && data.is_writable() && !data.expands_down());
    let down = AccessRights::from_raw(0x97);
    assert!(down.expands_down() && down.is_writable());
    let execute_only = AccessRights::from_raw(0x99);
    assert!(!execute_only.is_readable());
    assert!(!AccessRights::BUSY_TSS.is_code_or_data());
    assert_eq!(AccessRights::from_raw(0x92).with_accessed(), data);
}

#[test]
fn features_are_bits_of_leaves() {
    let mut registers = Registers::default();
    Feature::X2APIC.set_in(&mut registers, true);
    Feature::PSE36.set_in(&mut registers, true);
    assert_eq!((registers.ecx, registers.edx), (1 << 21, 1 << 17));
    assert!(Feature::X2APIC.is_in(&registers) && !Feature::VMX.is_in(&registers));
    Feature::X2APIC.set_in(&mut registers, false);
    assert_eq!(registers.ecx, 0);
}

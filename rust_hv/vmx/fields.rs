// SPDX-License-Identifier: GPL-2.0

//! VMCS fields as typed constants (SDM Vol. 3D, appendix "Field Encoding in VMCS").
//!
//! A [`Field`] may be written by safe code: whatever the value, the guest alone has the
//! consequences, or the entry fails. A [`HostField`] decides over the host and is written in
//! `unsafe` code only. A [`ReadField`] cannot be written.

use core::marker::PhantomData;

/// A value that a VMCS field can have.
pub trait Width: Copy {
    /// From the 64 bits that VMREAD gives.
    fn from_raw(raw: u64) -> Self;
    /// To the 64 bits that VMWRITE takes.
    fn into_raw(self) -> u64;
}

macro_rules! width {
    ($($ty:ty),*) => {$(
        impl Width for $ty {
            #[inline]
            fn from_raw(raw: u64) -> Self {
                raw as $ty
            }
            #[inline]
            fn into_raw(self) -> u64 {
                self.into()
            }
        }
    )*};
}

width!(u16, u32, u64);

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $kind<T>(pub(super) u32, PhantomData<fn() -> T>);

        impl<T: Width> $kind<T> {
            const fn new(encoding: u32) -> Self {
                Self(encoding, PhantomData)
            }
        }

        impl<T: Width> Readable for $kind<T> {
            type Value = T;
            #[inline]
            fn encoding(self) -> u32 {
                self.0
            }
        }
    )*};
}

/// Any field.
pub trait Readable: Copy {
    /// Type of its value.
    type Value: Width;
    /// Its encoding.
    fn encoding(self) -> u32;
}

kinds! {
    /// A field of the guest's, or an event to inject.
    Field,
    /// A field of the host area, or a control by which a guest could reach the host.
    HostField,
    /// A field that the CPU writes.
    ReadField,
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $kind:ident<$ty:ty> = $encoding:literal;)*) => {$(
        $(#[$doc])*
        pub const $name: $kind<$ty> = $kind::new($encoding);
    )*

    /// The encodings of all of these.
    const ENCODINGS: &[u32] = &[$($encoding),*];
    };
}

fields! {
    /// Virtual-processor identifier.
    VPID: HostField<u16> = 0x0000;

    /// Index of the next entry of the page-modification log; it goes down, and below 0 the log is
    /// full.
    PML_INDEX: Field<u16> = 0x0812;

    /// Host ES selector.
    HOST_ES_SELECTOR: HostField<u16> = 0x0c00;
    /// Host CS selector.
    HOST_CS_SELECTOR: HostField<u16> = 0x0c02;
    /// Host SS selector.
    HOST_SS_SELECTOR: HostField<u16> = 0x0c04;
    /// Host DS selector.
    HOST_DS_SELECTOR: HostField<u16> = 0x0c06;
    /// Host FS selector.
    HOST_FS_SELECTOR: HostField<u16> = 0x0c08;
    /// Host GS selector.
    HOST_GS_SELECTOR: HostField<u16> = 0x0c0a;
    /// Host TR selector.
    HOST_TR_SELECTOR: HostField<u16> = 0x0c0c;

    /// Address of the bitmap of ports below 0x8000.
    IO_BITMAP_A: HostField<u64> = 0x2000;
    /// Address of the bitmap of the other ports.
    IO_BITMAP_B: HostField<u64> = 0x2002;
    /// Address of the MSR bitmap.
    MSR_BITMAP: HostField<u64> = 0x2004;
    /// Address of the page-modification log.
    PML_ADDRESS: HostField<u64> = 0x200e;
    /// TSC offset.
    TSC_OFFSET: Field<u64> = 0x2010;
    /// EPT pointer.
    EPT_POINTER: HostField<u64> = 0x201a;
    /// Which leaves of ENCLS exit.
    ENCLS_EXITING_BITMAP: HostField<u64> = 0x202e;
    /// Guest-physical address of an EPT violation.
    GUEST_PHYSICAL_ADDRESS: ReadField<u64> = 0x2400;
    /// VMCS link pointer.
    VMCS_LINK_POINTER: HostField<u64> = 0x2800;
    /// Guest IA32_DEBUGCTL.
    GUEST_DEBUGCTL: Field<u64> = 0x2802;
    /// Guest IA32_PAT.
    GUEST_PAT: Field<u64> = 0x2804;
    /// Guest IA32_EFER.
    GUEST_EFER: Field<u64> = 0x2806;
    /// Guest PDPTE 0.
    GUEST_PDPTE0: Field<u64> = 0x280a;
    /// Guest PDPTE 1.
    GUEST_PDPTE1: Field<u64> = 0x280c;
    /// Guest PDPTE 2.
    GUEST_PDPTE2: Field<u64> = 0x280e;
    /// Guest PDPTE 3.
    GUEST_PDPTE3: Field<u64> = 0x2810;
    /// Host IA32_PAT.
    HOST_PAT: HostField<u64> = 0x2c00;
    /// Host IA32_EFER.
    HOST_EFER: HostField<u64> = 0x2c02;

    /// Pin-based controls.
    PIN_CONTROLS: HostField<u32> = 0x4000;
    /// Primary processor-based controls.
    PRIMARY_CONTROLS: HostField<u32> = 0x4002;
    /// Exception bitmap.
    EXCEPTION_BITMAP: HostField<u32> = 0x4004;
    /// Page-fault error-code mask.
    PAGE_FAULT_MASK: Field<u32> = 0x4006;
    /// Page-fault error-code match.
    PAGE_FAULT_MATCH: Field<u32> = 0x4008;
    /// CR3-target count.
    CR3_TARGET_COUNT: Field<u32> = 0x400a;
    /// VM-exit controls.
    EXIT_CONTROLS: HostField<u32> = 0x400c;
    /// VM-exit MSR-store count.
    EXIT_MSR_STORE_COUNT: HostField<u32> = 0x400e;
    /// VM-exit MSR-load count.
    EXIT_MSR_LOAD_COUNT: HostField<u32> = 0x4010;
    /// VM-entry controls.
    ENTRY_CONTROLS: HostField<u32> = 0x4012;
    /// VM-entry MSR-load count.
    ENTRY_MSR_LOAD_COUNT: HostField<u32> = 0x4014;
    /// VM-entry interruption information.
    ENTRY_INTERRUPTION_INFO: Field<u32> = 0x4016;
    /// VM-entry exception error code.
    ENTRY_ERROR_CODE: Field<u32> = 0x4018;
    /// VM-entry instruction length.
    ENTRY_INSTRUCTION_LENGTH: Field<u32> = 0x401a;
    /// Secondary processor-based controls.
    SECONDARY_CONTROLS: HostField<u32> = 0x401e;

    /// Exit reason.
    EXIT_REASON: ReadField<u32> = 0x4402;
    /// VM-exit interruption information.
    EXIT_INTERRUPTION_INFO: ReadField<u32> = 0x4404;
    /// VM-exit interruption error code.
    EXIT_ERROR_CODE: ReadField<u32> = 0x4406;
    /// IDT-vectoring information.
    IDT_VECTORING_INFO: ReadField<u32> = 0x4408;
    /// IDT-vectoring error code.
    IDT_VECTORING_ERROR_CODE: ReadField<u32> = 0x440a;
    /// VM-exit instruction length.
    EXIT_INSTRUCTION_LENGTH: ReadField<u32> = 0x440c;

    /// Guest interruptibility state.
    GUEST_INTERRUPTIBILITY: Field<u32> = 0x4824;
    /// Guest activity state.
    GUEST_ACTIVITY: Field<u32> = 0x4826;
    /// Guest IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS: Field<u32> = 0x482a;
    /// Host IA32_SYSENTER_CS.
    HOST_SYSENTER_CS: HostField<u32> = 0x4c00;

    /// CR0 guest/host mask.
    CR0_MASK: HostField<u64> = 0x6000;
    /// CR4 guest/host mask.
    CR4_MASK: HostField<u64> = 0x6002;
    /// CR0 read shadow.
    CR0_SHADOW: Field<u64> = 0x6004;
    /// CR4 read shadow.
    CR4_SHADOW: Field<u64> = 0x6006;
    /// Exit qualification.
    EXIT_QUALIFICATION: ReadField<u64> = 0x6400;
    /// Guest linear address.
    GUEST_LINEAR_ADDRESS: ReadField<u64> = 0x640a;

    /// Guest CR0.
    GUEST_CR0: Field<u64> = 0x6800;
    /// Guest CR3.
    GUEST_CR3: Field<u64> = 0x6802;
    /// Guest CR4.
    GUEST_CR4: Field<u64> = 0x6804;
    /// Guest GDTR base.
    GUEST_GDTR_BASE: Field<u64> = 0x6816;
    /// Guest IDTR base.
    GUEST_IDTR_BASE: Field<u64> = 0x6818;
    /// Guest GDTR limit.
    GUEST_GDTR_LIMIT: Field<u32> = 0x4810;
    /// Guest IDTR limit.
    GUEST_IDTR_LIMIT: Field<u32> = 0x4812;
    /// Guest DR7.
    GUEST_DR7: Field<u64> = 0x681a;
    /// Guest RSP.
    GUEST_RSP: Field<u64> = 0x681c;
    /// Guest RIP.
    GUEST_RIP: Field<u64> = 0x681e;
    /// Guest RFLAGS.
    GUEST_RFLAGS: Field<u64> = 0x6820;
    /// Guest pending debug exceptions.
    GUEST_PENDING_DEBUG: Field<u64> = 0x6822;
    /// Guest IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP: Field<u64> = 0x6824;
    /// Guest IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP: Field<u64> = 0x6826;

    /// Host CR0.
    HOST_CR0: HostField<u64> = 0x6c00;
    /// Host CR3.
    HOST_CR3: HostField<u64> = 0x6c02;
    /// Host CR4.
    HOST_CR4: HostField<u64> = 0x6c04;
    /// Host FS base.
    HOST_FS_BASE: HostField<u64> = 0x6c06;
    /// Host GS base.
    HOST_GS_BASE: HostField<u64> = 0x6c08;
    /// Host TR base.
    HOST_TR_BASE: HostField<u64> = 0x6c0a;
    /// Host GDTR base.
    HOST_GDTR_BASE: HostField<u64> = 0x6c0c;
    /// Host IDTR base.
    HOST_IDTR_BASE: HostField<u64> = 0x6c0e;
    /// Host IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP: HostField<u64> = 0x6c10;
    /// Host IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP: HostField<u64> = 0x6c12;
    /// Host RSP: written by `entry.S`.
    HOST_RSP: HostField<u64> = 0x6c14;
    /// Host RIP.
    HOST_RIP: HostField<u64> = 0x6c16;
}

/// The encodings of all fields of ours that can be written; not all CPUs have all of them. They are
/// at most [`FIELDS`].
pub(super) fn encodings() -> impl Iterator<Item = u32> {
    /// In bits 11:10 of an encoding: what exits tell.
    const READ_ONLY: u32 = 1;
    let written = |encoding: &u32| encoding >> 10 & 3 != READ_ONLY;
    let segments = SegmentFields::ALL.into_iter().flat_map(|fields| {
        [
            fields.selector.0,
            fields.limit.0,
            fields.access_rights.0,
            fields.base.0,
        ]
    });
    ENCODINGS.iter().copied().filter(written).chain(segments)
}

/// See [`encodings`].
pub(super) const FIELDS: usize = ENCODINGS.len() + 4 * SegmentFields::ALL.len();

/// The four fields of a guest segment register.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<u16>,
    /// Limit in bytes.
    pub limit: Field<u32>,
    /// Access rights.
    pub access_rights: Field<u32>,
    /// Base.
    pub base: Field<u64>,
}

impl SegmentFields {
    const fn at(index: u32) -> Self {
        Self {
            selector: Field::new(0x0800 + 2 * index),
            limit: Field::new(0x4800 + 2 * index),
            access_rights: Field::new(0x4814 + 2 * index),
            base: Field::new(0x6806 + 2 * index),
        }
    }

    /// ES, CS, SS, DS, FS, GS, LDTR, TR: the order of the encodings.
    pub const ALL: [Self; 8] = [
        Self::at(0),
        Self::at(1),
        Self::at(2),
        Self::at(3),
        Self::at(4),
        Self::at(5),
        Self::at(6),
        Self::at(7),
    ];
    /// CS.
    pub const CS: Self = Self::at(1);
    /// SS.
    pub const SS: Self = Self::at(2);
    /// TR.
    pub const TR: Self = Self::at(7);
}

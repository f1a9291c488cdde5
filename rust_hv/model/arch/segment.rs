// SPDX-License-Identifier: GPL-2.0

//! Segment attributes in the two shapes that we meet: the access-rights word of a VMCS and the
//! single fields of `struct kvm_segment`.

/// Access rights of a segment register as in the VMCS (SDM Vol. 3C, table "Format of Access
/// Rights").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct AccessRights(u32);

/// The attributes as single numbers, named as in `struct kvm_segment`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentFields {
    /// Segment type, four bits.
    pub type_: u8,
    /// In memory.
    pub present: u8,
    /// Descriptor privilege level, two bits.
    pub dpl: u8,
    /// Default operation size, or stack-pointer size.
    pub db: u8,
    /// Code or data, not system.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// The limit counts pages.
    pub g: u8,
    /// Free for software.
    pub avl: u8,
    /// The register holds a null selector, or nothing that could be used.
    pub unusable: u8,
}

impl AccessRights {
    /// A register that cannot be used.
    pub const UNUSABLE: Self = Self(1 << 16);
    /// Real-mode data: read/write, accessed.
    pub const REAL_DATA: Self = Self(0x93);
    /// Real-mode code: readable, accessed.
    pub const REAL_CODE: Self = Self(0x9b);
    /// Local descriptor table.
    pub const LDT: Self = Self(0x82);
    /// Busy 32- or 64-bit task state segment: the only kind that TR can hold in VMX.
    pub const BUSY_TSS: Self = Self(0x8b);

    /// Wraps a raw value; bits that are reserved are dropped.
    #[inline]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw & 0x1_f0ff)
    }

    /// The raw value.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    const fn bit(self, bit: u32) -> u8 {
        (self.0 >> bit & 1) as u8
    }

    /// Segment type, four bits.
    #[inline]
    pub const fn segment_type(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// Code or data, not system.
    #[inline]
    pub const fn is_code_or_data(self) -> bool {
        self.bit(4) != 0
    }

    /// True for code segments.
    #[inline]
    pub const fn is_code(self) -> bool {
        self.is_code_or_data() && self.segment_type() & 8 != 0
    }

    /// True when data can be written through the segment.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.is_code_or_data() && self.segment_type() & 0b1010 == 0b0010
    }

    /// True when data can be read through the segment.
    #[inline]
    pub const fn is_readable(self) -> bool {
        self.is_code_or_data() && (!self.is_code() || self.segment_type() & 2 != 0)
    }

    /// True for a data segment whose offsets lie above the limit.
    #[inline]
    pub const fn expands_down(self) -> bool {
        self.is_code_or_data() && self.segment_type() & 0b1100 == 0b0100
    }

    /// Descriptor privilege level.
    #[inline]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// In memory.
    #[inline]
    pub const fn present(self) -> bool {
        self.bit(7) != 0
    }

    /// 64-bit code.
    #[inline]
    pub const fn long(self) -> bool {
        self.bit(13) != 0
    }

    /// 32-bit operations, or a 32-bit stack pointer.
    #[inline]
    pub const fn default_big(self) -> bool {
        self.bit(14) != 0
    }

    /// The limit of the descriptor counts pages.
    #[inline]
    pub const fn granular(self) -> bool {
        self.bit(15) != 0
    }

    /// The register cannot be used.
    #[inline]
    pub const fn unusable(self) -> bool {
        self.bit(16) != 0
    }

    /// The same with the accessed bit of the type set: VM entry demands it of usable segments, and
    /// some VMMs reset segments without it.
    #[inline]
    pub const fn with_accessed(self) -> Self {
        Self(self.0 | 1)
    }

    /// From the fields that user space gave. Only the bits that a field has are looked at.
    ///
    /// A register that is not present becomes unusable, as KVM has it: VM entry demands that a
    /// usable one be present, and VMMs are known to lose the `unusable` field.
    pub const fn from_fields(fields: &SegmentFields) -> Self {
        const fn put(field: u8, bit: u32) -> u32 {
            (field as u32 & 1) << bit
        }
        let unusable = fields.unusable != 0 || fields.present == 0;
        Self(
            (fields.type_ as u32 & 0xf)
                | put(fields.s, 4)
                | (fields.dpl as u32 & 3) << 5
                | put(fields.present, 7)
                | put(fields.avl, 12)
                | put(fields.l, 13)
                | put(fields.db, 14)
                | put(fields.g, 15)
                | put(unusable as u8, 16),
        )
    }

    /// The fields for user space. A register that cannot be used is never shown as present.
    pub const fn fields(self) -> SegmentFields {
        SegmentFields {
            type_: self.segment_type(),
            present: !self.unusable() as u8,
            dpl: self.dpl(),
            db: self.bit(14),
            s: self.bit(4),
            l: self.bit(13),
            g: self.bit(15),
            avl: self.bit(12),
            unusable: self.bit(16),
        }
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// First byte.
    pub base: u64,
    /// Highest offset, in bytes.
    pub limit: u32,
    /// What was loaded.
    pub selector: u16,
    /// Attributes.
    pub rights: AccessRights,
}

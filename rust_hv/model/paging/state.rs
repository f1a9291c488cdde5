// SPDX-License-Identifier: GPL-2.0

//! The rules of the guest's paging: modes, reserved bits, rights (SDM Vol. 3A, "Paging").

use super::walk::EntrySize;
use super::Permissions;
use crate::model::arch::addr::Gva;
use crate::model::arch::exception::PageFaultError;
use crate::model::arch::regs::{Cr0, Cr4, Efer, Rflags};

pub(super) const PRESENT: u64 = 1 << 0;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
pub(super) const LARGE: u64 = 1 << 7;
pub(super) const NO_EXECUTE: u64 = 1 << 63;

/// Bits `high` down to `low`, both below 64.
pub(super) const fn bits(high: u32, low: u32) -> u64 {
    u64::MAX.wrapping_shr(63u32.wrapping_sub(high)) & u64::MAX.wrapping_shl(low)
}

/// The lowest `width` bits.
pub(super) fn low_mask(width: u8) -> u64 {
    1u64.checked_shl(u32::from(width))
        .map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

/// Reserved bits of a page-directory pointer in PAE mode.
pub(super) fn pdpte_reserved(phys_bits: u8) -> u64 {
    bits(2, 1) | bits(8, 5) | (!low_mask(phys_bits) & bits(63, 12)) | bits(63, 52)
}

/// Paging mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// CR0.PG is 0.
    Unpaged,
    /// Two levels of 1024 entries.
    Bits32,
    /// Four pointers and two levels of 512 entries.
    Pae,
    /// 48-bit linear addresses.
    FourLevel,
    /// 57-bit linear addresses.
    FiveLevel,
}

/// What the guest's CPUID says about paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// MAXPHYADDR: address bits from there on are reserved. Taken as 52 when larger.
    pub phys_bits: u8,
    /// 1 GiB pages.
    pub pages_1g: bool,
    /// Addresses above 4 GiB in 4 MiB pages.
    pub pse36: bool,
}

/// The registers that decide about paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// CR0.
    pub cr0: Cr0,
    /// CR3, with whatever PCID and flags are in it.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// PKRU: rights of the sixteen protection keys.
    pub pkru: u32,
}

/// Everything that a walk depends on, except the access and the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingState {
    pub(super) mode: Mode,
    pub(super) registers: Registers,
    pub(super) features: Features,
    pub(super) pdptes: Option<[u64; 4]>,
    /// Bits of an address in CR3 and in the entries that are not 32-bit paging's.
    pub(super) physical: u64,
    /// Bits that are reserved in every one of those entries.
    always_reserved: u64,
}

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write, or read with intent to write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// With what privilege an access is made (SDM Vol. 3A, "Determination of Access Rights").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// By an instruction at CPL 3.
    User,
    /// By an instruction at a lower CPL; RFLAGS.AC lets it at user pages in spite of SMAP.
    Supervisor {
        /// RFLAGS.AC.
        ac: bool,
    },
    /// By the CPU itself, to a descriptor table or a TSS, at any CPL.
    Implicit,
}

/// One access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What it wants.
    pub kind: AccessKind,
    /// What it may.
    pub privilege: Privilege,
}

impl Access {
    /// An access by an instruction.
    #[inline]
    pub const fn explicit(kind: AccessKind, cpl: u8, rflags: Rflags) -> Self {
        let privilege = if cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor {
                ac: rflags.contains(Rflags::AC),
            }
        };
        Self { kind, privilege }
    }

    /// An access by the CPU itself to a system structure.
    #[inline]
    pub const fn implicit(kind: AccessKind) -> Self {
        Self {
            kind,
            privilege: Privilege::Implicit,
        }
    }

    #[inline]
    const fn is_user(self) -> bool {
        matches!(self.privilege, Privilege::User)
    }

    #[inline]
    pub(super) const fn is_write(self) -> bool {
        matches!(self.kind, AccessKind::Write)
    }

    #[inline]
    const fn is_fetch(self) -> bool {
        matches!(self.kind, AccessKind::Fetch)
    }
}

/// The rights of a page, put together from every level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// A user-mode address: U/S is 1 at every level.
    pub user: bool,
    /// R/W is 1 at every level.
    pub writable: bool,
    /// XD is 1 at no level.
    pub executable: bool,
    /// Protection key.
    pub key: u8,
}

impl Rights {
    pub(super) const ALL: Self = Self {
        user: true,
        writable: true,
        executable: true,
        key: 0,
    };
}

impl PagingState {
    /// True when a walk in PAE mode takes the page-directory pointers from the CPU.
    #[inline]
    pub const fn has_pdptes(&self) -> bool {
        self.pdptes.is_some()
    }

    /// From registers and CPUID. `pdptes` are the pointers that a CPU in PAE mode has loaded;
    /// without them a walk reads them from memory, with reserved bits as page faults.
    pub fn new(registers: Registers, features: Features, pdptes: Option<[u64; 4]>) -> Self {
        let Registers { cr0, cr4, efer, .. } = registers;
        let mode = if !cr0.contains(Cr0::PG) {
            Mode::Unpaged
        } else if !cr4.contains(Cr4::PAE) {
            Mode::Bits32
        } else if !efer.contains(Efer::LMA) {
            Mode::Pae
        } else if !cr4.contains(Cr4::LA57) {
            Mode::FourLevel
        } else {
            Mode::FiveLevel
        };
        let physical = bits(51, 12) & low_mask(features.phys_bits);
        let mut always_reserved = bits(51, 12) & !physical;
        if mode == Mode::Pae {
            always_reserved |= bits(62, 52);
        }
        if !efer.contains(Efer::NXE) {
            always_reserved |= NO_EXECUTE;
        }
        Self {
            mode,
            registers,
            features,
            pdptes,
            physical,
            always_reserved,
        }
    }

    /// CR0.PE is 1.
    #[inline]
    pub const fn is_protected(&self) -> bool {
        self.registers.cr0.contains(Cr0::PE)
    }

    /// Long mode, whatever the size of its code.
    #[inline]
    pub const fn is_long(&self) -> bool {
        self.registers.efer.contains(Efer::LMA)
    }

    /// CR4.PCIDE is 1: translations are of contexts.
    pub const fn has_contexts(&self) -> bool {
        self.cr4(Cr4::PCIDE)
    }

    /// The same, with these page-directory pointers loaded.
    pub const fn with_pointers(mut self, pointers: [u64; 4]) -> Self {
        self.pdptes = Some(pointers);
        self
    }

    /// The page-directory pointers that are loaded; zeroes where none are.
    pub fn pointers(&self) -> [u64; 4] {
        self.pdptes.unwrap_or_default()
    }

    /// Bytes of an entry of the tables.
    pub const fn entry_size(&self) -> EntrySize {
        match self.mode {
            Mode::Bits32 => EntrySize::Four,
            _ => EntrySize::Eight,
        }
    }

    /// Bits that must be 0 in an entry for a page of 4 KiB.
    pub fn reserved_in_small(&self) -> u64 {
        self.reserved(12, true)
    }

    /// Frame of the page of 4 KiB that an entry maps.
    pub fn frame(&self, entry: u64) -> u64 {
        self.page(entry, 12) >> 12
    }

    /// The paging mode.
    #[inline]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    #[inline]
    const fn wp(&self) -> bool {
        self.registers.cr0.contains(Cr0::WP)
    }

    #[inline]
    const fn cr4(&self, bit: Cr4) -> bool {
        self.registers.cr4.contains(bit)
    }

    #[inline]
    const fn nxe(&self) -> bool {
        self.registers.efer.contains(Efer::NXE)
    }

    /// True when the linear address has the form that the mode demands.
    #[inline]
    pub const fn is_canonical(&self, gva: Gva) -> bool {
        let unused = match self.mode {
            Mode::FourLevel => 16,
            Mode::FiveLevel => 7,
            Mode::Unpaged | Mode::Bits32 | Mode::Pae => return true,
        };
        let raw = gva.raw();
        ((raw << unused) as i64 >> unused) as u64 == raw
    }

    /// Bits that must be 0 in a present entry whose index is at bit `shift` of the linear address.
    #[inline]
    pub(super) fn reserved(&self, shift: u32, leaf: bool) -> u64 {
        if self.mode == Mode::Bits32 {
            if shift == 12 || !leaf {
                return 0;
            }
            // 4 MiB: bits 20:13 are address bits 39:32, as far as the CPU has them.
            let width = self.features.phys_bits.clamp(32, 40);
            let address = if self.features.pse36 {
                (bits(39, 32) & low_mask(width)) >> 19
            } else {
                0
            };
            return bits(21, 13) & !address;
        }
        let mut reserved = self.always_reserved;
        if shift > 12 {
            if leaf {
                reserved |= bits(shift - 1, 13);
            } else if shift > 21 {
                // In the levels that have no large pages.
                reserved |= LARGE;
            }
        }
        reserved
    }

    /// True when the entry maps a page.
    #[inline]
    pub(super) fn is_leaf(&self, entry: u64, shift: u32) -> bool {
        let can_be_large = match shift {
            12 => return true,
            21 => true,
            22 => self.cr4(Cr4::PSE),
            30 => self.features.pages_1g,
            _ => false,
        };
        can_be_large && entry & LARGE != 0
    }

    /// First byte of the page that a leaf entry maps.
    #[inline]
    pub(super) fn page(&self, entry: u64, shift: u32) -> u64 {
        match self.mode {
            Mode::Bits32 if shift == 12 => entry & bits(31, 12),
            Mode::Bits32 => (entry & bits(31, 22)) | (entry & bits(20, 13)) << 19,
            _ => entry & bits(51, shift),
        }
    }

    /// The error code of a fault by this access, without what the walk found out.
    pub(super) fn error_code(&self, access: Access) -> PageFaultError {
        let shows_fetch = self.cr4(Cr4::SMEP) || (self.cr4(Cr4::PAE) && self.nxe());
        PageFaultError::NONE
            .with(PageFaultError::WRITE, access.is_write())
            .with(PageFaultError::USER, access.is_user())
            .with(PageFaultError::FETCH, access.is_fetch() && shows_fetch)
    }

    /// True when a protection key forbids the access (SDM Vol. 3A, "Protection Keys").
    #[inline]
    fn key_forbids(&self, rights: &Rights, access: Access) -> bool {
        let long = matches!(self.mode, Mode::FourLevel | Mode::FiveLevel);
        if !long || !self.cr4(Cr4::PKE) || !rights.user || access.is_fetch() {
            return false;
        }
        let key = self.registers.pkru >> (u32::from(rights.key & 15) * 2);
        let (access_disable, write_disable) = (key & 1 != 0, key & 2 != 0);
        access_disable || (write_disable && access.is_write() && (access.is_user() || self.wp()))
    }

    /// True when the mode bits of the tables forbid the access (SDM Vol. 3A, "Determination of
    /// Access Rights").
    #[inline]
    fn rights_forbid(&self, rights: &Rights, access: Access) -> bool {
        let wrong_side = match access.privilege {
            Privilege::User => !rights.user,
            _ if !rights.user => false,
            _ if access.is_fetch() => self.cr4(Cr4::SMEP),
            Privilege::Supervisor { ac } => self.cr4(Cr4::SMAP) && !ac,
            Privilege::Implicit => self.cr4(Cr4::SMAP),
        };
        wrong_side
            || match access.kind {
                AccessKind::Read => false,
                AccessKind::Write => !rights.writable && (access.is_user() || self.wp()),
                AccessKind::Fetch => !rights.executable,
            }
    }

    /// The error code with which an access to a page of these rights faults, if it does. For
    /// cached translations.
    #[inline]
    pub fn check(&self, rights: &Rights, access: Access) -> Result<(), PageFaultError> {
        if self.mode == Mode::Unpaged {
            return Ok(());
        }
        let key = self.key_forbids(rights, access);
        if key || self.rights_forbid(rights, access) {
            return Err(
                self.error_code(access) | PageFaultError::PRESENT.with(PageFaultError::KEY, key)
            );
        }
        Ok(())
    }

    /// What accesses of this privilege may do with a page of these rights.
    pub fn permissions(&self, rights: &Rights, privilege: Privilege) -> Permissions {
        let may = |kind, right| {
            let access = Access { kind, privilege };
            match self.check(rights, access) {
                Ok(()) => right,
                Err(_) => Permissions::NONE,
            }
        };
        may(AccessKind::Read, Permissions::R)
            .union(may(AccessKind::Write, Permissions::W))
            .union(may(AccessKind::Fetch, Permissions::X))
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Accesses of guests that may exit or not, by the number of a port or an MSR.

use super::msr;

/// A kind of access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intercepted {
    /// IN, OUT, INS, OUTS.
    Port,
    /// RDMSR.
    MsrRead,
    /// WRMSR.
    MsrWrite,
}

/// Ports.
pub const PORTS: u32 = 1 << 16;

/// Consecutive numbers: at least one, and no more than there are ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    first: u32,
    last: u32,
}

impl Numbers {
    /// `count` numbers; `None` for none, for too many, and past the last that there is.
    pub const fn new(first: u32, count: u32) -> Option<Self> {
        if count == 0 || count > PORTS {
            return None;
        }
        match first.checked_add(count - 1) {
            Some(last) => Some(Self { first, last }),
            None => None,
        }
    }

    /// The lowest.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The highest.
    pub const fn last(self) -> u32 {
        self.last
    }

    /// True when all of them are among `count` from `first` on.
    pub const fn are_in(self, first: u32, count: u32) -> bool {
        match self.first.checked_sub(first) {
            Some(_) => self.last - first < count,
            None => false,
        }
    }

    /// All of them, in order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.first..=self.last
    }
}

/// MSRs whose values hardware switches with the guest, or that the host puts back: a guest that
/// reaches them without an exit reaches its own.
pub const SWITCHED: [u32; 6] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
];

/// The same by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum SwitchedMsr {
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    FsBase,
    GsBase,
    KernelGsBase,
}

impl SwitchedMsr {
    /// The one of a number.
    pub const fn of(number: u32) -> Option<Self> {
        Some(match number {
            msr::SYSENTER_CS => Self::SysenterCs,
            msr::SYSENTER_ESP => Self::SysenterEsp,
            msr::SYSENTER_EIP => Self::SysenterEip,
            msr::FS_BASE => Self::FsBase,
            msr::GS_BASE => Self::GsBase,
            msr::KERNEL_GS_BASE => Self::KernelGsBase,
            _ => return None,
        })
    }
}

/// Whether a guest may be let through, whoever asks: not to write what the host lives on.
pub fn may_pass(what: Intercepted, numbers: Numbers) -> bool {
    match what {
        Intercepted::Port | Intercepted::MsrRead => true,
        Intercepted::MsrWrite => numbers.iter().all(|number| SWITCHED.contains(&number)),
    }
}

/// Whether a guest is let through if nobody asks for anything.
pub fn passes_anyway(what: Intercepted, numbers: Numbers) -> bool {
    numbers.iter().all(|number| match what {
        Intercepted::Port => false,
        Intercepted::MsrRead => number == msr::TSC || SWITCHED.contains(&number),
        Intercepted::MsrWrite => SWITCHED.contains(&number),
    })
}

// SPDX-License-Identifier: GPL-2.0

//! AMD-V (SVM): VMCBs, entry and exit, ASIDs, permission maps.
//!
//! One of the two vendors behind the seam ([`crate::vendor`]), and with `host` and `vmx` the only
//! code that is `unsafe`. What is not AMD's does not live here: exits leave as
//! [`crate::model::exit::Exit`].
//!
//! | File | What it holds |
//! |---|---|
//! | `caps` | what the CPU can do |
//! | `vmcb` | the virtual machine control block as a type |
//! | `permissions` | which MSRs and ports guests reach without an exit |
//! | `segment` | segment registers as a VMCB has them |
//! | `cpus` | what each CPU keeps; CPUs coming and going |
//! | `asid` | address-space identifiers, and flushes of the TLB |
//! | `guest` | a vCPU's VMCB: controls, the entry |
//! | `window` | the seam's view of it: registers and events |
//! | `exit` | from exit code and exit information to a neutral exit |
//! | `identify` | the same from an instruction, where the CPU does not say enough |
//! | `enter.c` | the entry, as the host's context tracking wants it; what is switched less often |
//! | `entry.S` | the entry and the exit themselves |

pub mod asid;
pub mod caps;
pub mod cpus;
pub mod exit;
pub mod guest;
pub mod identify;
pub mod permissions;
pub mod segment;
pub mod vmcb;
pub mod window;

use crate::host::bindings;
use crate::host::cpu::{self, current_node, IrqsOff};
use crate::host::errno::unsupported;
use crate::host::frame::Place;
use crate::host::global::Global;
use crate::host::switch::{host_cr4, Leaves};
use crate::model::arch::regs::Cr4;
use crate::model::paging::format::Notice;
use crate::model::paging::nested::Nested;
use crate::model::paging::npt::Npt;
use crate::model::paging::PageSize;
use crate::vendor::{self, Translation, Vendor};
use caps::Caps;
use cpus::{AllFrames, Virtualization};
use guest::Guest;
use kernel::prelude::*;
use kernel::sync::Arc;
use permissions::Permissions;

/// AMD-V, on machines that have it.
pub static SVM: Global<Svm> = Global::new();

/// AMD-V: what all guests share.
pub struct Svm {
    /// What the CPU can do.
    pub caps: Caps,
    maps: Permissions,
    npt: Npt,
    _frames: AllFrames,
}

impl Svm {
    /// Finds out what the CPU can do, and sets up what guests share.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` where guests cannot run, with the reason in the log; `ENOMEM`.
    pub fn new() -> Result<Self> {
        if !caps::is_usable() {
            return Err(unsupported());
        }
        let mut caps = Caps::read()?;
        let npt = npt(caps.common.has(bindings::RUSTHV_FEAT_NPT_1G));
        caps.common.phys_bits = cpu::phys_bits().min(Nested::Npt(npt).address_bits());
        let node = current_node();
        let maps = Permissions::new(node)?;
        let frames = AllFrames::new(&maps, node)?;
        Ok(Self {
            caps,
            maps,
            npt,
            _frames: frames,
        })
    }
}

/// The nested tables' format: that of the host's own tables.
fn npt(pages_1g: bool) -> Npt {
    let irqs = IrqsOff::new();
    let five_level = Cr4::from_raw(host_cr4(&irqs)).contains(Cr4::LA57);
    drop(irqs);
    Npt {
        largest: if pages_1g {
            PageSize::Size1G
        } else {
            PageSize::Size2M
        },
        five_level,
        // The CPU always sets flags.
        notice: Notice::Flag,
    }
}

impl Vendor for Svm {
    type Guest = Guest;
    type Cpus = Virtualization;
    type Intercepts = Permissions;

    const LEAVES: Leaves = Leaves::TscAux;

    #[inline]
    fn caps(&self) -> &vendor::Caps {
        &self.caps.common
    }

    fn format(&self) -> Nested {
        Nested::Npt(self.npt)
    }

    fn intercepts(&self, place: Place) -> Result<Permissions> {
        Permissions::new(place.node)
    }

    fn guest(
        &'static self,
        translation: Translation,
        intercepts: Option<Arc<Permissions>>,
        tsc_offset: u64,
        place: Place,
    ) -> Result<Guest> {
        Guest::new(self, translation, intercepts, tsc_offset, place)
    }
}

/// The machine's AMD-V; a test on another machine ends here, as skipped.
macro_rules! svm_or_skip {
    () => {
        $crate::host::kunit::get_or_skip!($crate::svm::SVM, c"this machine has no AMD-V")
    };
}
pub(crate) use svm_or_skip;

#[kunit_tests(rusthv_npt)]
mod tests {
    use super::*;

    /// The CPU walks nested tables in the mode of the host's own.
    #[test]
    fn the_format_is_the_hosts() -> Result {
        const LA57: u64 = 1 << 12;
        let svm = svm_or_skip!();
        let irqs = IrqsOff::new();
        let five = host_cr4(&irqs) & LA57 != 0;
        drop(irqs);
        assert_eq!(svm.npt.five_level, five);
        let (_, number) = Nested::Npt(svm.npt).label();
        assert_eq!(number, bindings::RUSTHV_MODE_NPT);
        let bits = if five { 57 } else { 48 };
        assert_eq!(Nested::Npt(svm.npt).address_bits(), bits);
        assert_eq!(svm.caps.common.phys_bits, cpu::phys_bits().min(bits));
        let pages_1g = svm.caps.common.has(bindings::RUSTHV_FEAT_NPT_1G);
        assert_eq!((svm.npt.largest == PageSize::Size1G), pages_1g);
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Intel VT-x: VMX operation, VMCSs, controls, entry and exit, VPIDs.
//!
//! One of the two vendors behind the seam ([`crate::vendor`]), and with `host` and `svm` the only
//! code that is `unsafe`. What is not Intel's does not live here: exits leave as
//! [`crate::model::exit::Exit`].
//!
//! | File | What it holds |
//! |---|---|
//! | `instr` | the VMX instructions, each a `Result` |
//! | `caps` | what the CPU can do, and the control words that follow |
//! | `fields` | VMCS fields as typed constants |
//! | `active` | which VMCS is active on which CPU; CPUs coming and going |
//! | `vmcs` | a VMCS and the window in which it is current |
//! | `bitmap` | which ports and MSRs guests reach without an exit |
//! | `guest` | a vCPU's VMCS: controls, host area, the entry |
//! | `window` | the seam's view of it: registers and events |
//! | `exit` | from exit reason and qualification to a neutral exit |
//! | `tlb` | INVEPT, INVVPID, VPID numbers |
//! | `entry.S` | the entry and the exit themselves |

pub mod active;
pub mod bitmap;
pub mod caps;
pub mod exit;
pub mod fields;
pub mod guest;
pub mod instr;
pub mod tlb;
pub mod vmcs;
pub mod window;

use crate::host::bindings;
use crate::host::cpu;
use crate::host::errno::unsupported;
use crate::host::frame::Place;
use crate::host::global::Global;
use crate::host::switch::Leaves;
use crate::model::paging::ept::Ept;
use crate::model::paging::format::Notice;
use crate::model::paging::nested::Nested;
use crate::model::paging::PageSize;
use crate::vendor::{self, Translation, Vendor};
use active::Virtualization;
use bitmap::{Intercepts, MsrBitmap};
use caps::Caps;
use guest::Guest;
use kernel::prelude::*;
use kernel::sync::Arc;

/// VT-x, on machines that have it.
pub static VMX: Global<Vmx> = Global::new();

/// VT-x: what all guests share.
pub struct Vmx {
    /// The control words, and the facts behind them.
    pub caps: Caps,
    ept: Ept,
    bitmap: MsrBitmap,
    _cache: CacheGuard,
}

impl Vmx {
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
        let ept = ept(&caps.common, cpu::phys_bits());
        caps.common.phys_bits = cpu::phys_bits().min(Nested::Ept(ept).address_bits());
        Ok(Self {
            caps,
            ept,
            bitmap: MsrBitmap::new(cpu::current_node())?,
            _cache: CacheGuard::new()?,
        })
    }
}

/// The EPT format of CPUs with these features and so many bits in a physical address. Five levels
/// cost every walk one more access: they are for addresses that four do not reach.
fn ept(caps: &vendor::Caps, phys_bits: u32) -> Ept {
    let four = Ept {
        accessed_dirty: caps.has(bindings::RUSTHV_FEAT_EPT_AD),
        // Without dirty flags there is no log.
        notice: if caps.has(bindings::RUSTHV_FEAT_PML) {
            Notice::Log
        } else if caps.has(bindings::RUSTHV_FEAT_EPT_AD) {
            Notice::Flag
        } else {
            Notice::Fault
        },
        execute_only: caps.has(bindings::RUSTHV_FEAT_EPT_EXEC_ONLY),
        largest: match (
            caps.has(bindings::RUSTHV_FEAT_EPT_2M),
            caps.has(bindings::RUSTHV_FEAT_EPT_1G),
        ) {
            (true, true) => PageSize::Size1G,
            (true, false) => PageSize::Size2M,
            (false, _) => PageSize::Size4K,
        },
        five_level: false,
    };
    let too_narrow = phys_bits > Nested::Ept(four).address_bits();
    Ept {
        five_level: too_narrow && caps.has(bindings::RUSTHV_FEAT_EPT_5L),
        ..four
    }
}

impl Vendor for Vmx {
    type Guest = Guest;
    type Cpus = Virtualization;
    type Intercepts = Intercepts;

    const LEAVES: Leaves = Leaves::Everything;

    #[inline]
    fn caps(&self) -> &vendor::Caps {
        &self.caps.common
    }

    fn format(&self) -> Nested {
        Nested::Ept(self.ept)
    }

    fn intercepts(&self, place: Place) -> Result<Intercepts> {
        Intercepts::new(place, true)
    }

    fn guest(
        &'static self,
        translation: Translation,
        intercepts: Option<Arc<Intercepts>>,
        tsc_offset: u64,
        place: Place,
    ) -> Result<Guest> {
        Guest::new(self, translation, intercepts, tsc_offset, place)
    }
}

/// Readiness to keep the host's L1 data cache from guests (L1TF), by the host's policy.
struct CacheGuard(());

impl CacheGuard {
    /// Sets up what the policy needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn new() -> Result<Self> {
        // SAFETY: Once, at module initialisation; undone in `drop`.
        kernel::error::to_result(unsafe { bindings::rhv_l1d_setup() })?;
        Ok(Self(()))
    }
}

impl Drop for CacheGuard {
    fn drop(&mut self) {
        // SAFETY: At module exit, when no guest runs.
        unsafe { bindings::rhv_l1d_cleanup() };
    }
}

/// The machine's VT-x; a test on another machine ends here, as skipped.
macro_rules! vmx_or_skip {
    () => {
        $crate::host::kunit::get_or_skip!($crate::vmx::VMX, c"this machine has no VT-x")
    };
}
pub(crate) use vmx_or_skip;

#[kunit_tests(rusthv_ept)]
mod tests {
    use super::*;
    use crate::host::msr;
    use crate::model::arch::addr::Hpa;
    use crate::model::paging::Level;

    fn format(features: u32, phys_bits: u32) -> Ept {
        let caps = vendor::Caps {
            present: features.into(),
            ..Default::default()
        };
        ept(&caps, phys_bits)
    }

    #[test]
    fn pages_are_as_large_as_the_cpu_can() {
        let (m2, g1) = (bindings::RUSTHV_FEAT_EPT_2M, bindings::RUSTHV_FEAT_EPT_1G);
        for (features, largest) in [
            (0, PageSize::Size4K),
            (m2, PageSize::Size2M),
            (m2 | g1, PageSize::Size1G),
            // What a large page is cut into must be there, too.
            (g1, PageSize::Size4K),
        ] {
            assert_eq!(format(features, 39).largest, largest);
        }
    }

    /// Bits 5:3 of the EPT pointer are the length of the walk, less one.
    #[test]
    fn five_levels_are_for_wide_addresses() {
        let five = bindings::RUSTHV_FEAT_EPT_5L;
        for (features, phys_bits, levels, bits) in [
            (0, 46, Level::Pml4, 46),
            (0, 52, Level::Pml4, 48),
            (five, 46, Level::Pml4, 46),
            (five, 48, Level::Pml4, 48),
            (five, 49, Level::Pml5, 49),
            (five, 52, Level::Pml5, 52),
        ] {
            let ept = format(features, phys_bits);
            assert_eq!(Nested::Ept(ept).levels(), levels);
            assert_eq!(phys_bits.min(Nested::Ept(ept).address_bits()), bits);
            let pointer = ept.pointer(Hpa::new(0x5000));
            assert_eq!(pointer >> 3 & 7, levels as u64 - 1);
            assert_eq!((pointer & 7, pointer & !0xfff), (6, 0x5000));
        }
    }

    /// By the numbers of IA32_VMX_EPT_VPID_CAP (SDM Vol. 3D, appendix "VMX Capability Reporting").
    #[test]
    fn the_format_is_the_cpus() -> Result {
        let vmx = vmx_or_skip!();
        let can = |bit: u32| msr::read(0x48c) >> bit & 1 != 0;
        let (_, number) = Nested::Ept(vmx.ept).label();
        assert_eq!(number, bindings::RUSTHV_MODE_EPT);
        assert_eq!(vmx.ept.execute_only, can(0));
        assert_eq!(vmx.ept.accessed_dirty, can(21));
        // Bit 17 of the secondary controls may be 1.
        let logs = msr::read(0x48b) >> (32 + 17) & 1 != 0;
        let notice = match (can(21), logs) {
            (true, true) => Notice::Log,
            (true, false) => Notice::Flag,
            (false, _) => Notice::Fault,
        };
        assert_eq!(vmx.ept.notice, notice);
        let huge = vmx.ept.largest == PageSize::Size1G;
        assert_eq!(huge, (can(16) && can(17)));
        assert!(!vmx.ept.five_level || can(7));
        assert!(vmx.caps.common.phys_bits <= cpu::phys_bits());
        Ok(())
    }
}

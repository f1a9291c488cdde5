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
        Ok(Self {
            caps: Caps::read()?,
            bitmap: MsrBitmap::new(cpu::current_node())?,
            _cache: CacheGuard::new()?,
        })
    }

    fn ept(&self) -> Ept {
        Ept {
            accessed_dirty: self.caps.has(bindings::RUSTHV_FEAT_EPT_AD),
            execute_only: self.caps.has(bindings::RUSTHV_FEAT_EPT_EXEC_ONLY),
            largest: if self.caps.has(bindings::RUSTHV_FEAT_EPT_2M) {
                PageSize::Size2M
            } else {
                PageSize::Size4K
            },
        }
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
        Nested::Ept(self.ept())
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

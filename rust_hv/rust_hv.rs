// SPDX-License-Identifier: GPL-2.0

//! rusthv: a hypervisor in a loadable kernel module, behind KVM's interface.
//!
//! The floors, from the ground up; imports run downwards only
//! (`Documentation/architecture.md`):
//!
//! * `model`: the machine's logic, without a host
//! * `host`: what the host kernel gives
//! * `vendor`: the seam, what the floors above ask of the hardware
//! * `vmx`, `svm`: the hardware; with `host` the only `unsafe` code
//! * `mmu`: guest memory
//! * `vcpu`, `vm`: the objects
//! * `device`: `/dev/rusthv`

// What `new` does here (interrupts off, a registration) should not hide behind a `default`.
#![allow(clippy::new_without_default)]

#[deny(unsafe_code)]
pub mod device;
pub mod host;
#[deny(unsafe_code)]
pub mod mmu;
pub mod model;
pub mod svm;
#[deny(unsafe_code)]
pub mod vcpu;
#[deny(unsafe_code)]
pub mod vendor;
#[deny(unsafe_code)]
pub mod vm;
pub mod vmx;

mod tests;

use device::{Platform, PLATFORM};
use host::cpu::CpuWatch;
use host::debugfs::{Dir, File};
use host::file::DeviceNode;
use host::global::{Global, GlobalGuard};
use host::inverted::{InvertedTable, INVERTED};
use host::pool::{Pools, PoolsFile, POOLS};
use host::shrinker::Shrinker;
use host::switch::NotifiersOn;
use kernel::prelude::*;
use kernel::sync::Arc;
use mmu::owners::{Owners, OWNERS};
use mmu::show::MachineFiles;
use svm::{Svm, SVM};
use vcpu::Machine;
use vendor::Vendor;
use vm::debugfs;
use vmx::{Vmx, VMX};

module! {
    type: RustHv,
    name: "rust_hv",
    authors: ["The rusthv developers"],
    description: "A hypervisor with KVM's interface, in Rust",
    license: "GPL v2",
}

/// The loaded module. Fields are dropped in the order in which they stand here: first nobody can
/// come in any more, then the CPUs' virtualization goes off, then what VMs shared is freed.
struct RustHv {
    _device: DeviceNode,
    _show: MachineFiles,
    _hardware: Hardware,
    _notifiers: NotifiersOn,
    _owners: GlobalGuard<Owners>,
    _inverted: GlobalGuard<InvertedTable>,
    _shrinker: Shrinker<Pools>,
    _pools_file: File<PoolsFile>,
    _pools: GlobalGuard<Pools>,
    _files: GlobalGuard<Dir>,
}

/// The virtualization that this machine's CPUs have.
enum Hardware {
    Vmx { _on: Switched<Vmx> },
    Svm { _on: Switched<Svm> },
}

/// A vendor's virtualization, switched on. Dropped in this order, too.
struct Switched<V: Vendor> {
    _cpus: CpuWatch<V::Cpus>,
    _platform: GlobalGuard<KBox<dyn Platform>>,
    _shared: GlobalGuard<V>,
}

impl kernel::Module for RustHv {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        host::frame::note_direct_map();
        // Each stage is undone by its drop when a later one fails.
        let files = debugfs::ROOT.set(KBox::new(Dir::new(debugfs::NAME)?, GFP_KERNEL)?);
        let pools = POOLS.set(KBox::new(Pools::new()?, GFP_KERNEL)?);
        let inverted = INVERTED.set(KBox::new(InvertedTable::new(POOLS.get()?)?, GFP_KERNEL)?);
        let owners = OWNERS.set(KBox::new(Owners::new()?, GFP_KERNEL)?);
        let shrinker = Shrinker::new(c"rust_hv-pools", POOLS.get()?)?;
        let content = Arc::new(PoolsFile(POOLS.get()?), GFP_KERNEL)?;
        let pools_file = debugfs::ROOT.get()?.file(c"pools", content);
        let hardware = if host::cpu::is_amd() {
            Hardware::Svm {
                _on: switch_on(&SVM, Svm::new()?)?,
            }
        } else {
            Hardware::Vmx {
                _on: switch_on(&VMX, Vmx::new()?)?,
            }
        };
        let notifiers = NotifiersOn::new();
        let show = MachineFiles::new(debugfs::ROOT.get()?)?;
        let device = DeviceNode::new::<device::RustHvDevice>()?;
        pr_info!("ready at /dev/rusthv\n");
        Ok(Self {
            _device: device,
            _show: show,
            _hardware: hardware,
            _notifiers: notifiers,
            _owners: owners,
            _inverted: inverted,
            _shrinker: shrinker,
            _pools_file: pools_file,
            _pools: pools,
            _files: files,
        })
    }
}

/// Makes a vendor's virtualization the one that the device uses, and switches it on on every CPU.
fn switch_on<V: Vendor>(place: &'static Global<V>, vendor: V) -> Result<Switched<V>> {
    let shared = place.set(KBox::new(vendor, GFP_KERNEL)?);
    let machine = Machine {
        vendor: place.get()?,
        pools: POOLS.get()?,
    };
    let platform: KBox<dyn Platform> = KBox::new(machine, GFP_KERNEL)?;
    let platform = PLATFORM.set(KBox::new(platform, GFP_KERNEL)?);
    Ok(Switched {
        _cpus: CpuWatch::new(c"virt/rusthv:online")?,
        _platform: platform,
        _shared: shared,
    })
}

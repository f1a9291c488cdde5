// SPDX-License-Identifier: GPL-2.0

//! rusthv: a hypervisor in a loadable kernel module, behind KVM's interface.
//!
//! The floors, from the ground up; imports run downwards only
//! (`Documentation/architecture.md`):
//!
//! * `model`: the machine's logic, without a host
//! * `host`, `vmx`: what the host kernel and the hardware give; the only `unsafe` code
//! * `mmu`: guest memory
//! * `vcpu`, `vm`: the objects
//! * `device`: `/dev/rusthv`

// What `new` does here (interrupts off, a registration) should not hide behind a `default`.
#![allow(clippy::new_without_default)]

pub mod device;
pub mod host;
pub mod mmu;
pub mod model;
pub mod vcpu;
pub mod vm;
pub mod vmx;

use host::cpu::CpuWatch;
use host::errno::unsupported;
use host::file::DeviceNode;
use host::global::GlobalGuard;
use host::pool::Pools;
use host::switch::NotifiersOn;
use kernel::prelude::*;
use vcpu::Machine;
use vmx::active::Virtualization;
use vmx::caps::Caps;
use vmx::guest::{CacheGuard, MsrBitmap};

module! {
    type: RustHv,
    name: "rust_hv",
    authors: ["The rusthv developers"],
    description: "A hypervisor with KVM's interface, in Rust",
    license: "GPL v2",
}

/// The loaded module. Fields are dropped in the order in which they stand here: first nobody can
/// come in any more, then VMX goes off, then what VMs shared is freed.
struct RustHv {
    _device: DeviceNode,
    _virtualization: CpuWatch<Virtualization>,
    _notifiers: NotifiersOn,
    _cache: CacheGuard,
    _machine: GlobalGuard<Machine>,
}

impl kernel::Module for RustHv {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let caps = probe()?;
        let machine = KBox::new(
            Machine {
                caps,
                bitmap: MsrBitmap::new(host::cpu::current_node())?,
                pools: Pools::new()?,
            },
            GFP_KERNEL,
        )?;
        // Each stage is undone by its drop when a later one fails.
        let machine = device::MACHINE.set(machine);
        let cache = CacheGuard::new()?;
        let notifiers = NotifiersOn::new();
        let virtualization = CpuWatch::new(c"virt/rusthv:online")?;
        let device = DeviceNode::new::<device::RustHvDevice>()?;
        pr_info!("ready at /dev/rusthv\n");
        Ok(Self {
            _device: device,
            _virtualization: virtualization,
            _notifiers: notifiers,
            _cache: cache,
            _machine: machine,
        })
    }
}

/// Finds out whether the machine can run guests; says in the log why not.
fn probe() -> Result<Caps> {
    if host::cpu::host_uses_fred() {
        pr_err!("the host uses FRED, which is not supported yet\n");
        return Err(unsupported());
    }
    if !host::cpu::host_has_vmx() {
        vmx::caps::explain_absence();
        return Err(unsupported());
    }
    Caps::read()
}

// SPDX-License-Identifier: GPL-2.0

//! The module cannot be unloaded while the device, a VM, a vCPU or a mapped `kvm_run` area is held.

use crate::memory::PAGE;
use crate::module;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.rusthv()?;
    if !module::is_loaded() {
        skip!("rust_hv is not a loaded module");
    }
    let refused = |what: &str| -> Outcome {
        check_err!(module::unload(), EAGAIN, "with {what} held");
        Ok(())
    };
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    refused("all")?;
    drop(device);
    refused("a VM and a vCPU")?;
    drop(vm);
    refused("a vCPU")?;
    let area = Memory::map(PAGE, libc::MAP_SHARED, vcpu.fd())?;
    drop(vcpu);
    refused("a mapped area")?;
    area.write(0, &[1]);
    check!(module::is_loaded());
    drop(area);
    check!(t.device()?.vm()?.vcpu(0).is_ok(), "it still works");
    Ok(())
}

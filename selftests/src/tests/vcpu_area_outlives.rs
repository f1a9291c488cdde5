// SPDX-License-Identifier: GPL-2.0

//! A mapped `kvm_run` area stays usable memory after the vCPU's and the VM's files are closed.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    let area = Memory::map(2 * PAGE, libc::MAP_SHARED, vcpu.fd())?;
    drop(vcpu);
    drop(vm);
    area.fill(0, 2 * PAGE, 0xA5);
    check_eq!(area.read(PAGE, 4), [0xA5; 4]);
    // Others made meanwhile do not get the same frames.
    let vm = device.vm()?;
    let vcpus: Vec<Vcpu> = (0..4).map(|id| vm.vcpu(id)).collect::<Result<_, _>>()?;
    for vcpu in &vcpus {
        // SAFETY: a live vCPU's area.
        check_eq!(unsafe { (*vcpu.kvm_run()).immediate_exit }, 0, "a fresh area is clean");
    }
    check_eq!(area.read(0, 4), [0xA5; 4]);
    Ok(())
}

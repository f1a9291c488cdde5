// SPDX-License-Identifier: GPL-2.0

//! A vCPU runs on after the files of its VM and of the device are closed.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(closed_vm, code16, "mov al, [0x2000]", "out 0x10, al", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::real(&device, closed_vm())?;
    machine.memory.write(0x2000, &[0x42]);
    let Machine { vcpu, vm, memory } = machine;
    drop(vm);
    drop(device);
    let expected = Exit::Io { direction: Direction::Out, port: 0x10, size: 1, count: 1, data: vec![0x42] };
    check_eq!(vcpu.run()?, expected);
    check_eq!(vcpu.run()?, Exit::Hlt);
    drop(memory);
    Ok(())
}

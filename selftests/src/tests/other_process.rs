// SPDX-License-Identifier: GPL-2.0

//! A VM belongs to the address space that made it: for a child that inherits the files every ioctl is EIO, and changes nothing.

use crate::device::Files;
use crate::host;
use crate::ioctl::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(other_process, code16, "hlt");

/// Arguments of each: none, a wrong one, and the address of a structure of zeroes.
const ARGUMENTS: usize = 3;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::real(&device, other_process())?;
    let files = Files { device: &device, vm: &machine.vm, vcpu: &machine.vcpu };
    let state = || Ok::<_, Errno>((machine.vcpu.regs()?, machine.vcpu.sregs()?));
    let before = state()?;
    let of_a_vm = || IOCTLS.iter().filter(|one| one.on != FileKind::Device);
    let answers = host::in_child(|| {
        let mut room = [0u64; 64];
        let mut answers = Vec::new();
        for one in of_a_vm() {
            for argument in [0, 1, room.as_mut_ptr() as u64] {
                let result = files.ioctl(one.on, one.request, argument);
                answers.push(result.err().map_or(0, |errno| errno.0 as u8));
            }
        }
        answers.push(u8::from(room == [0; 64]));
        // The device is nobody's.
        answers.push(device.ioctl(KVM_GET_API_VERSION, 0).unwrap_or(0) as u8);
        answers.push(u8::from(device.vm().is_ok()));
        answers
    })?;
    let (of_the_vm, rest) = answers.split_at(answers.len().saturating_sub(3));
    check_eq!(of_the_vm.len(), of_a_vm().count() * ARGUMENTS, "answers from another process");
    for (one, errnos) in of_a_vm().zip(of_the_vm.chunks(ARGUMENTS)) {
        check_eq!(errnos, [libc::EIO as u8; ARGUMENTS], "{} on {:?} from another process", one.name, one.on);
    }
    check_eq!(rest, [1, 12, 1], "nothing was written; the device answers");
    check_eq!(state()?, before, "the state after all that");
    check_eq!(machine.run()?, Exit::Hlt, "and the owner's guest is none the worse");
    Ok(())
}

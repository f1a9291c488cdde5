// SPDX-License-Identifier: GPL-2.0

//! What user space writes over the fields of a pending exit is not believed: it completes from its own data.

use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(
    run_area_scribbled,
    code64,
    "in eax, 0x10",
    "mov ebx, 0xd0000000",
    "mov rbx, [rbx]",
    "out 0x11, eax",
    "hlt"
);

fn run(t: &Context) -> Outcome {
    for (index, garbage) in [0x00u8, 0xFF, 0x7F].into_iter().enumerate() {
        let machine = Machine::long(&t.device()?, run_area_scribbled())?;
        let vcpu = &machine.vcpu;
        check!(matches!(vcpu.run()?, Exit::Io { port: 0x10, size: 4, count: 1, .. }), "{:x?}", vcpu.exit());
        vcpu.answer_io(&[1, 2, 3, 4]);
        // The union of exit data, from its start: direction, size, port, count, data_offset.
        vcpu.scribble(std::mem::offset_of!(kvm_run, __bindgen_anon_1), &[garbage; 64]);
        check_eq!(vcpu.run()?, Exit::MmioRead { address: layout::MMIO, length: 8 }, "{garbage:#x}");
        check_eq!(vcpu.regs()?.rax, 0x0403_0201);
        let address = std::mem::offset_of!(kvm_run, __bindgen_anon_1);
        vcpu.answer_mmio(&[8, 7, 6, 5, 4, 3, 2, 1]);
        // Address, then (after the data) length and direction.
        vcpu.scribble(address, &[garbage; 8]);
        vcpu.scribble(address + 16, &[garbage; 8]);
        let exit = vcpu.run()?;
        check!(matches!(exit, Exit::Io { port: 0x11, .. }), "{exit:x?}");
        check_eq!(vcpu.regs()?.rbx, 0x0102_0304_0506_0708, "round {index}");
        vcpu.scribble(address, &[garbage; 64]);
        check_eq!(vcpu.run()?, Exit::Hlt);
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A read-only slot reads and runs like memory; a write to it is an MMIO exit and changes nothing.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    readonly_slot,
    code64,
    "mov eax, [0x400000]",
    "mov dword ptr [0x400004], 0x55667788",
    "mov edx, [0x400004]",
    "mov rbx, 0x400100",
    "call rbx",
    "mov [0x400000], cl",
    "hlt",
);
guest!(readonly_slot_callee, code64, "mov ecx, 0x77", "ret");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, readonly_slot())?;
    let rom = Memory::new(0x1000)?;
    rom.write(0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    rom.write(0x100, readonly_slot_callee());
    let gpa = 0x40_0000;
    if device.check_extension(KVM_CAP_READONLY_MEM)? == 0 && !device.has_extensions() {
        check_err!(machine.vm.set_slot(1, KVM_MEM_READONLY, gpa, 0x1000, rom.address()), EINVAL);
        return Ok(());
    }
    check_eq!(machine.vm.set_slot(1, KVM_MEM_READONLY, gpa, 0x1000, rom.address()), Ok(0));
    let data = 0x5566_7788_u32.to_le_bytes().to_vec();
    check_eq!(machine.run()?, Exit::MmioWrite { address: gpa + 4, data });
    check_eq!(machine.run()?, Exit::MmioWrite { address: gpa, data: vec![0x77] });
    check_eq!(machine.run()?, Exit::Hlt);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rax, regs.rdx), (0x0403_0201, 0x0807_0605));
    check_eq!(rom.read(0, 8), [1, 2, 3, 4, 5, 6, 7, 8], "the memory behind it");
    // It is host memory that may be read-only for the VMM, too, and may change under the guest.
    rom.write(4, &[0xAA; 4]);
    rom.protect(0, 0x1000, libc::PROT_READ)?;
    machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
    check!(matches!(machine.run()?, Exit::MmioWrite { .. }));
    check!(matches!(machine.run()?, Exit::MmioWrite { .. }));
    check_eq!(machine.vcpu.regs()?.rdx, 0xAAAA_AAAA);
    Ok(())
}

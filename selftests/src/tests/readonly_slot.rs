// SPDX-License-Identifier: GPL-2.0

//! A read-only slot reads and runs like memory; a write to it is an MMIO exit and changes nothing.

use crate::machine::{enter_long, start_registers};
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
guest!(readonly_slot_store, code64, "mov dword ptr [0x400004], 0x11223344", "hlt");
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
    rom.protect(0, 0x1000, libc::PROT_READ | libc::PROT_WRITE)?;
    becomes_ram(&device, &machine, &rom, gpa)
}

/// Memory in its place, as firmware has it once its ROM is copied: a store arrives there, and makes no exit.
///
/// Another vCPU has brought in what both of them need by then, so that the store is the first that the one
/// which has met the ROM has to ask for.
fn becomes_ram(device: &Device, machine: &Machine, rom: &Memory, gpa: u64) -> Outcome {
    let store = readonly_slot_store();
    let (at, data) = (layout::CODE as u64 + 0x100, 0x1122_3344_u32.to_le_bytes().to_vec());
    machine.memory.write(at as usize, store);
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let run_at = |vcpu: &Vcpu, rip: u64| -> Result<Exit, Errno> {
        vcpu.set_regs(&kvm_regs { rip, ..start_registers() })?;
        vcpu.run()
    };
    for round in 0..3 {
        check_eq!(run_at(&machine.vcpu, at)?, Exit::MmioWrite { address: gpa + 4, data: data.clone() });
        check_eq!(machine.vm.set_slot(1, KVM_MEM_READONLY, gpa, 0, rom.address()), Ok(0));
        check_eq!(machine.vm.set_slot(1, 0, gpa, 0x1000, rom.address()), Ok(0));
        rom.write(4, &[0; 4]);
        check_eq!(run_at(&second, at + store.len() as u64 - 1)?, Exit::Hlt);
        check_eq!(run_at(&machine.vcpu, at)?, Exit::Hlt, "round {round}: RAM");
        check_eq!(rom.read(4, 4), data, "round {round}: stored");
        check_eq!(machine.vm.set_slot(1, 0, gpa, 0, rom.address()), Ok(0));
        check_eq!(machine.vm.set_slot(1, KVM_MEM_READONLY, gpa, 0x1000, rom.address()), Ok(0));
    }
    Ok(())
}

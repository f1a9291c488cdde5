// SPDX-License-Identifier: GPL-2.0

//! A guest takes itself from the reset state through protected mode into 64-bit mode.

use crate::machine::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    mode_switch,
    code16,
    "lgdt [0x7700]",
    "mov eax, cr0",
    "or eax, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long 3f - guest_mode_switch + 0x8000",
    ".word 0x18",
    ".code32",
    "3: mov ax, 0x10",
    "mov ds, ax",
    "mov ss, ax",
    "mov esp, 0x18000",
    "mov al, 1",
    "out 0x70, al",
    "mov eax, cr4",
    "or eax, 1 << 5",
    "mov cr4, eax",
    "mov eax, 0x1000",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 1 << 8",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 1 << 31",
    "mov cr0, eax",
    "rdmsr",
    "out 0x71, eax",
    ".byte 0xea",
    ".long 4f - guest_mode_switch + 0x8000",
    ".word 0x08",
    ".code64",
    "4: mov rax, 0x123456789abcdef0",
    "shr rax, 32",
    "out 0x72, eax",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    t.real_mode()?;
    let device = t.device()?;
    let machine = Machine::real(&device, mode_switch())?;
    machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    machine.write_tables();
    // What LGDT reads: limit and base.
    machine.memory.write(0x7700, &[9 * 8 - 1, 0, 0x00, 0x70, 0, 0]);
    check_eq!(port_write(&machine)?, (0x70, 1), "in protected mode");
    check_eq!(machine.vcpu.sregs()?.cr0 & CR0_PE, CR0_PE);
    let (port, efer) = port_write(&machine)?;
    check_eq!((port, efer), (0x71, (EFER_LME | EFER_LMA) as u32), "EFER once paging is on");
    check_eq!(port_write(&machine)?, (0x72, 0x1234_5678), "in 64-bit mode");
    let sregs = machine.vcpu.sregs()?;
    check_eq!((sregs.cs.l, sregs.cs.selector), (1, 8));
    check_eq!(sregs.efer, EFER_LME | EFER_LMA);
    check_eq!((sregs.cr3, sregs.cr4 & CR4_PAE, sregs.cr0 & CR0_PG), (0x1000, CR4_PAE, CR0_PG));
    check_eq!((sregs.gdt.base, sregs.gdt.limit), (0x7000, 71));
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

fn port_write(machine: &Machine) -> Result<(u16, u32), Failure> {
    match machine.run()? {
        Exit::Io { direction: Direction::Out, port, count: 1, mut data, .. } => {
            data.resize(4, 0);
            Ok((port, u32::from_le_bytes([data[0], data[1], data[2], data[3]])))
        }
        other => Err(Failure::failed(format!("a port write was due, not {other:x?}"))),
    }
}

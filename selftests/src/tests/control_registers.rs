// SPDX-License-Identifier: GPL-2.0

//! MOV to CR0, CR4 and CR8 with reserved or impossible bits is #GP, and the register keeps its value.

use crate::machine::*;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(set_cr0, code64, "mov cr0, rax", "mov rbx, cr0", "hlt");
guest!(set_cr4, code64, "mov cr4, rax", "mov rbx, cr4", "hlt");
guest!(set_cr8, code64, "mov cr8, rax", "mov rbx, cr8", "hlt");

const CR0_CD: u64 = 1 << 30;
const CR0_NW: u64 = 1 << 29;
const CR0_MP: u64 = 1 << 1;
const CR0_AM: u64 = 1 << 18;
const CR4_VMXE: u64 = 1 << 13;
const CR4_TSD: u64 = 1 << 2;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let long0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    let long4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (what, guest, value) in [
        ("CR0.PG without PE", set_cr0(), long0 & !CR0_PE),
        ("CR0.NW without CD", set_cr0(), long0 | CR0_NW),
        ("CR0 bit 32", set_cr0(), long0 | 1 << 32),
        ("CR0 bit 63", set_cr0(), long0 | 1 << 63),
        ("CR0.PG cleared in 64-bit mode", set_cr0(), long0 & !CR0_PG),
        ("CR4.PAE cleared in 64-bit mode", set_cr4(), long4 & !CR4_PAE),
        ("CR4 bit 15", set_cr4(), long4 | 1 << 15),
        ("CR4 bit 31", set_cr4(), long4 | 1 << 31),
        ("CR4 bit 63", set_cr4(), long4 | 1 << 63),
        ("CR8 above 15", set_cr8(), 16),
        ("CR8 bit 63", set_cr8(), 1 << 63),
        ("CR8 bit 8", set_cr8(), 1 << 8),
    ] {
        // KVM looks at the low byte of CR8 only; the architecture reserves bits 63:4.
        if device.is_kvm() && guest == set_cr8() && value > 0xFF {
            continue;
        }
        let machine = Machine::long(&device, guest)?;
        let before = machine.vcpu.sregs()?;
        machine.change_regs(|regs| regs.rax = value)?;
        let trap = machine.run_to_trap(what)?;
        check_eq!(
            (trap.vector, trap.error, trap.rip),
            (traps::GENERAL_PROTECTION, 0, layout::CODE as u64),
            "{what}"
        );
        let after = machine.vcpu.sregs()?;
        check_eq!(
            (after.cr0, after.cr4, after.cr8, after.efer),
            (before.cr0, before.cr4, before.cr8, before.efer),
            "after {what}"
        );
    }
    // What is allowed sticks, as the guest and as user space see it.
    for (what, guest, value, seen) in [
        ("CR0.MP and AM", set_cr0(), long0 | CR0_MP | CR0_AM, long0 | CR0_MP | CR0_AM),
        ("CR0.CD and NW", set_cr0(), long0 | CR0_CD | CR0_NW, long0 | CR0_CD | CR0_NW),
        ("CR0.ET cannot be cleared", set_cr0(), long0 & !CR0_ET, long0),
        ("CR0.NE cleared", set_cr0(), long0 & !CR0_NE, long0 & !CR0_NE),
        ("CR4.TSD", set_cr4(), long4 | CR4_TSD, long4 | CR4_TSD),
        ("CR8", set_cr8(), 9, 9),
    ] {
        let machine = Machine::long(&device, guest)?;
        machine.change_regs(|regs| regs.rax = value)?;
        check_eq!(machine.run()?, Exit::Hlt, "{what}");
        check_eq!(machine.vcpu.regs()?.rbx, seen, "{what}, read by the guest");
        let sregs = machine.vcpu.sregs()?;
        let user = if guest == set_cr0() {
            sregs.cr0
        } else if guest == set_cr4() {
            sregs.cr4
        } else {
            sregs.cr8
        };
        check_eq!(user, seen, "{what}, read by user space");
    }
    // VMX is not offered to guests: its bit is reserved.
    if !device.is_kvm() {
        let machine = Machine::long(&device, set_cr4())?;
        machine.change_regs(|regs| regs.rax = long4 | CR4_VMXE)?;
        check_eq!(machine.run_to_trap("CR4.VMXE")?.vector, traps::GENERAL_PROTECTION, "CR4.VMXE");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Instructions that exit whatever the hypervisor asks for: done, or the exception that a CPU without VMX gives.

use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(system_wbinvd, code64, "wbinvd", "hlt");
guest!(system_invd, code64, "invd", "hlt");
guest!(system_invlpg, code64, "invlpg [rbx]", "hlt");
guest!(system_pause, code64, "mov ecx, 100000", "2: pause", "loop 2b", "hlt");
guest!(system_clts, code64, "mov rax, cr0", "or rax, 8", "mov cr0, rax", "clts", "mov rax, cr0", "hlt");
guest!(system_lmsw, code64, "mov eax, 0xb", "lmsw ax", "smsw eax", "hlt");
guest!(system_vmxon, code64, "vmxon [rbx]", "hlt");
guest!(system_vmread, code64, "vmread rax, rbx", "hlt");
guest!(system_vmlaunch, code64, "vmlaunch", "hlt");
guest!(system_getsec, code64, ".byte 0x0f, 0x37", "hlt");
guest!(system_rsm, code64, "rsm", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    for (what, guest) in [
        ("WBINVD", system_wbinvd()),
        ("INVD", system_invd()),
        ("INVLPG", system_invlpg()),
        ("PAUSE", system_pause()),
        ("CLTS", system_clts()),
        ("LMSW", system_lmsw()),
    ] {
        let machine = Machine::long(&device, guest)?;
        check_eq!(machine.run()?, Exit::Hlt, "{what}");
        let cr0 = machine.vcpu.sregs()?.cr0;
        check_eq!(cr0 & 8 != 0, what == "LMSW", "CR0.TS after {what}");
    }
    let mut no_vmx = device.supported_cpuid(256)?;
    no_vmx.iter_mut().filter(|entry| entry.function == 1).for_each(|entry| entry.ecx &= !(1 << 5));
    for (what, guest) in [
        ("VMXON", system_vmxon()),
        ("VMREAD", system_vmread()),
        ("VMLAUNCH", system_vmlaunch()),
        ("GETSEC", system_getsec()),
        ("RSM", system_rsm()),
    ] {
        let machine = Machine::long(&device, guest)?;
        machine.vcpu.set_cpuid(&no_vmx)?;
        machine.change_regs(|regs| regs.rbx = layout::DATA as u64)?;
        let trap = machine.run_to_trap(what)?;
        check_eq!((trap.vector, trap.rip), (traps::INVALID_OPCODE, layout::CODE as u64), "{what}");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A vCPU's area in a memory slot is given to no guest, as it is the hypervisor's; debuggers see it.

use crate::memory::PAGE;
use crate::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub const TEST: Test = Test::new(20, run);

guest!(run_area_in_slot, code64, "mov rax, [rbx]", "hlt", "mov [rbx], rcx", "hlt", "jmp rbx");

const READ: u64 = 0;
const WRITE: u64 = 4;
const FETCH: u64 = 8;

const GPA: u64 = 0x40_0000;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    for (what, flags, access) in [
        ("read", 0, READ),
        ("write", 0, WRITE),
        ("fetch", 0, FETCH),
        ("read of a read-only slot", KVM_MEM_READONLY, READ),
        ("write to a logged slot", KVM_MEM_LOG_DIRTY_PAGES, WRITE),
    ] {
        for touched in [false, true] {
            in_slot(&device, &format!("{what}, touched before: {touched}"), flags, access, touched)?;
        }
    }
    seen_by_debuggers(&device)
}

/// The guest gets nothing but what comes in the area's place.
fn in_slot(device: &Device, what: &str, flags: u32, access: u64, touched: bool) -> Outcome {
    let machine = Machine::long(device, run_area_in_slot())?;
    // Of a vCPU that does nothing meanwhile.
    let other = machine.vm.vcpu(1)?;
    let area = Memory::map(2 * PAGE, libc::MAP_SHARED, other.fd())?;
    if touched {
        area.fill(0, 2 * PAGE, 0xF4);
    }
    machine.vm.set_slot(1, flags, GPA, 2 * PAGE as u64, area.address())?;
    machine.change_regs(|regs| {
        regs.rip = layout::CODE as u64 + access;
        (regs.rbx, regs.rcx) = (GPA + PAGE as u64, 0x1122_3344);
    })?;
    if !device.is_kvm() {
        for _ in 0..2 {
            check_err!(machine.run(), EFAULT, "{what}");
        }
        let due = if touched { [0xF4; 8] } else { [0; 8] };
        check_eq!(area.read(PAGE, 8), due, "{what}: what the area holds");
    }
    // Memory of the VMM's own in its place, and all is well.
    area.map_anew(0, 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
    area.fill(0, 2 * PAGE, 0xF4);
    check_eq!(machine.run()?, Exit::Hlt, "{what}");
    let regs = machine.vcpu.regs()?;
    match access {
        READ => check_eq!(regs.rax, 0xF4F4_F4F4_F4F4_F4F4, "{what}"),
        WRITE => check_eq!(area.read_u64(PAGE), 0x1122_3344, "{what}"),
        _ => check_eq!(regs.rip, GPA + PAGE as u64 + 1, "{what}"),
    }
    Ok(())
}

/// Both ways, by the page and across, as ptrace() and gdb do it.
fn seen_by_debuggers(device: &Device) -> Outcome {
    let vcpu = device.vm()?.vcpu(0)?;
    let area = Memory::map(2 * PAGE, libc::MAP_SHARED, vcpu.fd())?;
    let process = File::options().read(true).write(true).open("/proc/self/mem")?;
    let mut seen = [0xFF; 16];
    process.read_exact_at(&mut seen, area.address() + PAGE as u64 - 8)?;
    check_eq!(seen, [0; 16], "before anything was written");
    let written: Vec<u8> = (1..=16).collect();
    area.write(PAGE - 8, &written);
    process.read_exact_at(&mut seen, area.address() + PAGE as u64 - 8)?;
    check_eq!(seen.to_vec(), written, "what the VMM wrote");
    process.write_all_at(&[0xA5; 16], area.address() + PAGE as u64 - 8)?;
    check_eq!(area.read(PAGE - 8, 16), [0xA5; 16], "what the debugger wrote");
    // What the VMM may not do itself, a debugger may not do for it.
    area.protect(0, 2 * PAGE, libc::PROT_READ)?;
    check!(process.write_all_at(&[0; 8], area.address()).is_err(), "a write to a read-only mapping");
    let more = Memory::map(8 * PAGE, libc::MAP_SHARED, vcpu.fd())?;
    check!(process.read_exact_at(&mut seen, more.address() + 7 * PAGE as u64).is_err(), "past the end");
    Ok(())
}

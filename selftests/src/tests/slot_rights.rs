// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_SET_RIGHTS: guests read, write and fetch from a slot what its rights allow, and nothing else.

use crate::emulator;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::rusthv::*;
use std::ptr;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(60, run);

guest!(slot_rights_read, code64, "mov rax, [rbx]", "hlt");
guest!(slot_rights_write, code64, "mov [rbx + 8], rcx", "hlt");
guest!(slot_rights_fetch, code64, "call rbx", "hlt");
guest!(slot_rights_both, code64, "add [rbx + 8], rcx", "hlt");
guest!(slot_rights_ins, code64, "mov rdi, rbx", "mov dx, 0x10", "insb", "hlt");
guest!(slot_rights_spin, code64, "2: inc qword ptr [rbx + 8]", "cmp byte ptr [0x20000], 0", "je 2b", "hlt");

const BASE: u64 = 0x40_0000;
const READ: u32 = RUSTHV_MAP_READ;
const WRITE: u32 = RUSTHV_MAP_WRITE;
const EXEC: u32 = RUSTHV_MAP_EXEC;
const ALL: u32 = READ | WRITE | EXEC;
const EXIT_MEMORY_FAULT: u32 = 39;
/// RET, and what is read.
const WORD: u64 = 0x1122_3344_5566_77c3;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    check_eq!(device.check_extension(RUSTHV_CAP_RIGHTS), Ok(1));
    arguments(&device)?;
    if !emulator::is_nested() {
        let machine = Machine::long(&device, slot_rights_read())?;
        check_err!(machine.vm.set_rights(0, READ), EOPNOTSUPP, "without nested paging");
        return Ok(());
    }
    for large in [false, true] {
        matrix(&device, large)?;
    }
    life_of_a_slot(&device)?;
    in_its_place(&device)?;
    own_tables(&device)?;
    while_it_runs(&device)?;
    paging_mode(&device)
}

fn arguments(device: &Device) -> Outcome {
    let vm = device.vm()?;
    check_err!(vm.ioctl(RUSTHV_SET_RIGHTS, 0), EFAULT);
    check_err!(vm.ioctl(RUSTHV_SET_RIGHTS, u64::MAX), EFAULT);
    let good = Rights { slot: 1, rights: READ, ..Default::default() };
    for bad in [
        Rights { slot: 1 << 16, ..good },
        Rights { slot: u32::MAX, ..good },
        Rights { rights: 8, ..good },
        Rights { rights: 1 << 31 | READ, ..good },
        Rights { rights: WRITE, ..good },
        Rights { rights: WRITE | EXEC, ..good },
        Rights { reserved: [1, 0, 0], ..good },
        Rights { reserved: [0, 0, 1 << 63], ..good },
    ] {
        check_err!(vm.ioctl(RUSTHV_SET_RIGHTS, ptr::from_ref(&bad) as u64), EINVAL, "{bad:x?}");
    }
    if emulator::is_nested() {
        check_err!(vm.set_rights(1, READ), ENOENT, "no slot yet");
        check_err!(vm.set_rights(0xffff, ALL), ENOENT, "never a slot");
    }
    Ok(())
}

/// Memory with WORD at the start of each page.
fn memory(large: bool) -> Result<Memory, Failure> {
    let memory = Memory::aligned(2 * LARGE_PAGE, LARGE_PAGE)?;
    let advice = if large { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    memory.advise(0, memory.size(), advice)?;
    for page in 0..memory.size() / PAGE {
        memory.write_u64(page * PAGE, WORD);
    }
    Ok(memory)
}

/// What an access comes to.
#[derive(Debug, PartialEq)]
enum Came {
    Through,
    /// Refused, for want of these rights, at this page.
    Refused(u32, u64),
}

/// Starts one of the guests above, at an address of its memory.
fn start(machine: &Machine, code: &[u8], at: u64) -> Outcome {
    machine.load(code);
    machine.change_regs(|regs| {
        (regs.rip, regs.rbx, regs.rcx, regs.rax) = (layout::CODE as u64, at, 0x77, 0);
    })?;
    Ok(())
}

fn go_on(machine: &Machine) -> Result<Came, Failure> {
    match machine.run() {
        Ok(Exit::Hlt) => Ok(Came::Through),
        Err(Errno::EFAULT) => {
            check_eq!(machine.vcpu.exit_reason(), EXIT_MEMORY_FAULT);
            let [flags, gpa, size] = machine.vcpu.memory_fault();
            check_eq!(size, PAGE as u64);
            Ok(Came::Refused(flags as u32, gpa))
        }
        other => fail!("{other:x?}"),
    }
}

/// Every access under all rights, before and after the pages were used with others.
fn matrix(device: &Device, large: bool) -> Outcome {
    let machine = Machine::long(device, slot_rights_read())?;
    let memory = memory(large)?;
    machine.vm.map(1, BASE, &memory)?;
    let only_fetches = device.info()?.present & FEAT_EPT_EXEC_ONLY != 0;
    let at = BASE + 5 * PAGE as u64;
    let guests = [
        (READ, slot_rights_read()),
        (WRITE, slot_rights_write()),
        (EXEC, slot_rights_fetch()),
        (READ | WRITE, slot_rights_both()),
    ];
    for rights in [ALL, READ | WRITE, READ | EXEC, READ, EXEC, 0, EXEC, READ, ALL, 0, ALL] {
        let set = machine.vm.set_rights(1, rights);
        if rights == EXEC && !only_fetches {
            check_eq!(set, Err(Errno::EOPNOTSUPP), "fetches alone");
            continue;
        }
        check_eq!(set, Ok(0), "rights {rights}");
        for (needs, code) in guests {
            let what = format!("rights {rights}, an access that takes {needs}, large {large}");
            start(&machine, code, at)?;
            let came = go_on(&machine)?;
            if rights & needs == needs {
                check_eq!(came, Came::Through, "{what}");
            } else {
                let Came::Refused(flags, page) = came else { fail!("{what}: {came:?}") };
                // What reads and writes at once may be told as either.
                let told = flags.is_power_of_two() && needs & flags != 0 && rights & flags == 0;
                check!(told && page == at, "{what}: {flags:x} at {page:#x}");
                // Again, to the same end.
                check_eq!(go_on(&machine)?, Came::Refused(flags, page), "{what}");
                check_eq!(machine.vm.set_rights(1, ALL), Ok(0));
                check_eq!(go_on(&machine)?, Came::Through, "{what}, with all");
                check_eq!(machine.vm.set_rights(1, rights), Ok(0));
            }
            if needs == READ {
                check_eq!(machine.vcpu.regs()?.rax, WORD, "{what}");
            }
        }
        // Written once and added to once more, each time it was let through.
        check_eq!(memory.read_u64(5 * PAGE + 8), 2 * 0x77, "rights {rights}");
        check_eq!(machine.vm.set_rights(1, ALL), Ok(0));
        memory.write_u64(5 * PAGE + 8, 0);
    }
    Ok(())
}

/// What happens to a slot's rights with the slot.
fn life_of_a_slot(device: &Device) -> Outcome {
    const LOG: u32 = 1;
    let machine = Machine::long(device, slot_rights_read())?;
    let memory = memory(false)?;
    let vm = &machine.vm;
    vm.map(1, BASE, &memory)?;
    check_eq!(vm.set_rights(1, READ), Ok(0));
    let (size, hva) = (memory.size() as u64, memory.address());
    let refused = |at: u64, what: &str| -> Outcome {
        start(&machine, slot_rights_write(), at)?;
        check_eq!(go_on(&machine)?, Came::Refused(WRITE, at), "{what}");
        start(&machine, slot_rights_read(), at)?;
        check_eq!(go_on(&machine)?, Came::Through, "{what}");
        Ok(())
    };
    refused(BASE, "new")?;
    vm.set_slot(1, LOG, BASE, size, hva)?;
    refused(BASE, "with a log")?;
    check_eq!(vm.dirty_pages(1, memory.size() / PAGE)?, Vec::<usize>::new(), "nothing was written");
    vm.set_slot(1, 0, BASE, size, hva)?;
    refused(BASE, "without a log again")?;
    let away = BASE + 4 * LARGE_PAGE as u64;
    vm.set_slot(1, 0, away, size, hva)?;
    refused(away, "moved")?;
    // Another slot has rights of its own.
    vm.map(2, BASE, &memory)?;
    start(&machine, slot_rights_write(), BASE)?;
    check_eq!(go_on(&machine)?, Came::Through, "the same memory in another slot");
    vm.set_slot(1, 0, away, 0, hva)?;
    vm.set_slot(1, 0, away, size, hva)?;
    start(&machine, slot_rights_write(), away)?;
    check_eq!(go_on(&machine)?, Came::Through, "made again");
    Ok(())
}

/// An instruction that is executed in the guest's place.
fn in_its_place(device: &Device) -> Outcome {
    let machine = Machine::long(device, slot_rights_ins())?;
    let memory = memory(false)?;
    machine.vm.map(1, BASE, &memory)?;
    check_eq!(machine.vm.set_rights(1, READ), Ok(0));
    start(&machine, slot_rights_ins(), BASE)?;
    check_err!(machine.run().map(|_| 0), EFAULT, "INS to what may not be written");
    check_eq!(memory.read_u64(0), WORD);
    check_eq!(machine.vm.set_rights(1, ALL), Ok(0));
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x10, size: 1, .. }), "{exit:x?}");
    machine.vcpu.answer_io(&[0x99]);
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(memory.read_u64(0), WORD & !0xff | 0x99);
    Ok(())
}

/// The guest's own code and tables.
fn own_tables(device: &Device) -> Outcome {
    let machine = Machine::long(device, slot_rights_read())?;
    let memory = memory(false)?;
    machine.vm.map(1, BASE, &memory)?;
    start(&machine, slot_rights_read(), BASE)?;
    check_eq!(machine.vm.set_rights(0, 0), Ok(0));
    let came = go_on(&machine)?;
    let Came::Refused(_, page) = came else { fail!("{came:?}") };
    check!(page % PAGE as u64 == 0 && page < layout::SIZE as u64, "{came:x?}");
    check_eq!(machine.vm.set_rights(0, ALL), Ok(0));
    check_eq!(go_on(&machine)?, Came::Through);
    check_eq!(machine.vcpu.regs()?.rax, WORD);
    Ok(())
}

/// The rights hold when the call returns, and nothing is lost when they come back.
fn while_it_runs(device: &Device) -> Outcome {
    let machine = Machine::long(device, slot_rights_spin())?;
    let memory = memory(false)?;
    machine.vm.map(1, BASE, &memory)?;
    machine.memory.write(layout::DATA, &[0]);
    start(&machine, slot_rights_spin(), BASE)?;
    let guest = &machine;
    for turn in 0..3 {
        let (before, after, came) = thread::scope(|scope| -> Result<_, Failure> {
            let running = scope.spawn(move || go_on(guest));
            thread::sleep(Duration::from_millis(20));
            let set = guest.vm.set_rights(1, READ | EXEC);
            let before = memory.read_u64(8);
            thread::sleep(Duration::from_millis(5));
            let after = memory.read_u64(8);
            let came = running.join();
            check_eq!(set, Ok(0));
            let Ok(came) = came else { fail!("the thread has panicked") };
            Ok((before, after, came?))
        })?;
        check_eq!(came, Came::Refused(WRITE, BASE), "turn {turn}");
        check_eq!(before, after, "turn {turn}: written after the call");
        check_eq!(machine.vm.set_rights(1, ALL), Ok(0));
    }
    machine.memory.write(layout::DATA, &[1]);
    check_eq!(go_on(&machine)?, Came::Through);
    Ok(())
}

/// Shadow tables have no such rights.
fn paging_mode(device: &Device) -> Outcome {
    let vm = device.plain_vm()?;
    let memory = Memory::new(PAGE)?;
    vm.map(3, 0, &memory)?;
    check_eq!(vm.set_rights(3, READ), Ok(0));
    check_err!(vm.enable_cap(CAP_PAGING, 0, PAGING_SHADOW.into()), EBUSY, "a slot has fewer rights");
    check_eq!(vm.set_rights(3, ALL), Ok(0));
    check_eq!(vm.enable_cap(CAP_PAGING, 0, PAGING_SHADOW.into()), Ok(0));
    check_err!(vm.set_rights(3, READ), EOPNOTSUPP);
    Ok(())
}

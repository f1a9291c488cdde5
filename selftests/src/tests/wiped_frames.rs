// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_SET_WIPE: every frame that a VM has used is wiped when it goes, and no VM finds what another has left.

use crate::machine::layout;
use crate::numa::{machine, touch};
use crate::prelude::*;
use crate::rusthv::*;
use std::ptr;

pub const TEST: Test = Test::new(120, run);

guest!(
    wiped_frames,
    code64,
    // Counts in RDX the words that are not zero, of RCX from RBX on, and leaves RAX there.
    "2: cmp qword ptr [rbx], 1",
    "sbb rdx, -1",
    "mov [rbx], rax",
    "add rbx, 8",
    "loop 2b",
    "hlt",
);

const TABLES: u64 = 16;
const BASE: u64 = 0x4000_0000;
const SECRET: u64 = 0x7ec2_e75e_c2e7_7ec2;
/// Words of guest memory that are looked at.
const WORDS: usize = 1 << 18;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    arguments(&device)?;
    if t.is_exclusive() {
        for (mode, all) in [(RUSTHV_WIPE_ZEROS, true), (RUSTHV_WIPE_RANDOM, true), (RUSTHV_WIPE_NEVER, false)]
        {
            counted(&device, mode, all)?;
        }
    }
    for round in 0..t.repetitions(6) {
        let mode = [RUSTHV_WIPE_ZEROS, RUSTHV_WIPE_RANDOM, RUSTHV_WIPE_NEVER][round as usize % 3];
        nothing_left(&device, mode, round)?;
    }
    Ok(())
}

/// All that the VM had when it went has been wiped, or none of it.
fn counted(device: &Device, mode: u32, all: bool) -> Outcome {
    let before = device.host_stats()?;
    let vm = device.vm()?;
    vm.set_wipe(mode)?;
    let (machine, _memory) = machine(device, vm, TABLES)?;
    touch(&machine, 0, TABLES)?;
    let run = device.host_stats()?;
    let used = run.frames_in_use - before.frames_in_use;
    check!(used > TABLES, "mode {mode}: {used} frames");
    drop(machine);
    let after = device.host_stats()?;
    check_eq!(after.frames_in_use, before.frames_in_use, "mode {mode}");
    let expected = if all { used } else { 0 };
    check_eq!(after.frames_wiped - run.frames_wiped, expected, "mode {mode}: of {used} frames");
    Ok(())
}

/// A VM with nothing in it, which is then full of secrets: memory, registers, the area that it shares.
fn nothing_left(device: &Device, mode: u32, round: u64) -> Outcome {
    let vm = device.vm()?;
    vm.set_wipe(mode)?;
    let machine = Machine::long_in(device, vm, wiped_frames())?;
    let area = Memory::map(machine.vcpu.run_area_pages() * 0x1000, libc::MAP_SHARED, machine.vcpu.fd())?;
    for word in (0..area.size()).step_by(8) {
        check_eq!(area.read_u64(word), 0, "round {round}: word {word:#x} of the shared area");
    }
    let regs = machine.vcpu.regs()?;
    check!(![regs.rax, regs.rbx, regs.r15].contains(&SECRET), "round {round}: registers");
    let memory = Memory::new(WORDS * 8)?;
    machine.vm.map(1, BASE, &memory)?;
    machine.change_regs(|regs| {
        (regs.rip, regs.rax, regs.rbx, regs.r15) = (layout::CODE as u64, SECRET, BASE, SECRET);
        (regs.rcx, regs.rdx) = (WORDS as u64, 0);
    })?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rdx, 0, "round {round}: words of memory that were not zero");
    check_eq!(memory.read_u64(0), SECRET);
    // The exit is over; the rest of the area is free to write.
    for word in (0x800..area.size()).step_by(8) {
        area.write_u64(word, SECRET);
    }
    Ok(())
}

fn arguments(device: &Device) -> Outcome {
    check_eq!(device.check_extension(RUSTHV_CAP_WIPE), Ok(0b111));
    let vm = device.vm()?;
    check_err!(vm.ioctl(RUSTHV_SET_WIPE, 0), EFAULT);
    let mut bad = [Wipe::default(); 3];
    bad[0].mode = 3;
    bad[1].padding = 1;
    bad[2].reserved[2] = 1;
    for wipe in &bad {
        check_err!(vm.ioctl(RUSTHV_SET_WIPE, ptr::from_ref(wipe) as u64), EINVAL, "{wipe:?}");
    }
    check_eq!(vm.set_wipe(RUSTHV_WIPE_RANDOM), Ok(0));
    check_eq!(vm.set_wipe(RUSTHV_WIPE_NEVER), Ok(0));
    let _vcpu = vm.vcpu(0)?;
    check_err!(vm.set_wipe(RUSTHV_WIPE_ZEROS), EBUSY, "there is a vCPU");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Without nested paging a frame has one owner, whatever many linear addresses it has, and until the last of them is gone.

use crate::debugfs;
use crate::machine::PTE_ALL;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;
use std::fs;

pub const TEST: Test = Test::new(60, run);

guest!(
    frame_aliases,
    code64,
    // Writes to RCX pages from RBX on.
    "2: mov [rbx], rbx",
    "add rbx, 0x1000",
    "dec rcx",
    "jnz 2b",
    "hlt",
    // Takes the entry at RDX, which is RBX's, out of the table.
    "mov qword ptr [rdx], 0",
    "invlpg [rbx]",
    "hlt",
    "jmp 2b",
);

/// The second half of the guest, from the first HLT on.
const AFTER_HLT: u64 = 16;
/// Where the frames are in the guest, and in its linear addresses, beside the identity mapping.
const BASE: u64 = 0x4000_0000;
const LINEAR: u64 = 8 << 30;
/// A directory and a table for that.
const DIRECTORY: usize = layout::DATA;
const TABLE: usize = layout::DATA + PAGE;
/// Frames, and linear addresses of each.
const FRAMES: usize = 3;
const EACH: usize = 4;

fn machine(device: &Device, paging: u32) -> Result<Machine, Failure> {
    let vm = device.plain_vm()?;
    vm.enable_cap(CAP_PAGING, 0, paging.into())?;
    let machine = Machine::long_in(device, vm, frame_aliases())?;
    let tables = &machine.memory;
    tables.write_u64(layout::PDPT + 8 * 8, DIRECTORY as u64 | PTE_ALL);
    tables.write_u64(DIRECTORY, TABLE as u64 | PTE_ALL);
    for index in 0..FRAMES * EACH {
        let frame = BASE + ((index % FRAMES) * PAGE) as u64;
        tables.write_u64(TABLE + 8 * index, frame | PTE_ALL);
    }
    Ok(machine)
}

/// The owners of a frame of the guest's: VM, address, size, mode.
fn owners(device: &Device, hpa: u64) -> Result<Vec<(u64, u64, u32, u32)>, Failure> {
    let frame = device.frame(hpa, 0)?;
    check_eq!(frame.total, u64::from(frame.count), "{frame:x?}");
    let told = frame.owners[..frame.count as usize].iter();
    Ok(told.map(|owner| (owner.vm, owner.gpa, owner.page_shift, owner.mode)).collect())
}

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    if device.check_extension(RUSTHV_CAP_INVERTED)? == 0 {
        return Err(Failure::Skipped("no inverted page table".into()));
    }
    for (paging, mode, name) in
        [(PAGING_SHADOW, RUSTHV_MODE_SHADOW, "shadow"), (PAGING_TRAP, RUSTHV_MODE_TRAP, "trap")]
    {
        one(&device, paging, mode, name)?;
    }
    Ok(())
}

fn one(device: &Device, paging: u32, mode: u32, name: &str) -> Outcome {
    let memory = Memory::new(FRAMES * PAGE)?;
    memory.advise(0, FRAMES * PAGE, libc::MADV_NOHUGEPAGE)?;
    let machine = machine(device, paging)?;
    machine.vm.map(1, BASE, &memory)?;
    let id = machine.vm.stats()?.id;
    machine.change_regs(|regs| (regs.rbx, regs.rcx) = (LINEAR, (FRAMES * EACH) as u64))?;
    check_eq!(machine.run()?, Exit::Hlt);
    check!(machine.vm.paging_stats()?.mapped_4k >= (FRAMES * EACH) as u64, "{name}: an entry for each");
    let mut frames = Vec::new();
    for frame in 0..FRAMES {
        let gpa = BASE + (frame * PAGE) as u64 + 0x18;
        let found = machine.vm.locate(gpa)?;
        check_eq!((found.page_shift, found.owners, found.mode), (12, 1, mode), "{name}: {found:x?}");
        check!(found.flags & RUSTHV_MAP_WRITE != 0, "{name}: {found:x?}");
        check_eq!(owners(device, found.hpa)?, [(id, gpa, 12, mode)], "{name}: frame {frame}");
        frames.push((gpa, found.hpa));
    }
    // The files say so, too.
    if let (Some(module), Ok(of)) = (debugfs::module(), debugfs::of(&machine.vm)) {
        let read = |path| fs::read_to_string(path).map_err(|error| Failure::failed(error.to_string()));
        let (all, own) = (read(module.join("frames"))?, read(of.join("pages"))?);
        let who = format!("{}-{id} {name} ", std::process::id());
        let count = |text: &str, mut test: Box<dyn FnMut(u64, u64) -> bool + '_>| {
            let stretch = |line: &str| -> Option<(u64, u64)> {
                let mut words = line.split(' ');
                let gpa = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
                let pages = words.nth(1)?.parse::<u64>().ok()?;
                Some((gpa, pages))
            };
            text.lines().filter_map(stretch).filter(|&(gpa, pages)| test(gpa, pages)).count()
        };
        let ours: String =
            all.lines().filter_map(|line| line.strip_prefix(&who)).map(|line| format!("{line}\n")).collect();
        for (gpa, _) in &frames {
            let has = |first: u64, pages: u64| (first..first + pages * PAGE as u64).contains(gpa);
            check_eq!(count(&ours, Box::new(has)), 1, "{name}: {all}");
            check_eq!(count(&own, Box::new(has)), 1, "{name}: {own}");
        }
    }
    // One linear address after the other goes.
    for index in 0..FRAMES * EACH {
        machine.change_regs(|regs| {
            regs.rip = layout::CODE as u64 + AFTER_HLT;
            regs.rbx = LINEAR + (index * PAGE) as u64;
            regs.rdx = (TABLE + 8 * index) as u64;
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        for (frame, &(gpa, hpa)) in frames.iter().enumerate() {
            let left = index < FRAMES * (EACH - 1) + frame;
            let due = if left { vec![(id, gpa, 12, mode)] } else { Vec::new() };
            check_eq!(owners(device, hpa)?, due, "{name}: frame {frame} after {index}");
            let shift = machine.vm.locate(gpa)?.page_shift;
            check_eq!(shift, if left { 12 } else { 0 }, "{name}: frame {frame} after {index}");
        }
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0
//! A guest of one instruction: what happens on `mov [gva], eax`.

use std::process;
use std::ptr;

use clap::ValueEnum;
use kvm_bindings::{kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::{draw, files, locate, owner, uapi, Options, Result};

/// How the guest's memory is virtualized, with the numbers of RUSTHV_CAP_PAGING.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Paging {
    /// By the CPU: nested page tables
    Nested = 0,
    /// Shadow page tables that follow the guest's when it invalidates translations
    Shadow = 1,
    /// Shadow page tables that follow each write to the guest's
    Trap = 2,
}

const RUSTHV_CAP_PAGING: u32 = 0x5248_0001;

/// Guest memory: its tables and code, and in the middle of it what it writes to.
const SIZE: usize = 8 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const CODE: u64 = 0x8000;
/// The page table maps the first 2 MiB of linear addresses from here on.
const DATA: u64 = 0x20_0000;

/// Anonymous memory of this process.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Result<Self> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: New memory, anywhere.
        let start = unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("mmap: {}", std::io::Error::last_os_error()));
        }
        Ok(Self(start.cast()))
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= SIZE);
        // SAFETY: In bounds; the guest does not run meanwhile.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at as usize), bytes.len()) };
    }

    fn entry(&self, table: u64, index: u64, entry: u64) {
        self.write(table + 8 * index, &entry.to_le_bytes());
    }
}

fn start(vcpu: &mut VcpuFd, gva: u64) -> Result<()> {
    let failed = |error| format!("the vCPU's registers: {error}");
    let mut sregs = vcpu.get_sregs().map_err(failed)?;
    let segment = |type_, l, db| kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l,
        db,
        ..Default::default()
    };
    sregs.cs = segment(11, 1, 0);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *data = segment(3, 0, 1);
    }
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5;
    sregs.efer = 1 << 8 | 1 << 10;
    sregs.cr0 = 1 << 31 | 1 << 4 | 1;
    vcpu.set_sregs(&sregs).map_err(failed)?;
    let regs = kvm_regs {
        rip: CODE,
        rbx: gva,
        rax: 0x1234_5678,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed)
}

/// The entries of a walk, a line for each: the guest's, then the nested ones. Where the CPU walks shadow
/// tables instead of the guest's, what they have stands beside the guest's entry of the same level.
fn lines(entries: &[uapi::WalkEntry]) -> Vec<String> {
    let said =
        |entry: &uapi::WalkEntry| format!("{:#14x} has {:#018x}", entry.address, entry.entry);
    if !entries
        .iter()
        .any(|entry| entry.table == uapi::TABLE_SHADOW)
    {
        let line = |entry: &uapi::WalkEntry| {
            let (whose, what) = match entry.table {
                0 => ("guest ", "guest-physical"),
                _ => ("nested", "host-physical "),
            };
            format!("{whose} level {}: {what} {}", entry.level, said(entry))
        };
        return entries.iter().map(line).collect();
    }
    let at = |table: u32, level: u32| {
        let found = entries
            .iter()
            .find(|entry| (entry.table, entry.level) == (table, level));
        found.map_or(format!("{:>14} {:22}", "-", ""), said)
    };
    let levels = (1..=uapi::LEVELS).rev();
    levels
        .filter(|&level| entries.iter().any(|entry| entry.level == level))
        .map(|level| {
            let (guest, shadow) = (at(0, level), at(uapi::TABLE_SHADOW, level));
            format!("level {level}: guest {guest}   shadow {shadow}")
                .trim_end()
                .to_owned()
        })
        .collect()
}

/// Prints what came of an access, entry by entry.
fn show(walk: &uapi::Walk) {
    let entries = walk.entries.get(..walk.count as usize);
    for line in lines(entries.unwrap_or(&walk.entries)) {
        println!("  {line}");
    }
    match walk.result {
        0 => println!(
            "  linear {:#x} is guest-physical {:#x} is host-physical {:#x}",
            walk.gva, walk.gpa, walk.hpa
        ),
        1 => println!("  {:#x} is not canonical: #GP in the guest", walk.gva),
        2 => println!(
            "  page fault in the guest, error code {:#x}",
            walk.error_code
        ),
        3 => println!("  a table would be at {:#x}, where no memory is", walk.gpa),
        _ => println!(
            "  guest-physical {:#x} is not mapped for this: VM exit, the module maps the page",
            walk.gpa
        ),
    }
}

/// Chooses how the VM's memory is virtualized.
fn choose(vm: &VmFd, paging: Paging) -> Result<()> {
    if paging == Paging::Nested {
        return Ok(());
    }
    let cap = kvm_enable_cap {
        cap: RUSTHV_CAP_PAGING,
        args: [paging as u64, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(|error| format!("the paging mode: {error}"))
}

pub fn run(options: &Options, gva: u64, paging: Paging, style: &draw::Style) -> Result<bool> {
    let path = options
        .device
        .to_str()
        .ok_or("the path of the device is not text")?;
    let path = std::ffi::CString::new(path).map_err(|error| error.to_string())?;
    let failed = |error: kvm_ioctls::Error| format!("{}: {error}", options.device.display());
    let memory = Memory::new()?;
    let kvm = Kvm::new_with_path(path).map_err(failed)?;
    let vm = kvm.create_vm().map_err(failed)?;
    choose(&vm, paging)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: SIZE as u64,
        userspace_addr: memory.0 as u64,
    };
    // SAFETY: The memory outlives the VM: nobody unmaps it.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed)?;
    // Linear addresses below 2 MiB are DATA and what follows, but for the page with the code.
    memory.entry(PML4, 0, PDPT | 3);
    memory.entry(PDPT, 0, DIRECTORY | 3);
    memory.entry(DIRECTORY, 0, TABLE | 3);
    for page in 0..512 {
        memory.entry(TABLE, page, (DATA + page * 4096) | 3);
    }
    memory.entry(TABLE, CODE >> 12, CODE | 3);
    // mov [rbx], eax; hlt
    memory.write(CODE, &[0x89, 0x03, 0xf4]);
    let mut vcpu = vm.create_vcpu(0).map_err(failed)?;
    // Long mode is for vCPUs that have it.
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(failed)?;
    vcpu.set_cpuid2(&cpuid).map_err(failed)?;
    start(&mut vcpu, gva)?;

    println!("before `mov [{gva:#x}], eax`, a write:");
    show(&uapi::walk(&vcpu, gva, 1)?);
    match vcpu.run().map_err(failed)? {
        VcpuExit::Hlt => {}
        other => println!("the guest did not get to its HLT: {other:?}"),
    }
    println!("after it:");
    let walk = uapi::walk(&vcpu, gva, 1)?;
    show(&walk);
    if walk.result != 0 {
        return Ok(false);
    }
    println!();
    owner(options, walk.hpa)?;
    // Our own VM is the last that this process made.
    let ours = format!("{}-", process::id());
    let Some(name) = files::list(&options.debugfs)?
        .into_iter()
        .find(|name| name.starts_with(&ours))
    else {
        return Err("the VM is not in debugfs".into());
    };
    locate(options, &name, walk.gpa)?;
    println!();
    println!("VM {name}:");
    let files = files::Vm::open(&options.debugfs, &name)?;
    draw::draw(&files.slots()?, &files.stretches()?, style);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: u32, level: u32, address: u64, entry: u64) -> uapi::WalkEntry {
        uapi::WalkEntry {
            table,
            level,
            address,
            entry,
        }
    }

    #[test]
    fn nested_entries_follow_the_guests() {
        let lines = lines(&[entry(0, 2, 0x1000, 0x2003), entry(1, 4, 0x5000, 7)]);
        assert_eq!(
            lines,
            [
                "guest  level 2: guest-physical         0x1000 has 0x0000000000002003",
                "nested level 4: host-physical          0x5000 has 0x0000000000000007",
            ]
        );
    }

    #[test]
    fn shadow_entries_stand_beside_the_guests() {
        let lines = lines(&[
            entry(0, 3, 0x1000, 0x2003),
            entry(0, 2, 0x2000, 0x83),
            entry(2, 3, 0x5000, 0x6023),
            entry(2, 2, 0x6000, 0x7023),
            entry(2, 1, 0x7008, 0x9063),
        ]);
        assert_eq!(
            lines,
            [
                "level 3: guest         0x1000 has 0x0000000000002003   \
                 shadow         0x5000 has 0x0000000000006023",
                "level 2: guest         0x2000 has 0x0000000000000083   \
                 shadow         0x6000 has 0x0000000000007023",
                "level 1: guest              -                          \
                 shadow         0x7008 has 0x0000000000009063",
            ]
        );
    }
}

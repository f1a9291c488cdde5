// SPDX-License-Identifier: GPL-2.0
//! A guest of one instruction: what happens on `mov [gva], eax`.

use std::process;
use std::ptr;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::{draw, files, locate, owner, uapi, Options, Result};

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

/// Prints what came of an access, entry by entry.
fn show(walk: &uapi::Walk) {
    for entry in walk.entries.iter().take(walk.count as usize) {
        let (whose, what) = match entry.table {
            0 => ("guest ", "guest-physical"),
            _ => ("nested", "host-physical "),
        };
        let (level, at, word) = (entry.level, entry.address, entry.entry);
        println!("  {whose} level {level}: {what} {at:#14x} has {word:#018x}");
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

pub fn run(options: &Options, gva: u64, style: &draw::Style) -> Result<bool> {
    let path = options
        .device
        .to_str()
        .ok_or("the path of the device is not text")?;
    let path = std::ffi::CString::new(path).map_err(|error| error.to_string())?;
    let failed = |error: kvm_ioctls::Error| format!("{}: {error}", options.device.display());
    let memory = Memory::new()?;
    let kvm = Kvm::new_with_path(path).map_err(failed)?;
    let vm = kvm.create_vm().map_err(failed)?;
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

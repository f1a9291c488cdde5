// SPDX-License-Identifier: GPL-2.0

//! A VM with memory and one vCPU, put into one of the processor's modes.

use crate::device::{Device, Exit, Vcpu, Vm};
use crate::errno::Errno;
use crate::harness::Failure;
use crate::memory::Memory;
use crate::traps::{self, Trap};
use kvm_bindings::*;

/// Where things are in a guest's memory.
pub mod layout {
    /// Page tables: PML4, PDPT, four page directories that map 4 GiB onto itself with 2 MiB pages.
    pub const PML4: usize = 0x1000;
    pub const PDPT: usize = 0x2000;
    pub const DIRECTORIES: usize = 0x3000;
    pub const GDT: usize = 0x7000;
    pub const TSS: usize = 0x7800;
    /// Where guest code goes, in every mode.
    pub const CODE: usize = 0x8000;
    /// The stack grows down from here.
    pub const STACK: usize = 0x18000;
    pub const IDT: usize = 0x18000;
    /// Entry stubs of the exception vectors.
    pub const STUBS: usize = 0x19000;
    /// The stack of handlers that interrupt user mode grows down from here.
    pub const TRAP_STACK: usize = 0x1F000;
    /// Free for the test.
    pub const DATA: usize = 0x20000;
    /// How much memory a machine has unless the test says otherwise.
    pub const SIZE: usize = 2 << 20;
    /// A guest-physical address that no slot covers, below 4 GiB.
    pub const MMIO: u64 = 0xD000_0000;

    /// Selectors of the flat segments in the GDT.
    pub const CODE64: u16 = 0x08;
    pub const DATA_FLAT: u16 = 0x10;
    pub const CODE32: u16 = 0x18;
    pub const TASK: u16 = 0x20;
    /// What SYSRET adds 8 (stack) and 16 (64-bit code) to.
    pub const USER_BASE: u16 = 0x30;
    pub const USER_DATA: u16 = 0x38;
    pub const USER_CODE64: u16 = 0x40;
    pub const GDT_ENTRIES: usize = 9;
}

pub const CR0_PE: u64 = 1 << 0;
pub const CR0_ET: u64 = 1 << 4;
pub const CR0_NE: u64 = 1 << 5;
pub const CR0_WP: u64 = 1 << 16;
pub const CR0_PG: u64 = 1 << 31;
pub const CR4_PAE: u64 = 1 << 5;
pub const CR4_OSFXSR: u64 = 1 << 9;
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub const CR4_OSXSAVE: u64 = 1 << 18;
pub const EFER_SCE: u64 = 1 << 0;
pub const EFER_LME: u64 = 1 << 8;
pub const EFER_LMA: u64 = 1 << 10;
pub const EFER_NXE: u64 = 1 << 11;

pub const PTE_PRESENT: u64 = 1 << 0;
pub const PTE_WRITE: u64 = 1 << 1;
pub const PTE_USER: u64 = 1 << 2;
pub const PTE_ACCESSED: u64 = 1 << 5;
pub const PTE_LARGE: u64 = 1 << 7;
pub const PTE_NX: u64 = 1 << 63;
/// What everything is mapped with: user mode may do all, too.
pub const PTE_ALL: u64 = PTE_PRESENT | PTE_WRITE | PTE_USER;

/// A VM with memory at guest-physical 0 and vCPU 0.
///
/// The fields are dropped in this order: the memory outlives the VM that maps it.
pub struct Machine {
    pub vcpu: Vcpu,
    pub vm: Vm,
    pub memory: Memory,
}

impl Machine {
    /// A vCPU in its reset state.
    pub fn new(device: &Device) -> Result<Self, Errno> {
        Self::with_memory(device, Memory::new(layout::SIZE)?)
    }

    pub fn with_memory(device: &Device, memory: Memory) -> Result<Self, Errno> {
        Self::in_vm(device.vm()?, memory)
    }

    fn in_vm(vm: Vm, memory: Memory) -> Result<Self, Errno> {
        vm.map(0, 0, &memory)?;
        let vcpu = vm.vcpu(0)?;
        Ok(Self { vcpu, vm, memory })
    }

    /// 16-bit real mode at `CODE`.
    pub fn real(device: &Device, code: &[u8]) -> Result<Self, Errno> {
        let machine = Self::new(device)?;
        machine.load(code);
        enter_real(&machine.vcpu)?;
        Ok(machine)
    }

    /// 32-bit protected mode, flat segments, no paging.
    pub fn protected(device: &Device, code: &[u8]) -> Result<Self, Errno> {
        let machine = Self::new(device)?;
        machine.load(code);
        machine.write_tables();
        enter_protected(&machine.vcpu)?;
        Ok(machine)
    }

    /// 64-bit mode, 4 GiB mapped onto itself.
    pub fn long(device: &Device, code: &[u8]) -> Result<Self, Errno> {
        Self::long_in(device, device.vm()?, code)
    }

    /// The same in a VM without a vCPU.
    pub fn long_in(device: &Device, vm: Vm, code: &[u8]) -> Result<Self, Errno> {
        let machine = Self::in_vm(vm, Memory::new(layout::SIZE)?)?;
        machine.load(code);
        machine.write_tables();
        machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
        enter_long(&machine.vcpu)?;
        crate::traps::install(&machine);
        Ok(machine)
    }

    /// Replaces the instruction pointer and the other registers that `change` touches.
    pub fn change_regs(&self, change: impl FnOnce(&mut kvm_regs)) -> Result<(), Errno> {
        let mut regs = self.vcpu.regs()?;
        change(&mut regs);
        self.vcpu.set_regs(&regs)?;
        Ok(())
    }

    pub fn change_sregs(&self, change: impl FnOnce(&mut kvm_sregs)) -> Result<(), Errno> {
        let mut sregs = self.vcpu.sregs()?;
        change(&mut sregs);
        self.vcpu.set_sregs(&sregs)?;
        Ok(())
    }

    /// Runs until the guest reports an exception (see `traps`); anything else is an error.
    #[track_caller]
    pub fn run_to_trap(&self, what: &str) -> Result<Trap, Failure> {
        let exit = self.run()?;
        match traps::trap(self, &exit)? {
            Some(trap) => Ok(trap),
            None => Err(Failure::failed(format!("{what}: an exception was due, got {exit:x?}"))),
        }
    }

    pub fn load(&self, code: &[u8]) {
        self.memory.write(layout::CODE, code);
    }

    /// The GDT and the page tables.
    pub fn write_tables(&self) {
        write_tables(&self.memory);
    }

    pub fn run(&self) -> Result<Exit, Errno> {
        self.vcpu.run()
    }
}

/// Writes the GDT and the page tables to where `layout` says.
pub fn write_tables(memory: &Memory) {
    let tss = layout::TSS as u64;
    let gdt: [u64; layout::GDT_ENTRIES] = [
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_9B00_0000_FFFF,
        // An available-then-busy 64-bit TSS, 104 bytes.
        0x0000_8B00_0000_0067 | (tss & 0xFF_FFFF) << 16 | (tss >> 24 & 0xFF) << 56,
        tss >> 32,
        0,
        0x00CF_F300_0000_FFFF,
        0x00AF_FB00_0000_FFFF,
    ];
    memory.write(layout::TSS + 4, &(layout::TRAP_STACK as u64).to_le_bytes());
    for (index, descriptor) in gdt.into_iter().enumerate() {
        memory.write_u64(layout::GDT + 8 * index, descriptor);
    }
    memory.write_u64(layout::PML4, layout::PDPT as u64 | PTE_ALL);
    for gib in 0..4 {
        let directory = layout::DIRECTORIES + 0x1000 * gib;
        memory.write_u64(layout::PDPT + 8 * gib, directory as u64 | PTE_ALL);
        for index in 0..512 {
            let address = (gib as u64) << 30 | (index as u64) << 21;
            memory.write_u64(directory + 8 * index, address | PTE_LARGE | PTE_ALL);
        }
    }
}

/// A flat code or data segment.
pub fn flat_segment(selector: u16, code: bool, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// RFLAGS that guests start with: interrupts on, which nothing sends.
///
/// Bochs keeps the host's interrupts from a guest that is entered with interrupts off and goes on
/// without an exit (Documentation/testing.md): one that spins would take the processor with it.
pub const START_FLAGS: u64 = 1 << 9 | 1 << 1;

/// Registers at `CODE`, for every mode.
pub fn start_registers() -> kvm_regs {
    kvm_regs {
        rip: layout::CODE as u64,
        rsp: layout::STACK as u64,
        rflags: START_FLAGS,
        ..Default::default()
    }
}

/// Real mode, code segment base 0.
pub fn enter_real(vcpu: &Vcpu) -> Result<(), Errno> {
    let mut sregs = vcpu.sregs()?;
    real_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rsp: 0x7000, ..start_registers() })?;
    Ok(())
}

/// From the reset state to real mode with code segment base 0.
pub fn real_mode(sregs: &mut kvm_sregs) {
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
}

fn set_flat_data(sregs: &mut kvm_sregs) {
    let data = flat_segment(layout::DATA_FLAT, false, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = layout::GDT as u64;
    sregs.gdt.limit = (layout::GDT_ENTRIES * 8 - 1) as u16;
}

pub fn enter_protected(vcpu: &Vcpu) -> Result<(), Errno> {
    let mut sregs = vcpu.sregs()?;
    protected_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&start_registers())?;
    Ok(())
}

/// 32-bit protected mode with flat segments.
pub fn protected_mode(sregs: &mut kvm_sregs) {
    set_flat_data(sregs);
    sregs.cs = flat_segment(layout::CODE32, true, false);
    sregs.cr0 |= CR0_PE;
}

pub fn enter_long(vcpu: &Vcpu) -> Result<(), Errno> {
    let mut sregs = vcpu.sregs()?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&start_registers())?;
    Ok(())
}

/// 64-bit mode on the tables that `write_tables` writes.
pub fn long_mode(sregs: &mut kvm_sregs) {
    set_flat_data(sregs);
    sregs.cs = flat_segment(layout::CODE64, true, true);
    sregs.tr = kvm_segment {
        base: layout::TSS as u64,
        limit: 0x67,
        selector: layout::TASK,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.idt.base = layout::IDT as u64;
    sregs.idt.limit = 0xFFF;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = layout::PML4 as u64;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
}

// SPDX-License-Identifier: GPL-2.0

//! The guest that makes the accesses: one after the other through tables of their own, with a
//! record of how each of them ended.

use super::generate::{Batch, Case, Setting, ACCESSED, DIRTY, PRESENT, USER, WRITABLE};
use super::{levels, Features};
use crate::device::{Device, Exit, Vcpu};
use crate::emulator;
use crate::fail;
use crate::guest;
use crate::harness::{Failure, Outcome};
use crate::machine::{flat_segment, Machine};
use crate::memory::{Memory, PAGE};
use kvm_bindings::*;
use rusthv_model::arch::regs::Cr4;
use rusthv_model::paging::state::{AccessKind, Mode};

/// Where things are in the guest. All below 2 MiB is mapped onto itself, for the supervisor alone
/// but for the page of the user's instructions.
pub mod layout {
    /// Tables of the guest's own part, with every flag set that a CPU might set.
    pub const LEVEL_4: usize = 0x1000;
    pub const LEVEL_3: usize = 0x2000;
    pub const LEVEL_2: usize = 0x3000;
    pub const LEVEL_1: usize = 0x4000;
    /// The same in the format of 32-bit paging.
    pub const LEVEL_1_OF_32: usize = 0x5000;
    pub const GDT: usize = 0x7000;
    pub const TSS_64: usize = 0x7200;
    pub const TSS_32: usize = 0x7400;
    pub const CODE_64: usize = 0x8000;
    pub const CODE_32: usize = 0x9000;
    /// Entry points of the vectors, for either size of code.
    pub const VECTORS_64: usize = 0xA000;
    pub const VECTORS_32: usize = 0xA800;
    /// The instructions that access, one page for the supervisor and one for users.
    pub const SUPERVISOR: usize = 0xB000;
    pub const USER: usize = 0xC000;
    pub const IDT_64: usize = 0xD000;
    pub const IDT_32: usize = 0xE000;
    pub const STACK: usize = 0x18000;
    pub const LIST: usize = 0x20000;
    /// The tables of the cases.
    pub const TABLES: u64 = 0x40_0000;
    pub const TABLES_PER_CASE: usize = 5;
    /// Where pages to access are; the other pools are in slots of their own.
    pub const FIRST_POOL: u64 = 0xC0_0000;
    /// A pool below 4 GiB that PAE's and 32-bit paging's highest addresses are in, and one above.
    pub const SECOND_POOL: u64 = 0xE540_0000;
    pub const THIRD_POOL: u64 = 0x5_A7C0_0000;
    /// Distance of what two cases access in a page.
    pub const SLOT: usize = 8;
}

/// Cases in a batch.
pub const CASES: usize = 128;
/// 4 KiB pages in a pool.
pub const POOL_PAGES: u64 = 1024;
const POOL_SIZE: u64 = POOL_PAGES * PAGE as u64;
/// Ends of the tables of the cases.
pub const TABLES_END: u64 = layout::TABLES + (CASES * layout::TABLES_PER_CASE * PAGE) as u64;
/// The access took place.
pub const DONE: u32 = 0x21;
const VECTOR_COUNT: usize = DONE as usize + 1;
/// What RAX holds before the access.
pub const NOTHING: u32 = 0x7A7A_7A7A;

/// Fields of a case in the list.
mod field {
    pub const CR3: usize = 0;
    pub const ADDRESS: usize = 8;
    pub const VALUE: usize = 16;
    pub const RIP: usize = 24;
    pub const CS: usize = 32;
    pub const FLAGS: usize = 40;
    pub const SS: usize = 48;
    pub const VECTOR: usize = 56;
    pub const ERROR: usize = 60;
    pub const FAULTING: usize = 64;
    pub const CR2: usize = 72;
    pub const READ: usize = 80;
    pub const SIZE: usize = 88;
}

/// Selectors.
mod selector {
    pub const CODE_64: u16 = 0x08;
    pub const STACK: u16 = 0x10;
    pub const CODE_32: u16 = 0x18;
    pub const TASK: u16 = 0x20;
    pub const USER_DATA: u16 = 0x33;
    pub const USER_CODE_64: u16 = 0x3B;
    pub const USER_CODE_32: u16 = 0x43;
}

// First the common part of the vectors' entry points, which records; then the start. ESI points at the
// case, EDI behind the last one, EBP says whether PKRU is to be set, from EAX.
guest!(
    walk_64,
    code64,
    "pop rdx",
    "mov [rsi + {vector}], edx",
    "pop rdx",
    "mov [rsi + {error}], edx",
    "pop rdx",
    "mov [rsi + {faulting}], rdx",
    "mov [rsi + {read}], eax",
    "mov rdx, cr2",
    "mov [rsi + {cr2}], rdx",
    "add rsi, {size}",
    "jmp 2f",
    ".balign 64",
    "test ebp, ebp",
    "je 2f",
    "xor ecx, ecx",
    "xor edx, edx",
    ".byte 0x0f, 0x01, 0xef", // wrpkru
    "2:",
    "mov esp, {stack}",
    "cmp rsi, rdi",
    "jae 3f",
    "mov rax, [rsi + {cr3}]",
    "mov cr3, rax",
    "mov rbx, [rsi + {address}]",
    "mov ecx, [rsi + {value}]",
    "push qword ptr [rsi + {ss}]",
    "push {stack}",
    "push qword ptr [rsi + {flags}]",
    "push qword ptr [rsi + {cs}]",
    "push qword ptr [rsi + {rip}]",
    "mov eax, {nothing}",
    "iretq",
    "3:",
    "hlt";
    stack = const layout::STACK, cr3 = const field::CR3, address = const field::ADDRESS,
    value = const field::VALUE, ss = const field::SS, flags = const field::FLAGS,
    cs = const field::CS, rip = const field::RIP, nothing = const NOTHING,
    vector = const field::VECTOR, error = const field::ERROR, faulting = const field::FAULTING,
    read = const field::READ, cr2 = const field::CR2, size = const field::SIZE,
);

guest!(
    walk_32,
    code32,
    "pop edx",
    "mov [esi + {vector}], edx",
    "pop edx",
    "mov [esi + {error}], edx",
    "pop edx",
    "mov [esi + {faulting}], edx",
    "mov [esi + {read}], eax",
    "mov edx, cr2",
    "mov [esi + {cr2}], edx",
    "add esi, {size}",
    "jmp 2f",
    ".balign 64",
    "2:",
    "mov esp, {stack}",
    "cmp esi, edi",
    "jae 3f",
    "mov eax, [esi + {cr3}]",
    "mov cr3, eax",
    "mov ebx, [esi + {address}]",
    "mov ecx, [esi + {value}]",
    "push dword ptr [esi + {ss}]",
    "push {stack}",
    "push dword ptr [esi + {flags}]",
    "push dword ptr [esi + {cs}]",
    "push dword ptr [esi + {rip}]",
    "mov eax, {nothing}",
    "iretd",
    "3:",
    "hlt";
    stack = const layout::STACK, cr3 = const field::CR3, address = const field::ADDRESS,
    value = const field::VALUE, ss = const field::SS, flags = const field::FLAGS,
    cs = const field::CS, rip = const field::RIP, nothing = const NOTHING,
    vector = const field::VECTOR, error = const field::ERROR, faulting = const field::FAULTING,
    read = const field::READ, cr2 = const field::CR2, size = const field::SIZE,
);

/// Where the start is in either code.
const START: usize = 64;

// The same bytes in 32-bit and in 64-bit code, one access in each 16 bytes.
guest!(
    walk_accesses,
    code64,
    "mov eax, [rbx + 1]",
    "int 0x21",
    ".balign 16",
    "mov [rbx + 1], ecx",
    "int 0x21",
    ".balign 16",
    "jmp rbx",
);

const fn access_offset(kind: AccessKind) -> usize {
    match kind {
        AccessKind::Read => 0,
        AccessKind::Write => 16,
        AccessKind::Fetch => 32,
    }
}

/// What an access does beside the byte that the case names: data is one byte further.
pub fn data_offset(kind: AccessKind) -> u64 {
    u64::from(kind != AccessKind::Fetch)
}

/// How an access ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub vector: u32,
    pub error: u32,
    pub rip: u64,
    pub cr2: u64,
    /// RAX: what was read, or what the code at the address says of itself.
    pub read: u32,
}

impl Record {
    /// The fault came before the access: at the MOV to CR3.
    pub fn is_early(&self) -> bool {
        (layout::CODE_64 as u64..layout::VECTORS_64 as u64).contains(&self.rip)
    }
}

/// A guest with the pools and the code, and its tables as they should be.
pub struct Guest {
    machine: Machine,
    reset: kvm_sregs,
    /// Where pages may be.
    pub pools: [u64; 4],
}

impl Guest {
    pub fn new(device: &Device, cpuid: &[kvm_cpuid_entry2], features: &Features) -> Result<Self, Failure> {
        let low = layout::FIRST_POOL + POOL_SIZE;
        // Nested tables of four levels end at 48 bits.
        let top = (1 << features.phys_bits.min(48)) - POOL_SIZE;
        let pools = [layout::FIRST_POOL, layout::SECOND_POOL, layout::THIRD_POOL, top];
        let memory = Memory::new((low + 3 * POOL_SIZE) as usize)?;
        let vm = device.vm()?;
        vm.set_slot(0, 0, 0, low, memory.address())?;
        for (slot, gpa) in (1u32..).zip(&pools[1..]) {
            let hva = memory.address() + low + u64::from(slot - 1) * POOL_SIZE;
            vm.set_slot(slot, 0, *gpa, POOL_SIZE, hva)?;
        }
        let vcpu = vm.vcpu(0)?;
        vcpu.set_cpuid(cpuid)?;
        let reset = vcpu.sregs()?;
        let guest = Self { machine: Machine { vcpu, vm, memory }, reset, pools };
        guest.write_code();
        guest.write_own_tables();
        guest.write_descriptors();
        Ok(guest)
    }

    pub fn vcpu(&self) -> &Vcpu {
        &self.machine.vcpu
    }

    pub fn memory(&self) -> &Memory {
        &self.machine.memory
    }

    /// Where a guest-physical address of a pool or of a case's table is in the memory.
    pub fn place(&self, gpa: u64) -> Option<usize> {
        if is_table(gpa) {
            return Some(gpa as usize);
        }
        let index = self.pools.iter().position(|pool| (*pool..pool + POOL_SIZE).contains(&gpa))?;
        Some((layout::FIRST_POOL + index as u64 * POOL_SIZE + (gpa - self.pools[index])) as usize)
    }

    fn write_code(&self) {
        let memory = self.memory();
        memory.write(layout::CODE_64, walk_64());
        memory.write(layout::CODE_32, walk_32());
        memory.write(layout::SUPERVISOR, walk_accesses());
        memory.write(layout::USER, walk_accesses());
        // Vectors for which the processor pushes an error code.
        const WITH_CODE: u64 = 0x2022_7D00;
        for (stubs, code) in [(layout::VECTORS_64, layout::CODE_64), (layout::VECTORS_32, layout::CODE_32)] {
            for vector in 0..VECTOR_COUNT {
                let stub = stubs + 16 * vector;
                let mut bytes = Vec::new();
                if WITH_CODE >> vector & 1 == 0 {
                    bytes.extend([0x6A, 0]); // push 0
                }
                bytes.extend([0x6A, vector as u8]); // push the vector
                bytes.push(0xE9); // jmp
                let next = stub + bytes.len() + 4;
                bytes.extend((code.wrapping_sub(next) as i32).to_le_bytes());
                memory.write(stub, &bytes);
            }
        }
    }

    fn write_own_tables(&self) {
        let memory = self.memory();
        let upper = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
        memory.write_u64(layout::LEVEL_4, layout::LEVEL_3 as u64 | upper);
        memory.write_u64(layout::LEVEL_3, layout::LEVEL_2 as u64 | upper);
        memory.write_u64(layout::LEVEL_2, layout::LEVEL_1 as u64 | upper);
        for page in 0..512 {
            let address = page << 12;
            let user = if address == layout::USER { USER } else { 0 };
            let entry = address as u64 | upper & !USER | user;
            memory.write_u64(layout::LEVEL_1 + 8 * page, entry);
            memory.write(layout::LEVEL_1_OF_32 + 4 * page, &(entry as u32).to_le_bytes());
        }
    }

    fn write_descriptors(&self) {
        let memory = self.memory();
        let gdt: [u64; 9] = [
            0,
            0x00AF_9B00_0000_FFFF,
            0x00CF_9300_0000_FFFF,
            0x00CF_9B00_0000_FFFF,
            0,
            0,
            0x00CF_F300_0000_FFFF,
            0x00AF_FB00_0000_FFFF,
            0x00CF_FB00_0000_FFFF,
        ];
        for (index, descriptor) in gdt.into_iter().enumerate() {
            memory.write_u64(layout::GDT + 8 * index, descriptor);
        }
        let stack = layout::STACK as u32;
        memory.write(layout::TSS_64 + 4, &u64::from(stack).to_le_bytes());
        memory.write(layout::TSS_32 + 4, &stack.to_le_bytes());
        memory.write(layout::TSS_32 + 8, &u32::from(selector::STACK).to_le_bytes());
        for vector in 0..VECTOR_COUNT {
            let gate = |stubs: usize, code: u16| {
                let handler = (stubs + 16 * vector) as u64;
                let kind = if vector == DONE as usize { 0xEE } else { 0x8E };
                handler & 0xFFFF | u64::from(code) << 16 | kind << 40 | (handler >> 16) << 48
            };
            memory.write_u64(layout::IDT_64 + 16 * vector, gate(layout::VECTORS_64, selector::CODE_64));
            memory.write_u64(layout::IDT_32 + 8 * vector, gate(layout::VECTORS_32, selector::CODE_32));
        }
    }

    /// Where the case's first table begins, and the entry there that the guest's own part needs.
    pub fn own_entry(mode: Mode, case: &Case) -> (u64, u64) {
        let upper = PRESENT | WRITABLE | USER | ACCESSED;
        match mode {
            Mode::Pae => (case.cr3 & !0x1F, layout::LEVEL_2 as u64 | PRESENT),
            Mode::Bits32 => (case.cr3 & !0xFFF, layout::LEVEL_1_OF_32 as u64 | upper),
            Mode::FiveLevel => (case.cr3 & !0xFFF, layout::LEVEL_4 as u64 | upper),
            _ => (case.cr3 & !0xFFF, layout::LEVEL_3 as u64 | upper),
        }
    }

    /// Makes all accesses of a batch, whose tables are in memory already.
    pub fn run(&self, batch: &Batch) -> Result<Vec<Record>, Failure> {
        let setting = &batch.setting;
        let long = matches!(setting.mode, Mode::FourLevel | Mode::FiveLevel);
        for (index, case) in batch.cases.iter().enumerate() {
            self.write_case(long, index, case);
        }
        self.enter(setting, Self::own_entry(setting.mode, &batch.cases[0]).0)?;
        let end = (layout::LIST + batch.cases.len() * field::SIZE) as u64;
        self.machine.change_regs(|regs| regs.rdi = end)?;
        match self.machine.run()? {
            Exit::Hlt => {}
            other => {
                fail!("the guest ended with {other:x?} at {:x?}, {setting:x?}", self.machine.vcpu.regs()?)
            }
        }
        let at = self.machine.vcpu.regs()?.rsi;
        if at != end {
            fail!("the guest stopped at case {:#x} of the list, not at {end:#x}", at);
        }
        Ok((0..batch.cases.len()).map(|index| self.record(index)).collect())
    }

    fn write_case(&self, long: bool, index: usize, case: &Case) {
        let user = case.is_user();
        let code = match (user, long) {
            (false, true) => selector::CODE_64,
            (false, false) => selector::CODE_32,
            (true, true) => selector::USER_CODE_64,
            (true, false) => selector::USER_CODE_32,
        };
        let stack = if user { selector::USER_DATA } else { selector::STACK };
        let page = if user { layout::USER } else { layout::SUPERVISOR };
        // IF does not matter to the guest; see `machine::START_FLAGS`.
        let flags = 1 << 9 | 1 << 1 | u64::from(case.ac) << 18;
        let fields = [
            (field::CR3, case.cr3),
            (field::ADDRESS, case.address),
            (field::VALUE, u64::from(written(index))),
            (field::RIP, (page + access_offset(case.access.kind)) as u64),
            (field::CS, u64::from(code)),
            (field::FLAGS, flags),
            (field::SS, u64::from(stack)),
            (field::VECTOR, u64::MAX),
            (field::FAULTING, 0),
            (field::CR2, 0),
            (field::READ, 0),
        ];
        for (field, value) in fields {
            self.memory().write_u64(layout::LIST + index * field::SIZE + field, value);
        }
    }

    fn record(&self, index: usize) -> Record {
        let at = layout::LIST + index * field::SIZE;
        let memory = self.memory();
        Record {
            vector: memory.read_u32(at + field::VECTOR),
            error: memory.read_u32(at + field::ERROR),
            rip: memory.read_u64(at + field::FAULTING),
            cr2: memory.read_u64(at + field::CR2),
            read: memory.read_u32(at + field::READ),
        }
    }

    /// Puts the vCPU where the case's access would be made by the supervisor.
    pub fn enter_case(&self, setting: &Setting, case: &Case) -> Outcome {
        self.enter(setting, case.cr3)?;
        self.machine.change_regs(|regs| regs.rflags |= u64::from(case.ac) << 18)?;
        Ok(())
    }

    fn enter(&self, setting: &Setting, cr3: u64) -> Outcome {
        let registers = &setting.registers;
        let long = levels(setting.mode) > 3;
        let code = if long { selector::CODE_64 } else { selector::CODE_32 };
        let mut sregs = self.reset;
        sregs.cs = flat_segment(code, true, long);
        sregs.ss = flat_segment(selector::STACK, false, false);
        let mut data = flat_segment(selector::USER_DATA, false, false);
        data.dpl = 3;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
        sregs.tr = kvm_segment {
            base: if long { layout::TSS_64 } else { layout::TSS_32 } as u64,
            limit: 0x67,
            selector: selector::TASK,
            type_: emulator::task_type(),
            present: 1,
            ..Default::default()
        };
        (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT as u64, 9 * 8 - 1);
        let (idt, gate) = if long { (layout::IDT_64, 16) } else { (layout::IDT_32, 8) };
        (sregs.idt.base, sregs.idt.limit) = (idt as u64, (VECTOR_COUNT * gate - 1) as u16);
        sregs.cr0 = registers.cr0.raw();
        sregs.cr4 = registers.cr4.raw();
        sregs.efer = registers.efer.raw();
        sregs.cr3 = cr3;
        self.machine.vcpu.set_sregs(&sregs)?;
        self.machine.vcpu.set_regs(&kvm_regs {
            rip: (START + if long { layout::CODE_64 } else { layout::CODE_32 }) as u64,
            rsp: layout::STACK as u64,
            rsi: layout::LIST as u64,
            rbp: u64::from(setting.has(Cr4::PKE)),
            rax: u64::from(registers.pkru),
            rflags: 1 << 9 | 1 << 1,
            ..Default::default()
        })?;
        Ok(())
    }
}

/// True in the tables of the cases.
pub fn is_table(gpa: u64) -> bool {
    (layout::TABLES..TABLES_END).contains(&gpa)
}

/// What a case writes.
pub fn written(index: usize) -> u32 {
    0x5700_0000 | index as u32
}

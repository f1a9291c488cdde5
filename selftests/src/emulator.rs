// SPDX-License-Identifier: GPL-2.0

//! What the emulator of the test machine cannot do. Tests and generators leave that out there, as
//! narrowly as it is known, and nowhere else.

use crate::device::{Device, PAGING};
use crate::errno::Errno;
use crate::guest;
use crate::machine::{Machine, CR0_PG, CR4_PAE, EFER_LME};
use crate::rusthv::PAGING_NESTED;
use kvm_bindings::kvm_sregs;
use std::arch::x86_64::{__cpuid, CpuidResult};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::LazyLock;

/// CPUID leaf where a hypervisor or an emulator says its name.
const NAME: u32 = 0x4000_0000;

static TCG: LazyLock<bool> = LazyLock::new(|| {
    let found = cpuid(NAME);
    is_name_of_tcg([found.ebx, found.ecx, found.edx])
});

/// True where the CPU itself walks the guests' tables.
pub fn is_nested() -> bool {
    PAGING.load(Relaxed) == PAGING_NESTED
}

/// What the processor says of itself.
fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: Every processor with 64 bits has it. Later compilers know, and need no block.
    #[allow(unused_unsafe)]
    unsafe {
        __cpuid(leaf)
    }
}

/// True where QEMU's TCG emulates the processor.
pub fn is_tcg() -> bool {
    *TCG
}

fn is_name_of_tcg(name: [u32; 3]) -> bool {
    name == [b"TCGT", b"CGTC", b"GTCG"].map(|part| u32::from_le_bytes(*part))
}

/// Keeps `sregs` from a state that takes the emulated host down.
///
/// QEMU's TCG, at an exit from a guest that has EFER.LME without CR0.PG and CR4.PAE, writes the
/// host's CR0 while CR4 is still the guest's, takes that for an attempt to enter long mode without
/// PAE, and leaves CR0 as the guest had it (target/i386: `cpu_x86_update_cr0`). The host goes on
/// without paging. Guests of KVM do it as well.
pub fn spare(sregs: &mut kvm_sregs) {
    if is_tcg() {
        keep_host_paged(sregs);
    }
}

fn keep_host_paged(sregs: &mut kvm_sregs) {
    if sregs.efer & EFER_LME != 0 && sregs.cr0 & CR0_PG == 0 {
        sregs.cr4 |= CR4_PAE;
    }
}

/// An instruction, or another in its place when that could end the emulated host.
///
/// QEMU 10's TCG ends itself when the delivery of an event touches what a data breakpoint is for: it
/// takes a lock that it has (`cpu_check_watchpoint` below `cpu_handle_exception`). Guests of KVM
/// can do it as well. So no breakpoints: DR7 is not written.
pub fn bearable(instruction: &'static [u8]) -> &'static [u8] {
    if is_tcg() && writes_dr7(instruction) {
        NOP
    } else {
        instruction
    }
}

const NOP: &[u8] = &[0x90];

fn writes_dr7(instruction: &[u8]) -> bool {
    matches!(instruction, [0x0F, 0x23, modrm] if modrm >> 3 & 7 == 7)
}

/// The type of a TSS in TR from which an exception at CPL 3 in 32-bit code can take its stack.
///
/// That of a busy one, which a processor demands at VM entry. QEMU's TCG keeps the type that LTR
/// found, that of an available one, and ends itself over any other (`get_ss_esp_from_tss`).
pub fn task_type() -> u8 {
    if is_tcg() {
        9
    } else {
        11
    }
}

/// Whether a walk that the CPU makes sets an accessed flag that the walk of the model leaves alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultMarks {
    None,
    Always,
    Maybe,
}

/// How the CPU's walk of page tables differs from that of the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkQuirks {
    /// In the entries that refer to the next table, when the walk ends in a page fault below them.
    pub faulting: FaultMarks,
    /// In the entry of a 1 GiB page, when the access to the page faults.
    pub faulting_1g: FaultMarks,
    /// In a page-directory pointer of PAE, which has no such flag.
    pub pointer: FaultMarks,
    /// Reserved bits of a page-directory pointer that may be set all the same.
    pub unchecked_pdpte_bits: u64,
    /// A reserved bit makes a fault whose error code does not say that the entry is present.
    pub reserved_without_present: bool,
}

const NO_QUIRKS: WalkQuirks = WalkQuirks {
    faulting: FaultMarks::None,
    faulting_1g: FaultMarks::None,
    pointer: FaultMarks::None,
    unchecked_pdpte_bits: 0,
    reserved_without_present: false,
};

/// Those of this machine's CPU.
///
/// The SDM leaves open which flags a walk sets that ends in a page fault. Bochs sets them after all
/// checks: none. QEMU's TCG sets each before it goes on to the next table, page-directory pointers
/// included, of whose low reserved bits it checks none; that of a 1 GiB page before it looks whether
/// there is a next table; and the error code that it has for a reserved bit lacks the present bit
/// (target/i386: `mmu_translate`). Other CPUs may set flags as they like.
pub fn walk_quirks() -> WalkQuirks {
    if !is_nested() {
        // It is the module that walks.
        NO_QUIRKS
    } else if is_tcg() {
        WalkQuirks {
            faulting: FaultMarks::Always,
            faulting_1g: FaultMarks::Maybe,
            pointer: FaultMarks::Always,
            unchecked_pdpte_bits: 0x1E6,
            reserved_without_present: true,
        }
    } else if is_bochs() {
        NO_QUIRKS
    } else {
        WalkQuirks { faulting: FaultMarks::Maybe, ..NO_QUIRKS }
    }
}

/// True where a guest without nested tables reads the hypervisor's CR3 in place of its own: QEMU's TCG
/// from some version behind 7.2 on (seen in 10.0) does not look at the intercept of that read. Asked of the
/// emulator itself, and of no other one.
pub fn reads_cr3_unseen(device: &Device) -> Result<bool, Errno> {
    if is_nested() || !is_tcg() {
        return Ok(false);
    }
    let machine = Machine::long(device, reads_cr3())?;
    machine.run()?;
    Ok(machine.vcpu.regs()?.rcx != machine.vcpu.sregs()?.cr3)
}

guest!(reads_cr3, code64, "mov rcx, cr3", "hlt");

/// True where Bochs emulates the processor: its firmware says so as QEMU's does, but its CPUID does
/// not say that there is a hypervisor.
pub fn is_bochs() -> bool {
    let table = std::fs::read("/sys/firmware/acpi/tables/FACP").unwrap_or_default();
    let hypervisor = cpuid(1).ecx >> 31 & 1 != 0;
    is_firmware_of_bochs(&table) && !hypervisor
}

/// Whose firmware it is stands in the header of its tables.
fn is_firmware_of_bochs(table: &[u8]) -> bool {
    table.get(10..16) == Some(b"BOCHS ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_name_of_tcg([0x5447_4354, 0x4354_4743, 0x4743_5447]));
        assert!(!is_name_of_tcg([0, 0, 0]));
    }

    #[test]
    fn firmware() {
        assert!(is_firmware_of_bochs(b"FACP\x74\0\0\0\x01\x63BOCHS BXPCFACP"));
        assert!(!is_firmware_of_bochs(b"FACP\x74\0\0\0\x01\x63VENDORBXPCFACP"));
        assert!(!is_firmware_of_bochs(b""));
    }

    #[test]
    fn only_mov_to_dr7_writes_it() {
        // mov dr7, eax; mov dr6, eax; mov eax, dr7; mov cr0, eax.
        let wanted = [true, false, false, false];
        let found = [[0x0F, 0x23, 0xF8], [0x0F, 0x23, 0xF0], [0x0F, 0x21, 0xF8], [0x0F, 0x22, 0xC0]];
        assert_eq!(found.map(|instruction| writes_dr7(&instruction)), wanted);
    }

    #[test]
    fn only_the_deadly_state_changes() {
        for (efer, cr0, cr4, wanted) in
            [(EFER_LME, 0, 0, CR4_PAE), (EFER_LME, CR0_PG, 0, 0), (0, 0, 0, 0), (EFER_LME, 0, 1, CR4_PAE | 1)]
        {
            let mut sregs = kvm_sregs { efer, cr0, cr4, ..Default::default() };
            keep_host_paged(&mut sregs);
            assert_eq!((sregs.efer, sregs.cr0, sregs.cr4), (efer, cr0, wanted));
        }
    }
}

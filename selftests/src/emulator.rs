// SPDX-License-Identifier: GPL-2.0

//! What the emulator of the test machine cannot do. Tests and generators leave that out there, as
//! narrowly as it is known, and nowhere else.

use crate::machine::{CR0_PG, CR4_PAE, EFER_LME};
use kvm_bindings::kvm_sregs;
use std::arch::x86_64::__cpuid;
use std::sync::LazyLock;

/// CPUID leaf where a hypervisor or an emulator says its name.
const NAME: u32 = 0x4000_0000;

static TCG: LazyLock<bool> = LazyLock::new(|| {
    let found = __cpuid(NAME);
    is_name_of_tcg([found.ebx, found.ecx, found.edx])
});

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_name_of_tcg([0x5447_4354, 0x4354_4743, 0x4743_5447]));
        assert!(!is_name_of_tcg([0, 0, 0]));
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

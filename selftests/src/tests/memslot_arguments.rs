// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_USER_MEMORY_REGION refuses each malformed argument with EINVAL, and changes nothing.

use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let memory = Memory::new(16 * PAGE)?;
    let hva = memory.address();
    let page = PAGE as u64;
    let slots = device.check_extension(KVM_CAP_NR_MEMSLOTS)? as u32;
    for (what, slot, flags, gpa, size, address) in [
        ("size not of pages", 0, 0, 0, page + 1, hva),
        ("size below a page", 0, 0, 0, 1, hva),
        ("guest address inside a page", 0, 0, 0x800, page, hva),
        ("host address inside a page", 0, 0, 0, page, hva + 0x10),
        ("guest range wraps around", 0, 0, u64::MAX - page + 1, 2 * page, hva),
        ("guest range past the address width", 0, 0, 1 << 60, page, hva),
        ("host range wraps around", 0, 0, 0, 2 * page, u64::MAX - page + 1),
        ("host range in the kernel's half", 0, 0, 0, page, 0xFFFF_8000_0000_0000),
        ("host range across the end of user space", 0, 0, 0, 2 * page, host::end_of_user_space()),
        ("unknown flag", 0, 1 << 31, 0, page, hva),
        ("unknown flag", 0, 1 << 7, 0, page, hva),
        ("slot number past the last", slots, 0, 0, page, hva),
        ("slot number far past the last", 0xFFFF, 0, 0, page, hva),
        ("address space that is not there", 2 << 16, 0, 0, page, hva),
        ("delete of a slot that is not there", 5, 0, 0, 0, hva),
        ("more pages than fit", 0, 0, 0, 1 << 43, 0),
    ] {
        check_err!(vm.set_slot(slot, flags, gpa, size, address), EINVAL, "{what}");
    }
    // All of that left the VM empty: the whole range is free.
    check_eq!(vm.set_slot(slots - 1, 0, 0, 16 * page, hva), Ok(0));
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! KVM_GET_SUPPORTED_CPUID: E2BIG when the list has too little room, its true length otherwise.

use crate::device::CpuidList;
use crate::ioctl::KVM_GET_SUPPORTED_CPUID;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let full = device.supported_cpuid(256)?;
    check!(full.len() > 5, "only {} entries", full.len());
    let leaf = |function: u32| full.iter().find(|entry| entry.function == function && entry.index == 0);
    for function in [0, 1, 0x8000_0000, 0x8000_0001, 0x8000_0008] {
        check!(leaf(function).is_some(), "no leaf {function:#x}");
    }
    let highest = leaf(0).map_or(0, |entry| entry.eax);
    check!(highest >= 1, "the highest basic leaf is {highest}");
    // No leaf twice, and an index only where it means something.
    for (number, entry) in full.iter().enumerate() {
        let same = |other: &&kvm_cpuid_entry2| (other.function, other.index) == (entry.function, entry.index);
        check_eq!(full.iter().filter(same).count(), 1, "leaf {:#x}.{:x}", entry.function, entry.index);
        check!(
            entry.index == 0 || entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
            "entry {number} has an index that its flags deny"
        );
    }
    let exact = device.supported_cpuid(full.len())?;
    check_eq!(exact.len(), full.len(), "with exactly the room that it needs");
    for room in [0, 1, full.len() - 1] {
        let mut list = CpuidList::with_room(full.len());
        list.set_count(room as u32);
        check_err!(device.ioctl(KVM_GET_SUPPORTED_CPUID, list.address()), E2BIG, "room for {room}");
    }
    // More room than any list needs is no error: it is cut, as KVM does.
    let mut list = CpuidList::with_room(full.len());
    list.set_count(u32::MAX);
    check_eq!(device.ioctl(KVM_GET_SUPPORTED_CPUID, list.address()), Ok(0));
    check_eq!(list.count() as usize, full.len());
    check_err!(device.ioctl(KVM_GET_SUPPORTED_CPUID, 0), EFAULT);
    Ok(())
}

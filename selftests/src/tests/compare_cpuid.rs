// SPDX-License-Identifier: GPL-2.0

//! No feature is offered to guests that KVM on the same processor would not offer.

use crate::compare::{compare, Log};
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

/// Leaf, index, and which of EAX, EBX, ECX, EDX are feature bits.
const FEATURES: &[(u32, u32, [bool; 4])] = &[
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, true, true, true]),
    (0xD, 0, [true, false, false, true]),
    (0xD, 1, [true, false, true, true]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
];

fn run(t: &Context) -> Outcome {
    let theirs = t.reference()?.supported_cpuid(256)?;
    let ours = t.device()?.supported_cpuid(256)?;
    let registers = |list: &[kvm_cpuid_entry2], function: u32, index: u32| {
        list.iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    for &(function, index, features) in FEATURES {
        let (ours, theirs) = (registers(&ours, function, index), registers(&theirs, function, index));
        for (register, name) in ["EAX", "EBX", "ECX", "EDX"].into_iter().enumerate() {
            let more = ours[register] & !theirs[register];
            check!(
                !features[register] || more == 0,
                "leaf {function:#x}.{index} {name}: KVM lacks {more:#x}"
            );
        }
    }
    // Who the processor is, and how wide its addresses are, is the same.
    let same = |log_of: &[kvm_cpuid_entry2]| {
        let [eax, ..] = registers(log_of, 1, 0);
        let [_, ebx, ecx, edx] = registers(log_of, 0, 0);
        let [widths, ..] = registers(log_of, 0x8000_0008, 0);
        (eax, ebx, ecx, edx, widths & 0xFFFF)
    };
    check_eq!(same(&ours), same(&theirs), "family, vendor, address widths");
    compare(t, limits)
}

/// The limits of the calls themselves.
fn limits(device: &Device, log: &mut Log) -> Outcome {
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    for count in [0, 1, 255, 256, 257, 1000] {
        note!(log, "{count} entries: {:?}", vcpu.set_cpuid(&vec![kvm_cpuid_entry2::default(); count]));
    }
    for room in [0, 1, 2] {
        note!(log, "room for {room}: {:?}", device.supported_cpuid(room).map(|list| list.len()));
    }
    Ok(())
}

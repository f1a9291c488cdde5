// SPDX-License-Identifier: GPL-2.0

//! KVM_TRANSLATE finds what the supervisor would read, in all paging modes, as KVM does, and leaves no trace.

use crate::prelude::*;
use crate::walk::corpus::Pair;

pub const TEST: Test = Test::new(60, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    unpaged(&device)?;
    no_table(&device)?;
    corpus(t, &device)?;
    // What the model is held to here, KVM is held to as well: where it is.
    if let Ok(reference) = t.reference() {
        unpaged(&reference)?;
        no_table(&reference)?;
        corpus(t, &reference)?;
    }
    Ok(())
}

/// Padding and the fields that only come back.
fn asked(linear_address: u64) -> kvm_translation {
    kvm_translation {
        linear_address,
        physical_address: 0x1234,
        valid: 9,
        writeable: 9,
        usermode: 9,
        pad: [0xA5; 5],
    }
}

/// Without paging, addresses are what they are, with memory behind them or not.
fn unpaged(device: &Device) -> Outcome {
    let machine = Machine::new(device)?;
    for address in [0, 0xFFF0, layout::MMIO, 0xFFFF_FFFF] {
        let wanted = kvm_translation {
            physical_address: address,
            valid: 1,
            writeable: 1,
            usermode: 0,
            ..asked(address)
        };
        check_eq!(machine.vcpu.translate(asked(address))?, wanted);
    }
    Ok(())
}

/// Tables where no memory is lead nowhere, and that is no error; a page may be anywhere.
fn no_table(device: &Device) -> Outcome {
    let machine = Machine::long(device, &[0xF4])?;
    let directory = layout::DIRECTORIES;
    let present = crate::machine::PTE_ALL;
    machine.memory.write_u64(directory, layout::MMIO | present);
    let lost = machine.vcpu.translate(asked(0x1000))?;
    check_eq!((lost.valid, lost.physical_address), (0, u64::MAX));
    let found = machine.vcpu.translate(asked(layout::MMIO + 0x123))?;
    check_eq!((found.valid, found.physical_address), (1, layout::MMIO + 0x123));
    Ok(())
}

fn corpus(t: &Context, device: &Device) -> Outcome {
    let mut pair = Pair::new(device)?;
    let mut generator = pair.generator(6);
    let mut counts = [0; 2];
    let modes = pair.features().modes();
    for _ in 0..t.repetitions(10) {
        for mode in &modes {
            let batch = generator.batch(*mode);
            pair.translate(device, &batch, &mut counts)?;
        }
    }
    println!("# {}: {} addresses found, {} not", device.path(), counts[1], counts[0]);
    check!(counts.iter().all(|count| *count > 0), "{counts:?}");
    Ok(())
}

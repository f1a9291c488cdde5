// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_MEASURE gives the SHA-256 of guest memory, whatever its slots and pages.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;
use crate::rusthv::*;
use sha2::{Digest, Sha256};

pub const TEST: Test = Test::new(20, run);

/// Three slots in a row, and a hole behind them.
const BASE: u64 = 0x4000_0000;
const SLOT: usize = 16 * PAGE;
const ALL: u64 = 3 * SLOT as u64;

guest!(measure, code64, "mov byte ptr [rbx], 0x5a", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let machine = Machine::long(&device, measure())?;
    let mut random = Random::new(0x6D65_6173);
    let mut whole = Vec::new();
    let mut memories = Vec::new();
    for slot in 0..3u64 {
        let memory = Memory::new(SLOT)?;
        // The second slot stays as it came: pages that the host has not even allocated.
        if slot != 1 {
            let bytes: Vec<u8> = (0..SLOT).map(|_| random.below(256) as u8).collect();
            memory.write(0, &bytes);
        }
        whole.extend(memory.read(0, SLOT));
        let flags = if slot == 2 { kvm_bindings::KVM_MEM_READONLY } else { 0 };
        let gpa = BASE + slot * SLOT as u64;
        machine.vm.set_slot(slot as u32 + 1, flags, gpa, SLOT as u64, memory.address())?;
        memories.push(memory);
    }
    let wanted = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
    let page = PAGE as u64;
    for (start, size) in [
        (0, ALL),
        (0, 1),
        (ALL - 1, 1),
        (1, page),
        (page - 1, 2),
        (SLOT as u64 - 3, 7),
        (7, ALL - 9),
        (page, page),
    ] {
        let part = &whole[start as usize..][..size as usize];
        check_eq!(machine.vm.measure(BASE + start, size)?, wanted(part), "{size} bytes at {start:#x}");
    }
    // What the guest writes counts at once.
    machine.change_regs(|regs| regs.rbx = BASE + 0x1234)?;
    check_eq!(machine.run()?, Exit::Hlt);
    whole[0x1234] = 0x5a;
    check_eq!(machine.vm.measure(BASE, ALL)?, wanted(&whole), "after the guest's write");

    for (what, gpa, size) in [
        ("nothing", BASE, 0),
        ("around the end of all addresses", u64::MAX, 2),
        ("all but one of them, twice", 2, u64::MAX),
    ] {
        check_err!(machine.vm.measure(gpa, size), EINVAL, "{what}");
    }
    for (what, gpa, size) in [
        ("the hole behind", BASE + ALL, 1),
        ("one byte too many", BASE, ALL + 1),
        ("one byte too early", BASE - 1, 2),
        ("the last address", u64::MAX, 1),
    ] {
        check_err!(machine.vm.measure(gpa, size), ENXIO, "{what}");
    }
    let mut odd = Measurement { gpa: BASE, size: 1, ..Default::default() };
    for reserved in [[1, 0], [0, 1 << 63]] {
        odd.reserved = reserved;
        let address = std::ptr::from_mut(&mut odd) as u64;
        check_err!(machine.vm.ioctl(RUSTHV_MEASURE, address), EINVAL, "{reserved:x?}");
    }
    check_eq!(odd.sha256, [0; 32], "an error leaves the structure alone");
    check_err!(device.ioctl(RUSTHV_MEASURE, 0), ENOTTY, "on the device");
    check_err!(machine.vcpu.ioctl(RUSTHV_MEASURE, 0), ENOTTY, "on a vCPU");
    // A slot whose memory is gone.
    drop(memories.pop());
    check_err!(machine.vm.measure(BASE, ALL), EFAULT, "memory that the VMM has unmapped");
    check_eq!(machine.vm.measure(BASE, page)?, wanted(&whole[..PAGE]), "and the rest goes on");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Segment state that VM entry cannot take is EINVAL or KVM_EXIT_FAIL_ENTRY, and a good state runs afterwards.

use crate::machine::enter_long;
use crate::prelude::*;
use crate::vendor::{vendor, Vendor};

pub const TEST: Test = Test::new(20, run);

guest!(bad_guest_state, code64, "2: out 0x10, al", "jmp 2b");

type Change = fn(&mut kvm_sregs);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, bad_guest_state())?;
    let good = (machine.vcpu.sregs()?, machine.vcpu.regs()?);
    // AMD-V looks at the code segment's kind only, and takes the rest as it is.
    let both: &[(&str, Change)] = &[("CS with L and D", |s| (s.cs.l, s.cs.db) = (1, 1))];
    let intel: &[(&str, Change)] = &[
        ("TR of a data type", |s| s.tr.type_ = 3),
        ("TR not present", |s| s.tr.present = 0),
        ("TR not canonical", |s| s.tr.base = 1 << 63),
        ("CS not present", |s| s.cs.present = 0),
        ("GDT base not canonical", |s| s.gdt.base = 1 << 63),
        ("FS base not canonical", |s| s.fs.base = 1 << 62),
    ];
    // The hardware's reason: on Intel 33 with the top bit is invalid guest state, on AMD all ones.
    let (changes, refused) = match vendor() {
        Vendor::Intel => ([both, intel].concat(), 0x8000_0021),
        Vendor::Amd => (both.to_vec(), u64::from(u32::MAX)),
    };
    for (what, change) in changes {
        let mut sregs = good.0;
        change(&mut sregs);
        match machine.vcpu.set_sregs(&sregs) {
            Err(errno) => check_eq!(errno, Errno::EINVAL, "{what}"),
            Ok(_) => {
                let exit = machine.run()?;
                let Exit::FailEntry { reason } = exit else { fail!("{what}: {exit:x?}") };
                check_eq!(reason & 0xFFFF_FFFF, refused, "{what}");
                check_eq!(machine.run()?, exit, "{what}, again");
            }
        }
        machine.vcpu.set_sregs(&good.0)?;
        machine.vcpu.set_regs(&good.1)?;
        check!(
            matches!(machine.run()?, Exit::Io { port: 0x10, .. }),
            "after {what}: {:x?}",
            machine.vcpu.exit()
        );
        machine.vcpu.set_immediate_exit(1);
        check_err!(machine.run(), EINTR);
        machine.vcpu.set_immediate_exit(0);
        enter_long(&machine.vcpu)?;
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Segment state that VM entry cannot take is EINVAL or KVM_EXIT_FAIL_ENTRY, and a good state runs afterwards.

use crate::machine::enter_long;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(bad_guest_state, code64, "2: out 0x10, al", "jmp 2b");

type Change = fn(&mut kvm_sregs);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, bad_guest_state())?;
    let good = (machine.vcpu.sregs()?, machine.vcpu.regs()?);
    let changes: [(&str, Change); 7] = [
        ("TR of a data type", |s| s.tr.type_ = 3),
        ("TR not present", |s| s.tr.present = 0),
        ("TR not canonical", |s| s.tr.base = 1 << 63),
        ("CS with L and D", |s| (s.cs.l, s.cs.db) = (1, 1)),
        ("CS not present", |s| s.cs.present = 0),
        ("GDT base not canonical", |s| s.gdt.base = 1 << 63),
        ("FS base not canonical", |s| s.fs.base = 1 << 62),
    ];
    for (what, change) in changes {
        let mut sregs = good.0;
        change(&mut sregs);
        match machine.vcpu.set_sregs(&sregs) {
            Err(errno) => check_eq!(errno, Errno::EINVAL, "{what}"),
            Ok(_) => {
                // The hardware's reason: 33 with the top bit is invalid guest state.
                let exit = machine.run()?;
                check_eq!(exit, Exit::FailEntry { reason: 0x8000_0021 }, "{what}");
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

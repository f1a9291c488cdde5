// SPDX-License-Identifier: GPL-2.0

//! A signal takes KVM_RUN out of a spinning guest with EINTR, KVM_EXIT_INTR says so, and the guest goes on later.

use crate::host;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

guest!(signal, code16, "2: inc dword ptr [0x2000]", "cmp byte ptr [0x2004], 0", "je 2b", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, signal())?;
    host::under_signals(|| interrupted(&machine, t.repetitions(50)))?;
    machine.memory.write(0x2004, &[1]);
    let end = loop {
        match machine.run() {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    check_eq!(end, Ok(Exit::Hlt));
    Ok(())
}

fn interrupted(machine: &Machine, rounds: u64) -> Outcome {
    let mut count = 0;
    let mut advanced = 0;
    for _ in 0..rounds {
        check_err!(machine.run(), EINTR);
        check_eq!(machine.vcpu.exit(), Exit::Intr, "the exit reason beside EINTR");
        let now = machine.memory.read_u32(0x2000);
        advanced += u64::from(now != count);
        count = now;
    }
    check!(advanced > 0, "the guest never got anywhere between the signals");
    Ok(())
}

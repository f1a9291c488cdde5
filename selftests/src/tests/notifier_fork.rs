// SPDX-License-Identifier: GPL-2.0

//! fork() of the VMM: the guest's next write copies the page (copy on write), and the child keeps the old one.

use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use std::fs::File;
use std::io::{Read, Write};

pub const TEST: Test = Test::new(20, run);

guest!(notifier_fork, code64, "2: add qword ptr [0x400000], 1", "mov rax, [0x400000]", "hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, notifier_fork())?;
    let memory = Memory::new(PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    for round in 0..5 {
        memory.write_u64(0, 1000);
        check_eq!(machine.run()?, Exit::Hlt);
        let (go_reader, go_writer) = host::pipe()?;
        let (reader, writer) = host::pipe()?;
        // SAFETY: the child reads and leaves.
        let pid = Errno::check(unsafe { libc::fork() })?;
        if pid == 0 {
            drop(go_writer);
            let mut go = [0];
            let _ = File::from(go_reader).read(&mut go);
            let _ = File::from(writer).write_all(&memory.read_u64(0).to_le_bytes());
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        drop(writer);
        check_eq!(machine.run()?, Exit::Hlt);
        let parent = (machine.vcpu.regs()?.rax, memory.read_u64(0));
        drop(go_writer);
        let mut child = [0; 8];
        File::from(reader).read_exact(&mut child)?;
        host::wait(pid)?;
        check_eq!(parent, (1002, 1002), "round {round}, the guest and the VMM");
        check_eq!(u64::from_le_bytes(child), 1001, "round {round}, the child");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! munmap() under a guest takes the memory away at once: KVM_RUN answers EFAULT; new memory there is seen.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(notifier_unmap, code64, "2: mov rax, [0x400000]", "hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, notifier_unmap())?;
    let memory = Memory::new(PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    for round in 1..=5u64 {
        memory.write_u64(0, round);
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, round);
        // SAFETY: our mapping; it is put back below, at the same address.
        unsafe { libc::munmap(memory.at(0, PAGE).cast(), PAGE) };
        // Entries of the old frame must be gone, whatever it is used for now.
        check_err!(machine.run(), EFAULT, "round {round}");
        check_err!(machine.run(), EFAULT, "round {round}, again");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: the place that was just freed.
        let again = unsafe {
            libc::mmap(memory.at(0, PAGE).cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        check_eq!(again as u64, memory.address());
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, 0, "fresh memory is zero");
    }
    Ok(())
}

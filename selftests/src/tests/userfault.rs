// SPDX-License-Identifier: GPL-2.0

//! A guest's access to memory that userfaultfd holds back waits for it; a signal takes KVM_RUN out meanwhile.

use crate::host::{self, Thread};
use crate::memory::PAGE;
use crate::prelude::*;
use crate::userfault::{Faults, MISSING};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(60, run);

guest!(userfault, code64, "2: mov rax, [rbx]", "mov [rbx + 8], rax", "hlt", "add rbx, 0x1000", "jmp 2b");

const PAGES: usize = 8;

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, userfault())?;
    let memory = Memory::new(PAGES * PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    machine.change_regs(|regs| regs.rbx = 0x40_0000)?;
    let faults = match Faults::of(&memory, MISSING) {
        Ok(faults) => faults,
        Err(errno) => skip!("userfaultfd: {errno}"),
    };
    host::interruptible_by_sigusr1();
    for page in 0..PAGES {
        let word = 0x7000 + page as u64;
        if page % 2 == 1 {
            // Nobody answers: only the signal can end this.
            let (result, fault, in_time) = with_signal(&machine, &faults)?;
            check!(in_time, "page {page}: the signal does not take KVM_RUN out: {result:?}");
            check_err!(result, EINTR, "page {page}");
            check_eq!(machine.vcpu.exit(), Exit::Intr, "the exit reason beside EINTR");
            check_eq!(fault & !0xFFF, memory.address() + (page * PAGE) as u64);
        }
        let result = thread::scope(|scope| {
            let faults = &faults;
            let other = scope.spawn(move || {
                let address = faults.next().unwrap_or_default();
                // The guest is not to be seen going on before this.
                thread::sleep(Duration::from_millis(5));
                faults.fill(faults.page_of(address), &[word])
            });
            let result = machine.run();
            (result, other.join())
        });
        check_eq!(result.0?, Exit::Hlt, "page {page}");
        check!(matches!(result.1, Ok(Ok(true))), "page {page}: answering: {:?}", result.1);
        check_eq!(machine.vcpu.regs()?.rax, word, "page {page}");
        check_eq!(memory.read_u64(page * PAGE + 8), word, "page {page}: what the guest wrote");
    }
    Ok(())
}

/// Runs into a fault, and sends signals: the result, where the fault was, and whether they worked.
fn with_signal(machine: &Machine, faults: &Faults<'_>) -> Result<(Result<Exit, Errno>, u64, bool), Failure> {
    let me = Thread::current();
    let left = AtomicBool::new(false);
    thread::scope(|scope| {
        let left = &left;
        let other = scope.spawn(move || {
            let address = faults.next().unwrap_or_default();
            let deadline = Instant::now() + Duration::from_secs(2);
            while !left.load(Ordering::Acquire) && Instant::now() < deadline {
                me.interrupt();
                thread::sleep(Duration::from_millis(1));
            }
            let in_time = left.load(Ordering::Acquire);
            if !in_time {
                // Out of the way, so that the test can say what was wrong.
                let _ = faults.fill(faults.page_of(address), &[]);
            }
            (address, in_time)
        });
        let result = machine.run();
        left.store(true, Ordering::Release);
        let (address, in_time) = other.join().map_err(|_| Failure::failed("the thread panicked"))?;
        Ok((result, address, in_time))
    })
}

// SPDX-License-Identifier: GPL-2.0

//! Every allocation of a dirty log fails once, when it begins, is read and is cleared: ENOMEM, and no dirty page is lost.

use crate::faults::{self, Injector, MANY};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(120, run);

guest!(dirty_log_allocations, code64, "mov [0x403000], al", "hlt");

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
const GPA: u64 = 0x40_0000;
/// One word of the log.
const PAGES: usize = 64;
/// What the guest writes.
const WRITTEN: usize = 3;

struct Logged {
    machine: Machine,
    memory: Memory,
    injector: Injector,
}

fn run(t: &Context) -> Outcome {
    if let Err(reason) = faults::enable() {
        skip!("{reason}");
    }
    let device = t.device()?;
    let before = if device.has_extensions() { Some(device.host_stats()?) } else { None };
    let logged = Logged {
        machine: Machine::long(&device, dirty_log_allocations())?,
        memory: Memory::new(PAGES * PAGE)?,
        injector: Injector::new()?,
    };
    logged.memory.fill(0, PAGES * PAGE, 1);
    logged.machine.vm.map(1, GPA, &logged.memory)?;
    let begun = logged.begins()?;
    let read = logged.is_read()?;
    let cleared = logged.is_cleared()?;
    check!(begun > 0 && read > 0 && cleared > 0, "allocations: {begun}, {read}, {cleared}");
    drop(logged);
    if let Some(before) = before {
        check_eq!(device.host_stats()?.frames_in_use, before.frames_in_use);
    }
    Ok(())
}

impl Logged {
    fn set(&self, flags: u32) -> Result<i32, Errno> {
        self.machine.vm.set_slot(1, flags, GPA, self.memory.size() as u64, self.memory.address())
    }

    fn write(&self) -> Outcome {
        self.machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        check_eq!(self.machine.run()?, Exit::Hlt);
        Ok(())
    }

    fn pages(&self) -> Result<Vec<usize>, Errno> {
        self.machine.vm.dirty_pages(1, PAGES)
    }

    /// Calls `attempt` with its first allocation failing, then the second, until there is none, and
    /// `check` after each; how many failed.
    fn each(
        &self,
        attempt: &dyn Fn() -> Result<i32, Errno>,
        check: &dyn Fn(Result<i32, Errno>) -> Outcome,
    ) -> Result<u64, Failure> {
        for n in 1..MANY {
            let (result, hit) = self.injector.with_failure(n, attempt)?;
            check!(matches!(result, Ok(0) | Err(Errno::ENOMEM)), "allocation {n}: {result:?}");
            check!(hit || result.is_ok(), "without a failure: {result:?}");
            check(result)?;
            if !hit {
                return Ok(n - 1);
            }
        }
        Err(Failure::failed(format!("more than {MANY} allocations")))
    }

    fn begins(&self) -> Result<u64, Failure> {
        self.each(&|| self.set(LOG), &|result| {
            if result.is_err() {
                check_err!(self.pages(), ENOENT, "as it was");
                check_eq!(self.set(LOG), Ok(0), "the next time");
            }
            self.write()?;
            check_eq!(self.pages()?, [WRITTEN]);
            // Without a log again; that may need nothing.
            check_eq!(self.set(0), Ok(0));
            Ok(())
        })
    }

    fn is_read(&self) -> Result<u64, Failure> {
        check_eq!(self.set(LOG), Ok(0));
        self.write()?;
        let mut word = [0u64];
        let address = word.as_mut_ptr() as u64;
        self.each(&|| self.machine.vm.dirty_log_to(1, address), &|result| {
            if result.is_err() {
                check_eq!(self.pages()?, [WRITTEN], "it is still in the log");
            }
            check_eq!(self.pages()?, [], "and then it is not");
            self.write()
        })
    }

    fn is_cleared(&self) -> Result<u64, Failure> {
        let vm = &self.machine.vm;
        check_eq!(vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), Ok(0));
        let clear = || vm.clear_log(1, 0, PAGES as u32, &[u64::MAX]);
        self.each(&clear, &|result| {
            if result.is_err() {
                check_eq!(self.pages()?, [WRITTEN], "nothing is cleared");
                check_eq!(clear(), Ok(0), "the next time");
            }
            check_eq!(self.pages()?, []);
            self.write()?;
            check_eq!(self.pages()?, [WRITTEN], "a new log");
            Ok(())
        })
    }
}

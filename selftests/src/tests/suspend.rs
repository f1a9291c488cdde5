// SPDX-License-Identifier: GPL-2.0

//! A suspend cycle down to the offlining of processors and the core: VMs go on afterwards, new ones start.

use crate::host;
use crate::prelude::*;
use std::fs;
use std::thread;

pub const TEST: Test = Test::new(300, run).with_several_cpus();

guest!(suspend, code64, "2: inc rbx", "mov [0x20000], rbx", "cmp byte ptr [0x20008], 0", "je 2b", "hlt");
guest!(suspend_step, code64, "2: inc rbx", "out 0x10, al", "jmp 2b");

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let levels = fs::read_to_string("/sys/power/pm_test").unwrap_or_default();
    let states = fs::read_to_string("/sys/power/state").unwrap_or_default();
    let Some(state) = states.split_whitespace().find(|state| *state == "mem") else {
        skip!("/sys/power/state offers {states:?}, no \"mem\"");
    };
    // Suspend to idle does not stop processors: the deep kind does.
    let kinds = fs::read_to_string("/sys/power/mem_sleep").unwrap_or_default();
    let deep = ["deep", "shallow"].into_iter().find(|kind| kinds.contains(kind));
    match deep {
        Some(kind) => fs::write("/sys/power/mem_sleep", kind)?,
        None => skip!("/sys/power/mem_sleep offers {kinds:?} only"),
    }
    // How long each level waits; the default is five seconds.
    let _ = fs::write("/sys/module/suspend/parameters/pm_test_delay", "1");
    let resting = Machine::long(&device, suspend_step())?;
    let running = Machine::long(&device, suspend())?;
    check!(matches!(resting.run()?, Exit::Io { .. }));
    let mut count = 1;
    let exit = thread::scope(|scope| {
        let guest = scope.spawn(|| loop {
            // The freezer takes the thread out of KVM_RUN.
            match running.run() {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        });
        let outcome =
            ["processors", "core"].into_iter().filter(|level| levels.contains(level)).try_for_each(|level| {
                fs::write("/sys/power/pm_test", level)?;
                let before = running.memory.read_u64(layout::DATA);
                let suspended = fs::write("/sys/power/state", state);
                host::restore_console();
                fs::write("/sys/power/pm_test", "none")?;
                check!(suspended.is_ok(), "level {level}: {suspended:?}");
                count += 1;
                check!(matches!(resting.run()?, Exit::Io { port: 0x10, .. }), "after level {level}");
                check_eq!(resting.vcpu.regs()?.rbx, count);
                let fresh = Machine::long(&device, suspend_step())?;
                check!(matches!(fresh.run()?, Exit::Io { port: 0x10, .. }), "a new VM after level {level}");
                for _ in 0..20_000 {
                    if running.memory.read_u64(layout::DATA) > before {
                        break;
                    }
                    thread::sleep(std::time::Duration::from_millis(1));
                }
                check!(running.memory.read_u64(layout::DATA) > before, "the running guest stands still");
                Ok(())
            });
        running.memory.write(layout::DATA + 8, &[1]);
        let exit = guest.join().unwrap_or(Err(Errno::EIO));
        outcome.map(|()| exit)
    })?;
    check_eq!(exit, Ok(Exit::Hlt));
    check!(count > 1, "/sys/power/pm_test offers {levels:?}: no level was tested");
    Ok(())
}

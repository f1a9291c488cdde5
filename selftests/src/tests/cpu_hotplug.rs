// SPDX-License-Identifier: GPL-2.0

//! Processors go offline and come back while VMs exist and run: guests go on, and start there again.

use crate::host;
use crate::prelude::*;
use std::fs;
use std::thread;

pub const TEST: Test = Test::new(240, run).with_several_cpus();

guest!(cpu_hotplug, code64, "2: inc rbx", "mov [0x20000], rbx", "cmp byte ptr [0x20008], 0", "je 2b", "hlt");
guest!(cpu_hotplug_step, code64, "2: inc rbx", "out 0x10, al", "jmp 2b");

/// Brings a processor back however the test ends.
struct Online(usize);

impl Drop for Online {
    fn drop(&mut self) {
        let _ = set(self.0, true);
    }
}

fn set(cpu: usize, online: bool) -> std::io::Result<()> {
    fs::write(format!("/sys/devices/system/cpu/cpu{cpu}/online"), if online { "1" } else { "0" })
}

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let cpus = host::online_cpus();
    let Some(&cpu) = cpus
        .iter()
        .rev()
        .find(|cpu| fs::metadata(format!("/sys/devices/system/cpu/cpu{cpu}/online")).is_ok())
    else {
        skip!("no processor that can be taken offline");
    };
    if cpus.len() < 2 {
        skip!("only one processor");
    }
    let _back = Online(cpu);
    // One vCPU that was last on that processor and rests, one that runs there all the time.
    let resting = Machine::long(&device, cpu_hotplug_step())?;
    let running = Machine::long(&device, cpu_hotplug())?;
    let rounds = t.repetitions(8);
    let exit = thread::scope(|scope| {
        let guest = scope.spawn(|| {
            host::pin(cpu)?;
            running.run()
        });
        let outcome = cycle(&device, &resting, &running, (cpu, cpus[0]), rounds);
        running.memory.write(layout::DATA + 8, &[1]);
        let exit = guest.join().unwrap_or(Err(Errno::EIO));
        outcome.map(|()| exit)
    })?;
    check_eq!(exit, Ok(Exit::Hlt), "the guest that ran through all of it");
    check_eq!(resting.vcpu.regs()?.rbx, 3 * rounds);
    Ok(())
}

/// `cpu` goes and comes, `other` stays.
fn cycle(
    device: &Device,
    resting: &Machine,
    running: &Machine,
    (cpu, other): (usize, usize),
    rounds: u64,
) -> Outcome {
    let step = |cpu: usize| -> Outcome {
        host::pin(cpu)?;
        let exit = resting.run()?;
        check!(matches!(exit, Exit::Io { port: 0x10, .. }), "on processor {cpu}: {exit:x?}");
        Ok(())
    };
    for _ in 0..rounds {
        step(cpu)?;
        host::pin(other)?;
        let before = running.memory.read_u64(layout::DATA);
        set(cpu, false)?;
        check!(!host::online_cpus().contains(&cpu));
        step(other)?;
        // A VM that is made, run and destroyed with the processor gone.
        let fresh = Machine::long(device, cpu_hotplug_step())?;
        check!(matches!(fresh.run()?, Exit::Io { .. }));
        drop(fresh);
        set(cpu, true)?;
        check!(host::online_cpus().contains(&cpu));
        step(cpu)?;
        host::pin(other)?;
        // The debug kernel in an emulator has other things to do for a second and more.
        for _ in 0..20_000 {
            if running.memory.read_u64(layout::DATA) != before {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(1));
        }
        check!(running.memory.read_u64(layout::DATA) != before, "the running guest stands still");
    }
    Ok(())
}

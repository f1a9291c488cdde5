// SPDX-License-Identifier: GPL-2.0

//! A VMM whose guest takes the host's last memory is killed by the OOM killer, and leaves nothing behind.

use crate::balance;
use crate::host;
use crate::machine::enter_long;
use crate::prelude::*;
use std::fs;
use std::thread;

pub const TEST: Test = Test::new(180, run);

guest!(
    oom_kill,
    code64,
    // Takes RCX pages from RBX on.
    "2: mov [rbx], rbx",
    "add rbx, 0x1000",
    "loop 2b",
    "hlt",
);

const BASE: u64 = 0x4000_0000;
/// More than the host has, and no more than the guest's tables map.
const SIZE: u64 = 3 << 30;
/// Large pages that the host keeps for nobody: what guests take has to be written, and these not.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
/// What is left for the guest and the rest of the host.
const LEFT_KIB: i64 = 24 << 10;
/// What the host may have less of at the end. A VMM that stayed would hold nearly all of the above.
const SLACK_KIB: i64 = 4 << 10;

/// Gives the large pages back however the test ends.
struct Kept(String);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, &self.0);
    }
}

/// Tells who reads the host's log that the OOM killer's traces are no complaint meanwhile.
struct Expected;

impl Expected {
    fn new() -> Self {
        say("the OOM killer is expected");
        Self
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        say("the OOM killer is not expected");
    }
}

fn say(what: &str) {
    // Each write is a line of its own.
    let line = format!("rusthv-selftests: {what}\n");
    let _ = fs::write("/dev/kmsg", line);
}

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let total = host::meminfo("MemTotal").unwrap_or_default();
    if total > (SIZE >> 10) as i64 {
        skip!("{} MiB are too much to fill", total >> 10);
    }
    let swap = host::meminfo("SwapTotal").unwrap_or_default();
    if swap != 0 {
        skip!("{} MiB of swap are too much to fill", swap >> 10);
    }
    let Ok(previous) = fs::read_to_string(HUGE_PAGES) else {
        skip!("no {HUGE_PAGES}");
    };
    let before = balance::now(&device)?;
    let free = free_memory()?;
    let _expected = Expected::new();
    let kept = Kept(previous);
    // The first pages of the host that nobody needs are easily found, the last ones are not.
    for _ in 0..3 {
        let more = (host::meminfo("MemAvailable").unwrap_or_default() - LEFT_KIB) / 2048;
        let pages = host::meminfo("HugePages_Total").unwrap_or_default();
        fs::write(HUGE_PAGES, (pages + more.max(0)).to_string())?;
    }
    println!("# {} MiB are left", host::meminfo("MemAvailable").unwrap_or_default() >> 10);
    for round in 0..t.repetitions(2) {
        let kills = killed_by_oom()?;
        // SAFETY: this test has one thread here; the child never comes back.
        let pid = Errno::check(unsafe { libc::fork() })?;
        if pid == 0 {
            let _ = vmm(t);
            // SAFETY: ends the child: only reached when it was not killed.
            unsafe { libc::_exit(1) };
        }
        let status = host::wait(pid)?;
        check!(libc::WIFSIGNALED(status), "round {round}: the VMM ended with status {status:#x}");
        check_eq!(libc::WTERMSIG(status), libc::SIGKILL, "round {round}");
        check_eq!(killed_by_oom()?, kills + 1, "processes that the OOM killer has ended, round {round}");
        if let Some(before) = &before {
            balance::restored(&device, before)?;
        }
        // With as little memory as there is, others go on.
        check_eq!(Machine::real(&device, &[0xF4])?.run()?, Exit::Hlt, "round {round}");
    }
    drop(kept);
    let lost = free - free_memory()?;
    check!(lost < SLACK_KIB, "{lost} KiB of {free} are no longer there");
    Ok(())
}

fn free_memory() -> Result<i64, Failure> {
    let memory = host::kernel_memory().ok_or_else(|| Failure::failed("how much memory is free?"))?;
    Ok(memory.free)
}

fn killed_by_oom() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.ok_or_else(|| Failure::failed("/proc/vmstat has no oom_kill"))
}

/// Two vCPUs that take page after page.
fn vmm(t: &Context) -> Outcome {
    // Nobody else is to be killed.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let device = t.device()?;
    let machine = Machine::long(&device, oom_kill())?;
    let memory = Memory::new(SIZE as usize)?;
    machine.vm.map(1, BASE, &memory)?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let half = SIZE / 2;
    thread::scope(|scope| {
        for (vcpu, start) in [(&machine.vcpu, BASE), (&second, BASE + half)] {
            scope.spawn(move || -> Result<Exit, Errno> {
                let mut regs = vcpu.regs()?;
                (regs.rbx, regs.rcx) = (start, half / 0x1000);
                vcpu.set_regs(&regs)?;
                let exit = vcpu.run();
                println!("# a vCPU has ended: {exit:x?}");
                exit
            });
        }
    });
    Ok(())
}

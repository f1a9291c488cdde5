// SPDX-License-Identifier: GPL-2.0

//! A VMM whose guest takes the last memory that it may have is killed by the OOM killer, and leaves nothing behind.
//!
//! It may have that of one NUMA node. With the whole host short, the killer does not wait until what
//! its first victim had is free again, and others would go, too.

use crate::balance;
use crate::host;
use crate::machine::enter_long;
use crate::memory::PAGE;
use crate::prelude::*;
use std::fs;
use std::thread;

pub const TEST: Test = Test::new(180, run);

guest!(
    oom_kill,
    code64,
    // Takes RCX pages from RBX on, and counts them at RSI.
    "2: mov [rbx], rbx",
    "lock inc qword ptr [rsi]",
    "add rbx, 0x1000",
    "loop 2b",
    "hlt",
);

const BASE: u64 = 0x4000_0000;
/// Where the guest counts.
const COUNT: u64 = 0x1000_0000;
/// More than the node has, and no more than the guest's tables map.
const SIZE: u64 = 3 << 30;
/// What is left on the node, in pages of the VMM's and what the host keeps for itself.
const LEFT_KIB: i64 = 48 << 10;
/// What the guest has to get at least, before the end.
const TAKEN_KIB: i64 = LEFT_KIB / 8;
/// What the host may have less of at the end. A VMM that stayed would hold most of the above.
const SLACK_KIB: i64 = 4 << 10;

/// A node of the host.
struct Node(u32);

impl Node {
    fn path(&self, file: &str) -> String {
        format!("/sys/devices/system/node/node{}/{file}", self.0)
    }

    /// The node's large pages that nobody may have but for hugetlbfs. Making them writes nothing, and
    /// takes no time; the guest's pages do.
    fn huge_pages(&self) -> String {
        self.path("hugepages/hugepages-2048kB/nr_hugepages")
    }

    fn free(&self) -> Result<i64, Failure> {
        let text = fs::read_to_string(self.path("meminfo"))?;
        let line = text.lines().find(|line| line.contains(" MemFree:")).unwrap_or_default();
        let kibibytes = line.split_whitespace().nth(3).and_then(|number| number.parse().ok());
        kibibytes.ok_or_else(|| Failure::failed(format!("node {}: {text:?}", self.0)))
    }

    /// Memory for this thread, and those that it starts, comes from here alone.
    fn bind(&self) -> Result<(), Errno> {
        const MPOL_BIND: libc::c_long = 2;
        let mask: u64 = 1 << self.0;
        // SAFETY: a mask of as many bits as said.
        let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_BIND, &raw const mask, 64) };
        Errno::check(result as libc::c_int)?;
        Ok(())
    }
}

/// Gives the large pages back however the test ends.
struct Kept<'a>(&'a Node, String);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.huge_pages(), &self.1);
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
    // Not the first, where other things are.
    let node = Node(1);
    let Ok(previous) = fs::read_to_string(node.huge_pages()) else {
        skip!("no NUMA node {} with large pages", node.0);
    };
    let before = balance::now(&device)?;
    let free = free_memory()?;
    let _expected = Expected::new();
    let mut pages: i64 = previous.trim().parse().unwrap_or_default();
    let kept = Kept(&node, previous);
    // What is free last is not always in one piece: try again.
    for _ in 0..3 {
        pages += (node.free()? - LEFT_KIB).max(0) / 2048;
        fs::write(node.huge_pages(), pages.to_string())?;
    }
    println!("# {} MiB are left on node {}", node.free()? >> 10, node.0);
    let count = Memory::map(PAGE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    count.write_u64(0, 0);
    let kills = killed_by_oom()?;
    // SAFETY: this test has one thread here; the child never comes back.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        let _ = vmm(t, &node, &count);
        // SAFETY: ends the child: only reached when it was not killed.
        unsafe { libc::_exit(1) };
    }
    let status = host::wait(pid)?;
    check!(libc::WIFSIGNALED(status), "the VMM ended with status {status:#x}");
    check_eq!(libc::WTERMSIG(status), libc::SIGKILL);
    check_eq!(killed_by_oom()?, kills + 1, "processes that the OOM killer has ended");
    let taken = count.read_u64(0) as i64 * (PAGE >> 10) as i64;
    check!(taken > TAKEN_KIB, "the guest got {taken} KiB only");
    if let Some(before) = &before {
        balance::restored(&device, before)?;
    }
    // Others go on.
    check_eq!(Machine::long(&device, &[0xF4])?.run()?, Exit::Hlt);
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
fn vmm(t: &Context, node: &Node, count: &Memory) -> Outcome {
    // Nobody else is to be killed.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    node.bind()?;
    let device = t.device()?;
    let machine = Machine::long(&device, oom_kill())?;
    let memory = Memory::new(SIZE as usize)?;
    machine.vm.map(1, BASE, &memory)?;
    machine.vm.map(2, COUNT, count)?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let half = SIZE / 2;
    thread::scope(|scope| {
        for (vcpu, start) in [(&machine.vcpu, BASE), (&second, BASE + half)] {
            scope.spawn(move || -> Result<Exit, Errno> {
                let mut regs = vcpu.regs()?;
                (regs.rbx, regs.rcx, regs.rsi) = (start, half / PAGE as u64, COUNT);
                vcpu.set_regs(&regs)?;
                let exit = vcpu.run();
                println!("# a vCPU has ended: {exit:x?}");
                exit
            });
        }
    });
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Pages of a guest that the host merges stay what they are, and a guest's write to one changes that one alone.

use crate::memory::PAGE;
use crate::prelude::*;
use std::fs;
use std::thread;
use std::time::Duration;

pub const TEST: Test = Test::new(120, run);

guest!(
    notifier_ksm,
    code64,
    // Sums up the first words of the pages, then writes to every second one.
    "2: xor eax, eax",
    "mov ebx, 0x400000",
    "mov ecx, 32",
    "3: add rax, [rbx]",
    "add rbx, 0x1000",
    "loop 3b",
    "hlt",
    "mov ebx, 0x400000",
    "mov ecx, 16",
    "4: add [rbx], rcx",
    "add rbx, 0x2000",
    "loop 4b",
    "hlt",
    "jmp 2b",
);

const PAGES: usize = 32;
const KSM: &str = "/sys/kernel/mm/ksm";

/// Stops merging, and takes apart what was merged, however the test ends.
struct Merging;

impl Drop for Merging {
    fn drop(&mut self) {
        let _ = fs::write(format!("{KSM}/run"), "2");
    }
}

fn set(name: &str, value: &str) -> std::io::Result<()> {
    fs::write(format!("{KSM}/{name}"), value)
}

fn count(name: &str) -> u64 {
    let text = fs::read_to_string(format!("{KSM}/{name}")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Pages that are kept in one place together with others.
fn sharing() -> u64 {
    count("pages_sharing")
}

/// Lets the host merge pages, and waits until it has merged as many as it can.
fn merge(wanted: u64) -> std::io::Result<u64> {
    // In Bochs the merging thread's timer is lost now and then: it scans no more until it is told again.
    for _ in 0..3 {
        set("run", "1")?;
        for _ in 0..1500 {
            if sharing() >= wanted {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        set("run", "0")?;
        if sharing() >= wanted / 2 {
            break;
        }
        println!("# only {} pages are merged after {} scans", sharing(), count("full_scans"));
    }
    Ok(sharing())
}

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    if fs::metadata(KSM).is_err() {
        skip!("the kernel does not merge pages");
    }
    let machine = Machine::long(&t.device()?, notifier_ksm())?;
    let memory = Memory::new(PAGES * PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    memory.advise(0, PAGES * PAGE, libc::MADV_MERGEABLE)?;
    let _merging = Merging;
    for round in 0..t.repetitions(3) {
        for page in 0..PAGES {
            memory.fill(page * PAGE, PAGE, 0);
            memory.write_u64(page * PAGE, 0x55);
            memory.write_u64(page * PAGE + PAGE - 8, round);
        }
        // Mapped for the guest, written even, before they are merged.
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, 0x55 * PAGES as u64, "round {round}, before");
        // Pages of the last round are not to be left out because they did not merge at once.
        let _ = set("smart_scan", "0");
        set("pages_to_scan", "10000")?;
        set("sleep_millisecs", "1")?;
        let merged = merge(PAGES as u64 - 1)?;
        check!(
            merged >= PAGES as u64 / 2,
            "round {round}: {merged} pages were merged, {} looked at in {} scans, {} unshared, {} volatile",
            count("pages_scanned"),
            count("full_scans"),
            count("pages_unshared"),
            count("pages_volatile")
        );
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, 0x55 * PAGES as u64, "round {round}, merged");
        check_eq!(machine.run()?, Exit::Hlt);
        for page in 0..PAGES {
            let added = if page % 2 == 0 { 16 - page as u64 / 2 } else { 0 };
            check_eq!(memory.read_u64(page * PAGE), 0x55 + added, "round {round}, page {page} after a write");
        }
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
    }
    Ok(())
}

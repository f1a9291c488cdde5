// SPDX-License-Identifier: GPL-2.0

//! A frame is taken from every guest that has it mapped, at every address, by its number alone; the
//! guests go on as if nothing had been.

use crate::memory::PAGE;
use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(90, run);

guest!(
    frame_unmap_touch,
    code64,
    // Adds one to the first word of RCX pages from RBX on.
    "2: inc qword ptr [rbx]",
    "add rbx, 0x1000",
    "dec rcx",
    "jnz 2b",
    "hlt",
);
guest!(
    frame_unmap_spin,
    code64,
    // The same words again and again: RSI is how often, and each must be that.
    "2: inc rsi",
    "mov rbx, 0x400000",
    "mov rcx, 16",
    "3: inc qword ptr [rbx]",
    "cmp [rbx], rsi",
    "jne 4f",
    "add rbx, 0x1000",
    "dec rcx",
    "jnz 3b",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "4: out 0x10, al",
);

const BASE: u64 = 0x40_0000;
/// The same memory again, in the same guest.
const AGAIN: u64 = 0x60_0000;
const PAGES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    every_mapping(&device)?;
    under_a_guest(t, &device)
}

fn at(base: u64, page: usize) -> u64 {
    base + (page * PAGE) as u64
}

fn touch(machine: &Machine, base: u64) -> Outcome {
    machine.change_regs(|regs| {
        (regs.rip, regs.rbx, regs.rcx) = (layout::CODE as u64, base, PAGES as u64);
    })?;
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

/// Two VMs that share memory; the first has it twice.
fn every_mapping(device: &Device) -> Outcome {
    let shared = Memory::map(PAGES * PAGE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    let machines = [(); 2].map(|()| Machine::long(device, frame_unmap_touch()));
    let [first, second] = machines;
    let (first, second) = (first?, second?);
    first.vm.map(1, BASE, &shared)?;
    first.vm.map(2, AGAIN, &shared)?;
    second.vm.map(1, BASE, &shared)?;
    let places = [(&first, BASE), (&first, AGAIN), (&second, BASE)];
    for turn in 1..=3u64 {
        places.iter().try_for_each(|(machine, base)| touch(machine, *base))?;
        for page in 0..PAGES {
            let word = shared.read_u64(page * PAGE);
            check_eq!(word, 3 * turn, "page {page}, turn {turn}");
            let hpa = first.vm.locate(at(BASE, page))?.hpa;
            let before = device.frame(hpa, 0)?;
            check_eq!(before.total, 3, "page {page}, turn {turn}: {before:x?}");
            // Any byte of it.
            check_eq!(device.unmap_frame(hpa + 0xabc), Ok(3), "page {page}, turn {turn}");
            check_eq!(device.unmap_frame(hpa), Ok(0), "page {page}, turn {turn}, again");
            check_eq!(device.frame(hpa, 0)?.total, 0, "page {page}, turn {turn}");
            for (machine, base) in places {
                let found = machine.vm.locate(at(base, page))?;
                check_eq!((found.page_shift, found.hpa), (0, 0), "page {page}, turn {turn}: {found:x?}");
            }
            let next = first.vm.locate(at(BASE, (page + 1) % PAGES))?;
            check_eq!(next.page_shift == 0, page + 1 == PAGES, "only what was asked for: {next:x?}");
        }
    }
    Ok(())
}

/// A guest that counts in pages that go all the time.
fn under_a_guest(t: &Context, device: &Device) -> Outcome {
    let machine = Machine::long(device, frame_unmap_spin())?;
    let memory = Memory::new(PAGES * PAGE)?;
    machine.vm.map(1, BASE, &memory)?;
    machine.memory.write(layout::DATA, &[0]);
    let (rounds, done) = (t.repetitions(200), AtomicBool::new(false));
    let (guest, ended) = (&machine, &done);
    let taken = thread::scope(|scope| -> Result<u64, Failure> {
        let running = scope.spawn(move || {
            let exit = guest.run();
            ended.store(true, Ordering::Release);
            exit
        });
        let mut taken = 0;
        let outcome = (|| -> Outcome {
            let deadline = Instant::now() + PATIENCE;
            while memory.read_u64((PAGES - 1) * PAGE) == 0 {
                check!(Instant::now() < deadline, "the guest has not come through its pages");
            }
            for turn in 0..rounds {
                for page in 0..PAGES {
                    let hpa = guest.vm.locate(at(BASE, page))?.hpa;
                    if hpa != 0 {
                        taken += device.unmap_frame(hpa)?;
                    }
                }
                check!(!done.load(Ordering::Acquire), "the guest has ended in round {turn}");
            }
            Ok(())
        })();
        guest.memory.write(layout::DATA, &[1]);
        let exit = running.join();
        outcome?;
        check!(matches!(exit, Ok(Ok(Exit::Hlt))), "{exit:x?}");
        Ok(taken)
    })?;
    // The guest has all of them in the first round, and each again soon.
    check!(taken >= PAGES as u64, "{taken} mappings in {rounds} rounds");
    let count = machine.vcpu.regs()?.rsi;
    for page in 0..PAGES {
        check_eq!(memory.read_u64(page * PAGE), count, "page {page}");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Where a guest writes one absent page after the other, few more become present than it has written, and
//! none behind the slot, the mapping, or a userfaultfd.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::userfault::{Faults, MISSING};
use std::thread;

pub const TEST: Test = Test::new(60, run);

guest!(absent_pages, code64, "2: mov [rbx], rbx", "add rbx, rdx", "dec r8", "jnz 2b", "hlt");

const GPA: u64 = 0x4000_0000;
const PAGES: usize = 512;
/// Pages that may come before the guest has written them.
const AHEAD: usize = 15;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    in_a_row(&device)?;
    not_in_a_row(&device)?;
    edges(&device)?;
    watched(&device)
}

/// A guest with small pages, all of them absent, of which a slot has the first ones.
struct Writer {
    machine: Machine,
    memory: Memory,
}

impl Writer {
    fn new(device: &Device, slot_pages: usize) -> Result<Self, Failure> {
        let machine = Machine::long(device, absent_pages())?;
        let memory = Memory::aligned(PAGES * PAGE, LARGE_PAGE)?;
        // Without huge pages in the kernel, the advice is not known.
        match memory.advise(0, memory.size(), libc::MADV_NOHUGEPAGE) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        machine.vm.set_slot(1, 0, GPA, (slot_pages * PAGE) as u64, memory.address())?;
        Ok(Self { machine, memory })
    }

    /// Has the guest write to so many pages, each so many behind the one before.
    fn write(&self, first: usize, count: usize, step: i64) -> Result<(), Failure> {
        self.machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (first * PAGE) as u64);
            (regs.rdx, regs.r8) = ((step * PAGE as i64) as u64, count as u64);
        })?;
        let exit = self.machine.run()?;
        check_eq!(exit, Exit::Hlt);
        for index in 0..count as i64 {
            let page = (first as i64 + index * step) as usize;
            check_eq!(self.memory.read_u64(page * PAGE), GPA + (page * PAGE) as u64, "page {page}");
        }
        Ok(())
    }

    /// The pages that are present.
    fn present(&self) -> Result<Vec<usize>, Failure> {
        let pages = self.memory.present()?;
        Ok((0..PAGES).filter(|&page| pages[page]).collect())
    }

    fn check_present(&self, pages: impl Iterator<Item = usize>, what: &str) -> Outcome {
        check_eq!(self.present()?, pages.collect::<Vec<_>>(), "{what}");
        Ok(())
    }
}

fn in_a_row(device: &Device) -> Outcome {
    for count in [1, 2, 3, 10, 100, 300] {
        let writer = Writer::new(device, PAGES)?;
        writer.write(0, count, 1)?;
        let present = writer.present()?;
        let ahead = AHEAD.min(count - 1);
        check!(present.len() <= count + ahead, "{count} pages written, {} present", present.len());
        check!(present.iter().copied().eq(0..present.len()), "present: {present:?}");
        if device.has_extensions() {
            let faults = writer.machine.vcpu.stats()?.ept_faults as usize;
            check!(count < 300 || faults < count / 4, "{faults} faults for {count} absent pages in a row");
        }
        // What has come by itself is zero, and the guest goes on in it.
        for page in count..present.len() {
            check!(writer.memory.read(page * PAGE, PAGE).iter().all(|&byte| byte == 0), "page {page}");
        }
        writer.write(count, 100, 1)?;
    }
    Ok(())
}

fn not_in_a_row(device: &Device) -> Outcome {
    let writer = Writer::new(device, PAGES)?;
    writer.write(0, 100, 2)?;
    writer.check_present((0..200).step_by(2), "every other page")?;
    let writer = Writer::new(device, PAGES)?;
    writer.write(200, 100, -1)?;
    writer.check_present(101..201, "from the end")?;
    // The VMM knows better.
    let writer = Writer::new(device, PAGES)?;
    writer.memory.advise(0, writer.memory.size(), libc::MADV_RANDOM)?;
    writer.write(0, 100, 1)?;
    writer.check_present(0..100, "with MADV_RANDOM")
}

fn edges(device: &Device) -> Outcome {
    for end in [99, 100, 101, 107, 113] {
        let writer = Writer::new(device, end)?;
        writer.write(0, 98, 1)?;
        let present = writer.present()?;
        check!(present.iter().all(|&page| page < end), "a slot of {end} pages: {present:?}");
        writer.write(98, end - 98, 1)?;
        writer.check_present(0..end, "a slot's end")?;

        let writer = Writer::new(device, PAGES)?;
        writer.memory.protect(end * PAGE, PAGE, libc::PROT_READ)?;
        writer.write(0, end, 1)?;
        writer.check_present(0..end, "a mapping's end")?;

        // A page that is there keeps its contents, and ends what comes at once.
        let writer = Writer::new(device, PAGES)?;
        writer.memory.write_u64(end * PAGE + 8, 0x1234);
        writer.write(0, end, 1)?;
        writer.check_present(0..end + 1, "a page that was there")?;
        writer.write(end, 50, 1)?;
        check_eq!(writer.memory.read_u64(end * PAGE + 8), 0x1234);
    }
    Ok(())
}

/// Each page that a userfaultfd waits for is asked for when the guest needs it, and not before.
fn watched(device: &Device) -> Outcome {
    const FIRST: usize = 101;
    let writer = Writer::new(device, PAGES)?;
    let faults = match Faults::from(&writer.memory, FIRST, MISSING) {
        Ok(faults) => faults,
        Err(errno) => skip!("userfaultfd: {errno}"),
    };
    writer.write(0, FIRST, 1)?;
    writer.check_present(0..FIRST, "in front of what is watched")?;
    check!(faults.poll().is_none(), "a page is asked for that the guest has not written");
    let (written, asked) = thread::scope(|scope| {
        let faults = &faults;
        let other = scope.spawn(move || {
            let mut asked = Vec::new();
            while asked.len() < 50 {
                let Some(address) = faults.next() else { break };
                let page = faults.page_of(address);
                asked.push(page);
                if faults.fill(page, &[]).is_err() {
                    break;
                }
            }
            asked
        });
        (writer.write(FIRST, 50, 1), other.join())
    });
    written?;
    let asked = asked.map_err(|_| Failure::failed("the thread panicked"))?;
    check!(asked.iter().copied().eq(FIRST..FIRST + 50), "asked for {asked:?}");
    check!(faults.poll().is_none(), "a page is asked for that the guest has not written");
    writer.check_present(0..FIRST + 50, "watched")
}

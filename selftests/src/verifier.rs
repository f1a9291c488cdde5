// SPDX-License-Identifier: GPL-2.0

//! A guest that checks every word of its memory while the host does something to that memory.
//!
//! The pages are dealt out to the vCPUs in turn. Each sweeps over its own, again and again: every word
//! must be its own address with the number of the last sweep above it, and gets the number of this
//! one. So a write that is lost, a page that comes back from an earlier time, and a page in the wrong
//! place are all found at the next sweep, by the guest; and, when it has stopped, by the host.

use crate::device::{Device, Exit, Vcpu};
use crate::errno::Errno;
use crate::harness::{Failure, Outcome};
use crate::machine::{enter_long, layout, Machine};
use crate::memory::{Memory, PAGE};
use crate::{check, fail, guest};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where the memory is in the guest.
pub const GPA: u64 = 0x4000_0000;
/// The slot that it is in.
pub const SLOT: u32 = 1;

const WORDS: usize = PAGE / 8;
/// The number of the sweep is from this bit on.
const SWEEP_BIT: u32 = 40;

/// Not 0: the guest is to stop.
const STOP: usize = layout::DATA;
/// Not 0: the guest is to look, and to write nothing.
const LOOK: usize = layout::DATA + 1;
/// What a vCPU tells: sweeps, then words that it found lost.
const REPORTS: usize = layout::DATA + 0x100;
const REPORT_SIZE: usize = 0x40;

/// How long a vCPU has for a sweep. The slowest machine needs a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(100);

guest!(
    verifier,
    code64,
    // RBP is the number of the last sweep that wrote. R8 to R9 are the pages, R10 is from the end of
    // one to the next. R11 is what counts of an address, R12 says whether words may be lost, and R13
    // is where to report.
    "2: movzx r15d, byte ptr [0x20001]",
    "mov rdx, rbp",
    "shl rdx, 40",
    "mov rsi, 0x10000000000",
    "mov rbx, r8",
    "3: lea rdi, [rbx + 0x1000]",
    "4: mov rax, rbx",
    "and rax, r11",
    "or rax, rdx",
    "mov rcx, [rbx]",
    "cmp rcx, rax",
    "je 5f",
    "test rcx, rcx",
    "jnz 9f",
    "test r12, r12",
    "jz 9f",
    "inc qword ptr [r13 + 8]",
    "5: test r15d, r15d",
    "jnz 6f",
    "add rax, rsi",
    "mov [rbx], rax",
    "6: add rbx, 8",
    "cmp rbx, rdi",
    "jne 4b",
    "add rbx, r10",
    "cmp rbx, r9",
    "jb 3b",
    "test r15d, r15d",
    "jnz 7f",
    "inc rbp",
    "7: inc qword ptr [r13]",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
    "jmp 2b",
    // RBX is where, RAX what was due, RCX what is there.
    "9: ud2",
);

/// A guest with such a program on each vCPU.
pub struct Verifier<'a> {
    pub machine: Machine,
    others: Vec<Vcpu>,
    pub memory: &'a Memory,
    lossy: bool,
    movable: bool,
    mask: u64,
}

/// A guest that runs, for whoever does something to it meanwhile.
pub struct Running<'a> {
    guest: &'a Verifier<'a>,
    /// A vCPU has come to an end.
    ended: AtomicBool,
    stopping: AtomicBool,
    /// How often KVM_RUN has answered EFAULT.
    refused: AtomicU64,
}

impl<'a> Verifier<'a> {
    /// So many vCPUs on all of `memory`, which is filled with what they expect.
    pub fn new(device: &Device, memory: &'a Memory, vcpus: usize) -> Result<Self, Errno> {
        let this = Self::unfilled(device, memory, vcpus)?;
        this.fill();
        Ok(this)
    }

    /// The same; the memory is to be filled by whoever has it.
    pub fn unfilled(device: &Device, memory: &'a Memory, vcpus: usize) -> Result<Self, Errno> {
        let machine = Machine::long(device, verifier())?;
        machine.vm.map(SLOT, GPA, memory)?;
        let cpuid = device.supported_cpuid(256)?;
        let mut others = Vec::new();
        for id in 1..vcpus as u64 {
            let vcpu = machine.vm.vcpu(id)?;
            vcpu.set_cpuid(&cpuid)?;
            enter_long(&vcpu)?;
            others.push(vcpu);
        }
        let this = Self { machine, others, memory, lossy: false, movable: false, mask: !0 };
        for (index, vcpu) in this.vcpus().enumerate() {
            let mut regs = vcpu.regs()?;
            (regs.rbp, regs.r11, regs.r12) = (0, this.mask, 0);
            regs.r8 = GPA + (index * PAGE) as u64;
            regs.r9 = GPA + memory.size() as u64;
            regs.r10 = ((vcpus - 1) * PAGE) as u64;
            regs.r13 = (REPORTS + index * REPORT_SIZE) as u64;
            vcpu.set_regs(&regs)?;
        }
        Ok(this)
    }

    /// Words may be 0 at any time: the host takes pages away and gives fresh ones.
    pub fn lossy(mut self) -> Result<Self, Errno> {
        self.lossy = true;
        self.change_regs(|regs| regs.r12 = 1)?;
        Ok(self)
    }

    /// The slot may be away at any time: the VMM answers then, as a device that has the same contents.
    pub fn movable(mut self) -> Self {
        self.movable = true;
        self
    }

    /// All pages have the same contents after each sweep.
    pub fn alike(mut self) -> Result<Self, Errno> {
        self.mask = PAGE as u64 - 1;
        self.change_regs(|regs| regs.r11 = PAGE as u64 - 1)?;
        self.fill();
        Ok(self)
    }

    fn change_regs(&self, change: impl Fn(&mut kvm_bindings::kvm_regs)) -> Result<(), Errno> {
        for vcpu in self.vcpus() {
            let mut regs = vcpu.regs()?;
            change(&mut regs);
            vcpu.set_regs(&regs)?;
        }
        Ok(())
    }

    pub fn vcpus(&self) -> impl Iterator<Item = &Vcpu> {
        [&self.machine.vcpu].into_iter().chain(&self.others)
    }

    /// What the guest begins with when it is run: see [`Running::look_only`].
    pub fn look_first(&self) {
        self.machine.memory.write(LOOK, &[1]);
    }

    /// Answers an access to memory whose slot is away; true if it was one.
    fn answer(&self, vcpu: &Vcpu, exit: &Exit) -> bool {
        let place = |address: &u64, length: usize| {
            let offset = usize::try_from(address.checked_sub(GPA)?).ok()?;
            (self.movable && offset + length <= self.memory.size()).then_some(offset)
        };
        match exit {
            Exit::MmioRead { address, length } => {
                let Some(offset) = place(address, *length) else { return false };
                vcpu.answer_mmio(&self.memory.read(offset, *length));
            }
            Exit::MmioWrite { address, data } => {
                let Some(offset) = place(address, data.len()) else { return false };
                self.memory.write(offset, data);
            }
            _ => return false,
        }
        true
    }

    fn report(&self, vcpu: usize, word: usize) -> u64 {
        self.machine.memory.read_u64(REPORTS + vcpu * REPORT_SIZE + 8 * word)
    }

    /// Words that were found lost so far, one for each time.
    pub fn losses(&self) -> u64 {
        (0..=self.others.len()).map(|vcpu| self.report(vcpu, 1)).sum()
    }

    /// The words of a page as they are before the first sweep.
    pub fn page(&self, page: usize) -> Vec<u64> {
        let start = GPA + (page * PAGE) as u64;
        (0..WORDS as u64).map(|word| (start + 8 * word) & self.mask).collect()
    }

    fn fill(&self) {
        for page in 0..self.memory.size() / PAGE {
            for (index, word) in self.page(page).into_iter().enumerate() {
                self.memory.write_u64(page * PAGE + 8 * index, word);
            }
        }
    }

    /// Lets the guest run while `change` does what it likes, then stops it and looks at all of its
    /// memory. Can be repeated: the guest goes on where it was.
    pub fn while_running<R>(
        &self,
        change: impl FnOnce(&Running<'_>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let result = self.run(change)?;
        self.verify()?;
        Ok(result)
    }

    /// The same without the look at the end.
    pub fn run<R>(&self, change: impl FnOnce(&Running<'_>) -> Result<R, Failure>) -> Result<R, Failure> {
        let running = Running {
            guest: self,
            ended: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        };
        self.machine.memory.write(STOP, &[0]);
        thread::scope(|scope| {
            let running = &running;
            let threads: Vec<_> = self
                .vcpus()
                .map(|vcpu| {
                    scope.spawn(move || {
                        let ended = running.sweep(vcpu);
                        running.ended.store(true, Ordering::Release);
                        ended
                    })
                })
                .collect();
            let result = change(running);
            running.stopping.store(true, Ordering::Release);
            self.machine.memory.write(STOP, &[1]);
            for (index, thread) in threads.into_iter().enumerate() {
                // What a vCPU has seen says more than that the host waited for it.
                match thread.join() {
                    Ok(ended) => {
                        ended.map_err(|message| Failure::failed(format!("vCPU {index}: {message}")))?
                    }
                    Err(_) => fail!("the thread of vCPU {index} panicked"),
                }
            }
            result
        })
    }

    /// Every word is that of the last sweep, or lost if it may be.
    pub fn verify(&self) -> Outcome {
        self.verify_copy(self.memory)
    }

    /// The same of another view of the memory, or of a copy.
    pub fn verify_copy(&self, memory: &Memory) -> Outcome {
        let sweeps: Vec<u64> =
            self.vcpus().map(|vcpu| vcpu.regs().map(|regs| regs.rbp)).collect::<Result<_, _>>()?;
        let mut words = [0; WORDS];
        for page in 0..memory.size() / PAGE {
            memory.copy_words(page * PAGE, &mut words);
            let sweep = sweeps[page % sweeps.len()];
            let due = self.page(page);
            let right =
                |(word, due): (&u64, &u64)| *word == due | sweep << SWEEP_BIT || self.lossy && *word == 0;
            let wrong = words.iter().zip(&due).position(|pair| !right(pair));
            if let Some(index) = wrong {
                fail!(
                    "page {page}, word {index}: {:#x}, not {:#x} of sweep {sweep}",
                    words[index],
                    due[index]
                );
            }
        }
        check!(sweeps.iter().all(|sweep| *sweep > 0), "sweeps: {sweeps:?}");
        Ok(())
    }
}

/// What a vCPU has that the guest never loads: then it is not the guest's program that has failed.
fn strange(sregs: &kvm_bindings::kvm_sregs) -> String {
    if sregs.cr3 == layout::PML4 as u64 && sregs.cs.selector == layout::CODE64 {
        return String::new();
    }
    format!(
        "; and these are not the guest's: CS {:#x}, GDT at {:#x}, CR0 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
        sregs.cs.selector, sregs.gdt.base, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer
    )
}

impl Running<'_> {
    /// Runs a vCPU until it stops, or has something to say.
    fn sweep(&self, vcpu: &Vcpu) -> Result<(), String> {
        loop {
            match vcpu.run() {
                Ok(Exit::Hlt) => return Ok(()),
                // The VMM has no memory there, or may not access it so, at the moment.
                Err(Errno::EFAULT) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    if self.stopping.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    thread::yield_now();
                }
                Err(Errno::EINTR) => {}
                Ok(exit) if self.guest.answer(vcpu, &exit) => {}
                other => {
                    let regs = vcpu.regs().unwrap_or_default();
                    let sregs = vcpu.sregs().unwrap_or_default();
                    return Err(format!(
                        "{other:x?}: {:#x} at {:#x}, not {:#x}; sweep {:#x}; RIP {:#x}, RSP {:#x}, CR2 {:#x}{}",
                        regs.rcx,
                        regs.rbx,
                        regs.rax,
                        regs.rbp,
                        regs.rip,
                        regs.rsp,
                        sregs.cr2,
                        strange(&sregs)
                    ));
                }
            }
        }
    }

    /// How often KVM_RUN has answered EFAULT until now.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Waits until KVM_RUN has answered EFAULT once more.
    pub fn wait_refused(&self) -> Outcome {
        let before = self.refused();
        self.wait_for("EFAULT", || self.refused() > before)
    }

    fn wait_for(&self, what: &str, done: impl Fn() -> bool) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            // The reason comes from the vCPU's thread.
            check!(!self.ended.load(Ordering::Acquire), "a vCPU has ended before {what}");
            check!(Instant::now() < deadline, "no {what} from the guest in {PATIENCE:?}");
            thread::yield_now();
        }
        Ok(())
    }

    /// Waits until every vCPU has begun and ended so many sweeps.
    pub fn sweeps(&self, count: u64) -> Outcome {
        let vcpus = 0..=self.guest.others.len();
        let ends: Vec<u64> = vcpus.map(|vcpu| self.guest.report(vcpu, 0) + count + 1).collect();
        self.wait_for("sweep", || {
            ends.iter().enumerate().all(|(vcpu, end)| self.guest.report(vcpu, 0) >= *end)
        })
    }

    /// Makes the guest look only, or write again, and waits until it does.
    pub fn look_only(&self, look: bool) -> Outcome {
        self.guest.machine.memory.write(LOOK, &[u8::from(look)]);
        self.sweeps(1)
    }
}

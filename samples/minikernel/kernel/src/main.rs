// SPDX-License-Identifier: GPL-2.0
//! The mini-kernel: a guest that does with page tables whatever a kernel may do with them.
//!
//! Its processes have address spaces of their own, with memory that appears when it is used, copies
//! on the first write after a fork, large pages, rights of all kinds, threads. What they do is up to
//! the program (../user), which checks every word that it reads; the kernel checks what the program
//! cannot see: error codes, page-table entries, that every frame comes back. It counts on nothing
//! that the architecture does not promise, and it does all the flushing that the architecture asks
//! for: a hypervisor that loses a flush or a bit is found out.
//!
//! There is no interrupt controller and no timer. A vCPU goes from one process to another when that
//! calls the kernel.

#![no_std]
#![no_main]

mod calls;
mod console;
mod counters;
mod cpu;
mod descriptors;
mod frames;
mod kernel_map;
mod lock;
#[path = "../../memory.rs"]
mod memory;
mod paging;
mod params;
mod probe;
mod process;
mod schedule;
mod space;
mod start;
mod tlb;
mod traps;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use minikernel_abi::call::feature;
use minikernel_abi::report::{status, Wait};

/// Root of the kernel's page tables, once they are made.
static ROOT: AtomicUsize = AtomicUsize::new(0);

/// Where each vCPU comes from its first instructions.
extern "C" fn main(index: usize) -> ! {
    descriptors::load(index);
    if index == 0 {
        if !params::good() {
            panic!("the parameters make no sense");
        }
        cpu::detect();
        ROOT.store(schedule::init(), Ordering::Release);
    }
    let root = loop {
        match ROOT.load(Ordering::Acquire) {
            0 => cpu::relax(Wait::Idle),
            root => break root,
        }
    };
    turn_paging_on(kernel_map::start_root(index, root));
    schedule::start()
}

fn turn_paging_on(root: usize) {
    let mut cr4 = cpu::cr4();
    cr4 |= if paging::LEVELS.len() == 2 { cpu::CR4_PSE } else { cpu::CR4_PAE };
    for (feature, bit) in [
        (feature::GLOBAL, cpu::CR4_PGE),
        (feature::PCID, cpu::CR4_PCIDE),
        (feature::SMEP, cpu::CR4_SMEP),
        (feature::SMAP, cpu::CR4_SMAP),
    ] {
        if cpu::has(feature) {
            cr4 |= bit;
        }
    }
    // SAFETY: the kernel's tables map it where it is, with the rights that it needs; the
    // processor has what is turned on, which is not before what it builds on.
    unsafe {
        if cpu::has(feature::NX) {
            cpu::set_msr_bits(cpu::MSR_EFER, cpu::EFER_NXE);
        }
        // CR4 before CR3: a present PDPTE is checked whenever one of the two is written, and
        // kernel_map::start_root says what may have become of it. In long mode, where paging is on
        // already, CR3 has no PCID yet, as PCIDE wants it.
        cpu::set_cr4(cr4);
        cpu::set_cr3(root);
        cpu::set_cr0(cpu::cr0() | cpu::CR0_PG | cpu::CR0_WP);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    // The first one has its say; the others wait for the end.
    while PANICS.fetch_add(1, Ordering::Relaxed) != 0 {
        cpu::relax(Wait::Idle);
    }
    say!("minikernel on vCPU {}: {info}", cpu::index());
    console::end(status::PANIC)
}

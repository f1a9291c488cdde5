// SPDX-License-Identifier: GPL-2.0
//! The processor: control registers, what it can do, ports. Whoever calls these knows what they do
//! to the whole kernel; nothing here is checked.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use minikernel_abi::call::feature;
use minikernel_abi::report::{Wait, YIELD_PORT};

use crate::start::{STACKS, STACK_SIZE};

pub const CR0_WP: usize = 1 << 16;
pub const CR0_PG: usize = 1 << 31;
pub const CR4_PSE: usize = 1 << 4;
pub const CR4_PAE: usize = 1 << 5;
pub const CR4_PGE: usize = 1 << 7;
pub const CR4_PCIDE: usize = 1 << 17;
pub const CR4_SMEP: usize = 1 << 20;
pub const CR4_SMAP: usize = 1 << 21;
pub const MSR_EFER: u32 = 0xc000_0080;
pub const EFER_NXE: u64 = 1 << 11;

/// In a CR3 value, with CR4.PCIDE: what the TLB has for this PCID may stay.
#[cfg(target_pointer_width = "64")]
pub const CR3_KEEP: usize = 1 << 63;

/// What is in use, as [`feature`] bits; the same on all vCPUs.
static FEATURES: AtomicUsize = AtomicUsize::new(0);

pub fn features() -> usize {
    FEATURES.load(Ordering::Relaxed)
}

pub fn has(feature: usize) -> bool {
    features() & feature != 0
}

/// Finds out what this processor and this mode of paging have.
pub fn detect() {
    let mut found = 0;
    let mut note = |there: bool, feature| {
        if there {
            found |= feature;
        }
    };
    let [_, _, ecx, edx] = cpuid(1, 0);
    let long = cfg!(target_pointer_width = "64");
    note(edx & 1 << 13 != 0, feature::GLOBAL);
    note(long && ecx & 1 << 17 != 0, feature::PCID);
    if cpuid(0, 0)[0] >= 7 {
        let [_, ebx, _, _] = cpuid(7, 0);
        note(ebx & 1 << 7 != 0, feature::SMEP);
        note(ebx & 1 << 20 != 0, feature::SMAP);
        note(ebx & 1 << 10 != 0, feature::INVPCID);
    }
    if cpuid(0x8000_0000, 0)[0] >= 0x8000_0001 {
        let [_, _, _, edx] = cpuid(0x8000_0001, 0);
        note(crate::paging::HAS_NX && edx & 1 << 20 != 0, feature::NX);
    }
    FEATURES.store(found, Ordering::Relaxed);
}

/// EAX, EBX, ECX, EDX.
fn cpuid(leaf: u32, index: u32) -> [u32; 4] {
    // SAFETY: CPUID is there on every processor with paging of 4 MiB pages.
    #[cfg(target_arch = "x86")]
    #[allow(unused_unsafe)] // safe in newer compilers
    let all = unsafe { core::arch::x86::__cpuid_count(leaf, index) };
    #[cfg(target_arch = "x86_64")]
    #[allow(unused_unsafe)] // safe in newer compilers
    let all = unsafe { core::arch::x86_64::__cpuid_count(leaf, index) };
    [all.eax, all.ebx, all.ecx, all.edx]
}

/// This vCPU's number, by the stack that it is on.
pub fn index() -> usize {
    let here = 0u8;
    (core::ptr::addr_of!(here) as usize - STACKS.start()) / STACK_SIZE
}

macro_rules! control_register {
    ($read:ident, $name:literal) => {
        pub fn $read() -> usize {
            let value;
            // SAFETY: reading changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }
    };
}

macro_rules! set_control_register {
    ($write:ident, $name:literal) => {
        /// # Safety
        ///
        /// Code, stack and variables stay mapped where they are.
        pub unsafe fn $write(value: usize) {
            // Memory is not left out of what it may change: all addresses get a new meaning.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    };
}

control_register!(cr0, "cr0");
control_register!(cr4, "cr4");
set_control_register!(set_cr0, "cr0");
set_control_register!(set_cr3, "cr3");
set_control_register!(set_cr4, "cr4");

/// The address of the last page fault.
pub fn cr2() -> usize {
    let value;
    // SAFETY: reading changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets bits of an MSR.
///
/// # Safety
///
/// The MSR exists, and the kernel goes on with the bits set.
pub unsafe fn set_msr_bits(msr: u32, bits: u64) {
    // SAFETY: the caller answers for it.
    unsafe {
        asm!(
            "rdmsr",
            "or eax, {low:e}",
            "or edx, {high:e}",
            "wrmsr",
            low = in(reg) bits as u32,
            high = in(reg) (bits >> 32) as u32,
            in("ecx") msr,
            out("eax") _,
            out("edx") _,
            options(nostack),
        );
    }
}

/// Invalidates the page with this address for the current PCID, and global pages with it.
pub fn invlpg(address: usize) {
    // SAFETY: the worst that it can do is to slow things down.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Invalidates all of one PCID but global pages.
#[cfg(target_pointer_width = "64")]
pub fn invpcid_context(pcid: usize) {
    let descriptor = [pcid as u64, 0];
    // SAFETY: as above; callers have seen that CPUID has it.
    unsafe {
        asm!("invpcid {}, [{}]", in(reg) 1u64, in(reg) descriptor.as_ptr(), options(nostack));
    }
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: ports are the VMM's; none of them touches memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// One turn of a loop that waits for another vCPU. There may be more vCPUs than processors: now
/// and then the host is told that it may run somebody else. Not too often, since what a TLB has does
/// not survive that on every host, and it is stale entries that are looked for here.
pub fn relax(wait: Wait) {
    static TURNS: [AtomicU32; minikernel_abi::MAX_VCPUS as usize] =
        [const { AtomicU32::new(0) }; minikernel_abi::MAX_VCPUS as usize];
    core::hint::spin_loop();
    let often = match wait {
        Wait::Yield => 16,
        Wait::Short | Wait::Idle => 64,
    };
    if TURNS[index()].fetch_add(1, Ordering::Relaxed) % often == 0 {
        out8(YIELD_PORT, wait as u8);
    }
}

pub fn halt() -> ! {
    loop {
        // With interrupts off it is for good.
        // SAFETY: nothing is left to do for this vCPU.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

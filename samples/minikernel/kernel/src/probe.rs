// SPDX-License-Identifier: GPL-2.0
//! The kernel's own look at whether it may touch an address: CR0.WP, SMEP and SMAP are about
//! supervisor accesses, so a process cannot try them for itself.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use minikernel_abi::call::{probe, NONE};
use minikernel_abi::MAX_VCPUS;

use crate::cpu;
use crate::traps::Frame;

/// Whether a vCPU is about to do such an access.
static EXPECTED: [AtomicBool; MAX_VCPUS as usize] = [const { AtomicBool::new(false) }; MAX_VCPUS as usize];

/// Touches the address; the error code of the page fault, or [`NONE`]. A write leaves what is
/// there, code that is executed has to be `jmp *%edx`.
pub fn touch(address: usize, how: usize) -> usize {
    let mut result = NONE;
    EXPECTED[cpu::index()].store(true, Ordering::Relaxed);
    // The way out, also for the fault's handler, is in EDX; the handler leaves the code in EAX.
    macro_rules! attempt {
        ($before:literal, $access:literal, $after:literal) => {
            // SAFETY: the access does no harm when it succeeds, and is caught when not.
            unsafe {
                #[cfg(target_arch = "x86_64")]
                asm!(
                    "lea rdx, [rip + 2f]", $before, $access, "2:", $after,
                    in("di") address, inout("ax") result, out("cx") _, out("dx") _,
                );
                #[cfg(target_arch = "x86")]
                asm!(
                    "lea edx, [2f]", $before, $access, "2:", $after,
                    in("di") address, inout("ax") result, out("cx") _, out("dx") _,
                );
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    macro_rules! access {
        ($before:literal, $after:literal) => {
            match how & 3 {
                probe::READ => attempt!($before, "mov cl, [rdi]", $after),
                probe::WRITE => attempt!($before, "lock or byte ptr [rdi], 0", $after),
                _ => attempt!($before, "jmp rdi", $after),
            }
        };
    }
    #[cfg(target_arch = "x86")]
    macro_rules! access {
        ($before:literal, $after:literal) => {
            match how & 3 {
                probe::READ => attempt!($before, "mov cl, [edi]", $after),
                probe::WRITE => attempt!($before, "lock or byte ptr [edi], 0", $after),
                _ => attempt!($before, "jmp edi", $after),
            }
        };
    }
    // STAC and CLAC exist only where SMAP does.
    if how & probe::AC != 0 && cpu::has(minikernel_abi::call::feature::SMAP) {
        access!("stac", "clac");
    } else {
        access!("", "");
    }
    EXPECTED[cpu::index()].store(false, Ordering::Relaxed);
    result
}

/// Whether this fault of the kernel is one of those; then it goes on behind the access.
pub fn caught(frame: &mut Frame) -> bool {
    if !EXPECTED[cpu::index()].load(Ordering::Relaxed) {
        return false;
    }
    frame.ax = frame.error;
    frame.ip = frame.dx;
    true
}

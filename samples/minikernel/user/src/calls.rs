// SPDX-License-Identifier: GPL-2.0
//! The kernel's calls as functions. `minikernel_abi::call` says what each does.

use core::arch::asm;

use minikernel_abi::call::{self, probe, NONE};

/// One call; what comes back in EAX and EDX.
fn raw(number: usize, first: usize, second: usize, third: usize) -> (usize, usize) {
    let (low, high);
    // SAFETY: the kernel changes only what the call says, and memory may be part of that.
    unsafe {
        asm!(
            "int 0x80",
            inout("ax") number => low,
            in("di") first,
            inout("dx") second => high,
            in("cx") third,
        );
    }
    (low, high)
}

/// A call that must not be refused.
#[track_caller]
fn must(number: usize, first: usize, second: usize, third: usize) -> usize {
    let (result, _) = raw(number, first, second, third);
    if result == NONE {
        fail(line(), NONE, number);
    }
    result
}

fn join((low, high): (usize, usize)) -> u64 {
    low as u32 as u64 | (high as u32 as u64) << 32
}

#[track_caller]
pub fn line() -> usize {
    core::panic::Location::caller().line() as usize
}

pub fn fail(line: usize, found: usize, expected: usize) -> ! {
    raw(call::FAIL, line, found, expected);
    unreachable!();
}

/// Ends the run unless the two are equal.
#[track_caller]
pub fn expect(found: usize, expected: usize) {
    if found != expected {
        fail(line(), found, expected);
    }
}

/// Ends the run unless something holds.
#[track_caller]
pub fn ensure(holds: bool) {
    expect(usize::from(holds), 1);
}

pub fn exit(checksum: u64) -> ! {
    raw(call::EXIT, checksum as u32 as usize, (checksum >> 32) as usize, 0);
    unreachable!();
}

/// Runs `child` in a process with a copy of the memory; returns its number.
#[track_caller]
pub fn fork(child: impl FnOnce() -> u64) -> usize {
    match must(call::FORK, 0, 0, 0) {
        0 => exit(child()),
        number => number,
    }
}

/// Waits for a child's end; returns its checksum.
pub fn wait(child: usize) -> u64 {
    join(raw(call::WAIT, child, 0, 0))
}

/// Lets others run.
pub fn pause() {
    raw(call::YIELD, 0, 0, 0);
}

#[track_caller]
pub fn map(size: usize, prot: usize) -> usize {
    must(call::MAP, size, prot, 0)
}

#[track_caller]
pub fn unmap(address: usize, size: usize) {
    must(call::UNMAP, address, size, 0);
}

/// Gives memory other rights.
#[track_caller]
pub fn protect(address: usize, size: usize, prot: usize) {
    must(call::PROTECT, address, size, prot);
}

/// The page-table entry for an address, on a level from 0 up; 0 if there is none.
pub fn entry(address: usize, level: usize) -> u64 {
    join(raw(call::ENTRY, address, level, 0))
}

/// Clears accessed and dirty bits of the entry that maps an address.
pub fn clear(address: usize, bits: u64) {
    raw(call::CLEAR, address, bits as usize, 0);
}

/// Exchanges the frames behind two pages.
#[track_caller]
pub fn exchange(one: usize, other: usize) {
    must(call::EXCHANGE, one, other, 0);
}

/// Makes a page show the page table that maps an address.
#[track_caller]
pub fn show_table(address: usize, window: usize) {
    must(call::TABLE, address, window, 0);
}

/// Flushes the TLB for the page with an address.
pub fn flush(address: usize) {
    raw(call::FLUSH, address, 0, 0);
}

/// The kernel touches an address, see [`probe`]; the page fault's error code, or [`NONE`].
pub fn kernel_touches(address: usize, how: usize) -> usize {
    raw(call::PROBE, address, how, 0).0
}

/// Touches an address as [`probe`] says; the page fault's error code, or [`NONE`]. What is executed
/// has to be [`crate::code::BACK`].
pub fn touch(address: usize, how: usize) -> usize {
    let mut result;
    macro_rules! attempt {
        ($lea:literal, $access:literal) => {
            // SAFETY: the access does no harm when it succeeds, and the kernel goes on behind it
            // when it faults.
            unsafe {
                asm!(
                    $lea, "int 0x80", "mov eax, {none}", $access, "2:",
                    none = const NONE as u32 as i32,
                    inout("ax") call::CATCH => result, in("di") address, out("cx") _, out("dx") _,
                )
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    match how {
        probe::READ => attempt!("lea rdx, [rip + 2f]", "mov cl, [rdi]"),
        probe::WRITE => attempt!("lea rdx, [rip + 2f]", "lock or byte ptr [rdi], 0"),
        _ => attempt!("lea rdx, [rip + 2f]", "jmp rdi"),
    }
    #[cfg(target_arch = "x86")]
    match how {
        probe::READ => attempt!("lea edx, [2f]", "mov cl, [edi]"),
        probe::WRITE => attempt!("lea edx, [2f]", "lock or byte ptr [edi], 0"),
        _ => attempt!("lea edx, [2f]", "jmp edi"),
    }
    let result: usize = result;
    if result as u32 == NONE as u32 {
        // Any call ends the catching.
        parameter(0);
        return NONE;
    }
    result
}

/// Has a thread start at an address, with a stack and a value in EDI; returns its number.
#[track_caller]
pub fn spawn(entry: usize, stack: usize, argument: usize) -> usize {
    must(call::SPAWN, entry, stack, argument)
}

pub fn parameter(which: usize) -> usize {
    raw(call::PARAMETER, which, 0, 0).0
}

/// Whether the kernel uses something of [`minikernel_abi::call::feature`].
pub fn has(feature: usize) -> bool {
    parameter(call::parameter::FEATURES) & feature != 0
}

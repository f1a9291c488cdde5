// SPDX-License-Identifier: GPL-2.0
//! The kernel's calls as functions. `minikernel_abi::call` says what each does.

use core::arch::asm;

use minikernel_abi::call::{self, NONE};

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

pub fn parameter(which: usize) -> usize {
    raw(call::PARAMETER, which, 0, 0).0
}

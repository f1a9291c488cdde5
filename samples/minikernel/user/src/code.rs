// SPDX-License-Identifier: GPL-2.0
//! Instructions that are written into pages to be executed there.

use crate::memory::{read, write};

/// `jmp *%edx`, or `%rdx`: back to where the kernel would go on after a fault.
const BACK: u32 = 0xe2ff;

/// Puts code at an address that goes back to [`crate::calls::touch`].
pub fn write_back(address: usize) {
    write(address, BACK);
}

/// Puts a function at an address that returns a number: `mov $number, %eax; ret`.
pub fn write_function(address: usize, number: u32) {
    write(address, 0xb8 | number << 8);
    write(address + 4, number >> 24 | 0xc3 << 8);
}

/// Calls it.
pub fn call(address: usize) -> u32 {
    debug_assert!(read(address) & 0xff == 0xb8);
    // SAFETY: a function was written there, and if the page is not executable the kernel ends the
    // run. It uses no register but the one for the result.
    let function = unsafe { core::mem::transmute::<usize, extern "C" fn() -> u32>(address) };
    function()
}

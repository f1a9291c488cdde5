// SPDX-License-Identifier: GPL-2.0
//! Text for whoever watches, and the end of the run.

use core::fmt::{self, Write};

use minikernel_abi::report::{Value, CONSOLE_PORT, EXIT_PORT, NAME_PORT, VALUE_PORT};

use crate::cpu;

pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| cpu::out8(CONSOLE_PORT, byte));
        Ok(())
    }
}

/// Like `println!`.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        let _ = core::fmt::Write::write_fmt(
            &mut $crate::console::Console,
            format_args!("{}\n", format_args!($($arguments)*)),
        );
    };
}

/// Reports a figure.
pub fn report(what: Value, value: u64) {
    cpu::out8(NAME_PORT, what as u8);
    cpu::out32(VALUE_PORT, value as u32);
    cpu::out32(VALUE_PORT, (value >> 32) as u32);
}

/// Ends the run.
pub fn end(status: u8) -> ! {
    cpu::out8(EXIT_PORT, status);
    cpu::halt();
}

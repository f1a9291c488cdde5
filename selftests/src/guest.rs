// SPDX-License-Identifier: GPL-2.0

//! Guest code beside host code: assembled into this program, copied into guest memory.

/// Defines a function that returns machine code assembled from the given lines.
///
/// `guest!(name, code16, "mov al, 1", "hlt")`. The name is a symbol, so it is unique in the
/// crate. Labels are numeric and local (from 2 up: 0 and 1 read as binary literals). Constants
/// come after a semicolon: `guest!(name, code64, "out {port}, al"; port = const 0x10)`.
#[macro_export]
macro_rules! guest {
    ($name:ident, $mode:ident, $($line:expr),+ $(,)? $(; $($operands:tt)+)?) => {
        core::arch::global_asm!(
            ".pushsection .rodata.guest, \"a\", @progbits",
            // So that alignment inside of the guest's code is alignment in the guest's memory.
            ".balign 64",
            concat!(".global guest_", stringify!($name)),
            concat!("guest_", stringify!($name), ":"),
            concat!(".", stringify!($mode)),
            $($line,)+
            ".code64",
            concat!(".global guest_", stringify!($name), "_end"),
            concat!("guest_", stringify!($name), "_end:"),
            ".popsection",
            $($($operands)+)?
        );

        fn $name() -> &'static [u8] {
            extern "C" {
                #[link_name = concat!("guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both labels are in one section, in this order, around read-only bytes.
            unsafe { core::slice::from_raw_parts(start, end.offset_from(start) as usize) }
        }
    };
}

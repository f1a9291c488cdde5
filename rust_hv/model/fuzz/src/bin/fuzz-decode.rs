// SPDX-License-Identifier: GPL-2.0

//! Both decoders, in every mode, against iced-x86.
#![no_main]
// Both tests have the same reference.
#![allow(clippy::duplicate_mod)]

#[allow(dead_code, unused_imports)]
#[path = "../../../tests/emulate_decode.rs"]
mod emulate_decode;
#[allow(dead_code, unused_imports)]
#[path = "../../../tests/emulate_system.rs"]
mod emulate_system;

use libfuzzer_sys::fuzz_target;
use rusthv_model::emulate::Mode;

/// More than an instruction can have: neither decoder is to want more.
const CODE: usize = 24;

fuzz_target!(|bytes: &[u8]| {
    let mut code = [0; CODE];
    for (to, from) in code.iter_mut().zip(bytes) {
        *to = *from;
    }
    for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
        let _ = emulate_decode::checked(&code, mode);
        let _ = emulate_system::checked(&code, mode);
    }
});

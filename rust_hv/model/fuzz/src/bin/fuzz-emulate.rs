// SPDX-License-Identifier: GPL-2.0

//! Any instruction in any state of a CPU, with memory that faults, fails and is a device's.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../../tests/emulate_fuzz.rs"]
mod emulate_fuzz;

use emulate_fuzz::{chaos, limits, modes, run};
use libfuzzer_sys::fuzz_target;
use proptest::num::u64::ANY;
use rusthv_model_fuzz::value;

/// The longest instruction, and one byte more.
const CODE: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let (code, rest) = bytes.split_at(bytes.len().min(CODE));
    let state = (modes(), limits(), ANY, chaos());
    if let Some((mode, limit, answers, mut machine)) = value(&state, rest) {
        run(&mut machine, code, mode, limit, answers).unwrap();
    }
});

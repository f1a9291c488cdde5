// SPDX-License-Identifier: GPL-2.0

//! Shadow tables of every kind of guest, against a walk of the guest's own tables.
#![no_main]

#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../../../tests/paging_shadow.rs"]
mod paging_shadow;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use paging_shadow::{ops, run};
use rusthv_model::paging::shadow::Policy;
use rusthv_model::paging::state::Mode;
use rusthv_model_fuzz::{mutate, values};

/// How a guest pages, and the fewest tables that it can do with.
const MODES: [(Mode, usize); 4] = [
    (Mode::FourLevel, 5),
    (Mode::Pae, 16),
    (Mode::Bits32, 4),
    (Mode::Unpaged, 16),
];

fuzz_target!(|bytes: &[u8]| {
    let Some((which, rest)) = bytes.split_first() else {
        return;
    };
    let which = usize::from(*which);
    let (mode, fewest) = MODES[which % 4];
    let policy = match which / 4 % 2 {
        0 => Policy::Virtual,
        _ => Policy::Exact,
    };
    let slots = [64, fewest][which / 8 % 2];
    run(mode, policy, slots, &values(&ops(), rest, 120));
});

fuzz_mutator!(|bytes: &mut [u8], size: usize, _room: usize, seed: u32| {
    mutate(bytes, size, 1, seed)
});

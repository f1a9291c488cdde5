// SPDX-License-Identifier: GPL-2.0

//! The editor of nested tables, with the entries of either vendor, against a plain map.
#![no_main]

#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../../../tests/paging_sequences.rs"]
mod paging_sequences;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use paging_sequences::paging_support::{EPT, NPT};
use paging_sequences::{op, run};
use rusthv_model::paging::format::Notice;
use rusthv_model::paging::nested::Nested;
use rusthv_model_fuzz::{mutate, values};

fuzz_target!(|bytes: &[u8]| {
    let Some((which, rest)) = bytes.split_first() else {
        return;
    };
    let format = match which % 2 {
        0 => Nested::Ept(EPT),
        _ => Nested::Npt(NPT),
    };
    let format = match which / 2 % 3 {
        0 => format,
        1 => format.with_notice(Notice::Flag),
        // Others have no log.
        _ => Nested::Ept(EPT).with_notice(Notice::Log),
    };
    run(format, &values(&op(), rest, 80));
});

fuzz_mutator!(|bytes: &mut [u8], size: usize, _room: usize, seed: u32| {
    mutate(bytes, size, 1, seed)
});

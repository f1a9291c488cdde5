// SPDX-License-Identifier: GPL-2.0

//! The model's walk of guest tables and the CPU's agree: on the address or the fault, and on every accessed and dirty flag.

use crate::prelude::*;
use crate::walk::corpus;

pub const TEST: Test = Test::new(120, run);

fn run(t: &Context) -> Outcome {
    corpus::check(t, &t.device()?, 4)
}

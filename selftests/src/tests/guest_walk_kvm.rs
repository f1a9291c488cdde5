// SPDX-License-Identifier: GPL-2.0

//! The same on KVM, whose guests may have features that rusthv does not offer: what differs here is not rusthv's doing.

use crate::prelude::*;
use crate::walk::corpus;

pub const TEST: Test = Test::new(120, run);

fn run(t: &Context) -> Outcome {
    t.nested()?;
    corpus::check(t, &t.reference()?, 5)
}

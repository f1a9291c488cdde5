// SPDX-License-Identifier: GPL-2.0

//! KVM_GET_API_VERSION answers 12, and refuses an argument.

use crate::ioctl::KVM_GET_API_VERSION;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    check_eq!(device.ioctl(KVM_GET_API_VERSION, 0), Ok(12));
    check_err!(device.ioctl(KVM_GET_API_VERSION, 1), EINVAL);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! The same steps on KVM and on the device under test, and every result compared.

use crate::device::Device;
use crate::harness::{Context, Outcome};
use crate::{check, check_eq, fail};

/// What a scenario saw, one line per step.
#[derive(Default)]
pub struct Log(Vec<String>);

impl Log {
    pub fn line(&mut self, line: String) {
        self.0.push(line);
    }
}

/// Adds a line to a log.
#[macro_export]
macro_rules! note {
    ($log:expr, $($line:tt)+) => { $log.line(format!($($line)+)) };
}

/// Runs `scenario` on KVM, then on the device under test, and compares their logs.
pub fn compare(t: &Context, scenario: impl Fn(&Device, &mut Log) -> Outcome) -> Outcome {
    let reference = t.reference()?;
    let device = t.device()?;
    let (mut expected, mut actual) = (Log::default(), Log::default());
    scenario(&reference, &mut expected)?;
    scenario(&device, &mut actual)?;
    check!(!expected.0.is_empty(), "the scenario noted nothing");
    for (index, (expected, actual)) in expected.0.iter().zip(&actual.0).enumerate() {
        if expected != actual {
            fail!("step {index}:\n  KVM:  {expected}\n  here: {actual}");
        }
    }
    check_eq!(actual.0.len(), expected.0.len(), "number of steps");
    Ok(())
}

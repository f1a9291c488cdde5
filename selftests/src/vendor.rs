// SPDX-License-Identifier: GPL-2.0

//! Whose processor it is: what virtualization tells user space of the hardware differs.

use crate::host;
use std::fs;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// VT-x.
    Intel,
    /// AMD-V.
    Amd,
}

/// From /proc/cpuinfo: which of the two this processor has.
pub fn vendor() -> Vendor {
    vendor_of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn vendor_of(cpuinfo: &str) -> Vendor {
    if host::lists_flag(cpuinfo, "svm") {
        Vendor::Amd
    } else {
        Vendor::Intel
    }
}

#[cfg(test)]
mod tests {
    use super::{vendor_of, Vendor};

    #[test]
    fn vendors() {
        assert_eq!(vendor_of("processor : 0\nflags\t\t: fpu vme svm\n"), Vendor::Amd);
        assert_eq!(vendor_of("processor : 0\nflags\t\t: fpu vmx\nbugs : svm\n"), Vendor::Intel);
    }
}

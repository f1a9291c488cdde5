// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_GET_INFO names the processor's features, each either present or missing, nested tables among the present.

use crate::prelude::*;
use crate::rusthv::*;
use crate::vendor::{vendor, Vendor};

pub const TEST: Test = Test::new(10, run);

const KNOWN: u64 = (1 << 22) - 1;
const EPT: u64 = 1 << 0;
const NPT: u64 = 1 << 16;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    check_eq!(device.check_extension(RUSTHV_CAP_EXTENSIONS), Ok(RUSTHV_EXTENSIONS_VERSION));
    let info = device.info()?;
    check_eq!(info.present & info.missing, 0, "both present and missing");
    check_eq!((info.present | info.missing) & !KNOWN, 0, "without a name");
    let (tables, revision) = match vendor() {
        Vendor::Amd => (NPT, 1..=u32::MAX),
        Vendor::Intel => (EPT, 1..=u32::MAX >> 1),
    };
    check!(info.present & tables != 0, "nested tables are {info:x?}");
    check!(revision.contains(&info.revision), "{info:x?}");
    check!((36..=52).contains(&info.phys_bits), "{info:x?}");
    check_eq!(info.reserved, [0; 5]);
    check_eq!(device.info()?, info, "asked again");
    check_err!(device.ioctl(RUSTHV_GET_INFO, 0), EFAULT);
    Ok(())
}

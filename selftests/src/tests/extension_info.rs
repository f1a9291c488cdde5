// SPDX-License-Identifier: GPL-2.0

//! RUSTHV_GET_INFO names the processor's features, each either present or missing, EPT among the present.

use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(10, run);

const KNOWN: u64 = (1 << 19) - 1;
const EPT: u64 = 1 << 0;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    check_eq!(device.check_extension(RUSTHV_CAP_EXTENSIONS), Ok(RUSTHV_EXTENSIONS_VERSION));
    let info = device.info()?;
    check_eq!(info.present & info.missing, 0, "both present and missing");
    check_eq!((info.present | info.missing) & !KNOWN, 0, "without a name");
    check!(info.present & EPT != 0, "EPT is {info:x?}");
    check!(info.revision != 0 && info.revision >> 31 == 0, "{info:x?}");
    check!((36..=52).contains(&info.phys_bits), "{info:x?}");
    check_eq!(info.reserved, [0; 5]);
    check_eq!(device.info()?, info, "asked again");
    check_err!(device.ioctl(RUSTHV_GET_INFO, 0), EFAULT);
    Ok(())
}

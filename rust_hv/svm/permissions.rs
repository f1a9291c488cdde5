// SPDX-License-Identifier: GPL-2.0

//! Which MSRs and ports guests reach without an exit (APM Vol. 2, "MSR Intercepts" and
//! "Instruction Intercepts, I/O Permissions Map").

use crate::host::frame::Frames;
use crate::model::arch::addr::Hpa;
use kernel::prelude::*;

/// MSRs that guests read and write without an exit: VMLOAD and VMSAVE switch them.
const PASSTHROUGH: [u32; 6] = [
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// The MSRs that each 2 KiB of the map are about; the last 2 KiB are reserved.
const RANGES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
const RANGE_BYTES: usize = 2048;
const RANGE_MSRS: u32 = 8192;

/// 8 KiB.
const MSR_ORDER: u32 = 1;
/// 12 KiB: a bit for each port, and a few for accesses that run past the last one.
const IO_ORDER: u32 = 2;

/// Byte and lowest bit for an MSR, of the two that it has: reads, and writes.
fn place(msr: u32) -> Option<(usize, u32)> {
    let (range, first) = RANGES
        .iter()
        .enumerate()
        .find(|(_, &first)| (first..first + RANGE_MSRS).contains(&msr))?;
    let index = msr - first;
    Some((range * RANGE_BYTES + index as usize / 4, index % 4 * 2))
}

/// The maps that all guests share.
pub struct Permissions {
    msrs: Frames,
    ports: Frames,
}

impl Permissions {
    /// Every port exits, and every MSR but [`PASSTHROUGH`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(node: i32) -> Result<Self> {
        let mut msrs = Frames::new(node, MSR_ORDER)?;
        let bits = msrs.bytes_mut();
        bits.fill(0xff);
        for msr in PASSTHROUGH {
            if let Some((byte, bit)) = place(msr) {
                if let Some(byte) = bits.get_mut(byte) {
                    *byte &= !(0b11 << bit);
                }
            }
        }
        let mut ports = Frames::new(node, IO_ORDER)?;
        ports.bytes_mut().fill(0xff);
        Ok(Self { msrs, ports })
    }

    /// Address of the map of MSRs.
    pub(super) fn msrs(&self) -> Hpa {
        self.msrs.hpa()
    }

    /// Address of the map of ports.
    pub(super) fn ports(&self) -> Hpa {
        self.ports.hpa()
    }
}

#[kunit_tests(rusthv_permissions)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;

    /// Two bits for each of the three ranges, bit by bit.
    #[test]
    fn map_lets_through_what_is_listed() -> Result {
        const BOTH: [u32; 6] = [0x174, 0x175, 0x176, 0xc000_0100, 0xc000_0101, 0xc000_0102];
        let mut maps = Permissions::new(current_node())?;
        let bits = maps.msrs.bytes_mut();
        assert_eq!(bits.len(), 8192);
        let mut wrong = 0;
        for (quarter, bytes) in bits.chunks(2048).enumerate() {
            let first = match quarter {
                0 => Some(0u32),
                1 => Some(0xc000_0000),
                2 => Some(0xc001_0000),
                _ => None,
            };
            for index in 0..8192u32 {
                let byte = bytes.get(index as usize / 4).copied().unwrap_or(0);
                let found = byte >> (index % 4 * 2) & 3;
                let free = first.is_some_and(|first| BOTH.contains(&(first + index)));
                wrong += u32::from(found != if free { 0 } else { 3 });
            }
        }
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn places_are_the_manuals() {
        assert_eq!(place(0x10), Some((4, 0)));
        assert_eq!(place(0x1fff), Some((0x7ff, 6)));
        assert_eq!(place(0x2000), None);
        assert_eq!(place(0xc000_0082), Some((0x800 + 0x20, 4)));
        assert_eq!(place(0xc001_0114), Some((0x1000 + 0x45, 0)));
        assert_eq!(place(0xffff_ffff), None);
    }

    #[test]
    fn every_port_exits() -> Result {
        let mut maps = Permissions::new(current_node())?;
        let bits = maps.ports.bytes_mut();
        assert!(bits.len() >= 3 * 4096);
        assert!(bits.iter().all(|&byte| byte == 0xff));
        Ok(())
    }
}

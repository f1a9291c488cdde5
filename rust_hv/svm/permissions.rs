// SPDX-License-Identifier: GPL-2.0

//! Which MSRs and ports guests reach without an exit (APM Vol. 2, "MSR Intercepts" and
//! "Instruction Intercepts, I/O Permissions Map").

use crate::host::frame::Frames;
use crate::model::arch::addr::Hpa;
use crate::model::arch::intercept::{Intercepted, Numbers, PORTS, SWITCHED};
use crate::vendor;
use kernel::prelude::*;

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

/// Sets or clears bits of a byte.
fn put(bytes: &mut [u8], index: usize, bits: u8, value: bool) {
    if let Some(byte) = bytes.get_mut(index) {
        *byte = if value { *byte | bits } else { *byte & !bits };
    }
}

/// What exits: of all guests, or of those of one VM.
pub struct Permissions {
    msrs: Frames,
    ports: Frames,
}

impl Permissions {
    /// Every port exits, and every MSR but those that VMLOAD and VMSAVE switch.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(node: i32) -> Result<Self> {
        let mut maps = Self {
            msrs: Frames::new(node, MSR_ORDER)?,
            ports: Frames::new(node, IO_ORDER)?,
        };
        maps.msrs.bytes_mut().fill(0xff);
        maps.ports.bytes_mut().fill(0xff);
        for msr in SWITCHED {
            maps.put_msr(msr, false, false);
            maps.put_msr(msr, true, false);
        }
        Ok(maps)
    }

    /// Two bits for each MSR: reads, then writes.
    fn put_msr(&mut self, number: u32, write: bool, exits: bool) {
        let Some((byte, bit)) = place(number) else {
            return;
        };
        put(
            self.msrs.bytes_mut(),
            byte,
            1 << (bit + u32::from(write)),
            exits,
        );
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

impl vendor::Intercepts for Permissions {
    fn set(&mut self, what: Intercepted, numbers: Numbers, exits: bool) -> Result {
        let write = match what {
            Intercepted::Port if numbers.are_in(0, PORTS) => {
                for port in numbers.iter() {
                    let (byte, bit) = (port as usize / 8, port % 8);
                    put(self.ports.bytes_mut(), byte, 1 << bit, exits);
                }
                return Ok(());
            }
            Intercepted::Port => return Err(EINVAL),
            Intercepted::MsrRead => false,
            Intercepted::MsrWrite => true,
        };
        // Others exit, whatever the map says.
        let mapped = |&first: &u32| numbers.are_in(first, RANGE_MSRS);
        if !RANGES.iter().any(mapped) {
            return Err(EINVAL);
        }
        for number in numbers.iter() {
            self.put_msr(number, write, exits);
        }
        Ok(())
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

    /// At the edges of the ranges, and nothing beside them.
    #[test]
    fn msrs_and_ports_are_set_one_by_one() -> Result {
        use crate::vendor::Intercepts as _;
        let (usual, mut own) = (
            Permissions::new(current_node())?,
            Permissions::new(current_node())?,
        );
        let mut usual = usual;
        let one = |number| Numbers::new(number, 1).ok_or(EINVAL);
        for number in [0, 0x1fff, 0xc000_0000, 0xc001_1fff] {
            own.set(Intercepted::MsrRead, one(number)?, false)?;
        }
        own.set(Intercepted::MsrWrite, one(0x174)?, true)?;
        // Byte and bit by the manual: two bits for an MSR, 2 KiB for a range.
        let changed = [(0, 0), (0x7ff, 6), (0x800, 0), (0x17ff, 6), (0x5d, 1)];
        for (byte, bit) in changed {
            put(
                usual.msrs.bytes_mut(),
                byte,
                1 << bit,
                (byte, bit) == (0x5d, 1),
            );
        }
        assert!(own.msrs.bytes_mut() == usual.msrs.bytes_mut());
        for port in [0, 0x7fff, 0x8000, 0xffff] {
            own.set(Intercepted::Port, one(port)?, false)?;
            put(
                usual.ports.bytes_mut(),
                port as usize / 8,
                1 << (port % 8),
                false,
            );
        }
        assert!(own.ports.bytes_mut() == usual.ports.bytes_mut());
        for (what, first, count) in [
            (Intercepted::Port, 0xffff, 2),
            (Intercepted::MsrRead, 0x1fff, 2),
            (Intercepted::MsrWrite, 0x2000, 1),
            (Intercepted::MsrRead, 0xc001_1fff, 2),
        ] {
            let numbers = Numbers::new(first, count).ok_or(EINVAL)?;
            assert_eq!(own.set(what, numbers, false).err(), Some(EINVAL));
        }
        assert!(own.msrs.bytes_mut() == usual.msrs.bytes_mut());
        assert!(own.ports.bytes_mut() == usual.ports.bytes_mut());
        Ok(())
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

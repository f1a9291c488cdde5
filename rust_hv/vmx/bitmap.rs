// SPDX-License-Identifier: GPL-2.0

//! Which ports and MSRs guests reach without an exit (SDM Vol. 3C, "I/O-Bitmap Addresses" and
//! "MSR-Bitmap Address").

use crate::host::errno::unsupported;
use crate::host::frame::{Frame, Place};
use crate::model::arch::addr::Hpa;
use crate::model::arch::intercept::{Intercepted, Numbers, PORTS, SWITCHED};
use crate::model::arch::msr;
use crate::vendor;
use kernel::prelude::*;

/// MSRs in each half of a bitmap.
const MSRS: u32 = 0x2000;
const HIGH: u32 = 0xc000_0000;
/// Bytes for as many.
const QUARTER: usize = MSRS as usize / 8;

/// Sets or clears a bit.
fn put(bytes: &mut [u8], index: usize, value: bool) {
    if let Some(byte) = bytes.get_mut(index / 8) {
        let bit = 1 << (index % 8);
        *byte = if value { *byte | bit } else { *byte & !bit };
    }
}

/// A bitmap of MSRs.
pub struct MsrBitmap(Frame);

impl MsrBitmap {
    /// Everything exits but what is switched with the guest, and reads of the TSC, to which the
    /// offset applies.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(place: impl Into<Place>) -> Result<Self> {
        let mut bitmap = Self(Frame::new(place)?);
        bitmap.0.bytes_mut().fill(0xff);
        for number in SWITCHED {
            bitmap.set(number, false, false);
            bitmap.set(number, true, false);
        }
        bitmap.set(msr::TSC, false, false);
        Ok(bitmap)
    }

    /// Reads of low and high MSRs, then writes of both.
    fn set(&mut self, number: u32, write: bool, exits: bool) {
        let quarter = usize::from(number >= HIGH) + 2 * usize::from(write);
        let index = (number % MSRS) as usize;
        put(self.0.bytes_mut(), quarter * QUARTER * 8 + index, exits);
    }

    /// Its address, for the VMCS.
    pub(super) fn hpa(&self) -> Hpa {
        self.0.hpa()
    }
}

/// What exits of the guests of one VM.
pub struct Intercepts {
    pub(super) msrs: MsrBitmap,
    /// Ports below 0x8000, and the others; where the CPU has bitmaps for them.
    pub(super) ports: Option<[Frame; 2]>,
}

impl Intercepts {
    /// As for all guests: every port exits, and every MSR but a few.
    pub(super) fn new(place: Place, ports: bool) -> Result<Self> {
        let full = || -> Result<Frame> {
            let mut frame = Frame::new(place)?;
            frame.bytes_mut().fill(0xff);
            Ok(frame)
        };
        Ok(Self {
            msrs: MsrBitmap::new(place)?,
            ports: match ports {
                true => Some([full()?, full()?]),
                false => None,
            },
        })
    }
}

impl vendor::Intercepts for Intercepts {
    fn set(&mut self, what: Intercepted, numbers: Numbers, exits: bool) -> Result {
        let write = match what {
            Intercepted::Port => return self.set_ports(numbers, exits),
            Intercepted::MsrRead => false,
            Intercepted::MsrWrite => true,
        };
        // Others exit, whatever the bitmap says.
        if !numbers.are_in(0, MSRS) && !numbers.are_in(HIGH, MSRS) {
            return Err(EINVAL);
        }
        for number in numbers.iter() {
            self.msrs.set(number, write, exits);
        }
        Ok(())
    }
}

impl Intercepts {
    fn set_ports(&mut self, numbers: Numbers, exits: bool) -> Result {
        if !numbers.are_in(0, PORTS) {
            return Err(EINVAL);
        }
        let [low, high] = self.ports.as_mut().ok_or_else(unsupported)?;
        let half = PORTS / 2;
        for port in numbers.iter() {
            let frame = if port < half { &mut *low } else { &mut *high };
            put(frame.bytes_mut(), (port % half) as usize, exits);
        }
        Ok(())
    }
}

#[kunit_tests(rusthv_bitmap)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;
    use crate::vendor::Intercepts as _;

    const BOTH: [u32; 6] = [0x174, 0x175, 0x176, 0xc000_0100, 0xc000_0101, 0xc000_0102];

    fn bit(bytes: &[u8], index: u32) -> bool {
        bytes.get(index as usize / 8).copied().unwrap_or(0) >> (index % 8) & 1 != 0
    }

    /// Reads of low and high MSRs, then writes of both, bit by bit: how many are not as `exits` says.
    fn wrong(bitmap: &mut MsrBitmap, exits: impl Fn(u32, bool) -> bool) -> u32 {
        let mut wrong = 0;
        for (quarter, bytes) in bitmap.0.bytes_mut().chunks(1024).enumerate() {
            let first = if quarter % 2 == 0 { 0 } else { 0xc000_0000 };
            let write = quarter >= 2;
            for index in 0..8192u32 {
                wrong += u32::from(bit(bytes, index) != exits(first + index, write));
            }
        }
        wrong
    }

    #[test]
    fn bitmap_lets_through_what_is_listed() -> Result {
        const TSC: u32 = 0x10;
        let mut bitmap = MsrBitmap::new(current_node())?;
        let usual = |msr, write| !BOTH.contains(&msr) && (msr != TSC || write);
        assert_eq!(wrong(&mut bitmap, usual), 0);
        Ok(())
    }

    /// At the edges of the two ranges, and nothing beside them.
    #[test]
    fn msrs_are_set_one_by_one() -> Result {
        let mut own = Intercepts::new(current_node().into(), true)?;
        let one = |number| Numbers::new(number, 1).ok_or(EINVAL);
        let edges = [0, 0x1fff, 0xc000_0000, 0xc000_1fff];
        for number in edges {
            own.set(Intercepted::MsrRead, one(number)?, false)?;
        }
        own.set(Intercepted::MsrWrite, one(0x174)?, true)?;
        let expected = |msr, write| match (msr, write) {
            (0x174, true) => true,
            (0x10, false) => false,
            (msr, false) if edges.contains(&msr) => false,
            (msr, _) => !BOTH.contains(&msr),
        };
        assert_eq!(wrong(&mut own.msrs, expected), 0);
        for (first, count) in [(0x2000, 1), (0x1fff, 2), (0xbfff_ffff, 2), (0xc000_1fff, 2)] {
            let numbers = Numbers::new(first, count).ok_or(EINVAL)?;
            let refused = own.set(Intercepted::MsrRead, numbers, false).err();
            assert_eq!(refused, Some(EINVAL));
        }
        assert_eq!(wrong(&mut own.msrs, expected), 0);
        Ok(())
    }

    #[test]
    fn ports_are_set_one_by_one() -> Result {
        let mut own = Intercepts::new(current_node().into(), true)?;
        let passed = [0, 0x7fff, 0x8000, 0xffff];
        for port in passed {
            let numbers = Numbers::new(port, 1).ok_or(EINVAL)?;
            own.set(Intercepted::Port, numbers, false)?;
        }
        let mut wrong = 0;
        for (half, frame) in own.ports.iter_mut().flatten().enumerate() {
            for index in 0..0x8000u32 {
                let port = half as u32 * 0x8000 + index;
                wrong += u32::from(bit(frame.bytes_mut(), index) == passed.contains(&port));
            }
        }
        assert_eq!(wrong, 0);
        let beyond = Numbers::new(0xffff, 2).ok_or(EINVAL)?;
        let refused = own.set(Intercepted::Port, beyond, false).err();
        assert_eq!(refused, Some(EINVAL));
        let mut none = Intercepts::new(current_node().into(), false)?;
        let port = Numbers::new(0, 1).ok_or(EINVAL)?;
        assert_eq!(
            none.set(Intercepted::Port, port, false).err(),
            Some(unsupported())
        );
        Ok(())
    }
}

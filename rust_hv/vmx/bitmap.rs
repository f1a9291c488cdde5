// SPDX-License-Identifier: GPL-2.0

//! Which MSRs guests reach without an exit (SDM Vol. 3C, "MSR-Bitmap Address").

use crate::host::frame::Frame;
use crate::model::arch::addr::Hpa;
use kernel::prelude::*;

/// MSRs that guests read and write without an exit: those that VMCS or the host switch hold.
const PASSTHROUGH: [u32; 6] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xc000_0100, // IA32_FS_BASE
    0xc000_0101, // IA32_GS_BASE
    0xc000_0102, // IA32_KERNEL_GS_BASE
];
/// IA32_TIME_STAMP_COUNTER, which guests read without an exit: the TSC offset applies.
const READABLE: u32 = 0x10;

/// The MSR bitmap that all guests share.
pub struct MsrBitmap(Frame);

impl MsrBitmap {
    /// Everything exits but [`PASSTHROUGH`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(node: i32) -> Result<Self> {
        let mut frame = Frame::new(node)?;
        let bits = frame.bytes_mut();
        bits.fill(0xff);
        // SDM Vol. 3C, "MSR-Bitmap Address": reads of low and high MSRs, then writes of both.
        let mut clear = |quarter: usize, msr: u32| {
            let bit = (msr & 0x1fff) as usize;
            if let Some(byte) = bits.get_mut(quarter * 1024 + bit / 8) {
                *byte &= !(1 << (bit % 8));
            }
        };
        for msr in PASSTHROUGH {
            let high = usize::from(msr >= 0xc000_0000);
            clear(high, msr);
            clear(2 + high, msr);
        }
        clear(0, READABLE);
        Ok(Self(frame))
    }

    /// Its address, for the VMCS.
    pub(super) fn hpa(&self) -> Hpa {
        self.0.hpa()
    }
}

#[kunit_tests(rusthv_bitmap)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;

    /// Reads of low and high MSRs, then writes of both, bit by bit.
    #[test]
    fn bitmap_lets_through_what_is_listed() -> Result {
        const BOTH: [u32; 6] = [0x174, 0x175, 0x176, 0xc000_0100, 0xc000_0101, 0xc000_0102];
        const TSC: u32 = 0x10;
        let mut bitmap = MsrBitmap::new(current_node())?;
        let bits = bitmap.0.bytes_mut();
        let mut wrong = 0;
        for (quarter, bytes) in bits.chunks(1024).enumerate() {
            let first = if quarter % 2 == 0 { 0 } else { 0xc000_0000 };
            let write = quarter >= 2;
            for index in 0..8192u32 {
                let byte = bytes.get(index as usize / 8).copied().unwrap_or(0);
                let exits = byte >> (index % 8) & 1 != 0;
                let msr = first + index;
                let free = BOTH.contains(&msr) || (msr == TSC && !write);
                wrong += u32::from(exits == free);
            }
        }
        assert_eq!(wrong, 0);
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Digests, by the kernel's own code.

use super::bindings;
use core::mem::MaybeUninit;
use kernel::prelude::*;

/// SHA-256 (FIPS 180-4) of bytes that come piece by piece.
pub struct Sha256 {
    context: bindings::sha256_ctx,
}

impl Sha256 {
    /// Bytes of a digest.
    pub const SIZE: usize = 32;

    /// Of nothing yet.
    pub fn new() -> Self {
        let mut context = MaybeUninit::uninit();
        // SAFETY: There is room for a context, which the call initializes.
        unsafe { bindings::sha256_init(context.as_mut_ptr()) };
        Self {
            // SAFETY: Just initialized.
            context: unsafe { context.assume_init() },
        }
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        // SAFETY: The context is initialized; so many bytes can be read.
        unsafe { bindings::__sha256_update(&mut self.context.ctx, bytes.as_ptr(), bytes.len()) };
    }

    /// The digest of all of them.
    pub fn finish(mut self) -> [u8; Self::SIZE] {
        let mut digest = [0; Self::SIZE];
        // SAFETY: The context is initialized; there is room for a digest.
        unsafe { bindings::sha256_final(&mut self.context, digest.as_mut_ptr()) };
        digest
    }
}

#[kunit_tests(rusthv_digest)]
mod tests {
    use super::*;

    /// The example of FIPS 180-4, in pieces.
    #[test]
    fn known_answer() {
        let wanted = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae,
            0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61,
            0xf2, 0x00, 0x15, 0xad,
        ];
        let mut digest = Sha256::new();
        digest.update(b"a");
        digest.update(b"");
        digest.update(b"bc");
        assert_eq!(digest.finish(), wanted);
    }
}

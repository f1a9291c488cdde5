// SPDX-License-Identifier: GPL-2.0
//! Numbers that look random and are the same in every run, and sums that show what was read.

/// Mixes 32 bits so that each of them depends on all.
pub fn mix(value: u32) -> u32 {
    let mut x = value;
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// What belongs at a place, given who writes there.
pub fn word(who: u32, place: u32) -> u32 {
    mix(who.wrapping_mul(0x9e37_79b9) ^ mix(place))
}

/// A checksum that depends on the order.
#[derive(Clone, Copy, Default)]
pub struct Sum(pub u64);

impl Sum {
    pub fn add(&mut self, value: impl Into<u64>) {
        self.0 = (self.0.rotate_left(7) ^ value.into()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

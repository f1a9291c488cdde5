// SPDX-License-Identifier: GPL-2.0

//! Counters as a file: KVM's binary statistics (KVM API section 4.133, "KVM_GET_STATS_FD").
//!
//! A header says where the rest is: an identification, a descriptor for each counter, and the
//! counters, which alone change from one read to the next.

/// Bytes of a name, its terminating zero included; of the identification, too.
pub const NAME_SIZE: usize = 48;
/// Bytes of the header.
pub const HEADER: usize = 24;
/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 16 + NAME_SIZE;

/// How a counter behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows.
    Cumulative,
    /// It says how much there is now.
    Instant,
}

/// A counter: its name, which is at most [`NAME_SIZE`] - 1 bytes long, how it behaves, its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat(pub &'static str, pub Kind, pub u64);

/// Hands the file to `out`, piece by piece.
///
/// # Errors
///
/// That of `out`.
pub fn write<E>(
    id: &[u8],
    stats: &[Stat],
    mut out: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let descriptors = HEADER + NAME_SIZE;
    let data = descriptors.saturating_add(stats.len().saturating_mul(DESCRIPTOR));
    for word in [
        // Flags: none are defined.
        0,
        NAME_SIZE,
        stats.len(),
        HEADER,
        descriptors,
        data,
    ] {
        out(&(word as u32).to_le_bytes())?;
    }
    out(&name(id))?;
    for (offset, Stat(text, kind, _)) in (0u32..).step_by(8).zip(stats) {
        // Type in bits 3:0; no unit, to the power of 0.
        let flags: u32 = match kind {
            Kind::Cumulative => 0,
            Kind::Instant => 1,
        };
        out(&flags.to_le_bytes())?;
        // Exponent 0; one value.
        out(&[0, 0, 1, 0])?;
        out(&offset.to_le_bytes())?;
        // Size of a histogram's bucket: none is one.
        out(&0u32.to_le_bytes())?;
        out(&name(text.as_bytes()))?;
    }
    stats
        .iter()
        .try_for_each(|Stat(_, _, value)| out(&value.to_le_bytes()))
}

/// A name with zeros behind it, cut off where it is too long.
fn name(text: &[u8]) -> [u8; NAME_SIZE] {
    let mut name = [0; NAME_SIZE];
    for (to, from) in name.iter_mut().take(NAME_SIZE - 1).zip(text) {
        *to = *from;
    }
    name
}

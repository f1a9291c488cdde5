// SPDX-License-Identifier: GPL-2.0

//! Bytes of libFuzzer's as values of proptest's strategies.
//!
//! The programs (`src/bin/`) are built for libFuzzer alone, by `tools/lib/modelfuzz.py`, which also
//! says how the compiler is to count branches. Each takes the strategies, and what is done with their
//! values, from a file of the model's tests: what those do at random, libFuzzer does with an eye on
//! what it has not seen yet.
//!
//! Four bytes are the seed of one value. So what libFuzzer has found out about an operation stays
//! true when others are put before it or taken out; [`mutate`] does that.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Bytes that make a value.
const SEED: usize = 4;

/// Another number for each number, far away.
fn mix(number: u64) -> u64 {
    let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The value that some bytes, the first four, make; `None` if the strategy has rejected too many.
pub fn value<S: Strategy>(strategy: &S, bytes: &[u8]) -> Option<S::Value> {
    let number = bytes
        .iter()
        .take(SEED)
        .fold(1, |number, byte| number << 8 | u64::from(*byte));
    let seed = u128::from(mix(number)) << 64 | u128::from(mix(!number));
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed.to_le_bytes());
    let tree = strategy.new_tree(&mut TestRunner::new_with_rng(config, rng));
    Some(tree.ok()?.current())
}

/// A value for each four bytes, but not more than `most`.
pub fn values<S: Strategy>(strategy: &S, bytes: &[u8], most: usize) -> Vec<S::Value> {
    bytes
        .chunks_exact(SEED)
        .take(most)
        .filter_map(|seed| value(strategy, seed))
        .collect()
}

/// Changes the values behind a header of `header` bytes as a whole: one comes, goes, moves or becomes
/// another. What is left to do for libFuzzer is the rest, which is half of the time.
///
/// Returns the new size; `bytes` has room for more than the first `size`.
pub fn mutate(bytes: &mut [u8], size: usize, header: usize, seed: u32) -> usize {
    let noise = mix(u64::from(seed));
    let count = size.saturating_sub(header) / SEED;
    let place = |number: u64| header + number as usize % count.max(1) * SEED;
    let (at, from) = (place(noise >> 8), place(noise >> 24));
    let fresh = (mix(noise) as u32).to_le_bytes();
    let end = header + count * SEED;
    match noise % 8 {
        0 if end + SEED <= bytes.len() && size >= header => {
            bytes.copy_within(at..end, at + SEED);
            bytes[at..at + SEED].copy_from_slice(&fresh);
            end + SEED
        }
        1 if count > 1 => {
            bytes.copy_within(at + SEED..end, at);
            end - SEED
        }
        2 if count > 0 => {
            bytes[at..at + SEED].copy_from_slice(&fresh);
            end
        }
        3 if count > 0 => {
            bytes.copy_within(from..from + SEED, at);
            end
        }
        _ => libfuzzer_sys::fuzzer_mutate(bytes, size, bytes.len()),
    }
}

// SPDX-License-Identifier: GPL-2.0

//! How often a VM's translations were flushed, by what the CPU was told to forget.

use kernel::sync::atomic::{ordering::Relaxed, Atomic};

/// What a flush makes a CPU forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushKind {
    /// One linear address of a vCPU's: INVVPID of an individual address, INVLPGA.
    Address,
    /// All linear addresses of a vCPU's, by its tag: INVVPID of a single context, or VMRUN of an
    /// ASID, which takes what came from nested tables along.
    Tag,
    /// Those of all tags: VMRUN of everything.
    AllTags,
    /// What came from one set of nested tables: INVEPT of a single context.
    Nested,
    /// What came from any nested tables: INVEPT of all contexts.
    AllNested,
}

/// Kinds of flushes.
pub const KINDS: usize = 5;

/// Counts for one VM. All its vCPUs count here: a flush costs so much more than an atomic addition
/// that sharing is no matter.
pub struct Flushes([Atomic<u64>; KINDS]);

impl Flushes {
    /// None yet.
    pub const fn new() -> Self {
        Self([const { Atomic::new(0) }; KINDS])
    }

    /// One more.
    #[inline]
    pub fn count(&self, kind: FlushKind) {
        let [address, tag, all_tags, nested, all_nested] = &self.0;
        let counter = match kind {
            FlushKind::Address => address,
            FlushKind::Tag => tag,
            FlushKind::AllTags => all_tags,
            FlushKind::Nested => nested,
            FlushKind::AllNested => all_nested,
        };
        counter.add(1, Relaxed);
    }

    /// All of them, in the order of [`FlushKind`].
    pub fn read(&self) -> [u64; KINDS] {
        let mut counts = [0; KINDS];
        for (to, from) in counts.iter_mut().zip(&self.0) {
            *to = from.load(Relaxed);
        }
        counts
    }
}

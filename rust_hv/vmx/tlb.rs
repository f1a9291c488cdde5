// SPDX-License-Identifier: GPL-2.0

//! Translations that the CPU caches: VPID numbers, and their invalidation.
//!
//! Tagging (SDM Vol. 3C, "Caching Translation Information"): combined mappings carry VPID and EPT
//! pointer, guest-physical ones the EPT pointer. A change of EPT entries is answered by INVEPT; a
//! vCPU that comes to another CPU, where it may have left translations, by INVVPID.

use super::caps::Caps;
use super::instr::{self, InveptKind, InvvpidKind};
use crate::host::cpu::IrqsOff;
use crate::model::arch::addr::Gva;
use crate::vendor::flush::FlushKind;
use crate::vendor::HwError;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};

const WORDS: usize = 1 << 10;

/// One bit per VPID in use, from the highest number down; VPID 0 is the host's and never given out.
/// `kvm_intel` counts from 1 up: where neither nests its paging, nothing but the VPID tells its guests'
/// translations from ours.
static USED: [Atomic<u64>; WORDS] = [const { Atomic::new(0) }; WORDS];

/// The word where the last one was found: those before it are likely full.
static HINT: Atomic<usize> = Atomic::new(0);

/// A VPID of a vCPU's own, given back on drop.
pub struct Vpid(u16);

impl Vpid {
    /// An unused VPID. `None` when all 65,535 are in use: the vCPU then runs without, and every
    /// entry and exit flushes its translations.
    pub fn new() -> Option<Self> {
        let first = HINT.load(Relaxed);
        for step in 0..WORDS {
            let index = (first + step) % WORDS;
            let Some(word) = USED.get(index) else { break };
            // The last one is 0.
            let reserved = u64::from(index == WORDS - 1) << 63;
            let mut used = word.load(Relaxed);
            loop {
                let free = !(used | reserved);
                if free == 0 {
                    break;
                }
                let bit = free.trailing_zeros();
                match word.cmpxchg(used, used | 1 << bit, Relaxed) {
                    Ok(_) => {
                        HINT.store(index, Relaxed);
                        return Some(Self(!((index as u32 * 64 + bit) as u16)));
                    }
                    Err(now) => used = now,
                }
            }
        }
        None
    }

    /// The number, not 0.
    #[inline]
    pub fn number(&self) -> u16 {
        self.0
    }

    /// Forgets this VPID's linear and combined mappings on this CPU.
    pub fn flush(&self, irqs: &IrqsOff) -> Result<(), HwError> {
        flush_vpid(irqs, self.0)
    }
}

/// Forgets linear and combined mappings of a VPID on this CPU.
pub(super) fn flush_vpid(_irqs: &IrqsOff, vpid: u16) -> Result<(), HwError> {
    instr::invvpid(InvvpidKind::SingleContext, vpid, Gva::new(0))
}

/// True for addresses that are canonical whatever the paging.
fn is_canonical(address: Gva) -> bool {
    let high = address.raw() as i64 >> 47;
    high == 0 || high == -1
}

/// Forgets the mappings of one linear address of a VPID on this CPU, and on CPUs that cannot do that
/// all of them; tells which.
pub(super) fn flush_address(
    caps: &Caps,
    irqs: &IrqsOff,
    vpid: u16,
    address: Gva,
) -> Result<FlushKind, HwError> {
    // An address that none can be cached for is an error to the instruction.
    if caps.invvpid_kinds & 1 != 0 && is_canonical(address) {
        instr::invvpid(InvvpidKind::Address, vpid, address)?;
        return Ok(FlushKind::Address);
    }
    flush_vpid(irqs, vpid)?;
    Ok(FlushKind::Tag)
}

impl Drop for Vpid {
    fn drop(&mut self) {
        let number = !self.0;
        let Some(word) = USED.get(usize::from(number / 64)) else {
            return;
        };
        let bit = 1u64 << (number % 64);
        let mut used = word.load(Relaxed);
        while let Err(now) = word.cmpxchg(used, used & !bit, Relaxed) {
            used = now;
        }
    }
}

/// Forgets what this CPU has cached of an EPT pointer; tells how.
pub fn flush_ept(caps: &Caps, _irqs: &IrqsOff, eptp: u64) -> Result<FlushKind, HwError> {
    let (kind, counted) = if caps.invept_single {
        (InveptKind::SingleContext, FlushKind::Nested)
    } else {
        (InveptKind::AllContexts, FlushKind::AllNested)
    };
    instr::invept(kind, eptp)?;
    Ok(counted)
}

#[kunit_tests(rusthv_vpid)]
mod tests {
    use super::*;
    use crate::host::task::cond_resched;
    use crate::vmx::vmx_or_skip;

    /// All VPIDs but 0.
    const ALL: usize = 65_535;

    fn in_use() -> usize {
        let ones = |word: &Atomic<u64>| word.load(Relaxed).count_ones() as usize;
        USED.iter().map(ones).sum()
    }

    #[test]
    fn unique_and_not_the_hosts() -> Result {
        let before = in_use();
        let mut seen = KVec::new();
        for _ in 0..200 {
            let vpid = Vpid::new().ok_or(ENOSPC)?;
            assert!(vpid.number() != 0);
            assert!(seen
                .iter()
                .all(|other: &Vpid| other.number() != vpid.number()));
            seen.push(vpid, GFP_KERNEL)?;
        }
        assert_eq!(in_use(), before + 200);
        drop(seen);
        assert_eq!(in_use(), before);
        Ok(())
    }

    #[test]
    fn none_when_all_are_in_use() -> Result {
        let before = in_use();
        let mut taken = KVVec::with_capacity(ALL, GFP_KERNEL)?;
        while let Some(vpid) = Vpid::new() {
            taken.push(vpid, GFP_KERNEL)?;
            if taken.len() % 1024 == 0 {
                cond_resched();
            }
        }
        assert_eq!(taken.len() + before, ALL);
        // One that is given back is the one that comes next.
        let freed = taken.pop().map(|vpid| vpid.number());
        let again = Vpid::new();
        assert!(freed.is_some());
        assert_eq!(again.as_ref().map(Vpid::number), freed);
        assert!(Vpid::new().is_none());
        drop((taken, again));
        assert_eq!(in_use(), before);
        Ok(())
    }

    #[test]
    fn invalidations_succeed() -> Result {
        let caps = &vmx_or_skip!().caps;
        let vpid = Vpid::new().ok_or(ENOSPC)?;
        let irqs = IrqsOff::new();
        let (mut by_vpid, mut by_address) = (Ok(()), Ok(()));
        let kinds = [
            InvvpidKind::Address,
            InvvpidKind::SingleContext,
            InvvpidKind::AllContexts,
        ];
        if caps.has(crate::host::bindings::RUSTHV_FEAT_VPID) {
            by_vpid = vpid.flush(&irqs);
            for address in [0x1234, 0xffff_8000_0000_0000, 1 << 60].map(Gva::new) {
                by_address =
                    by_address.and(flush_address(caps, &irqs, vpid.number(), address).map(|_| ()));
            }
            for (index, kind) in kinds.into_iter().enumerate() {
                if caps.invvpid_kinds >> index & 1 != 0 {
                    by_address = by_address.and(instr::invvpid(kind, vpid.number(), Gva::new(0)));
                }
            }
        }
        // Write-back tables, walk length 4, at some frame that is never walked.
        let by_root = flush_ept(caps, &irqs, 0x1000 | 3 << 3 | 6);
        drop(irqs);
        assert_eq!((by_vpid, by_address), (Ok(()), Ok(())));
        assert!(by_root.is_ok());
        Ok(())
    }
}

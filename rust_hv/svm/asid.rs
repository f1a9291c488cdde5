// SPDX-License-Identifier: GPL-2.0

//! Translations that the CPU caches: address-space identifiers, and flushes (APM Vol. 2, "TLB
//! Control").
//!
//! Each CPU gives out its ASIDs one after the other. When they are used up, all translations of
//! all ASIDs are flushed, and a new generation begins: a vCPU whose ASID is of an old one gets
//! another. So does a vCPU that comes to another CPU, where it may have left translations.
//!
//! An ASID tags guest-linear and nested translations alike, and is one vCPU's: every flush is one
//! of the vCPU's own ASID, at its next entry.
//!
//! Another hypervisor on the same CPU gives out ASIDs of its own accord, the same ones. See
//! `rhv_svm_load` and `rhv_svm_put` (`enter.c`) for what keeps the translations apart.

use super::cpus;
use super::vmcb::tlb_control;
use crate::host::bindings::{self, rhv_svm_cpu};
use crate::host::cpu::IrqsOff;
use crate::model::arch::addr::Gva;
use crate::vendor::{HwError, Visit};
use kernel::prelude::*;

/// The CPU of a vCPU that has not run yet.
const NOWHERE: i32 = -1;
/// Generation of an ASID that is none.
const NONE: u64 = 0;

/// A vCPU's ASID.
#[derive(Debug)]
pub struct Asid {
    /// The CPU on which it is valid.
    cpu: i32,
    generation: u64,
    number: u32,
    /// [`Visit::epoch`] at the vCPU's last visit to the CPU.
    epoch: u64,
    flush: bool,
}

/// What an entry needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// The ASID.
    pub number: u32,
    /// What VMRUN flushes: one of [`tlb_control`].
    pub control: u8,
}

impl Asid {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            cpu: NOWHERE,
            generation: NONE,
            number: 0,
            epoch: 0,
            flush: false,
        }
    }

    /// The vCPU is on this CPU now. True when it was on another one before.
    #[inline]
    pub fn come(&mut self, irqs: &IrqsOff) -> bool {
        let here = irqs.cpu() as i32;
        if self.cpu == here {
            return false;
        }
        self.cpu = here;
        self.generation = NONE;
        true
    }

    /// Forgets one linear address now, if the vCPU can have translations on this CPU at all; tells
    /// whether.
    pub fn flush_address(&self, irqs: &IrqsOff, address: Gva) -> Result<bool, HwError> {
        let valid = cpus::with(irqs, |cpu| self.generation == cpu.generation && cpu.enabled);
        if !valid || self.flush {
            // None, or they go anyway.
            return Ok(false);
        }
        // SAFETY: Dropping translations is always allowed; SVM is on here.
        match unsafe { bindings::rhv_invlpga(address.raw(), self.number) } {
            0 => Ok(true),
            _ => Err(HwError::Fault),
        }
    }

    /// Flushes at the next entry.
    #[inline]
    pub fn flush(&mut self) {
        self.flush = true;
    }

    /// Flushes at the next entry, unless the nested tables are as at the vCPU's last visit. True
    /// when that, or the new ASID that is to come, makes translations go.
    #[inline]
    pub fn follow(&mut self, visit: Visit) -> bool {
        if self.generation != NONE && self.epoch == visit.epoch && !visit.stale {
            return false;
        }
        self.epoch = visit.epoch;
        self.flush = true;
        true
    }

    /// What the entry that comes now needs.
    #[inline]
    pub fn tag(&mut self, irqs: &IrqsOff, asids: u32, flush_by_asid: bool) -> Tag {
        cpus::with(irqs, |cpu| self.tag_on(cpu, asids, flush_by_asid))
    }

    fn tag_on(&mut self, cpu: &mut rhv_svm_cpu, asids: u32, flush_by_asid: bool) -> Tag {
        let stale = self.generation != cpu.generation;
        if stale || (self.flush && !flush_by_asid) {
            if cpu.next_asid >= asids {
                cpu.generation += 1;
                cpu.next_asid = 1;
                cpu.flush_all = true;
            }
            self.number = cpu.next_asid;
            self.generation = cpu.generation;
            cpu.next_asid += 1;
            // Nobody has used it in this generation; but another hypervisor may have.
            self.flush = cpu.previous != 0;
        }
        let control = match self.flush {
            _ if cpu.flush_all => tlb_control::ALL,
            false => tlb_control::NOTHING,
            true if flush_by_asid => tlb_control::ASID,
            true => tlb_control::ALL,
        };
        Tag {
            number: self.number,
            control,
        }
    }

    /// The entry has taken place, and with it the flush.
    #[inline]
    pub fn entered(&mut self, irqs: &IrqsOff) {
        self.flush = false;
        cpus::with(irqs, |cpu| cpu.flush_all = false);
    }
}

#[kunit_tests(rusthv_asid)]
mod tests {
    use super::*;

    const ASIDS: u32 = 4;

    fn cpu() -> rhv_svm_cpu {
        rhv_svm_cpu {
            generation: 1,
            next_asid: 1,
            ..rhv_svm_cpu::default()
        }
    }

    fn asid() -> Asid {
        Asid {
            cpu: 0,
            ..Asid::new()
        }
    }

    fn tag(number: u32, control: u8) -> Tag {
        Tag { number, control }
    }

    #[test]
    fn numbers_are_kept_and_unique() {
        let mut cpu = cpu();
        let (mut first, mut second) = (asid(), asid());
        let one = first.tag_on(&mut cpu, ASIDS, true);
        let two = second.tag_on(&mut cpu, ASIDS, true);
        assert_eq!(one, tag(1, tlb_control::NOTHING));
        assert_eq!(two, tag(2, tlb_control::NOTHING));
        assert_eq!(first.tag_on(&mut cpu, ASIDS, true), one);
        assert_eq!(second.tag_on(&mut cpu, ASIDS, true), two);
    }

    /// ASID 0 is the host's, and the highest is one less than their number.
    #[test]
    fn a_new_generation_flushes_everything() {
        let mut cpu = cpu();
        let mut all = [asid(), asid(), asid(), asid()];
        let mut tags = [tag(0, 0); 4];
        for (asid, tag) in all.iter_mut().zip(tags.iter_mut()) {
            *tag = asid.tag_on(&mut cpu, ASIDS, true);
        }
        let numbers = tags.map(|tag| tag.number);
        assert_eq!(numbers, [1, 2, 3, 1]);
        assert_eq!(tags.map(|tag| tag.control), [0, 0, 0, tlb_control::ALL]);
        assert_eq!(cpu.generation, 2);
        // Until an entry has done it.
        let [first, _, _, last] = &mut all;
        assert_eq!(last.tag_on(&mut cpu, ASIDS, true), tag(1, tlb_control::ALL));
        cpu.flush_all = false;
        assert_eq!(last.tag_on(&mut cpu, ASIDS, true), tag(1, 0));
        // The first one's number is of the old generation.
        assert_eq!(first.tag_on(&mut cpu, ASIDS, true), tag(2, 0));
    }

    #[test]
    fn a_flush_is_one_of_the_own_asid() {
        let mut cpu = cpu();
        let mut asid = asid();
        asid.tag_on(&mut cpu, ASIDS, true);
        asid.flush();
        assert_eq!(
            asid.tag_on(&mut cpu, ASIDS, true),
            tag(1, tlb_control::ASID)
        );
        asid.flush = false;
        assert_eq!(asid.tag_on(&mut cpu, ASIDS, true), tag(1, 0));
        // A CPU that cannot do it: the next number.
        asid.flush();
        assert_eq!(asid.tag_on(&mut cpu, ASIDS, false), tag(2, 0));
        assert_eq!(asid.tag_on(&mut cpu, ASIDS, false), tag(2, 0));
    }

    /// Another hypervisor's guests may have had the number.
    #[test]
    fn a_shared_cpu_flushes_new_numbers() {
        let mut cpu = cpu();
        cpu.previous = 0x1000;
        let mut asid = asid();
        let first = asid.tag_on(&mut cpu, ASIDS, true);
        let again = asid.tag_on(&mut cpu, ASIDS, true);
        asid.flush = false;
        let entered = asid.tag_on(&mut cpu, ASIDS, true);
        assert_eq!(first, tag(1, tlb_control::ASID));
        assert_eq!(again, first);
        assert_eq!(entered, tag(1, tlb_control::NOTHING));
        asid.flush();
        let flushed = asid.tag_on(&mut cpu, ASIDS, false);
        assert_eq!(flushed, tag(2, tlb_control::ALL));
    }

    #[test]
    fn epochs_are_followed() {
        let mut cpu = cpu();
        let mut asid = asid();
        let visit = |epoch| Visit {
            stale: false,
            epoch,
        };
        assert!(asid.follow(visit(3)));
        asid.tag_on(&mut cpu, ASIDS, true);
        asid.flush = false;
        assert!(!asid.follow(visit(3)));
        assert!(asid.follow(visit(4)));
        assert_eq!(
            asid.tag_on(&mut cpu, ASIDS, true),
            tag(1, tlb_control::ASID)
        );
        asid.flush = false;
        assert!(!asid.follow(visit(4)));
    }

    #[test]
    fn another_cpu_means_another_asid() {
        let mut cpu = cpu();
        let mut asid = asid();
        asid.tag_on(&mut cpu, ASIDS, true);
        let pinned = crate::host::kunit::Pinned::new();
        let irqs = IrqsOff::new();
        asid.cpu = irqs.cpu() as i32 + 1;
        let (moved, stays) = (asid.come(&irqs), asid.come(&irqs));
        drop(irqs);
        drop(pinned);
        assert_eq!((moved, stays), (true, false));
        assert_eq!(asid.tag_on(&mut cpu, ASIDS, true).number, 2);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! KVM_TRANSLATE of the generated cases against the model.

use super::corpus::Pair;
use super::generate::{Batch, Case, Setting};
use crate::check_eq;
use crate::device::Device;
use crate::fail;
use crate::harness::Outcome;
use kvm_bindings::kvm_translation;
use rusthv_model::paging::state::Mode;

/// Address bits that KVM's own walk knows in the entries of 4 MiB pages.
const KVM_PSE36_BITS: u32 = 36;

impl Pair {
    /// Has every case of a batch translated, and compares with the model, and the tables with before.
    pub fn translate(&mut self, device: &Device, batch: &Batch, counts: &mut [u64; 2]) -> Outcome {
        let mut setting = batch.setting;
        // The guest has not run WRPKRU.
        setting.registers.pkru = 0;
        let setting = &setting;
        self.write_tables(batch);
        for case in &batch.cases {
            let found = self.model.translate(setting, case);
            if is_odd(setting, case) || (device.is_kvm() && kvm_differs(setting, case, found)) {
                continue;
            }
            self.guest.enter_case(setting, case)?;
            let asked = kvm_translation { linear_address: case.address, valid: 7, ..Default::default() };
            let answer = self.guest.vcpu().translate(asked)?;
            check_eq!(
                (answer.valid, answer.physical_address, answer.writeable, answer.usermode),
                (u8::from(found.is_some()), found.unwrap_or(u64::MAX), 1, 0),
                "{case:x?} with {setting:x?} on {}",
                device.path()
            );
            check_eq!(answer.linear_address, case.address);
            counts[usize::from(found.is_some())] += 1;
            if device.is_kvm() {
                // It sets accessed flags.
                continue;
            }
            for entry in &case.entries {
                let (actual, _) = self.entry(setting.mode, entry.at);
                if actual != entry.value {
                    fail!("level {} is {actual:#x} after KVM_TRANSLATE: {case:x?}", entry.level);
                }
            }
        }
        self.clear_tables(batch);
        Ok(())
    }
}

/// Pointers that the processor does not load cannot be set.
fn is_odd(setting: &Setting, case: &Case) -> bool {
    setting.mode == Mode::Pae && case.entries[0].reserved
}

/// KVM has another walk than the processor: it takes any address for canonical.
fn kvm_differs(setting: &Setting, case: &Case, found: Option<u64>) -> bool {
    let beyond = found.is_some_and(|gpa| setting.mode == Mode::Bits32 && gpa >> KVM_PSE36_BITS != 0);
    !case.canonical || beyond
}

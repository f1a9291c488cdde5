// SPDX-License-Identifier: GPL-2.0

//! Many slots at once, in any order, all of them found by the guest.

use crate::machine::enter_protected;
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const BASE: u32 = 0x40_0000;
/// Every second page has a slot.
const STRIDE: u32 = 0x2000;

guest!(
    slot_count,
    code32,
    // ecx slots, one dword of each summed up in eax
    "xor eax, eax",
    "mov esi, {base}",
    "2: add eax, [esi]",
    "add esi, {stride}",
    "loop 2b",
    "hlt"; base = const BASE, stride = const STRIDE
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::new(&device)?;
    let count = (device.check_extension(KVM_CAP_NR_MEMSLOTS)? as u32 - 1).min(200);
    let memory = Memory::new(count as usize * PAGE)?;
    let mut sum = 0;
    // From the middle outwards, so that neither order is the sorted one.
    for step in 0..count {
        let index = if step % 2 == 0 { count / 2 + step / 2 } else { count / 2 - step.div_ceil(2) };
        let offset = index as usize * PAGE;
        let hva = memory.address() + offset as u64;
        let gpa = u64::from(BASE + index * STRIDE);
        check_eq!(machine.vm.set_slot(1 + index, 0, gpa, PAGE as u64, hva), Ok(0), "slot {index}");
        memory.write(offset, &(index * index + 1).to_le_bytes());
        sum += u64::from(index * index + 1);
    }
    machine.load(slot_count());
    machine.write_tables();
    enter_protected(&machine.vcpu)?;
    machine.change_regs(|regs| regs.rcx = u64::from(count))?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax, sum);
    Ok(())
}

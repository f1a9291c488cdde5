// SPDX-License-Identifier: GPL-2.0

//! Without nested tables, page faults, table writes, roots, evictions and flushes of one address are counted for the VM; with them, none is.

use crate::emulator;
use crate::host;
use crate::machine::*;
use crate::prelude::*;
use crate::rusthv::{CAP_PAGING, PAGING_NESTED, PAGING_TRAP};

pub const TEST: Test = Test::new(60, run);

guest!(
    shadow_counters_invlpg,
    code64,
    "2: mov al, [0x200000]",
    "invlpg [0x200000]",
    "mov al, [0x200000]",
    "out 0x10, al",
    "jmp 2b",
);
// Goes through the roots from RBX on, RCX of them.
guest!(
    shadow_counters_roots,
    code64,
    "2: mov cr3, rbx",
    "add rbx, 0x1000",
    "loop 2b",
    "out 0x10, al",
    "jmp 2b",
);
// Writes the entry for 2 MiB, as it is.
guest!(
    shadow_counters_write,
    code64,
    "mov rax, [rbx]",
    "2: mov [rbx], rax",
    "loop 2b",
    "out 0x10, al",
    "jmp 2b",
);

const SMALL_TABLE: usize = layout::DATA;
const ROOTS: usize = layout::DATA + 0x1000;
/// The least number of tables that a VM can have.
const TABLES: u64 = 16;
const LOOPS: u64 = 10;

struct Counted(Machine);

impl Counted {
    fn value(&self, name: &str) -> Result<u64, Failure> {
        self.0.vm.statistics()?.value(name)?.ok_or_else(|| Failure::failed(format!("no counter {name}")))
    }

    /// What a counter goes up by while the guest runs to its next OUT some times.
    fn over(&self, name: &str, times: u64) -> Result<u64, Failure> {
        let before = self.value(name)?;
        for _ in 0..times {
            check!(matches!(self.0.run()?, Exit::Io { port: 0x10, .. }), "{name}");
        }
        Ok(self.value(name)? - before)
    }

    fn start(&self, code: &[u8], rbx: usize, rcx: u64) -> Outcome {
        self.0.load(code);
        self.0.vcpu.set_regs(&kvm_regs { rbx: rbx as u64, rcx, ..start_registers() })?;
        Ok(())
    }
}

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    host::pin(host::online_cpus()[0])?;
    let shadowed = u64::from(!emulator::is_nested());
    let vm = device.vm()?;
    let mode = vm.paging_stats()?.mode;
    if mode != u64::from(PAGING_NESTED) {
        vm.enable_cap_with(CAP_PAGING, 0, [mode, TABLES, 0, 0])?;
    }
    let machine = Counted(Machine::long_in(&device, vm, shadow_counters_invlpg())?);
    // Or khugepaged takes pages away, where it comes by meanwhile.
    let memory = &machine.0.memory;
    memory.advise(0, memory.size(), libc::MADV_NOHUGEPAGE)?;
    // A small page, so that nothing but one address is to be forgotten.
    let entry = layout::DIRECTORIES + 8;
    let unused = 0x10_0000 | PTE_ALL;
    memory.write_u64(SMALL_TABLE, unused);
    memory.write_u64(entry, SMALL_TABLE as u64 | PTE_ALL);

    // At first tables are new, and compared.
    machine.over("tlb_flush_address", 3)?;
    // QEMU's CPU does not say which one INVLPG has: all tables are compared then, and none has changed.
    let once = if emulator::is_tcg() { 0 } else { shadowed };
    check_eq!(machine.over("tlb_flush_address", LOOPS)?, once * LOOPS, "flushes of an address");
    // An entry that is what it was stays.
    check_eq!(machine.over("shadow_page_faults", LOOPS)?, 0, "faults behind INVLPG");
    // One that the guest has not used since it was written has to be marked when it is. (That the VMM wrote to a
    // table is seen with the address alone: others are compared only if the guest could write to them.)
    for round in 0..LOOPS {
        memory.write_u64(SMALL_TABLE, unused);
        check_eq!(machine.over("shadow_page_faults", 1)?, once, "round {round}: faults behind INVLPG");
        if once != 0 {
            check_eq!(memory.read_u64(SMALL_TABLE), unused | PTE_ACCESSED);
        }
    }
    let invlpg = machine.0.vcpu.statistics()?;
    check_eq!(invlpg.value("invlpg")?, Some(shadowed * (3 * LOOPS + 3)));
    check!(invlpg.value("pf_taken")? >= Some(once * LOOPS));

    machine.start(shadow_counters_write(), entry, LOOPS)?;
    let writes = machine.over("shadow_table_writes", 1)?;
    check_eq!(writes, if mode == u64::from(PAGING_TRAP) { LOOPS } else { 0 }, "executed writes");
    check_eq!(machine.0.vcpu.statistics()?.value("pf_emulate")?, Some(writes));

    // More roots than there can be tables.
    let many = 2 * TABLES;
    for index in 0..many as usize {
        memory.write_u64(ROOTS + 0x1000 * index, layout::PDPT as u64 | PTE_ALL);
    }
    machine.start(shadow_counters_roots(), ROOTS, many)?;
    check_eq!(machine.over("shadow_root_misses", 1)?, shadowed * many);
    check!(machine.value("shadow_evictions")? >= shadowed * (many - TABLES));
    // In the same order again, the next one has always gone just before.
    machine.start(shadow_counters_roots(), ROOTS, many)?;
    check_eq!(machine.over("shadow_root_misses", 1)?, shadowed * many);
    // The last few have not.
    machine.start(shadow_counters_roots(), ROOTS + 0x1000 * (many as usize - 3), 3)?;
    check_eq!(machine.over("shadow_root_hits", 1)?, shadowed * 3);

    let paging = machine.0.vm.paging_stats()?;
    for (name, value) in [
        ("shadow_root_hits", paging.root_hits),
        ("shadow_root_misses", paging.root_misses),
        ("shadow_evictions", paging.evictions),
        ("shadow_released", paging.released),
        ("shadow_loosened", paging.loosened),
        ("shadow_compared", paging.compared),
        ("shadow_changed", paging.changed),
    ] {
        check_eq!(machine.value(name)?, value, "{name}");
    }
    Ok(())
}

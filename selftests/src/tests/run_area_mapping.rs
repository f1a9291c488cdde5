// SPDX-License-Identifier: GPL-2.0

//! The `kvm_run` mapping bears madvise, mprotect, mremap and munmap, and KVM_RUN does not depend on it.

use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(run_area_mapping, code16, "2: inc eax", "out 0x10, eax", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, run_area_mapping())?;
    let vcpu = &machine.vcpu;
    // Runs once more; the exit's data come through the vCPU's own mapping.
    let mut turn = 0u32;
    let mut step = |what: &str| -> Outcome {
        turn += 1;
        let data = turn.to_le_bytes().to_vec();
        let expected = Exit::Io { direction: Direction::Out, port: 0x10, size: 4, count: 1, data };
        check_eq!(vcpu.run()?, expected, "{what}");
        Ok(())
    };
    step("before anything")?;
    let size = vcpu.run_area_pages() * PAGE;
    let area = Memory::map(size, libc::MAP_SHARED, vcpu.fd())?;
    let reason = std::mem::offset_of!(kvm_run, exit_reason);
    let seen = |area: &Memory| area.read_u32(reason);

    // Taken out of the page tables, the same pages come back.
    vcpu.set_immediate_exit(0x5A);
    for advice in [libc::MADV_DONTNEED, libc::MADV_DONTNEED, libc::MADV_WILLNEED] {
        area.advise(0, size, advice)?;
        check_eq!(seen(&area), KVM_EXIT_IO, "exit_reason after madvise {advice}");
        let immediate = std::mem::offset_of!(kvm_run, immediate_exit);
        check_eq!(area.read(immediate, 1), [0x5A], "immediate_exit after madvise {advice}");
    }
    vcpu.set_immediate_exit(0);
    step("after madvise")?;

    area.protect(0, size, libc::PROT_READ)?;
    check_eq!(seen(&area), KVM_EXIT_IO, "read-only");
    let signal = host::signal_of_child(|| area.write(reason, &[1]))?;
    check_eq!(signal, Some(libc::SIGSEGV), "a write to the read-only mapping");
    step("beside a read-only mapping")?;
    area.protect(0, size, libc::PROT_NONE)?;
    step("beside a mapping without rights")?;
    area.protect(0, size, libc::PROT_READ | libc::PROT_WRITE)?;
    check_eq!(seen(&area), KVM_EXIT_IO, "with all rights again");

    let place = Memory::new(size)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both ranges are ours; `area` gets a new mapping below, before anybody looks at it.
    let moved = unsafe {
        libc::mremap(area.at(0, size).cast(), size, size, flags, place.at(0, size).cast::<libc::c_void>())
    };
    check_eq!(moved as u64, place.address(), "mremap: {}", Errno::last());
    check_eq!(seen(&place), KVM_EXIT_IO, "moved");
    step("beside a moved mapping")?;
    drop(place);
    step("after munmap")?;

    // A private mapping starts with what is there, and keeps writes to itself.
    let private = Memory::map(size, libc::MAP_PRIVATE, vcpu.fd())?;
    check_eq!(seen(&private), KVM_EXIT_IO, "private");
    private.fill(0, PAGE, 0xFF);
    step("beside a private copy")?;
    check_eq!(private.read(0, 4), [0xFF; 4]);
    Ok(())
}

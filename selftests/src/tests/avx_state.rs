// SPDX-License-Identifier: GPL-2.0

//! AVX state (the upper halves, behind XCR0) survives exits and other vCPUs; XCR0 is each vCPU's own.

use crate::emulator;
use crate::machine::{enter_long, CR4_OSXSAVE};
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(60, run);

guest!(
    avx_state,
    code64,
    "xor ecx, ecx",
    "xor edx, edx",
    "mov eax, 7",
    "xsetbv",
    "vmovdqu ymm0, [rbx]",
    "vmovdqu ymm1, [rbx + 32]",
    "vmovdqu ymm7, [rbx + 64]",
    "vmovdqu ymm15, [rbx + 96]",
    "2: out 0x10, al",
    "vmovdqu [rdi], ymm0",
    "vmovdqu [rdi + 32], ymm1",
    "vmovdqu [rdi + 64], ymm7",
    "vmovdqu [rdi + 96], ymm15",
    "xor ecx, ecx",
    "xgetbv",
    "mov [rdi + 128], eax",
    "jmp 2b",
);
guest!(avx_off, code64, "xor ecx, ecx", "xgetbv", "2: out 0x10, al", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let cpuid = device.supported_cpuid(256)?;
    let leaf1 = cpuid.iter().find(|entry| entry.function == 1).map_or(0, |entry| entry.ecx);
    if leaf1 & (1 << 26) == 0 || leaf1 & (1 << 28) == 0 {
        skip!("no XSAVE or no AVX for guests here");
    }
    if emulator::is_tcg() {
        skip!("QEMU's TCG raises #NM for AVX in guests, KVM's too");
    }
    let machine = Machine::long(&device, avx_state())?;
    let others = [machine.vm.vcpu(1)?, machine.vm.vcpu(2)?];
    let vcpus = [&machine.vcpu, &others[0], &others[1]];
    let mut random = Random::new(9);
    let images = [random.bytes(128), random.bytes(128)];
    let elsewhere = layout::CODE + 0x800;
    machine.memory.write(elsewhere, avx_off());
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        vcpu.set_cpuid(&cpuid)?;
        enter_long(vcpu)?;
        let mut sregs = vcpu.sregs()?;
        sregs.cr4 |= CR4_OSXSAVE;
        vcpu.set_sregs(&sregs)?;
        let mut regs = vcpu.regs()?;
        let place = layout::DATA + 0x1000 * index;
        (regs.rbx, regs.rdi) = (place as u64, place as u64 + 0x800);
        if index == 2 {
            regs.rip = elsewhere as u64;
        } else {
            machine.memory.write(place, &images[index]);
        }
        vcpu.set_regs(&regs)?;
    }
    for round in 0..t.repetitions(200) {
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            host_uses_avx(round as u8);
            check!(matches!(vcpu.run()?, Exit::Io { port: 0x10, .. }), "vCPU {index}: {:x?}", vcpu.exit());
            if index == 2 {
                check_eq!(vcpu.regs()?.rax & 0xFFFF_FFFF, 1, "XCR0 of the vCPU that did not set it");
            } else if round > 0 {
                let place = layout::DATA + 0x1000 * index + 0x800;
                check!(machine.memory.read(place, 128) == images[index], "round {round}, vCPU {index}");
                check_eq!(machine.memory.read_u32(place + 128), 7, "XCR0");
            }
        }
    }
    Ok(())
}

/// Other values in the upper halves, where this processor and kernel have them.
fn host_uses_avx(value: u8) {
    #[target_feature(enable = "avx")]
    unsafe fn fill(value: u8) {
        // SAFETY: reads a whole register's worth of an array.
        unsafe {
            let bytes = [value; 32];
            std::arch::asm!(
                "vmovdqu ymm0, [{0}]", "vmovdqu ymm1, [{0}]", "vmovdqu ymm7, [{0}]", "vmovdqu ymm15, [{0}]",
                in(reg) bytes.as_ptr(), out("ymm0") _, out("ymm1") _, out("ymm7") _, out("ymm15") _
            );
        }
    }
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: just detected.
        unsafe { fill(value) };
    }
}

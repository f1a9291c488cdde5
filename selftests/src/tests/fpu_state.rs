// SPDX-License-Identifier: GPL-2.0

//! x87 and SSE state survives exits, other vCPUs and the VMM's own use of the registers, and the other way round.

use crate::machine::enter_long;
use crate::prelude::*;
use crate::random::Random;
use std::arch::asm;

pub const TEST: Test = Test::new(60, run);

guest!(fpu_state, code64, "fxrstor64 [rbx]", "2: out 0x10, al", "fxsave64 [rdi]", "jmp 2b",);

/// Where the registers are in the 512 bytes of FXSAVE.
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, fpu_state())?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let mut random = Random::new(3);
    let images: Vec<Vec<u8>> = (0..2).map(|_| image(&mut random)).collect();
    let vcpus = [&machine.vcpu, &second];
    let places = [layout::DATA, layout::DATA + 0x1000];
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        machine.memory.write(places[index], &images[index]);
        let mut regs = vcpu.regs()?;
        (regs.rbx, regs.rdi) = (places[index] as u64, places[index] as u64 + 0x800);
        vcpu.set_regs(&regs)?;
    }
    for round in 0..t.repetitions(300) {
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let mine: Vec<[u8; 16]> =
                (0..16).map(|_| core::array::from_fn(|_| random.word() as u8)).collect();
            let (result, after) = run_with_registers(vcpu, &mine);
            check_eq!(result, 0, "KVM_RUN");
            check!(matches!(vcpu.exit(), Exit::Io { port: 0x10, .. }), "{:x?}", vcpu.exit());
            check!(after == mine, "round {round}: the VMM's registers: {after:x?}, not {mine:x?}");
            if round == 0 {
                continue;
            }
            let saved = machine.memory.read(places[index] + 0x800, 512);
            for part in parts() {
                check_eq!(
                    saved[part.clone()],
                    images[index][part.clone()],
                    "round {round}, vCPU {index}, bytes {part:?} of the state"
                );
            }
        }
    }
    Ok(())
}

/// Control and status words, MXCSR, the ten bytes of each ST, and the XMM registers.
fn parts() -> Vec<std::ops::Range<usize>> {
    let mut parts = vec![0..5, MXCSR..MXCSR + 4, XMM..XMM + 256];
    parts.extend((0..8).map(|index| ST + 16 * index..ST + 16 * index + 10));
    parts
}

fn image(random: &mut Random) -> Vec<u8> {
    let mut image = vec![0; 512];
    // All exceptions masked, another precision and rounding than the default.
    image[0..2].copy_from_slice(&0x0E7Fu16.to_le_bytes());
    image[2..4].copy_from_slice(&0x3800u16.to_le_bytes());
    image[4] = 0xFF;
    image[MXCSR..MXCSR + 4].copy_from_slice(&0x7F80u32.to_le_bytes());
    for index in 0..8 {
        image[ST + 16 * index..ST + 16 * index + 8].copy_from_slice(&(random.word() | 1 << 63).to_le_bytes());
        image[ST + 16 * index + 8..ST + 16 * index + 10].copy_from_slice(&0x3FFFu16.to_le_bytes());
    }
    let xmm = random.bytes(256);
    image[XMM..XMM + 256].copy_from_slice(&xmm);
    image
}

/// KVM_RUN with these values in XMM0 to XMM15 and an unusual MXCSR; what is there when it comes back.
fn run_with_registers(vcpu: &Vcpu, values: &[[u8; 16]]) -> (i64, Vec<[u8; 16]>) {
    let mut after = vec![[0u8; 16]; 16];
    let result: i64;
    assert!(values.len() == 16);
    let mxcsr = [0x3F80u32, 0, 0];
    let mut mxcsr_after = mxcsr;
    // SAFETY: an ioctl without memory arguments; all the registers that change are named.
    unsafe {
        asm!(
            "stmxcsr [r14 + 8]", "ldmxcsr [r14]",
            "movdqu xmm0, [r12]", "movdqu xmm1, [r12 + 16]", "movdqu xmm2, [r12 + 32]", "movdqu xmm3, [r12 + 48]",
            "movdqu xmm4, [r12 + 64]", "movdqu xmm5, [r12 + 80]", "movdqu xmm6, [r12 + 96]",
            "movdqu xmm7, [r12 + 112]", "movdqu xmm8, [r12 + 128]", "movdqu xmm9, [r12 + 144]",
            "movdqu xmm10, [r12 + 160]", "movdqu xmm11, [r12 + 176]", "movdqu xmm12, [r12 + 192]",
            "movdqu xmm13, [r12 + 208]", "movdqu xmm14, [r12 + 224]", "movdqu xmm15, [r12 + 240]",
            "syscall",
            "movdqu [r13], xmm0", "movdqu [r13 + 16], xmm1", "movdqu [r13 + 32], xmm2", "movdqu [r13 + 48], xmm3",
            "movdqu [r13 + 64], xmm4", "movdqu [r13 + 80], xmm5", "movdqu [r13 + 96], xmm6",
            "movdqu [r13 + 112], xmm7", "movdqu [r13 + 128], xmm8", "movdqu [r13 + 144], xmm9",
            "movdqu [r13 + 160], xmm10", "movdqu [r13 + 176], xmm11", "movdqu [r13 + 192], xmm12",
            "movdqu [r13 + 208], xmm13", "movdqu [r13 + 224], xmm14", "movdqu [r13 + 240], xmm15",
            "stmxcsr [r14 + 4]", "ldmxcsr [r14 + 8]",
            inlateout("rax") libc::SYS_ioctl => result,
            in("rdi") i64::from(vcpu.fd()),
            in("rsi") crate::ioctl::KVM_RUN,
            in("rdx") 0u64,
            in("r12") values.as_ptr(),
            in("r13") after.as_mut_ptr(),
            in("r14") mxcsr_after.as_mut_ptr(),
            out("rcx") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
    assert_eq!(mxcsr_after[1], mxcsr[0], "the VMM's MXCSR");
    (result, after)
}

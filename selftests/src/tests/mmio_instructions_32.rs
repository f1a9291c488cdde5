// SPDX-License-Identifier: GPL-2.0

//! 32-bit instructions on MMIO, 16-bit operands and addresses among them, do what they do on memory.

use crate::differential::{self, Mode};
use crate::instructions;
use crate::prelude::*;

pub const TEST: Test = Test::new(120, run);

instructions!(
    mmio_32,
    TEXTS,
    code32,
    [
        "mov al, [ebx]",
        "mov dh, [ebx + 5]",
        "mov ax, [ebx]",
        "mov eax, [ebx]",
        "mov edx, [ebx + ecx*4 - 8]",
        "mov [ebx], dl",
        "mov [ebx], dh",
        "mov [ebx], bp",
        "mov [ebx], ebp",
        "mov byte ptr [ebx + 1], 7",
        "mov word ptr [ebx], 0xbeef",
        "mov dword ptr [ebx], 0xcafef00d",
        "mov eax, es:[ebx]",
        "mov fs:[ebx], eax",
        "movzx eax, byte ptr [ebx]",
        "movzx dx, byte ptr [ebx]",
        "movzx edx, word ptr [ebx]",
        "movsx eax, word ptr [ebx]",
        "movsx dx, byte ptr [ebx]",
        "add [ebx], eax",
        "add ax, [ebx]",
        "add byte ptr [ebx], 0x80",
        "or eax, [ebx]",
        "or dword ptr [ebx], 0x40",
        "and [ebx], al",
        "and word ptr [ebx], 0x0ff0",
        "xor [ebx], edx",
        "xor al, [ebx]",
        "sub dword ptr [ebx], 0x1000",
        "cmp [ebx], edx",
        "cmp al, [ebx]",
        "cmp dword ptr [ebx], 5",
        "test [ebx], eax",
        "test byte ptr [ebx], 1",
        "xchg [ebx], eax",
        "xchg [ebx], dl",
        "bt dword ptr [ebx], 17",
        "bt [ebx], ecx",
        "bts [ebx], cx",
        "btr dword ptr [ebx], 8",
        "btc [ebx], ecx",
        "stosb",
        "stosd",
        "rep stosw",
        "rep stosd",
        "movsd",
        "rep movsb",
        "rep movsw",
        "xchg esi, edi\nrep movsd",
        "mov esi, ebx\nlodsd",
    ]
);

fn run(t: &Context) -> Outcome {
    differential::run(&t.device()?, Mode::Protected, mmio_32(), TEXTS, t.repetitions(4))
}

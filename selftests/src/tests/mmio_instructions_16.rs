// SPDX-License-Identifier: GPL-2.0

//! Real-mode instructions on MMIO, with segment and size overrides, do what they do on memory.

use crate::differential::{self, Mode};
use crate::instructions;
use crate::prelude::*;

pub const TEST: Test = Test::new(120, run);

instructions!(
    mmio_16,
    TEXTS,
    code16,
    [
        "mov al, [bx]",
        "mov ax, [bx]",
        "mov eax, [bx]",
        "mov ah, [bx + 0x11]",
        "mov al, [0x800]",
        "mov ax, [0x802]",
        "mov [0x804], ax",
        "mov al, es:[bx]",
        "mov ax, es:[di + 2]",
        "mov eax, [ebx]",
        "mov dx, [ebx + ecx*2]",
        "mov [bx], al",
        "mov [bx], dx",
        "mov [bx], edx",
        "mov es:[di], eax",
        "mov byte ptr [bx], 0x33",
        "mov word ptr [bx + 0x70], 0x4455",
        "mov dword ptr [bx], 0x66778899",
        "movzx eax, byte ptr [bx]",
        "movzx edx, word ptr [bx]",
        "movsx ax, byte ptr [bx]",
        "add [bx], ax",
        "add eax, [bx]",
        "or byte ptr [bx], 0x20",
        "and word ptr [bx], 0xfff",
        "xor [bx], dl",
        "cmp word ptr [bx], 0x55aa",
        "cmp [bx], eax",
        "test byte ptr [bx], 0x80",
        "test [bx], dx",
        "xchg [bx], ax",
        "xchg es:[di], dl",
        "bt word ptr [bx], 3",
        "bts [bx], cx",
        "btr dword ptr [bx], 30",
        "stosb",
        "stosw",
        "stosd",
        "rep stosb",
        "rep stosw",
        "rep stosd",
        "movsb es:[di], fs:[si]",
        "rep movsw es:[di], fs:[si]",
        "rep movsd es:[di], fs:[si]",
        "push gs\npop es\nxchg si, di\nrep movsb",
        "push gs\npop es\nxchg si, di\nmovsd",
        "mov si, bx\nlodsw",
    ]
);

fn run(t: &Context) -> Outcome {
    differential::run(&t.device()?, Mode::Real, mmio_16(), TEXTS, t.repetitions(4))
}

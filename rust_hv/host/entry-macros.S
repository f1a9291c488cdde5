/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the entries of both vendors do alike, to be included by them.
 *
 * RAX, RSP and RDI are left to the includer: each hardware has its own idea of
 * where the guest's go, and one of them holds the address of the others.
 */

#include <asm/asm.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

/* struct rhv_regs; checked in host/shim.c */
#define REG(n)			((n) * 8)

/* The guest's registers, from the struct rhv_regs at RDI. */
.macro RHV_LOAD_GPRS
	mov	REG(1)(%rdi), %rcx
	mov	REG(2)(%rdi), %rdx
	mov	REG(3)(%rdi), %rbx
	mov	REG(5)(%rdi), %rbp
	mov	REG(6)(%rdi), %rsi
	mov	REG(8)(%rdi), %r8
	mov	REG(9)(%rdi), %r9
	mov	REG(10)(%rdi), %r10
	mov	REG(11)(%rdi), %r11
	mov	REG(12)(%rdi), %r12
	mov	REG(13)(%rdi), %r13
	mov	REG(14)(%rdi), %r14
	mov	REG(15)(%rdi), %r15
.endm

/* The way back, to the struct rhv_regs at the register that is named. */
.macro RHV_STORE_GPRS regs:req
	mov	%rcx, REG(1)(\regs)
	mov	%rdx, REG(2)(\regs)
	mov	%rbx, REG(3)(\regs)
	mov	%rbp, REG(5)(\regs)
	mov	%rsi, REG(6)(\regs)
	mov	%r8, REG(8)(\regs)
	mov	%r9, REG(9)(\regs)
	mov	%r10, REG(10)(\regs)
	mov	%r11, REG(11)(\regs)
	mov	%r12, REG(12)(\regs)
	mov	%r13, REG(13)(\regs)
	mov	%r14, REG(14)(\regs)
	mov	%r15, REG(15)(\regs)
.endm

/* No value of the guest's is left for speculation to use. RBX stays. */
.macro RHV_CLEAR_GPRS
	xor	%eax, %eax
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%ebp, %ebp
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d
.endm

/*
 * Guests have no SPEC_CTRL and run on the host's value. Legacy IBRS wants it
 * written again after coming from less privileged code. Changes RAX, RCX, RDX.
 */
.macro RHV_WRITE_SPEC_CTRL
	ALTERNATIVE "jmp .Lspec_ctrl_done\@", "", X86_FEATURE_KERNEL_IBRS
	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
	lfence
.Lspec_ctrl_done\@:
.endm

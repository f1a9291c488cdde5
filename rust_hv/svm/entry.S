/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The VM entry and the VM exit of AMD-V.
 *
 * int rhv_svm_run(struct rhv_regs *regs, u64 vmcb, u64 host)
 *	0 after a VM exit, 2 when an instruction faulted (EFER.SVME went off
 *	under us: reboot).
 *
 * vmcb and host are physical addresses: of the guest's VMCB, and of the frame
 * that holds what VMSAVE stored of this CPU's host state. GIF is 0. RAX, RSP
 * and CR2 of the guest are in its VMCB.
 *
 * From the first VMLOAD to the last one GS is the guest's: nothing in between
 * may touch per-CPU data.
 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

/* struct rhv_regs; checked in host/shim.c */
#define REG(n)			((n) * 8)

/* The stack in the guest: what the way back needs, in this order. */
#define STACK_STATUS		24

	.section .noinstr.text, "ax"

SYM_FUNC_START(rhv_svm_run)
	push	%rbp
	mov	%rsp, %rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	$0
	push	%rdx
	push	%rsi
	push	%rdi

	mov	%rsi, %rax
.Lload_guest:
	vmload	%rax

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
	mov	REG(7)(%rdi), %rdi

	/* CPU buffers are cleared where the host's policy for guests says so. */
	ALTERNATIVE "", __stringify(VERW), X86_FEATURE_CLEAR_CPU_BUF_VM
.Lrun:
	vmrun	%rax
.Lback:
	/* RAX and RSP are the host's again. */
	pop	%rax
	mov	%rcx, REG(1)(%rax)
	mov	%rdx, REG(2)(%rax)
	mov	%rbx, REG(3)(%rax)
	mov	%rbp, REG(5)(%rax)
	mov	%rsi, REG(6)(%rax)
	mov	%rdi, REG(7)(%rax)
	mov	%r8, REG(8)(%rax)
	mov	%r9, REG(9)(%rax)
	mov	%r10, REG(10)(%rax)
	mov	%r11, REG(11)(%rax)
	mov	%r12, REG(12)(%rax)
	mov	%r13, REG(13)(%rax)
	mov	%r14, REG(14)(%rax)
	mov	%r15, REG(15)(%rax)

	pop	%rax
.Lsave_guest:
	vmsave	%rax
.Lsaved:
	pop	%rax
.Lload_host:
	vmload	%rax
.Lloaded:

	/* All before the first RET. */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT

	/*
	 * Guests have no SPEC_CTRL and run on the host's value. Legacy IBRS
	 * wants it written again after coming from less privileged code.
	 */
	ALTERNATIVE "jmp .Lspec_ctrl_done", "", X86_FEATURE_KERNEL_IBRS
	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lspec_ctrl_done:

	/* Retbleed, SRSO: the guest has not trained the RETs that follow. */
	UNTRAIN_RET_VM

	/* No value of the guest's is left for speculation to use. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebx, %ebx
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

	pop	%rax
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	RET

	/*
	 * With GIF at 0 nothing but this CPU itself can switch EFER.SVME off.
	 * Should it have happened before, the guest's state stays as it is.
	 */
.Lfault_load:
	movl	$2, STACK_STATUS(%rsp)
	add	$16, %rsp
	jmp	.Lsaved
.Lfault_run:
	movl	$2, STACK_STATUS(%rsp)
	jmp	.Lback

	_ASM_EXTABLE(.Lload_guest, .Lfault_load)
	_ASM_EXTABLE(.Lrun, .Lfault_run)
	_ASM_EXTABLE(.Lsave_guest, .Lsaved)
	_ASM_EXTABLE(.Lload_host, .Lloaded)
SYM_FUNC_END(rhv_svm_run)

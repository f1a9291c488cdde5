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

#include "../host/entry-macros.S"

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

	RHV_LOAD_GPRS
	mov	REG(7)(%rdi), %rdi

	/* CPU buffers are cleared where the host's policy for guests says so. */
	ALTERNATIVE "", __stringify(VERW), X86_FEATURE_CLEAR_CPU_BUF_VM
.Lrun:
	vmrun	%rax
.Lback:
	/* RAX and RSP are the host's again. */
	pop	%rax
	RHV_STORE_GPRS %rax
	mov	%rdi, REG(7)(%rax)

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

	RHV_WRITE_SPEC_CTRL

	/* Retbleed, SRSO: the guest has not trained the RETs that follow. */
	UNTRAIN_RET_VM

	RHV_CLEAR_GPRS
	xor	%ebx, %ebx

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

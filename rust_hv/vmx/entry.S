/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The VM entry and the VM exit.
 *
 * int rhv_vmx_run(struct rhv_regs *regs, bool launched)
 *	0 after a VM exit, 1 when VMLAUNCH/VMRESUME failed with CF or ZF,
 *	2 when it faulted (VMX was switched off under us: reboot).
 *
 * Interrupts are off, the guest's VMCS is current. The host's callee-saved
 * registers live on the stack meanwhile; HOST_RSP is written only when this
 * call's stack is elsewhere than the last one's.
 */
#include <linux/linkage.h>

#include "../host/entry-macros.S"

#define REGS_HOST_RSP		136

#define VMCS_HOST_RSP		0x6c14

	.section .noinstr.text, "ax"

SYM_FUNC_START(rhv_vmx_run)
	push	%rbp
	mov	%rsp, %rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdi

	cmp	%rsp, REGS_HOST_RSP(%rdi)
	je	.Lhost_rsp_done
	mov	$VMCS_HOST_RSP, %eax
.Lwrite_rsp:
	vmwrite	%rsp, %rax
	jbe	.Lfail
	mov	%rsp, REGS_HOST_RSP(%rdi)
.Lhost_rsp_done:

	/* The flags of this survive the MOVs below; VERW touches ZF only. */
	mov	%sil, %al
	cmp	$1, %al

	mov	REG(0)(%rdi), %rax
	RHV_LOAD_GPRS
	mov	REG(7)(%rdi), %rdi

	/*
	 * CPU buffers are cleared where the host's policy for guests says so;
	 * a guest of ours may hold host MMIO, so both policies count.
	 * CF tells launched from not: VERW leaves it alone.
	 */
	ALTERNATIVE_2 "", __stringify(VERW), X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO, \
			  __stringify(VERW), X86_FEATURE_CLEAR_CPU_BUF_VM
	jc	.Llaunch

	UNWIND_HINT_SAVE
.Lresume:
	vmresume
	jmp	.Lfail
.Llaunch:
	vmlaunch
	jmp	.Lfail

	_ASM_EXTABLE(.Lresume, .Lfault)
	_ASM_EXTABLE(.Llaunch, .Lfault)
	_ASM_EXTABLE(.Lwrite_rsp, .Lfault)

SYM_INNER_LABEL_ALIGN(rhv_vmx_exit, SYM_L_GLOBAL)
	UNWIND_HINT_RESTORE
	ENDBR

	/* RSP is HOST_RSP: the struct rhv_regs pointer is on top. */
	push	%rdi
	mov	8(%rsp), %rdi
	mov	%rax, REG(0)(%rdi)
	RHV_STORE_GPRS %rdi
	pop	REG(7)(%rdi)
	xor	%ebx, %ebx

.Lclear:
	RHV_CLEAR_GPRS

	/* All before the first RET. */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, \
			   X86_FEATURE_RSB_VMEXIT_LITE

	RHV_WRITE_SPEC_CTRL
	CLEAR_BRANCH_HISTORY_VMEXIT

	mov	%ebx, %eax
	pop	%rdi
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	RET

.Lfault:
	mov	$2, %ebx
	jmp	.Lclear
.Lfail:
	mov	$1, %ebx
	jmp	.Lclear
SYM_FUNC_END(rhv_vmx_run)

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
#include <asm/asm.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>

/* struct rhv_regs; checked in host/shim.c */
#define REG(n)			((n) * 8)
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
	mov	%rcx, REG(1)(%rdi)
	mov	%rdx, REG(2)(%rdi)
	mov	%rbx, REG(3)(%rdi)
	mov	%rbp, REG(5)(%rdi)
	mov	%rsi, REG(6)(%rdi)
	mov	%r8, REG(8)(%rdi)
	mov	%r9, REG(9)(%rdi)
	mov	%r10, REG(10)(%rdi)
	mov	%r11, REG(11)(%rdi)
	mov	%r12, REG(12)(%rdi)
	mov	%r13, REG(13)(%rdi)
	mov	%r14, REG(14)(%rdi)
	mov	%r15, REG(15)(%rdi)
	pop	REG(7)(%rdi)
	xor	%ebx, %ebx

.Lclear:
	/* No value of the guest's is left for speculation to use. */
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

	/* All before the first RET. */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, \
			   X86_FEATURE_RSB_VMEXIT_LITE

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
	lfence
.Lspec_ctrl_done:
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

# SPDX-License-Identifier: GPL-2.0
#
# A guest in 64-bit long mode. Starts at 1 MiB with the first 4 GiB mapped to themselves and the
# first GiB once more at 4 GiB; ends with a status on the exit port.

	.include "guest.inc"

	.set	CR0_PG, 1 << 31
	.set	CR4_PAE, 1 << 5
	.set	MSR_EFER, 0xc0000080
	.set	EFER_LME, 1 << 8
	.set	EFER_LMA, 1 << 10
	.set	FOUR_GIB, 1 << 32

	.code64
	.globl	_start
_start:
	print_string greeting

	# Paging is on, with the tables of 64-bit mode, and the CPU says that it is in it.
	mov	%cr0, %rax
	print_value cr0
	test	$CR0_PG, %eax
	require	nz, 1
	mov	%cr4, %rax
	print_value cr4
	test	$CR4_PAE, %eax
	require	nz, 2
	mov	$MSR_EFER, %ecx
	rdmsr
	print_value efer
	and	$EFER_LME | EFER_LMA, %eax
	cmp	$EFER_LME | EFER_LMA, %eax
	require	e, 3

	# Two addresses for one word, the second above 4 GiB.
	movabs	$FOUR_GIB, %rbp
	movl	$0x12345678, 0x200000
	mov	0x200000(%rbp), %eax
	print_value alias
	cmp	$0x12345678, %eax
	require	e, 4

	# Go on there: what follows runs above 4 GiB.
	lea	1f(%rip), %rax
	add	%rbp, %rax
	jmp	*%rax
1:	lea	1b(%rip), %rax
	shr	$32, %rax
	print_value rip
	cmp	$1, %eax
	require	e, 5

	# MMIO with all 64 bits, through a mapped address.
	movabs	$0x0744074307420741, %rax
	mov	%rax, VGA_TEXT(%rbp)
	mov	VGA_TEXT(%rbp), %rcx
	cmp	%rax, %rcx
	require	e, 6
	mov	VGA_TEXT + 4(%rbp), %eax
	print_value vga

	xor	%eax, %eax
	jmp	end

	routines

greeting:
	.ascii	"Hello from 64-bit long mode.\n"
greeting_end:
cr0:	.asciz	"cr0                           "
cr4:	.asciz	"cr4                           "
efer:	.asciz	"efer                          "
alias:	.asciz	"word at 2 MiB, seen at +4 GiB "
rip:	.asciz	"rip, upper half               "
vga:	.asciz	"word at 4 GiB + b8004         "

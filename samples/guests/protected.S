# SPDX-License-Identifier: GPL-2.0
#
# A guest in 32-bit protected mode without paging. Starts at 1 MiB with flat segments; ends with
# a status on the exit port.

	.include "guest.inc"

	.set	CR0_PE, 1 << 0
	.set	CR0_PG, 1 << 31
	.set	CODE, 0x08		# selectors in the table that the VMM has set up
	.set	DATA, 0x10

	.code32
	.globl	_start
_start:
	print_string greeting

	# Protection on, paging off.
	mov	%cr0, %eax
	print_value cr0
	and	$CR0_PE | CR0_PG, %eax
	cmp	$CR0_PE, %eax
	require	e, 1

	# Segments come from descriptors: load them anew. In real mode, 8 would mean address 0x80.
	mov	$DATA, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	ljmp	$CODE, $1f
1:	mov	%cs, %eax
	print_value cs
	cmp	$CODE, %eax
	require	e, 2

	# No address is cut to 20 bits: 2 MiB is not 0.
	movl	$0, 0
	movl	$0x12345678, 0x200000
	mov	0x200000, %eax
	print_value two_mib
	cmp	$0x12345678, %eax
	require	e, 3
	mov	0, %eax
	print_value zero
	test	%eax, %eax
	require	z, 4

	# MMIO: write, change in place, read with a narrower access.
	movl	$0x07420741, VGA_TEXT
	orb	$0x80, VGA_TEXT + 1
	movzwl	VGA_TEXT, %eax
	print_value vga
	cmp	$0x8741, %eax
	require	e, 5

	xor	%eax, %eax
	jmp	end

	routines

greeting:
	.ascii	"Hello from 32-bit protected mode.\n"
greeting_end:
cr0:	.asciz	"cr0                           "
cs:	.asciz	"cs                            "
two_mib: .asciz	"word at 2 MiB                 "
zero:	.asciz	"word at 0                     "
vga:	.asciz	"word at b8000, changed        "

# SPDX-License-Identifier: GPL-2.0
#
# A guest in 16-bit real mode. Starts at 1000:0000 with all segments equal; ends by halting with
# interrupts off, or with a status on the exit port when something is not as it should be.

	.include "guest.inc"

	.code16
	.globl	_start
_start:
	print_string greeting

	# Protection is off.
	mov	%cr0, %eax
	print_value cr0
	test	$1, %al
	require	z, 1

	xor	%eax, %eax
	mov	%cs, %ax
	print_value cs
	cmp	$0x1000, %ax
	require	e, 2

	# A segment is its number times 16, and nothing else: two names for one byte, above 64 KiB.
	mov	$0x2000, %ax
	mov	%ax, %es
	movb	$0x5a, %es:0x0000
	mov	$0x1fff, %ax
	mov	%ax, %es
	xor	%eax, %eax
	mov	%es:0x0010, %al
	print_value alias
	cmp	$0x5a, %al
	require	e, 3

	# A character on a screen that is not there: MMIO, word by word and as a string.
	mov	$VGA_TEXT >> 4, %ax
	mov	%ax, %es
	movw	$0x0741, %es:0x0000
	mov	$0x0742, %ax
	mov	$2, %di
	mov	$3, %cx
	rep stosw
	mov	%es:0x0000, %ax
	shl	$16, %eax
	mov	%es:0x0006, %ax
	print_value vga
	cmp	$0x07410742, %eax
	require	e, 4

	cli
1:	hlt
	jmp	1b

	routines

greeting:
	.ascii	"Hello from 16-bit real mode.\n"
greeting_end:
cr0:	.asciz	"cr0                           "
cs:	.asciz	"cs                            "
alias:	.asciz	"2000:0000 read as 1fff:0010   "
vga:	.asciz	"b800:0000 and b800:0006 read  "

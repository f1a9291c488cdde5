// SPDX-License-Identifier: GPL-2.0
/*
 * The smallest virtual machine monitor: one file, the kernel's header and the C library.
 *
 * It makes a VM with one page of memory and one CPU, puts 16-bit code into the page, and does
 * for the guest what a serial port would do: prints the bytes that it sends. Its argument is the
 * device, /dev/rusthv if there is none; any device that speaks the KVM ABI will do.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define GUEST_ADDRESS	0x1000		/* where the page appears in the guest */
#define PAGE_BYTES	4096
#define SERIAL_PORT	0x3f8

/* The guest. It prints a text, and then what it has computed itself. */
static const uint8_t guest[] = {
	0xba, 0xf8, 0x03,	/* 1000     mov  dx, 0x3f8	*/
	0xbe, 0x23, 0x10,	/* 1003     mov  si, 0x1023	*/
	0xac,			/* 1006 1:  lodsb		*/
	0x84, 0xc0,		/* 1007     test al, al		*/
	0x74, 0x03,		/* 1009     jz   2f		*/
	0xee,			/* 100b     out  dx, al		*/
	0xeb, 0xf8,		/* 100c     jmp  1b		*/
	0xb0, 0x06,		/* 100e 2:  mov  al, 6		*/
	0xb3, 0x07,		/* 1010     mov  bl, 7		*/
	0xf6, 0xe3,		/* 1012     mul  bl		*/
	0xd4, 0x0a,		/* 1014     aam			*/
	0x05, 0x30, 0x30,	/* 1016     add  ax, 0x3030	*/
	0x86, 0xc4,		/* 1019     xchg al, ah		*/
	0xee,			/* 101b     out  dx, al		*/
	0x88, 0xe0,		/* 101c     mov  al, ah		*/
	0xee,			/* 101e     out  dx, al		*/
	0xb0, 0x0a,		/* 101f     mov  al, '\n'	*/
	0xee,			/* 1021     out  dx, al		*/
	0xf4,			/* 1022     hlt			*/
	'6', ' ', '*', ' ', '7', ' ', '=', ' ', 0,
};

/* Every request goes through here: none may fail. */
static int request(int fd, unsigned long number, void *argument, const char *name)
{
	int ret = ioctl(fd, number, argument);

	if (ret < 0)
		err(1, "%s", name);
	return ret;
}

#define REQUEST(fd, name, argument) request(fd, name, (void *)(argument), #name)

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : "/dev/rusthv";
	int kvm, vm, vcpu, size;
	struct kvm_run *run;
	void *page;

	kvm = open(device, O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "%s", device);
	if (REQUEST(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		errx(1, "%s speaks another version of the KVM ABI", device);
	vm = REQUEST(kvm, KVM_CREATE_VM, 0);
	/* Pages that a CPU without "unrestricted guest" needs to imitate real mode. */
	REQUEST(vm, KVM_SET_TSS_ADDR, 0xfffbd000);

	/* Guest memory is memory of this process. */
	page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		err(1, "guest memory");
	memcpy(page, guest, sizeof(guest));
	REQUEST(vm, KVM_SET_USER_MEMORY_REGION, (&(struct kvm_userspace_memory_region) {
		.guest_phys_addr = GUEST_ADDRESS,
		.memory_size = PAGE_BYTES,
		.userspace_addr = (uintptr_t)page,
	}));

	/* A CPU, and the page through which it says why it stopped. */
	vcpu = REQUEST(vm, KVM_CREATE_VCPU, 0);
	size = REQUEST(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");

	/* Out of reset it would start at the end of memory: point it to the page instead. */
	struct kvm_sregs sregs;

	REQUEST(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	REQUEST(vcpu, KVM_SET_SREGS, &sregs);
	REQUEST(vcpu, KVM_SET_REGS, (&(struct kvm_regs) {
		.rip = GUEST_ADDRESS,
		.rflags = 2,		/* the bit that is always set */
	}));

	for (;;) {
		REQUEST(vcpu, KVM_RUN, 0);
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != SERIAL_PORT)
				errx(1, "unexpected access to port %#x", run->io.port);
			fwrite((char *)run + run->io.data_offset,
			       run->io.size, run->io.count, stdout);
			break;
		case KVM_EXIT_HLT:
			return fflush(stdout) ? 1 : 0;
		case KVM_EXIT_FAIL_ENTRY:
			errx(1, "the CPU refuses to enter the guest: reason %#llx",
			     (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		default:
			errx(1, "unexpected exit %u", run->exit_reason);
		}
	}
}

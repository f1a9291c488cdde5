// SPDX-License-Identifier: GPL-2.0
/*
 * /hold-vm of the test machine in QEMU: keeps a KVM guest of one vCPU open, and
 * never runs it.
 *
 * The kernel patches its own code (static keys in the scheduler, among others)
 * when the first KVM guest comes and when the last one goes. TCG with several
 * threads (seen in QEMU 7.2 and 10.0) may go on executing the breakpoint that
 * stands there in between, and the host dies of an "Oops: int3".
 * With a guest that is always there, there is no first and no last one. It comes
 * while a single CPU is online.
 */

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

	/* Without an interrupt controller in KVM: that has a key of its own. */
	if (vm < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0) {
		perror("hold-vm: /dev/kvm");
		return 1;
	}
	if (daemon(1, 0)) {
		perror("hold-vm: daemon");
		return 1;
	}
	for (;;)
		pause();
}

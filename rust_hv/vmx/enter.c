// SPDX-License-Identifier: GPL-2.0
/*
 * Around the VM entry of VT-x: what must be noinstr, or follows the host's
 * mitigation policy for L1TF. See host/shim.h.
 */
#include <linux/entry-virt.h>
#include <linux/kvm_host.h>
#include <asm/cpufeature.h>
#include <asm/entry-common.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/trapnr.h>
#include <asm/vmx.h>

#include "shim.h"

static_assert(offsetof(struct rhv_regs, cr2) == 128);
static_assert(offsetof(struct rhv_regs, host_rsp) == 136);

/*
 * L1TF: what the host has in its L1 data cache must not be there when a guest
 * runs. The policy is the host's ("l1tf=", "kvm-intel.vmentry_l1d_flush=").
 *
 * That is for guests with tables of their own, whose absent entries name any
 * address they like. A guest on shadow tables runs on entries of ours alone,
 * and those that are absent are zero: it needs no flush (kernel documentation,
 * "L1TF - L1 Terminal Fault", "Disabling EPT"), as with kvm_intel's ept=0.
 */
/* 64 KiB: as large as any L1 data cache of the CPUs that are affected. */
#define L1D_CACHE_ORDER 4

static enum vmx_l1d_flush_state rhv_l1d_policy = VMENTER_L1D_FLUSH_NEVER;
static void *rhv_l1d_pages;

static enum vmx_l1d_flush_state rhv_l1d_choose(void)
{
	if (!boot_cpu_has_bug(X86_BUG_L1TF))
		return VMENTER_L1D_FLUSH_NOT_REQUIRED;
	if (boot_cpu_has(X86_FEATURE_ARCH_CAPABILITIES) &&
	    rhv_rdmsr(MSR_IA32_ARCH_CAPABILITIES) &
	    ARCH_CAP_SKIP_VMENTRY_L1DFLUSH)
		return VMENTER_L1D_FLUSH_NOT_REQUIRED;
	/*
	 * kvm_intel, if it is there, has been told or has decided; without EPT
	 * it needs no flush, but we do.
	 */
	if (l1tf_vmx_mitigation != VMENTER_L1D_FLUSH_AUTO &&
	    l1tf_vmx_mitigation != VMENTER_L1D_FLUSH_EPT_DISABLED)
		return l1tf_vmx_mitigation;
	switch (l1tf_mitigation) {
	case L1TF_MITIGATION_OFF:
		return VMENTER_L1D_FLUSH_NEVER;
	case L1TF_MITIGATION_FULL:
	case L1TF_MITIGATION_FULL_FORCE:
		return VMENTER_L1D_FLUSH_ALWAYS;
	default:
		return VMENTER_L1D_FLUSH_COND;
	}
}

int rhv_l1d_setup(void)
{
	struct page *page;
	unsigned int i;

	rhv_l1d_policy = rhv_l1d_choose();
	if (rhv_l1d_policy != VMENTER_L1D_FLUSH_COND &&
	    rhv_l1d_policy != VMENTER_L1D_FLUSH_ALWAYS)
		return 0;
	if (boot_cpu_has(X86_FEATURE_FLUSH_L1D))
		return 0;
	page = alloc_pages(GFP_KERNEL, L1D_CACHE_ORDER);
	if (!page)
		return -ENOMEM;
	rhv_l1d_pages = page_address(page);
	/* Different contents, so that same-page merging leaves them alone. */
	for (i = 0; i < 1U << L1D_CACHE_ORDER; i++)
		memset(rhv_l1d_pages + i * PAGE_SIZE, i + 1, PAGE_SIZE);
	return 0;
}

void rhv_l1d_cleanup(void)
{
	if (rhv_l1d_pages)
		free_pages((unsigned long)rhv_l1d_pages, L1D_CACHE_ORDER);
	rhv_l1d_pages = NULL;
}

/* Without the MSR: touch every page for the TLB, then load every line. */
static __always_inline void rhv_l1d_fill(void)
{
	long size = PAGE_SIZE << L1D_CACHE_ORDER;
	const char *end = rhv_l1d_pages + size;
	long at;

	asm volatile("	mov %[negative], %[at]\n"
		     "1:	movzbl (%[end], %[at]), %%eax\n"
		     "	add $4096, %[at]\n"
		     "	jnz 1b\n"
		     /* CPUID keeps the loads behind from passing those before. */
		     "	xor %%eax, %%eax\n"
		     "	cpuid\n"
		     "	mov %[negative], %[at]\n"
		     /* Four lines a turn: the loop costs more than the loads. */
		     "2:	movzbl (%[end], %[at]), %%eax\n"
		     "	movzbl 64(%[end], %[at]), %%eax\n"
		     "	movzbl 128(%[end], %[at]), %%eax\n"
		     "	movzbl 192(%[end], %[at]), %%eax\n"
		     "	add $256, %[at]\n"
		     "	jnz 2b\n"
		     "	lfence\n"
		     : [at] "=&r"(at)
		     : [end] "r"(end), [negative] "r"(-size)
		     : "eax", "ebx", "ecx", "edx", "cc", "memory");
}

static __always_inline void rhv_l1d_flush(void)
{
	if (rhv_l1d_policy == VMENTER_L1D_FLUSH_COND) {
		/* Set by interrupt handlers and rhv_request_l1d_flush(). */
		if (!kvm_get_cpu_l1tf_flush_l1d())
			return;
		kvm_clear_cpu_l1tf_flush_l1d();
	} else if (rhv_l1d_policy != VMENTER_L1D_FLUSH_ALWAYS) {
		return;
	}
	if (rhv_l1d_pages)
		rhv_l1d_fill();
	else
		native_wrmsrq(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
}

int rhv_vmx_run(struct rhv_regs *regs, bool launched);

static __always_inline u32 rhv_vmread32(unsigned long field)
{
	unsigned long value = 0;

	asm volatile("vmread %1, %0" : "+r"(value) : "r"(field) : "cc");
	return value;
}

static __always_inline int rhv_enter_irqoff(struct rhv_regs *regs,
					    bool launched, bool nested,
					    u32 *reason, u64 *ticks)
{
	u64 began = 0;
	int ret;

	guest_state_enter_irqoff();

	if (nested)
		rhv_l1d_flush();
	if (regs->cr2 != native_read_cr2())
		native_write_cr2(regs->cr2);

	if (ticks)
		began = rdtsc_ordered();
	ret = rhv_vmx_run(regs, launched);
	if (ticks)
		*ticks += rdtsc_ordered() - began;

	regs->cr2 = native_read_cr2();
	if (likely(!ret)) {
		*reason = rhv_vmread32(VM_EXIT_REASON);
		/*
		 * NMIs stay blocked after an NMI exit, and nothing may run
		 * between the exit and the host's handler.
		 */
		if (*reason == EXIT_REASON_EXCEPTION_NMI &&
		    (rhv_vmread32(VM_EXIT_INTR_INFO) &
		     (INTR_INFO_INTR_TYPE_MASK | INTR_INFO_VALID_MASK)) ==
		    (INTR_TYPE_NMI_INTR | INTR_INFO_VALID_MASK))
			x86_entry_from_kvm(EVENT_TYPE_NMI, NMI_VECTOR);
	}

	guest_state_exit_irqoff();
	return ret;
}

/* noinstr: from the guest's entry on, RCU and lockdep see another context. */
static noinstr int rhv_enter_noinstr(struct rhv_regs *regs, bool launched,
				     bool nested, u32 *reason)
{
	return rhv_enter_irqoff(regs, launched, nested, reason, NULL);
}

static noinstr int rhv_enter_counted_noinstr(struct rhv_regs *regs,
					     bool launched, bool nested,
					     u32 *reason, u64 *ticks)
{
	return rhv_enter_irqoff(regs, launched, nested, reason, ticks);
}

static __always_inline int rhv_enter(struct rhv_regs *regs, bool launched,
				     bool nested, u32 *reason, u64 *ticks)
{
	int ret;

	guest_timing_enter_irqoff();
	if (ticks)
		ret = rhv_enter_counted_noinstr(regs, launched, nested, reason,
						ticks);
	else
		ret = rhv_enter_noinstr(regs, launched, nested, reason);
	/* VMSCAPE: the guest must not steer the VMM's predictions. */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
	guest_timing_exit_irqoff();
	return ret;
}

int rhv_enter_guest(struct rhv_regs *regs, bool launched, bool nested,
		    u32 *reason)
{
	return rhv_enter(regs, launched, nested, reason, NULL);
}

/* The ticks in the guest are added to *ticks: few ask for them. */
int rhv_enter_guest_counted(struct rhv_regs *regs, bool launched, bool nested,
			    u32 *reason, u64 *ticks)
{
	return rhv_enter(regs, launched, nested, reason, ticks);
}

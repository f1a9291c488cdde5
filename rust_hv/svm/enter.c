// SPDX-License-Identifier: GPL-2.0
/*
 * AMD-V: what is done in C around the entry, and what each CPU keeps for it.
 * Called from rust_hv/svm, and from rust_hv/host/switch.rs when the guest's
 * task leaves the CPU.
 */
#include <linux/cc_platform.h>
#include <linux/hw_breakpoint.h>
#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include <asm/asm.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include <asm/svm.h>

#include "shim.h"

static DEFINE_PER_CPU(struct rhv_svm_cpu, rhv_svm_cpus);

struct rhv_svm_cpu *rhv_svm_cpu(int cpu)
{
	return per_cpu_ptr(&rhv_svm_cpus, cpu);
}

/* The CPU has it, and neither firmware nor the host has switched it off. */
bool rhv_has_svm(void)
{
	return boot_cpu_has(X86_FEATURE_SVM);
}

/* 0: memory is not encrypted; 1: we are in a guest whose is; 2: the host's is. */
int rhv_memory_encryption(void)
{
	if (cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT))
		return 1;
	if (cc_platform_has(CC_ATTR_HOST_MEM_ENCRYPT))
		return 2;
	return 0;
}

/* False when it faults: EFER.SVME is off, as in a reboot. */
static __always_inline bool rhv_clgi(void)
{
	int faulted = 1;

	asm volatile("1:	clgi\n"
		     "	xor	%0, %0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+r"(faulted) : : "cc", "memory");
	return !faulted;
}

static __always_inline void rhv_stgi(void)
{
	asm volatile("1:	stgi\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : : : "memory");
}

static void rhv_vmsave(u64 area)
{
	asm volatile("1:	vmsave	%0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : : "a"(area) : "memory");
}

/*
 * The task of a guest has come to this CPU, or to KVM_RUN. True when another
 * hypervisor may have run guests here since: translations of its guests can
 * have any ASID.
 */
bool rhv_svm_load(void)
{
	struct rhv_svm_cpu *cpu = this_cpu_ptr(&rhv_svm_cpus);
	u64 hsave = rhv_rdmsr(MSR_VM_HSAVE_PA);
	u64 ratio;

	if (hsave != cpu->hsave) {
		/*
		 * Others write the MSR when they switch SVM on or off for
		 * themselves on this CPU. Any frame will do for them, as its
		 * contents matter in the guest only: ours stays in.
		 */
		cpu->previous = hsave;
		wrmsrq(MSR_VM_HSAVE_PA, cpu->hsave);
		/* What their guests left is forgotten, whatever its ASID. */
		cpu->generation++;
		cpu->next_asid = 1;
		cpu->flush_all = true;
	}
	rhv_vmsave(cpu->host);
	if (!cpu->previous)
		return false;
	/* Others leave the ratio as their last guest had it. */
	if (boot_cpu_has(X86_FEATURE_TSCRATEMSR)) {
		ratio = rhv_rdmsr(MSR_AMD64_TSC_RATIO);
		if (ratio != SVM_TSC_RATIO_DEFAULT) {
			cpu->tsc_ratio = ratio;
			wrmsrq(MSR_AMD64_TSC_RATIO, SVM_TSC_RATIO_DEFAULT);
		}
	}
	return true;
}

/*
 * Drop the translations of an ASID. There is an instruction for single pages
 * only; VMRUN does it for all. The VMCB has a virtual interrupt pending that
 * is intercepted: it exits before the first instruction.
 */
static void rhv_svm_purge(struct rhv_svm_cpu *cpu, u32 asid)
{
	struct vmcb *vmcb = phys_to_virt(cpu->purge);

	vmcb->control.asid = asid;
	vmcb->control.tlb_ctl = cpu_feature_enabled(X86_FEATURE_FLUSHBYASID) ?
		TLB_CONTROL_FLUSH_ASID : TLB_CONTROL_FLUSH_ALL_ASID;
	vmcb->control.int_ctl |= V_IRQ_MASK;
	vmcb->control.clean = 0;
	if (!rhv_clgi())
		return;
	asm volatile("1:	vmrun	%0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : : "a"(cpu->purge) : "cc", "memory");
	rhv_stgi();
	/* The exit has switched breakpoints off. */
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
}

/* The opposite of rhv_svm_load(), with interrupts off. */
void rhv_svm_put(void)
{
	struct rhv_svm_cpu *cpu = this_cpu_ptr(&rhv_svm_cpus);
	u16 ldt;

	/*
	 * Each exit has loaded the LDTR that was there at the time of the
	 * load. Another thread may have given the process a new LDT since.
	 */
	store_ldt(ldt);
	if (ldt)
		asm volatile("lldt %0" : : "rm"(ldt));
	if (cpu->tsc_ratio) {
		wrmsrq(MSR_AMD64_TSC_RATIO, cpu->tsc_ratio);
		cpu->tsc_ratio = 0;
	}
	if (cpu->speculation_reduced) {
		wrmsrq(MSR_ZEN4_BP_CFG, rhv_rdmsr(MSR_ZEN4_BP_CFG) &
		       ~BIT_ULL(MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT));
		cpu->speculation_reduced = false;
	}
	/* Guests of others may get the ASID next, and have it not flushed. */
	if (cpu->previous && cpu->used_asid)
		rhv_svm_purge(cpu, cpu->used_asid);
	cpu->used_asid = 0;
}

/*
 * SRSO: CPUs with this bit want it set while guests run. KVM clears it when
 * its own last VM goes, so look each time.
 */
static __always_inline void rhv_reduce_speculation(struct rhv_svm_cpu *cpu)
{
	u64 bit = BIT_ULL(MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
	u64 value;

	if (!cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		return;
	value = rhv_rdmsr(MSR_ZEN4_BP_CFG);
	if (!(value & bit)) {
		wrmsrq(MSR_ZEN4_BP_CFG, value | bit);
		cpu->speculation_reduced = true;
	}
}

int rhv_svm_run(struct rhv_regs *regs, u64 vmcb, u64 host);

static __always_inline int rhv_svm_run_gif0(struct rhv_regs *regs, u64 vmcb,
					    u64 host, u64 *ticks)
{
	u64 began = 0;
	int ret;

	guest_state_enter_irqoff();
	/*
	 * RFLAGS.IF at VMRUN says whether the host's interrupts exit from the
	 * guest. GIF is 0: none is taken here.
	 */
	raw_local_irq_enable();
	/* Zen 1: the guest must not see the quotient of the host's division. */
	amd_clear_divider();
	if (ticks)
		began = rdtsc_ordered();
	ret = rhv_svm_run(regs, vmcb, host);
	if (ticks)
		*ticks += rdtsc_ordered() - began;
	raw_local_irq_disable();
	guest_state_exit_irqoff();
	return ret;
}

/* noinstr: from the guest's entry on, RCU and lockdep see another context. */
static noinstr int rhv_svm_noinstr(struct rhv_regs *regs, u64 vmcb, u64 host)
{
	return rhv_svm_run_gif0(regs, vmcb, host, NULL);
}

static noinstr int rhv_svm_counted_noinstr(struct rhv_regs *regs, u64 vmcb,
					   u64 host, u64 *ticks)
{
	return rhv_svm_run_gif0(regs, vmcb, host, ticks);
}

static __always_inline int rhv_svm_enter_any(struct rhv_regs *regs, u64 vmcb,
					     u32 asid, u64 host_debugctl,
					     u64 *ticks)
{
	struct rhv_svm_cpu *cpu = this_cpu_ptr(&rhv_svm_cpus);
	int ret;

	rhv_reduce_speculation(cpu);
	cpu->used_asid = asid;
	guest_timing_enter_irqoff();
	/* From here on neither NMIs nor SMIs come between. */
	if (rhv_clgi()) {
		/* VMRUN does not switch it. */
		if (host_debugctl)
			update_debugctlmsr(0);
		if (ticks)
			ret = rhv_svm_counted_noinstr(regs, vmcb, cpu->host,
						      ticks);
		else
			ret = rhv_svm_noinstr(regs, vmcb, cpu->host);
		if (host_debugctl)
			update_debugctlmsr(host_debugctl);
		/* An NMI that made the guest exit is taken here. */
		rhv_stgi();
	} else {
		ret = 2;
	}
	/* VMSCAPE: the guest must not steer the VMM's predictions. */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
	guest_timing_exit_irqoff();
	return ret;
}

int rhv_svm_enter(struct rhv_regs *regs, u64 vmcb, u32 asid, u64 host_debugctl)
{
	return rhv_svm_enter_any(regs, vmcb, asid, host_debugctl, NULL);
}

/* The ticks in the guest are added to *ticks: few ask for them. */
int rhv_svm_enter_counted(struct rhv_regs *regs, u64 vmcb, u32 asid,
			  u64 host_debugctl, u64 *ticks)
{
	return rhv_svm_enter_any(regs, vmcb, asid, host_debugctl, ticks);
}

/* Forgets one address of an ASID. 2: it faults, as SVM is off. */
int rhv_invlpga(u64 addr, u32 asid)
{
	int status = 2;

	asm volatile("1:	invlpga	%%rax, %%ecx\n"
		     "	xor	%0, %0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+r"(status) : "a"(addr), "c"(asid) : "cc", "memory");
	return status;
}

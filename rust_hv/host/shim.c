// SPDX-License-Identifier: GPL-2.0
/*
 * See shim.h. Everything here is called from rust_hv/host, vmx and svm only.
 */
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/cpu.h>
#include <linux/debugfs.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hw_breakpoint.h>
#include <linux/hugetlb.h>
#include <linux/kvm_host.h>
#include <linux/entry-virt.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/shrinker.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <asm/cpu.h>
#include <asm/cpu_entry_area.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/entry-common.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/fsgsbase.h>
#include <asm/mce.h>
#include <asm/mmu_context.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/tlbflush.h>

#include "shim.h"

static DEFINE_PER_CPU(struct rhv_cpu_state, rhv_cpus);

struct rhv_cpu_state *rhv_cpu_state(int cpu)
{
	return per_cpu_ptr(&rhv_cpus, cpu);
}

bool rhv_cpu_possible(int cpu)
{
	return cpu_possible(cpu);
}

int rhv_cpu(void)
{
	return raw_smp_processor_id();
}

int rhv_cpu_to_node(int cpu)
{
	return cpu_to_node(cpu);
}

bool rhv_cpu_online(int cpu)
{
	return cpu_online(cpu);
}

/* Power-off, halt and reboot; a kernel that kexec starts counts as the last. */
bool rhv_going_down(void)
{
	return system_state == SYSTEM_HALT ||
	       system_state == SYSTEM_POWER_OFF ||
	       system_state == SYSTEM_RESTART;
}

void rhv_preempt_disable(void)
{
	preempt_disable();
}

void rhv_preempt_enable(void)
{
	preempt_enable();
}

void rhv_irq_disable(void)
{
	local_irq_disable();
}

void rhv_irq_enable(void)
{
	local_irq_enable();
}

/*
 * What ended the guest's turn may be the tick, which asks what the task is doing:
 * it has been in the guest.
 */
void rhv_irq_enable_in_guest_time(void)
{
	preempt_disable();
	guest_timing_enter_irqoff();
	local_irq_enable();
	/* Interrupts are taken behind the instruction after STI. */
	asm volatile("nop");
	local_irq_disable();
	guest_timing_exit_irqoff();
	local_irq_enable();
	preempt_enable();
}

unsigned long rhv_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void rhv_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

bool rhv_work_pending(void)
{
	return __xfer_to_guest_mode_work_pending();
}

bool rhv_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

int rhv_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

void rhv_rwlock_init(rwlock_t *lock, const char *name,
		     struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__rwlock_init(lock, name, key);
#else
	rwlock_init(lock);
#endif
}

void rhv_read_lock(rwlock_t *lock)
{
	read_lock(lock);
}

void rhv_read_unlock(rwlock_t *lock)
{
	read_unlock(lock);
}

void rhv_write_lock(rwlock_t *lock)
{
	write_lock(lock);
}

void rhv_write_unlock(rwlock_t *lock)
{
	write_unlock(lock);
}

void rhv_cond_resched(void)
{
	cond_resched();
}

/* Sleep a tick, so that the scheduler can take us off a CPU that is going. */
void rhv_schedule_away(void)
{
	schedule_timeout_uninterruptible(1);
}

void rhv_smp_mb(void)
{
	smp_mb();	/* its pair stands where the caller says */
}

static void rhv_nothing(void *unused)
{
}

/*
 * Interrupt the CPUs of a bitmap that are online, but for the one that we are
 * on, and wait until they took it. How many they were.
 */
unsigned int rhv_kick_cpus(unsigned int first, const unsigned long *cpus,
			   unsigned int ncpus)
{
	cpumask_var_t mask;
	unsigned int cpu, count;

	/*
	 * On the stack or not, by CPUMASK_OFFSTACK. When there is no memory
	 * for the mask, interrupt everybody: slow and right.
	 */
	if (!zalloc_cpumask_var(&mask, GFP_ATOMIC | __GFP_NOWARN)) {
		smp_call_function(rhv_nothing, NULL, 1);
		return num_online_cpus() - 1;
	}
	for_each_set_bit(cpu, cpus, ncpus)
		if (cpu_online(first + cpu))
			cpumask_set_cpu(first + cpu, mask);
	preempt_disable();
	cpumask_clear_cpu(smp_processor_id(), mask);
	count = cpumask_weight(mask);
	if (count)
		smp_call_function_many(mask, rhv_nothing, NULL, 1);
	preempt_enable();
	free_cpumask_var(mask);
	return count;
}

/* Whose virtualization the CPU would have, if it has any. */
bool rhv_cpu_is_amd(void)
{
	return boot_cpu_data.x86_vendor == X86_VENDOR_AMD ||
	       boot_cpu_data.x86_vendor == X86_VENDOR_HYGON;
}

bool rhv_has_vmx(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

bool rhv_has_fred(void)
{
	return cpu_feature_enabled(X86_FEATURE_FRED);
}

/* The current system call is one of a 32-bit program's. */
bool rhv_in_compat_syscall(void)
{
	return in_compat_syscall();
}

bool rhv_has_osxsave(void)
{
	return boot_cpu_has(X86_FEATURE_OSXSAVE);
}

u32 rhv_phys_bits(void)
{
	return boot_cpu_data.x86_phys_bits;
}

/*
 * What the kernel has left of a CPUID register (EAX 0 to EDX 3) after its own
 * choices; all ones where it keeps no record.
 */
u32 rhv_kernel_features(u32 leaf, u32 reg)
{
	const u32 *caps = boot_cpu_data.x86_capability;

	if (leaf == 1 && reg == 2)
		return caps[CPUID_1_ECX];
	if (leaf == 1 && reg == 3)
		return caps[CPUID_1_EDX];
	if (leaf == 7 && reg == 1)
		return caps[CPUID_7_0_EBX];
	if (leaf == 7 && reg == 2)
		return caps[CPUID_7_ECX];
	if (leaf == 7 && reg == 3)
		return caps[CPUID_7_EDX];
	if (leaf == 0x80000001 && reg == 2)
		return caps[CPUID_8000_0001_ECX];
	if (leaf == 0x80000001 && reg == 3)
		return caps[CPUID_8000_0001_EDX];
	return ~0u;
}

int rhv_rdmsr_safe(u32 msr, u64 *value)
{
	return rdmsrq_safe(msr, value);
}

u64 rhv_rdmsr(u32 msr)
{
	u64 value;

	rdmsrq(msr, value);
	return value;
}

void rhv_wrmsr(u32 msr, u64 value)
{
	wrmsrq(msr, value);
}

u64 rhv_xgetbv0(void)
{
	return xgetbv(XCR_XFEATURE_ENABLED_MASK);
}

void rhv_xsetbv0(u64 value)
{
	xsetbv(XCR_XFEATURE_ENABLED_MASK, value);
}

void rhv_read_host_state(struct rhv_host_state *state)
{
	int cpu = raw_smp_processor_id();
	struct desc_ptr idt;

	store_idt(&idt);
	state->cr0 = read_cr0() & ~X86_CR0_TS;
	state->cs = __KERNEL_CS;
	state->ss = __KERNEL_DS;
	state->tr = GDT_ENTRY_TSS * 8;
	state->tr_base = (unsigned long)&get_cpu_entry_area(cpu)->tss.x86_tss;
	state->gdtr_base = (unsigned long)get_current_gdt_ro();
	state->idtr_base = idt.address;
	state->sysenter_cs = rhv_rdmsr(MSR_IA32_SYSENTER_CS);
	state->sysenter_esp = rhv_rdmsr(MSR_IA32_SYSENTER_ESP);
	state->sysenter_eip = rhv_rdmsr(MSR_IA32_SYSENTER_EIP);
	state->efer = rhv_rdmsr(MSR_EFER);
	state->pat = rhv_rdmsr(MSR_IA32_CR_PAT);
}

/*
 * A VM exit loads FS, GS and LDTR with null selectors, DS and ES too, and
 * leaves KERNEL_GS_BASE as the guest had it.
 */
void rhv_save_segments(struct rhv_host_segments *segs)
{
	segs->gs_base = cpu_kernelmode_gs_base(raw_smp_processor_id());
	store_ldt(segs->ldt);
	savesegment(ds, segs->ds);
	savesegment(es, segs->es);
	if (likely(is_64bit_mm(current->mm))) {
		current_save_fsgs();
		segs->fs = current->thread.fsindex;
		segs->gs = current->thread.gsindex;
		segs->fs_base = current->thread.fsbase;
		segs->kernel_gs_base = current->thread.gsbase;
	} else {
		savesegment(fs, segs->fs);
		savesegment(gs, segs->gs);
		segs->fs_base = rhv_rdmsr(MSR_FS_BASE);
		segs->kernel_gs_base = rhv_rdmsr(MSR_KERNEL_GS_BASE);
	}
}

void rhv_restore_segments(const struct rhv_host_segments *segs)
{
	if (segs->ldt)
		asm volatile("lldt %0" : : "rm"(segs->ldt));
	if (segs->gs)
		load_gs_index(segs->gs);
	if (segs->fs) {
		loadsegment(fs, segs->fs);
		wrmsrq(MSR_FS_BASE, segs->fs_base);
	}
	if (segs->ds | segs->es) {
		loadsegment(ds, segs->ds);
		loadsegment(es, segs->es);
	}
	/* The exit set the TSS limit to 0x67, short of the I/O bitmap. */
	invalidate_tss_limit();
	wrmsrq(MSR_KERNEL_GS_BASE, segs->kernel_gs_base);
	/* ... and the GDT limit to 0xffff. */
	load_fixmap_gdt(raw_smp_processor_id());
}

u64 rhv_read_cr3(void)
{
	return __get_current_cr3_fast();
}

void rhv_load_fpu_if_needed(void)
{
	fpregs_assert_state_consistent();
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
}

u64 rhv_host_debugctl(void)
{
	return get_debugctlmsr();
}

bool rhv_detects_split_locks(void)
{
	return boot_cpu_has(X86_FEATURE_SPLIT_LOCK_DETECT);
}

bool rhv_split_lock(unsigned long ip)
{
	return handle_guest_split_lock(ip);
}

void rhv_set_debugctl(u64 value)
{
	update_debugctlmsr(value);
}

void rhv_restore_debug_registers(void)
{
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
}

void rhv_load_debug_registers(const u64 *db, u64 dr6)
{
	set_debugreg(0, 7);
	set_debugreg(db[0], 0);
	set_debugreg(db[1], 1);
	set_debugreg(db[2], 2);
	set_debugreg(db[3], 3);
	set_debugreg(dr6, 6);
}

/* The guest counts as user space for the handler, whatever it ran. */
void rhv_machine_check(void)
{
#ifdef CONFIG_X86_MCE
	struct pt_regs regs = { .cs = 3, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
#endif
}

/* The task has seen memory that the guest must not learn of. */
void rhv_request_l1d_flush(void)
{
	raw_cpu_write(irq_stat.kvm_cpu_l1tf_flush_l1d, 1);
}

/* By number, as an address may be another vCPU's by now. 0: none yet. */
static DEFINE_PER_CPU(u64, rhv_last_vcpu);

/* Each vCPU has a prediction domain of its own, where the policy wants that. */
void rhv_separate_predictions(u64 vcpu)
{
	if (this_cpu_read(rhv_last_vcpu) == vcpu)
		return;
	if (static_branch_likely(&switch_vcpu_ibpb))
		indirect_branch_prediction_barrier();
	this_cpu_write(rhv_last_vcpu, vcpu);
}

/*
 * One page, zeroed: near a node, or on the nodes of a set alone when that is not
 * all ones. Nobody is killed for a node of a set. May sleep.
 */
struct page *rhv_alloc_page(int node, u64 among, bool low)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN |
		    (low ? GFP_DMA32 : 0);
	nodemask_t nodes = NODE_MASK_NONE;
	int i;

	if (among == ~0ULL)
		return alloc_pages_node(node, gfp, 0);
	for (i = 0; i < min(MAX_NUMNODES, 64); i++)
		if (among >> i & 1)
			node_set(i, nodes);
	return __alloc_pages(gfp | __GFP_RETRY_MAYFAIL, 0, node, &nodes);
}

void rhv_free_page(struct page *page)
{
	__free_page(page);
}

void *rhv_page_address(struct page *page)
{
	return page_address(page);
}

u64 rhv_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

struct page *rhv_phys_to_page(u64 phys)
{
	return phys_to_page(phys);
}

int rhv_page_node(struct page *page)
{
	return page_to_nid(page);
}

unsigned int rhv_max_nodes(void)
{
	return nr_node_ids;
}

int rhv_node_distance(int from, int to)
{
	return node_distance(from, to);
}

bool rhv_node_has_memory(unsigned int node)
{
	return node < nr_node_ids && node_state(node, N_MEMORY);
}

/* For phys_to_virt() without a call: PAGE_OFFSET is an expression. */
unsigned long rhv_direct_map;

void rhv_note_direct_map(void)
{
	rhv_direct_map = PAGE_OFFSET;
}

void rhv_put_user_page(struct page *page, bool dirty)
{
	if (dirty && !PageReserved(page))
		SetPageDirty(page);
	put_page(page);
}

struct mm_struct *rhv_current_mm(void)
{
	return current->mm;
}

void rhv_mmgrab(struct mm_struct *mm)
{
	mmgrab(mm);
}

void rhv_mmdrop(struct mm_struct *mm)
{
	mmdrop(mm);
}

u64 rhv_max_user_address(void)
{
	return TASK_SIZE_MAX;
}

#define RHV_CMPXCHG(type)						\
	({								\
		type __user *p = (type __user *)addr;			\
		type expected = *old;					\
									\
		unsafe_try_cmpxchg_user(p, &expected, (type)new, fault); \
		*old = expected;					\
	})

/* Exchange if *old is there; *old is what was found. */
int rhv_cmpxchg_user(u64 addr, u32 size, u64 *old, u64 new)
{
	int ret = 0;

	if (!user_access_begin((void __user *)addr, size))
		return -EFAULT;
	switch (size) {
	case 1:
		RHV_CMPXCHG(u8);
		break;
	case 2:
		RHV_CMPXCHG(u16);
		break;
	case 4:
		RHV_CMPXCHG(u32);
		break;
	case 8:
		RHV_CMPXCHG(u64);
		break;
	default:
		ret = -EINVAL;
	}
	user_access_end();
	return ret;
fault:
	user_access_end();
	return -EFAULT;
}

int rhv_anon_fd(const char *name, const struct file_operations *fops,
		void *private, int flags)
{
	struct file *file;
	int fd = get_unused_fd_flags(flags & O_CLOEXEC);

	if (fd < 0)
		return fd;
	/* A file that can be read can be read from anywhere. */
	file = anon_inode_getfile_fmode(name, fops, private, flags,
					fops->read ? FMODE_PREAD : 0);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	fd_install(fd, file);
	return fd;
}

void rhv_pagefault_disable(void)
{
	pagefault_disable();
}

void rhv_pagefault_enable(void)
{
	pagefault_enable();
}

/* One access of 1, 2, 4 or 8 bytes. */
int rhv_get_user(u64 addr, u32 size, u64 *value)
{
	u8 v8;
	u16 v16;
	u32 v32;
	int ret;

	switch (size) {
	case 1:
		ret = get_user(v8, (u8 __user *)addr);
		*value = v8;
		return ret;
	case 2:
		ret = get_user(v16, (u16 __user *)addr);
		*value = v16;
		return ret;
	case 4:
		ret = get_user(v32, (u32 __user *)addr);
		*value = v32;
		return ret;
	case 8:
		return get_user(*value, (u64 __user *)addr);
	default:
		return -EINVAL;
	}
}

int rhv_put_user(u64 addr, u32 size, u64 value)
{
	switch (size) {
	case 1:
		return put_user((u8)value, (u8 __user *)addr);
	case 2:
		return put_user((u16)value, (u16 __user *)addr);
	case 4:
		return put_user((u32)value, (u32 __user *)addr);
	case 8:
		return put_user(value, (u64 __user *)addr);
	default:
		return -EINVAL;
	}
}

/* In a KUnit test: it counts as skipped, unless it fails yet. */
void rhv_kunit_skip(const char *why)
{
#if IS_ENABLED(CONFIG_KUNIT)
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_mark_skipped(test, "%s", why);
#endif
}

/*
 * Pages of such a mapping are given to nobody by their address in it: I/O is for
 * get_user_pages(), MIXEDMAP for entries that stand for no page of the process's,
 * in private mappings, too. Core dumps, which could not have them, leave them out.
 */
void rhv_vma_of_kernel_pages(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_IO | VM_MIXEDMAP | VM_DONTDUMP);
}

/* Which page of the mapping's file is at an address. */
unsigned long rhv_vma_index(struct vm_area_struct *vma, unsigned long addr)
{
	return linear_page_index(vma, addr);
}

/* Whether a mapping has the pages of its file themselves, for such an access. */
bool rhv_vma_shows_file(struct vm_area_struct *vma, bool write)
{
	return (vma->vm_flags & VM_SHARED) &&
	       (vma->vm_flags & (write ? VM_WRITE : VM_READ));
}

/* 2^order pages, zeroed; may sleep. */
struct page *rhv_alloc_pages(int node, unsigned int order)
{
	return alloc_pages_node(node, GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN,
				order);
}

void rhv_free_pages(struct page *page, unsigned int order)
{
	__free_pages(page, order);
}

struct dentry *rhv_debugfs_dir(const char *name, struct dentry *parent)
{
	return debugfs_create_dir(name, parent);
}

struct dentry *rhv_debugfs_file(const char *name, unsigned int mode,
				struct dentry *parent, void *data,
				const struct file_operations *fops)
{
	return debugfs_create_file(name, mode, parent, data, fops);
}

void rhv_debugfs_remove(struct dentry *entry)
{
	debugfs_remove(entry);
}

u64 rhv_random(void)
{
	return get_random_u64();
}

/* The page of zeroes that reads of untouched memory find. */
u64 rhv_zero_page(void)
{
	return page_to_phys(ZERO_PAGE(0));
}

int rhv_phys_to_node(u64 phys)
{
	unsigned long pfn = PHYS_PFN(phys);

	return pfn_valid(pfn) ? pfn_to_nid(pfn) : NUMA_NO_NODE;
}

/*
 * What a page that somebody has mapped is to the host. Flags of a page that
 * stays mapped meanwhile; of any other, a guess.
 */
enum rhv_page_kind rhv_page_kind(u64 phys)
{
	unsigned long pfn = PHYS_PFN(phys);
	struct page *page;
	struct folio *folio;

	if (!pfn_valid(pfn))
		return RHV_PAGE_NONE;
	page = pfn_to_page(pfn);
	folio = page_folio(page);
	if (is_zero_pfn(pfn))
		return RHV_PAGE_ZERO;
	if (folio_test_ksm(folio))
		return RHV_PAGE_KSM;
	if (folio_test_anon(folio)) {
		/* one flag for all where all are mapped as one */
		if (folio_test_large(folio) && folio_entire_mapcount(folio))
			page = &folio->page;
		/* PageAnonExclusive(), which insists that nothing changes */
		return test_bit(PG_anon_exclusive, &page->flags.f) ?
			       RHV_PAGE_PRIVATE :
			       RHV_PAGE_COPIED_ON_WRITE;
	}
	return RHV_PAGE_SHARED;
}

bool rhv_may_use_hardware(void)
{
	return capable(CAP_SYS_RAWIO);
}

bool rhv_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

/* What free pages held can be found, as the host neither wipes nor unmaps them. */
bool rhv_free_pages_keep(void)
{
	return !want_init_on_free() && !page_poisoning_enabled_static() &&
	       !debug_pagealloc_enabled_static();
}

/* What is at an address that is mapped, whoever may look there. */
u64 rhv_peek(unsigned long addr)
{
	return READ_ONCE_NOCHECK(*(unsigned long *)addr);
}

/* How the kernel's own tables map an address: RHV_MAPPED and what goes with it. */
unsigned int rhv_kernel_mapping(unsigned long addr)
{
	unsigned int mapping = RHV_MAPPED;
	unsigned int level;
	pte_t *pte = lookup_address(addr, &level);

	if (!pte || !(pte_val(*pte) & _PAGE_PRESENT))
		return 0;
	if (pte_val(*pte) & _PAGE_RW)
		mapping |= RHV_WRITABLE;
	if (!(pte_val(*pte) & _PAGE_NX))
		mapping |= RHV_EXECUTABLE;
	return mapping;
}

u64 rhv_vmalloc_to_phys(const void *addr)
{
	return page_to_phys(vmalloc_to_page(addr)) + offset_in_page(addr);
}

/* The memory where a guest's FPU registers are while it does not run. */
void *rhv_fpu_memory(struct fpu_guest *fpu, unsigned int *size)
{
	*size = fpu->fpstate->size;
	return &fpu->fpstate->regs;
}

struct shrinker *rhv_shrinker(const char *name,
			      unsigned long (*count)(struct shrinker *shrinker,
						     struct shrink_control *sc),
			      unsigned long (*scan)(struct shrinker *shrinker,
						    struct shrink_control *sc),
			      void *private)
{
	struct shrinker *shrinker = shrinker_alloc(SHRINKER_NUMA_AWARE, "%s", name);

	if (!shrinker)
		return NULL;
	shrinker->count_objects = count;
	shrinker->scan_objects = scan;
	shrinker->private_data = private;
	shrinker_register(shrinker);
	return shrinker;
}

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inlines and macros of the host that bindgen cannot reach, one function each.
 * No logic lives here; what a function means stands at its kernel original.
 */
#ifndef RUSTHV_SHIM_H
#define RUSTHV_SHIM_H

#include <linux/list.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>

struct dentry;
struct file_operations;
struct fpu_guest;
struct lock_class_key;
struct mm_struct;
struct mutex;
struct page;
struct shrink_control;
struct shrinker;
struct vm_area_struct;

/*
 * What entry.S loads and stores around the guest. The offsets there are
 * checked in shim.c. gpr[] is in the order of the instruction encoding.
 */
struct rhv_regs {
	u64 gpr[16];
	u64 cr2;
	u64 host_rsp;	/* last value written to VMCS HOST_RSP */
};

/* Host segment state that a VM exit does not bring back by itself. */
struct rhv_host_segments {
	u64 fs_base;
	u64 gs_base;		/* of the kernel, on this CPU */
	u64 kernel_gs_base;	/* of user space, while in the kernel */
	u16 ds, es, fs, gs, ldt;
};

/* Per-CPU and constant host state for the VMCS host area. */
struct rhv_host_state {
	u64 cr0, tr_base, gdtr_base, idtr_base;
	u64 sysenter_esp, sysenter_eip, efer, pat;
	u32 sysenter_cs;
	u16 cs, ss, tr;
};

/* What the module keeps per CPU; vmx/active.rs owns it. */
struct rhv_cpu_state {
	struct list_head active;	/* VMCSs active on this CPU */
	bool enabled;			/* we hold a VMX reference here */
};

/* CPU, preemption, interrupts */
struct rhv_cpu_state *rhv_cpu_state(int cpu);
int rhv_cpu(void);
bool rhv_cpu_possible(int cpu);
int rhv_cpu_to_node(int cpu);
bool rhv_cpu_online(int cpu);
bool rhv_going_down(void);
void rhv_preempt_disable(void);
void rhv_preempt_enable(void);
void rhv_irq_disable(void);
void rhv_irq_enable(void);
void rhv_irq_enable_in_guest_time(void);
unsigned long rhv_irq_save(void);
void rhv_irq_restore(unsigned long flags);
bool rhv_work_pending(void);
bool rhv_fatal_signal_pending(void);
int rhv_mutex_lock_killable(struct mutex *lock);
void rhv_rwlock_init(rwlock_t *lock, const char *name,
		     struct lock_class_key *key);
void rhv_read_lock(rwlock_t *lock);
void rhv_read_unlock(rwlock_t *lock);
void rhv_write_lock(rwlock_t *lock);
void rhv_write_unlock(rwlock_t *lock);
void rhv_cond_resched(void);
void rhv_smp_mb(void);
void rhv_schedule_away(void);
unsigned int rhv_kick_cpus(unsigned int first, const unsigned long *cpus,
			   unsigned int ncpus);

/* CPU features of the host, by X86_FEATURE_* or X86_BUG_* number */
bool rhv_cpu_is_amd(void);
bool rhv_has_vmx(void);
bool rhv_has_fred(void);
bool rhv_has_osxsave(void);
bool rhv_in_compat_syscall(void);
int rhv_l1d_setup(void);
void rhv_l1d_cleanup(void);
void rhv_separate_predictions(u64 vcpu);
void rhv_request_l1d_flush(void);
u32 rhv_phys_bits(void);
u32 rhv_kernel_features(u32 leaf, u32 reg);

/* MSRs */
int rhv_rdmsr_safe(u32 msr, u64 *value);
u64 rhv_rdmsr(u32 msr);
void rhv_wrmsr(u32 msr, u64 value);
u64 rhv_xgetbv0(void);
void rhv_xsetbv0(u64 value);

/* Host state around a guest */
void rhv_read_host_state(struct rhv_host_state *state);
void rhv_save_segments(struct rhv_host_segments *segs);
void rhv_restore_segments(const struct rhv_host_segments *segs);
u64 rhv_read_cr3(void);
void rhv_load_fpu_if_needed(void);
u64 rhv_host_debugctl(void);
bool rhv_detects_split_locks(void);
bool rhv_split_lock(unsigned long ip);
void rhv_set_debugctl(u64 value);
void rhv_restore_debug_registers(void);
void rhv_load_debug_registers(const u64 *db, u64 dr6);
void rhv_machine_check(void);

/*
 * Enter the guest of the current VMCS and come back.
 * 0: a VM exit; 1: the instruction failed with RFLAGS.CF or ZF; 2: it faulted.
 * *reason is the exit reason field when 0. nested: the guest's own tables are
 * walked, behind nested ones.
 */
int rhv_enter_guest(struct rhv_regs *regs, bool launched, bool nested,
		    u32 *reason);
int rhv_enter_guest_counted(struct rhv_regs *regs, bool launched, bool nested,
			    u32 *reason, u64 *ticks);

/* Memory */
struct page *rhv_alloc_page(int node, u64 among, bool low);
void rhv_free_page(struct page *page);
void *rhv_page_address(struct page *page);
u64 rhv_page_to_phys(struct page *page);
struct page *rhv_phys_to_page(u64 phys);
int rhv_page_node(struct page *page);
enum { RHV_MAX_NODES = MAX_NUMNODES };
unsigned int rhv_max_nodes(void);
bool rhv_node_has_memory(unsigned int node);
extern unsigned long rhv_direct_map;
void rhv_note_direct_map(void);
int rhv_node_distance(int from, int to);
void *rhv_phys_to_virt(u64 phys);
void rhv_put_user_page(struct page *page, bool dirty);

/* pages.c: what a look at the host's own page tables has found. */
enum { RHV_LARGE_PAGES = 8 };

struct rhv_host_run {
	unsigned int shift;	/* log2 of the size of the mapping */
	unsigned int absent;	/* entries without any page */
	unsigned int large;	/* large pages; how many are wanted, at first */
	u64 first[RHV_LARGE_PAGES];	/* where they begin */
};

unsigned int rhv_host_mapping_shift(struct mm_struct *mm, unsigned long addr);
unsigned int rhv_host_pages(struct mm_struct *mm, unsigned long addr, u64 *phys,
			    unsigned int max, struct rhv_host_run *run);
bool rhv_fault_in(struct mm_struct *mm, unsigned long addr, unsigned int pages);

struct mm_struct *rhv_current_mm(void);
void rhv_mmgrab(struct mm_struct *mm);
void rhv_mmdrop(struct mm_struct *mm);
u64 rhv_max_user_address(void);
int rhv_anon_fd(const char *name, const struct file_operations *fops,
		void *private, int flags);
void rhv_pagefault_disable(void);
void rhv_pagefault_enable(void);
int rhv_get_user(u64 addr, u32 size, u64 *value);
int rhv_put_user(u64 addr, u32 size, u64 value);
void rhv_vma_of_kernel_pages(struct vm_area_struct *vma);
unsigned long rhv_vma_index(struct vm_area_struct *vma, unsigned long addr);
bool rhv_vma_shows_file(struct vm_area_struct *vma, bool write);
void rhv_kunit_skip(const char *why);
int rhv_cmpxchg_user(u64 addr, u32 size, u64 *old, u64 new);

/* debugfs; without CONFIG_DEBUG_FS everything is an error that remove ignores */
struct dentry *rhv_debugfs_dir(const char *name, struct dentry *parent);
struct dentry *rhv_debugfs_file(const char *name, unsigned int mode,
				struct dentry *parent, void *data,
				const struct file_operations *fops);
void rhv_debugfs_remove(struct dentry *entry);

/* Pages that guests have mapped */
enum rhv_page_kind {
	RHV_PAGE_NONE,		/* not memory that the host keeps a struct page of */
	RHV_PAGE_PRIVATE,	/* anonymous, of one process alone */
	RHV_PAGE_COPIED_ON_WRITE,	/* anonymous, after a fork */
	RHV_PAGE_KSM,
	RHV_PAGE_ZERO,
	RHV_PAGE_SHARED,	/* of a file, shared memory, a device */
};

bool rhv_may_use_hardware(void);
bool rhv_is_admin(void);
u64 rhv_random(void);
u64 rhv_zero_page(void);
int rhv_phys_to_node(u64 phys);
enum rhv_page_kind rhv_page_kind(u64 phys);

/* Memory that is freed, and memory pressure */
bool rhv_free_pages_keep(void);
u64 rhv_peek(unsigned long addr);
u64 rhv_vmalloc_to_phys(const void *addr);
void *rhv_fpu_memory(struct fpu_guest *fpu, unsigned int *size);
enum { RHV_MAPPED = 1, RHV_WRITABLE = 2, RHV_EXECUTABLE = 4 };
unsigned int rhv_kernel_mapping(unsigned long addr);
struct shrinker *rhv_shrinker(const char *name,
			      unsigned long (*count)(struct shrinker *shrinker,
						     struct shrink_control *sc),
			      unsigned long (*scan)(struct shrinker *shrinker,
						    struct shrink_control *sc),
			      void *private);

/* Contiguous memory */
struct page *rhv_alloc_pages(int node, unsigned int order);
void rhv_free_pages(struct page *page, unsigned int order);

/*
 * AMD-V: what the module keeps per CPU; svm/cpus.rs owns it, and only the CPU
 * itself looks inside, with interrupts off. Addresses are physical.
 */
struct rhv_svm_cpu {
	u64 hsave;		/* frame in which VMRUN keeps host state */
	u64 host;		/* frame for what VMSAVE stores of the host */
	u64 purge;		/* VMCB that exits at once */
	u64 previous;		/* VM_HSAVE_PA as another hypervisor has it */
	u64 tsc_ratio;		/* another hypervisor's, when not the default */
	u64 generation;		/* of ASIDs; 0 before the first one */
	u32 next_asid;
	u32 used_asid;		/* by the guest whose state is loaded, or 0 */
	bool flush_all;		/* at the next entry, for a new generation */
	bool enabled;		/* we hold an SVM reference here */
	bool speculation_reduced;	/* we have set BP_SPEC_REDUCE */
};

struct rhv_svm_cpu *rhv_svm_cpu(int cpu);
bool rhv_has_svm(void);
int rhv_memory_encryption(void);
bool rhv_svm_load(void);
void rhv_svm_put(void);
int rhv_invlpga(u64 addr, u32 asid);
/* 0: a VM exit; 2: an instruction faulted. */
int rhv_svm_enter(struct rhv_regs *regs, u64 vmcb, u32 asid, u64 host_debugctl);
int rhv_svm_enter_counted(struct rhv_regs *regs, u64 vmcb, u32 asid,
			  u64 host_debugctl, u64 *ticks);

#endif /* RUSTHV_SHIM_H */

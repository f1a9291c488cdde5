// SPDX-License-Identifier: GPL-2.0
/*
 * The VMM's pages: where they are, and how absent ones come.
 * Called from rust_hv/host/user.rs, for the current task's address space.
 */
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>
#include <linux/userfaultfd_k.h>

#include "shim.h"

/* The entry of the host's own tables that maps an address, with interrupts off. */
struct rhv_host_entry {
	unsigned int shift;
	pmd_t *pmd;
};

static struct rhv_host_entry rhv_host_walk(struct mm_struct *mm,
					   unsigned long addr)
{
	struct rhv_host_entry entry = { .shift = PAGE_SHIFT };
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;

	pgd = READ_ONCE(*pgd_offset(mm, addr));
	if (pgd_none(pgd))
		return entry;
	p4d = READ_ONCE(*p4d_offset(&pgd, addr));
	if (p4d_none(p4d) || !p4d_present(p4d))
		return entry;
	pud = READ_ONCE(*pud_offset(&p4d, addr));
	if (pud_none(pud) || !pud_present(pud))
		return entry;
	if (pud_leaf(pud)) {
		entry.shift = PUD_SHIFT;
		return entry;
	}
	entry.pmd = pmd_offset(&pud, addr);
	if (pmd_leaf(READ_ONCE(*entry.pmd)))
		entry.shift = PMD_SHIFT;
	return entry;
}

/*
 * log2 of the size of the host's own mapping at an address: 12, 21 or 30.
 * A hint until the caller has checked, under its lock, that no invalidation
 * came between; interrupts are off so that no table is freed during the walk.
 */
unsigned int rhv_host_mapping_shift(struct mm_struct *mm, unsigned long addr)
{
	unsigned long flags;
	unsigned int shift;

	local_irq_save(flags);
	shift = rhv_host_walk(mm, addr).shift;
	local_irq_restore(flags);
	return shift;
}

/*
 * Only anonymous pages: others may be secret, or want to know of each writer.
 * What is mapped and not special has a struct page.
 */
static bool rhv_is_anon(unsigned long pfn)
{
	return folio_test_anon(pfn_folio(pfn));
}

static bool rhv_is_ours(pmd_t pmd)
{
	return pmd_present(pmd) && pmd_leaf(pmd) &&
	       pmd_access_permitted(pmd, true) && pmd_dirty(pmd) &&
	       !pmd_special(pmd) && rhv_is_anon(pmd_pfn(pmd));
}

/* The large pages from an entry on. */
static void rhv_large_pages(pmd_t *pmds, unsigned int max,
			    struct rhv_host_run *run)
{
	while (run->large < max) {
		pmd_t pmd = READ_ONCE(pmds[run->large]);

		if (!rhv_is_ours(pmd))
			break;
		run->first[run->large++] = PFN_PHYS(pmd_pfn(pmd));
	}
}

/* How many entries from one on are empty. */
static unsigned int rhv_count_none(pte_t *ptes, unsigned int max)
{
	unsigned int count = 0;

	while (count < max && pte_none(ptep_get_lockless(ptes + count)))
		count++;
	return count;
}

/*
 * Where the pages from an address on are, as long as they are anonymous and
 * the current task can write them without a fault: then the host counts them
 * as written already, and who writes them has nothing to tell it. At most max,
 * all of one page table or one large page; returns how many. If there are none,
 * run->absent has the number of empty entries, as far as there is a page table.
 * If it is a large page, that and the large pages behind it which are the same in
 * all of this are in run->first, as many as run->large says before, or less.
 *
 * No reference is taken. As rhv_host_mapping_shift, a hint until the caller
 * has checked that no invalidation came between.
 */
unsigned int rhv_host_pages(struct mm_struct *mm, unsigned long addr, u64 *phys,
			    unsigned int max, struct rhv_host_run *run)
{
	unsigned int count = 0, large = run->large;
	struct rhv_host_entry entry;
	pteval_t like = 0;
	unsigned long flags;
	pmd_t pmd;
	pte_t *ptes;

	max = min_t(unsigned int, max, PTRS_PER_PTE - pte_index(addr));
	large = min3(large, RHV_LARGE_PAGES,
		     (unsigned int)(PTRS_PER_PMD - pmd_index(addr)));
	run->absent = 0;
	run->large = 0;
	local_irq_save(flags);
	entry = rhv_host_walk(mm, addr);
	run->shift = entry.shift;
	if (!entry.pmd)
		goto out;
	pmd = READ_ONCE(*entry.pmd);
	if (!pmd_present(pmd))
		goto out;
	if (pmd_leaf(pmd)) {
		if (rhv_is_ours(pmd)) {
			u64 first = PFN_PHYS(pmd_pfn(pmd)) + (addr & ~PMD_MASK);

			for (; count < max; count++)
				phys[count] = first + count * PAGE_SIZE;
			rhv_large_pages(entry.pmd, large, run);
		}
		goto out;
	}
	ptes = pte_offset_kernel(&pmd, addr);
	for (; count < max; count++) {
		pte_t pte = ptep_get_lockless(ptes + count);
		u64 page = pte_val(pte) & PTE_PFN_MASK;

		/* Most have the flags of the one before. */
		if (pte_flags(pte) != like) {
			if (!pte_access_permitted(pte, true) ||
			    !pte_dirty(pte) || pte_special(pte))
				break;
			like = pte_flags(pte);
		}
		if (!rhv_is_anon(PHYS_PFN(page)))
			break;
		phys[count] = page;
	}
	if (!count)
		run->absent = rhv_count_none(ptes, max);
out:
	local_irq_restore(flags);
	return count;
}

#ifdef CONFIG_PER_VMA_LOCK

#ifdef CONFIG_MEMCG
/* Whether no limit of the task's memory cgroups is near. */
static bool rhv_cgroup_has_spare(struct mm_struct *mm, unsigned long pages)
{
	struct mem_cgroup *memcg;
	bool spare = true;

	if (mem_cgroup_disabled())
		return true;
	rcu_read_lock();
	memcg = mem_cgroup_from_task(rcu_dereference(mm->owner));
	for (; spare && memcg; memcg = parent_mem_cgroup(memcg)) {
		unsigned long max = min(READ_ONCE(memcg->memory.max),
					READ_ONCE(memcg->memory.high));

		spare = page_counter_read(&memcg->memory) + pages <= max;
	}
	rcu_read_unlock();
	return spare;
}
#else
static bool rhv_cgroup_has_spare(struct mm_struct *mm, unsigned long pages)
{
	return true;
}
#endif

/*
 * Whether there is memory for pages that nobody has asked for: nothing is to be
 * reclaimed for them, let alone killed. The last 32nd is for others.
 */
static bool rhv_has_spare(struct mm_struct *mm, unsigned int pages)
{
	return si_mem_available() > totalram_pages() / 32 &&
	       rhv_cgroup_has_spare(mm, 16 * pages);
}

/*
 * Fault in the page at an address, to be written, if it is of anonymous memory
 * that no userfaultfd watches; false if it is not, or if there is more to it.
 * With it come others behind it, as many as run to `pages` and to the end of the
 * mapping: the caller has seen that they are absent. Whether they come is left
 * open: not where memory is short, or the task has something better to do.
 */
bool rhv_fault_in(struct mm_struct *mm, unsigned long addr, unsigned int pages)
{
	const unsigned int flags = FAULT_FLAG_WRITE | FAULT_FLAG_ALLOW_RETRY |
				   FAULT_FLAG_KILLABLE | FAULT_FLAG_INTERRUPTIBLE |
				   FAULT_FLAG_VMA_LOCK;
	const vm_fault_t unlocked = VM_FAULT_RETRY | VM_FAULT_COMPLETED;
	struct vm_area_struct *vma;
	bool first = false;
	vm_fault_t ret;

	vma = lock_vma_under_rcu(mm, addr);
	if (!vma)
		return false;
	if (!vma_is_anonymous(vma) || userfaultfd_armed(vma) ||
	    (vma->vm_flags & (VM_WRITE | VM_SHARED | VM_SPECIAL)) != VM_WRITE)
		goto out;
	if (pages > 1 &&
	    ((vma->vm_flags & VM_RAND_READ) || !rhv_has_spare(mm, pages)))
		pages = 1;
	pages = min_t(unsigned long, pages, (vma->vm_end - addr) >> PAGE_SHIFT);

	while (pages--) {
		/* Each of them may take its time. */
		if (first && (signal_pending(current) || need_resched()))
			break;
		ret = handle_mm_fault(vma, addr, flags, NULL);
		/* With the lock, the right to look at the VMA is gone. */
		if (ret & unlocked)
			return first;
		if (ret & VM_FAULT_ERROR)
			break;
		first = true;
		addr += PAGE_SIZE;
	}
out:
	vma_end_read(vma);
	return first;
}

#else

bool rhv_fault_in(struct mm_struct *mm, unsigned long addr, unsigned int pages)
{
	return false;
}

#endif /* CONFIG_PER_VMA_LOCK */

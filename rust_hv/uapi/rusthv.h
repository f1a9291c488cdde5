/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What /dev/rusthv has beyond the KVM UAPI. Everything else is <linux/kvm.h>.
 *
 * Discover with ioctl(fd, KVM_CHECK_EXTENSION, RUSTHV_CAP_EXTENSIONS) on the
 * device or a VM: the version below, or 0 on a device that is not rusthv.
 * Structures only ever grow in reserved space; counters are since creation.
 */
#ifndef _UAPI_RUSTHV_H
#define _UAPI_RUSTHV_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define RUSTHV_IO			0xB9
#define RUSTHV_CAP_EXTENSIONS		0x52480000
#define RUSTHV_EXTENSIONS_VERSION	3

/* Answers of KVM_CHECK_EXTENSION: a bit for each policy, and for each mode. */
#define RUSTHV_CAP_NUMA_POLICY		0x52480015
#define RUSTHV_CAP_WIPE			0x52480016
#define RUSTHV_CAP_INTERCEPTS		0x52480017
#define RUSTHV_CAP_RIGHTS		0x52480018

/* Hardware features that rusthv knows by name (struct rusthv_info). */
#define RUSTHV_FEAT_EPT			(1U << 0)
#define RUSTHV_FEAT_VPID		(1U << 1)
#define RUSTHV_FEAT_UNRESTRICTED_GUEST	(1U << 2)
#define RUSTHV_FEAT_EPT_2M		(1U << 3)
#define RUSTHV_FEAT_EPT_1G		(1U << 4)
#define RUSTHV_FEAT_EPT_AD		(1U << 5)
#define RUSTHV_FEAT_EPT_EXEC_ONLY	(1U << 6)
#define RUSTHV_FEAT_MSR_BITMAP		(1U << 7)
#define RUSTHV_FEAT_RDTSCP		(1U << 8)
#define RUSTHV_FEAT_INVPCID		(1U << 9)
#define RUSTHV_FEAT_LOAD_EFER		(1U << 10)
#define RUSTHV_FEAT_LOAD_PAT		(1U << 11)
#define RUSTHV_FEAT_EPT_5L		(1U << 12)	/* 5 levels; used above 48 bits */
#define RUSTHV_FEAT_PML			(1U << 13)	/* page-modification logging */
#define RUSTHV_FEAT_NPT			(1U << 16)
#define RUSTHV_FEAT_ASID_FLUSH		(1U << 17)
#define RUSTHV_FEAT_NRIPS		(1U << 18)
#define RUSTHV_FEAT_DECODE_ASSISTS	(1U << 19)
#define RUSTHV_FEAT_VMCB_CLEAN		(1U << 20)
#define RUSTHV_FEAT_NPT_1G		(1U << 21)

/* On the device: what the CPU offers of the features above, and what it lacks. */
struct rusthv_info {
	__u64 present;		/* RUSTHV_FEAT_* that the CPU has and rusthv uses */
	__u64 missing;		/* RUSTHV_FEAT_* that the CPU lacks */
	__u32 revision;		/* of VMCSs (IA32_VMX_BASIC[30:0]) or SVM (CPUID 0x8000000A EAX) */
	__u32 phys_bits;	/* guest-physical address width, bits */
	__u64 reserved[5];
};

#define RUSTHV_GET_INFO		_IOR(RUSTHV_IO, 0x00, struct rusthv_info)

/* On the device: what the module holds of the host. */
struct rusthv_host_stats {
	__u64 frames_in_use;	/* 4 KiB frames in VMCSs, bitmaps and page tables */
	__u64 frames_pooled;	/* 4 KiB frames in pools, free for the next table */
	__u64 vms;		/* VM objects alive */
	__u64 vcpus;		/* vCPU objects alive */
	__u64 frames_wiped;	/* for RUSTHV_SET_WIPE, from version 3 */
	__u64 reserved[3];
};

#define RUSTHV_GET_HOST_STATS	_IOR(RUSTHV_IO, 0x01, struct rusthv_host_stats)

/* On the device: the same of one NUMA node, from version 2 of the extensions. */
struct rusthv_node_stats {
	__u32 node;		/* in: its number */
	__u32 padding;		/* in: 0 */
	__u64 frames_in_use;
	__u64 frames_pooled;
	__u64 pool_hits;	/* from version 3: frames that the pool had */
	__u64 pool_misses;	/* frames that it had not */
	__u64 pool_shrunk;	/* frames that the host took back */
	__u64 reserved[2];
};

#define RUSTHV_GET_NODE_STATS	_IOWR(RUSTHV_IO, 0x02, struct rusthv_node_stats)

/* On a VM. */
struct rusthv_vm_stats {
	__u64 table_frames;	/* 4 KiB frames in this VM's page tables */
	__u64 mapped_4k;	/* leaf entries of each size in the EPT */
	__u64 mapped_2m;
	__u64 flushes;		/* EPT changes that made translations stale */
	__u64 flush_ipis;	/* CPUs interrupted for them */
	__u64 invept;		/* INVEPT executed for this VM */
	__u64 unmap_notifications; /* MMU-notifier ranges that met a slot */
	__u64 fault_retries;	/* faults repeated since the host changed the range */
	__u64 id;		/* the VM's own number, from version 3: debugfs rust_hv/PID-id */
	__u64 mapped_1g;	/* from version 3 */
	__u64 reserved[6];
};

#define RUSTHV_GET_VM_STATS	_IOR(RUSTHV_IO, 0x40, struct rusthv_vm_stats)

/*
 * How a VM's memory is virtualized: KVM_ENABLE_CAP on a VM without vCPUs, with
 * the mode in args[0] and, for those with shadow tables, how many there may be
 * in args[1] (16 to 8192; 0 for 1024). KVM_CHECK_EXTENSION returns a bit for
 * each mode that there is (1 << mode).
 */
#define RUSTHV_CAP_PAGING		0x52480001

#define RUSTHV_PAGING_NESTED		0	/* EPT, NPT */
#define RUSTHV_PAGING_SHADOW		1	/* a virtual TLB */
#define RUSTHV_PAGING_TRAP		2	/* each write of a page table traps */

/* On a VM: what its paging mode has done. */
struct rusthv_paging_stats {
	__u64 mode;		/* RUSTHV_PAGING_* */
	__u64 shadow_tables;	/* of 3 frames of 4 KiB each: entries, sources, links */
	__u64 mapped_4k;	/* entries of each size in shadow tables */
	__u64 mapped_2m;
	__u64 root_hits;	/* loads of CR3 that found their tables */
	__u64 root_misses;	/* loads of CR3 that did not */
	__u64 evictions;	/* times that tables were given up for want of room */
	__u64 loosened;		/* writes that made a table one to be compared */
	__u64 compared;		/* tables compared with the guest's */
	__u64 changed;		/* entries dropped as the guest's had changed */
	__u64 released;		/* tables given up as the guest has no use for them */
	__u64 reserved[5];
};

#define RUSTHV_GET_PAGING_STATS	_IOR(RUSTHV_IO, 0x50, struct rusthv_paging_stats)

/*
 * On a VM: a digest of guest memory as it is now, from version 2 of the
 * extensions. Guests may run meanwhile: to measure one, stop it.
 */
struct rusthv_measurement {
	__u64 gpa;		/* first byte; need not be aligned */
	__u64 size;		/* bytes, all of them in memory slots */
	__u8 sha256[32];	/* out */
	__u64 reserved[2];	/* 0 */
};

#define RUSTHV_MEASURE		_IOWR(RUSTHV_IO, 0x41, struct rusthv_measurement)

/*
 * On a VM without a vCPU: which NUMA nodes the VM's frames come from (tables,
 * VMCSs or VMCBs, the pages of vCPUs), from version 3. Guest memory is the
 * VMM's, which has mbind() for it. EBUSY from the first vCPU on.
 */
#define RUSTHV_NUMA_LOCAL	0	/* the CPU's own, then the nearest */
#define RUSTHV_NUMA_BIND	1	/* as local, but these nodes alone */
#define RUSTHV_NUMA_INTERLEAVE	2	/* these nodes in turn, and no others */

struct rusthv_numa_policy {
	__u32 policy;		/* RUSTHV_NUMA_* */
	__u32 padding;		/* 0 */
	__u64 nodes;		/* a bit per node, the lowest is 0's; 0 for local */
	__u64 reserved[6];	/* 0 */
};

#define RUSTHV_SET_NUMA_POLICY	_IOW(RUSTHV_IO, 0x56, struct rusthv_numa_policy)

/*
 * On a VM without a vCPU: what becomes of the contents of every frame that the
 * VM's tables or state have used when it is freed, from version 3. EBUSY from
 * the first vCPU on.
 */
#define RUSTHV_WIPE_NEVER	0	/* frames of tables are zeroed all the same */
#define RUSTHV_WIPE_ZEROS	1
#define RUSTHV_WIPE_RANDOM	2	/* for debugging: a use after the free shows */

struct rusthv_wipe {
	__u32 mode;		/* RUSTHV_WIPE_* */
	__u32 padding;		/* 0 */
	__u64 reserved[3];	/* 0 */
};

#define RUSTHV_SET_WIPE		_IOW(RUSTHV_IO, 0x57, struct rusthv_wipe)

/*
 * On a VM without vCPUs: which accesses of its guests exit (I/O and MSR
 * bitmaps). Without a call every port exits, and every MSR but the SYSENTER
 * MSRs, FS_BASE, GS_BASE, KERNEL_GS_BASE and, on VT-x, reads of the TSC.
 * A guest that is let through reaches the host's ports and MSRs: that takes
 * CAP_SYS_RAWIO, and writes are let through to the MSRs above only.
 * KVM_CHECK_EXTENSION returns a bit for each kind of access.
 */
#define RUSTHV_INTERCEPT_PORT		0	/* IN, OUT, INS, OUTS */
#define RUSTHV_INTERCEPT_MSR_READ	1
#define RUSTHV_INTERCEPT_MSR_WRITE	2

struct rusthv_intercepts {
	__u32 what;		/* RUSTHV_INTERCEPT_* */
	__u32 first;		/* lowest port or MSR */
	__u32 count;		/* how many, 1 to 65536 */
	__u32 exits;		/* 1, or 0 to let the guest through */
	__u64 reserved[2];	/* 0 */
};

#define RUSTHV_SET_INTERCEPTS	_IOW(RUSTHV_IO, 0x58, struct rusthv_intercepts)

/*
 * On a VM with nested paging: what guests may do with a memory slot, until it
 * is deleted. Other accesses end KVM_RUN with EFAULT and KVM_EXIT_MEMORY_FAULT:
 * kvm_run.memory_fault has the page, and in flags the RUSTHV_MAP_* that it
 * takes. EOPNOTSUPP for EXEC alone without RUSTHV_FEAT_EPT_EXEC_ONLY, and
 * without nested paging.
 */
struct rusthv_rights {
	__u32 slot;
	__u32 rights;		/* RUSTHV_MAP_{READ,WRITE,EXEC}; WRITE not without READ */
	__u64 reserved[3];	/* 0 */
};

#define RUSTHV_SET_RIGHTS	_IOW(RUSTHV_IO, 0x59, struct rusthv_rights)

/*
 * KVM_ENABLE_CAP on a VM without vCPUs, with 1 in args[0] (or 0 again): for how
 * many ticks of the host's time-stamp counter each vCPU is in its guest is
 * counted, with the entry before and the exit after it. EBUSY from the first
 * vCPU on.
 */
#define RUSTHV_CAP_GUEST_TICKS		0x52480019

/*
 * KVM_ENABLE_CAP on a VM without vCPUs, with one of these in args[0]: how guests'
 * writes to the 4 KiB pages of slots that log come into KVM_GET_DIRTY_LOG. The
 * bitmaps are the same. KVM_CHECK_EXTENSION returns a bit for each that the CPU
 * has (1 << it); the highest is the default. EBUSY from the first vCPU on;
 * EOPNOTSUPP for what the CPU lacks, and without nested paging, which has faults.
 */
#define RUSTHV_CAP_DIRTY_TRACKING	0x5248001a

#define RUSTHV_TRACK_FAULTS		0	/* the first write to a page exits */
#define RUSTHV_TRACK_FLAGS		1	/* the CPU sets dirty flags; reading looks */
#define RUSTHV_TRACK_LOG		2	/* and writes the pages down (PML) */

/* On a vCPU: VM exits by what they were. */
struct rusthv_vcpu_stats {
	__u64 exits;		/* all */
	__u64 io;
	__u64 mmio;
	__u64 ept_faults;	/* EPT violations that mapped or waited, not MMIO */
	__u64 cpuid;
	__u64 hlt;
	__u64 msr;
	__u64 cr;
	__u64 interrupts;	/* host interrupts and NMIs */
	__u64 exceptions;
	__u64 other;
	__u64 user_exits;	/* KVM_RUN returns with an exit for user space */
	__u64 page_faults;	/* page faults, without nested tables */
	__u64 invalidations;	/* INVLPG and INVPCID, without nested tables */
	__u64 table_writes;	/* writes to page tables that were executed in software */
	__u64 node_moves;	/* no exits: its state was moved to another NUMA node */
	__u64 guest_ticks;	/* with RUSTHV_CAP_GUEST_TICKS */
	__u64 reserved[7];
};

#define RUSTHV_GET_VCPU_STATS	_IOR(RUSTHV_IO, 0x80, struct rusthv_vcpu_stats)

/*
 * Frames and their owners, where KVM_CHECK_EXTENSION has the capability below.
 * All of it asks for or shows host-physical addresses: EPERM without CAP_SYS_ADMIN.
 */
#define RUSTHV_CAP_INVERTED		0x5248000b

/* Rights and flags of a mapping. */
#define RUSTHV_MAP_READ			(1U << 0)
#define RUSTHV_MAP_WRITE		(1U << 1)
#define RUSTHV_MAP_EXEC			(1U << 2)
#define RUSTHV_MAP_ACCESSED		(1U << 3)
#define RUSTHV_MAP_DIRTY		(1U << 4)
#define RUSTHV_MAP_TRACKED		(1U << 5)	/* writable; a write is awaited */

/* How guests of a VM are paged. */
#define RUSTHV_MODE_EPT			0
#define RUSTHV_MODE_NPT			1
#define RUSTHV_MODE_SHADOW		2
#define RUSTHV_MODE_TRAP		3

/* What a page is to the host. */
#define RUSTHV_PAGE_PRIVATE		0	/* anonymous, of one process */
#define RUSTHV_PAGE_COW			1	/* anonymous, not copied yet after a fork */
#define RUSTHV_PAGE_KSM			2	/* merged */
#define RUSTHV_PAGE_ZERO		3	/* the page of zeroes; its owners are not kept */
#define RUSTHV_PAGE_SHARED		4	/* of a file, shared memory or a device */

/* A mapping of a frame. */
struct rusthv_owner {
	__u64 vm;		/* the VM's own number: rusthv_vm_stats.id */
	__u64 gpa;		/* where the frame is in the guest */
	__u32 pid;		/* task that has created the VM */
	__u32 page_shift;	/* size of the page: 12, 21 or 30 */
	__u32 flags;		/* RUSTHV_MAP_* */
	__u32 mode;		/* RUSTHV_MODE_* */
};

#define RUSTHV_OWNERS			8

/* On the device: who has a frame mapped. */
struct rusthv_frame {
	__u64 hpa;		/* in: any byte of it */
	__u32 first;		/* in: so many owners are left out */
	__u32 count;		/* out: so many are told of here */
	__u64 total;		/* out: so many there are */
	__u32 kind;		/* out: RUSTHV_PAGE_*, when there is an owner */
	__s32 node;		/* out: NUMA node; -1 for what is not memory */
	struct rusthv_owner owners[RUSTHV_OWNERS];
	__u64 reserved[4];	/* 0 */
};

#define RUSTHV_GET_FRAME	_IOWR(RUSTHV_IO, 0xD0, struct rusthv_frame)

/*
 * On the device, where the capability answers 2: a frame is unmapped from every
 * guest that has it. A guest that goes on using it faults it in again.
 */
struct rusthv_unmap {
	__u64 hpa;		/* in: any byte of it */
	__u64 unmapped;		/* out: mappings that there were; in: 0 */
	__u64 reserved[6];	/* 0 */
};

#define RUSTHV_UNMAP_FRAME	_IOWR(RUSTHV_IO, 0xD3, struct rusthv_unmap)

/* On a VM: where a guest-physical address is. ENXIO without a slot there. */
struct rusthv_gpa {
	__u64 gpa;		/* in */
	__u64 hva;		/* out: in the VMM */
	__u64 hpa;		/* out: in the host, when it is mapped */
	__u32 slot;		/* out: its slot */
	__u32 page_shift;	/* out: 12, 21 or 30; 0 when it is not mapped */
	__u32 flags;		/* out: RUSTHV_MAP_* */
	__u32 mode;		/* out: RUSTHV_MODE_* */
	__u32 kind;		/* out: RUSTHV_PAGE_* */
	__s32 node;		/* out: NUMA node; -1 when it is not mapped */
	__u64 owners;		/* out: mappings of the frame, in all VMs */
	__u64 reserved[4];	/* 0 */
};

#define RUSTHV_GET_GPA		_IOWR(RUSTHV_IO, 0xD1, struct rusthv_gpa)

/* An entry that a walk has met. */
struct rusthv_walk_entry {
	__u32 table;		/* RUSTHV_TABLE_* */
	__u32 level;		/* 1: its entries map 4 KiB pages */
	__u64 address;		/* of the entry: guest-physical in the guest's tables */
	__u64 entry;
};

#define RUSTHV_TABLE_GUEST		0
#define RUSTHV_TABLE_NESTED		1
#define RUSTHV_TABLE_SHADOW		2	/* walked in place of the guest's */

#define RUSTHV_WALK_READ		0
#define RUSTHV_WALK_WRITE		1
#define RUSTHV_WALK_FETCH		2

#define RUSTHV_WALK_DONE		0	/* gpa and hpa are told */
#define RUSTHV_WALK_NOT_CANONICAL	1
#define RUSTHV_WALK_PAGE_FAULT		2	/* in the guest: error_code */
#define RUSTHV_WALK_NO_TABLE		3	/* a guest table at gpa, where no memory is */
#define RUSTHV_WALK_NOT_MAPPED		4	/* gpa is told; a fault for us would come */

#define RUSTHV_WALK_ENTRIES		12

/* On a vCPU: a linear address, level by level, as an access at CPL 0 goes. */
struct rusthv_walk {
	__u64 gva;		/* in */
	__u32 access;		/* in: RUSTHV_WALK_{READ,WRITE,FETCH} */
	__u32 result;		/* out: RUSTHV_WALK_* */
	__u64 gpa;		/* out */
	__u64 hpa;		/* out */
	__u32 error_code;	/* out */
	__u32 count;		/* out: entries */
	struct rusthv_walk_entry entries[RUSTHV_WALK_ENTRIES];
	__u64 reserved[4];	/* 0 */
};

#define RUSTHV_WALK		_IOWR(RUSTHV_IO, 0xD2, struct rusthv_walk)

#endif /* _UAPI_RUSTHV_H */

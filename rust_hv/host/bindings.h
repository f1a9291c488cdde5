/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads; bindgen.args says what it takes. */
#include <linux/cpuhotplug.h>
#include <linux/entry-virt.h>
#include <linux/fcntl.h>
#include <linux/kvm.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/shrinker.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>
#include <crypto/sha2.h>
#include <asm/fpu/api.h>
#include <asm/virt.h>

#include "rusthv.h"
#include "shim.h"

# SPDX-License-Identifier: GPL-2.0
#
# What people type. The module's own rules are in Kbuild, the tools in tools/.
# `make help` tells what there is.

# Which dev kernel: base or debug.
KERNEL	?= base
export KERNEL KDIR KSRC TEST MACHINE JOBS

# Whatever a tool needs is installed first; says nothing when all is there.
SETUP	:= tools/setup --quiet

.PHONY: all modules run test bench compare fuzz check samples selftests kernel setup clean help
# One thing at a time: the tools run in parallel inside where that helps.
.NOTPARALLEL:

# With a kernel of one's own nothing is installed: plain make is for any system.
all modules:
	@$(if $(KDIR),,$(SETUP))
	@tools/module/build --kernel $(KERNEL)

run:
	@$(SETUP)
	@tools/run $(ARGS)

test:
	@$(SETUP)
	@tools/test $(ARGS)

bench:
	@$(SETUP)
	@tools/bench $(ARGS)

compare:
	@$(SETUP)
	@tools/compare $(ARGS)

fuzz:
	@$(SETUP)
	@tools/fuzz $(ARGS)

check:
	@$(SETUP)
	@tools/check $(ARGS)

samples:
	@$(SETUP)
	@$(MAKE) --no-print-directory -C samples OUT=$(CURDIR)/.build/samples \
		CARGO_TARGET_DIR=$(CURDIR)/.build/cargo-samples

selftests:
	@$(SETUP)
	@tools/selftests

kernel:
	@$(SETUP)
	@tools/kernel/build $(KERNEL)

setup:
	@tools/setup

# Kernels, sources and tools in the cache are shared with other clones and stay.
clean:
	rm -rf .build

help:
	@echo 'rusthv: a hypervisor in a Linux kernel module'
	@echo
	@echo '  make              build the module: .build/module/<kernel>/rust_hv.ko'
	@echo '  make run          boot the test machine and run the sample guests in it'
	@echo '  make test         all tests; TEST="name ..." for those with that in their name'
	@echo '  make bench        compare with KVM; figures also in .build/bench.json'
	@echo '  make compare      compare the paging modes; also .build/compare.json and .svg'
	@echo '  make fuzz         random ioctls and guests; ARGS="--seconds 600 --seed 1"'
	@echo '  make check        formatting, clippy, checkpatch, shellcheck'
	@echo '  make samples      the sample programs and guests, in .build/samples'
	@echo '  make selftests    the selftest programs; prints where they are'
	@echo '  make kernel       the dev kernel; prints its build tree'
	@echo '  make setup        install what is needed (the others do that too)'
	@echo '  make clean        remove what was built here'
	@echo
	@echo '  KERNEL=debug      the kernel with KASAN, lockdep, kmemleak, ... instead of base'
	@echo '  KDIR=<dir>        a kernel build tree of your own instead'
	@echo '  KSRC=<dir>        a kernel source tree of your own instead of Debian'"'"'s'
	@echo '  MACHINE=<name>    bochs (VT-x), qemu (AMD-V) or host, instead of what suits this host'
	@echo '  RUSTHV_CACHE=<dir>  where kernels are kept (now: '"$${RUSTHV_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/rusthv})"
	@echo '  ARGS="..."        options for the tool behind a target; ARGS=--help shows them'
	@echo
	@echo 'On a running dev kernel: make KDIR=/lib/modules/$$(uname -r)/build, then insmod.'

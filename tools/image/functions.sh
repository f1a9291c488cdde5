# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# /functions.sh of the test machine, for the scripts that run in it. Lines that
# start with '@' are for the host (tools/lib/session.py).

# trouble TEXT: something that no test stands for went wrong.
trouble() {
	printf '\n@trouble %s\n' "$*"
}

# section NAME COMMAND...: the host reads what the command prints as NAME's.
section() {
	name=$1
	shift
	# In both streams, so that the host can say what belongs together.
	echo "rusthv machine: section $name" >/dev/kmsg
	printf '\n@section %s\n' "$name"
	"$@"
	code=$?
	printf '\n@end %s %s\n' "$name" "$code"
	return $code
}

# KVM runs beside rusthv in every test. $kvm_parameter, if set, is one of the vendor's module.
load_kvm() {
	insmod /modules/irqbypass.ko && insmod /modules/kvm.ko || return
	if grep -qw vmx /proc/cpuinfo; then
		insmod /modules/kvm-intel.ko ${kvm_parameter:+"$kvm_parameter"}
	else
		insmod /modules/kvm-amd.ko ${kvm_parameter:+"$kvm_parameter"}
	fi || return
	# Only where it is needed: hold-vm.c says why.
	[ ! -e /hold-vm ] || alone /hold-vm
}

# alone COMMAND...: while no other CPU is online.
alone() {
	cpus 0 && "$@"
	code=$?
	cpus 1 || return
	# The last of the CPUs that programs may use took that choice with it (init).
	[ -z "$program_cpus" ] || taskset -pc "$program_cpus" $$ >/dev/null || return
	return $code
}

cpus() {
	for cpu in /sys/devices/system/cpu/cpu[1-9]*/online; do
		[ ! -e "$cpu" ] || echo "$1" >"$cpu" || return
	done
}


load_rusthv() {
	insmod /rust_hv.ko && [ -c /dev/rusthv ]
}

# KUnit runs whenever the module is loaded, until it is told to look for others.
no_kunit() {
	filter=/sys/module/kunit/parameters/filter_glob
	[ ! -e $filter ] || echo 'none.*' >$filter
}

# has_gigantic_page: hugepagesz=1G hugepages=1 has found the memory for it.
has_gigantic_page() {
	grep -v '^0$' /sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages
}

# Once is enough for a run: not in each machine, nor in tests that load it again.
load_with_kunit() {
	load_rusthv && no_kunit
}

load_without_kunit() {
	no_kunit && load_rusthv
}

# The device goes away with the module.
unload_rusthv() {
	rmmod rust_hv && [ ! -e /dev/rusthv ]
}

# end_with_guests COMMAND: the machine's last command; guests run until it ends.
end_with_guests() {
	load_without_kunit && /rusthv-spin /dev/rusthv && echo "$1" >/run/end
}

# refused REASON: a machine without virtualization. The module says so and is gone.
refused() {
	# As often as it may be tried.
	for _ in 1 2 3; do
		if said=$(insmod /rust_hv.ko 2>&1); then
			echo "it was loaded"
			return 1
		fi
		echo "$said"
		case $said in
		*"Operation not supported"*) ;;
		*) return 1 ;;
		esac
	done
	if ! dmesg | grep -F "rust_hv: $1"; then
		echo "it did not say: $1"
		return 1
	fi
	for left in /dev/rusthv /sys/module/rust_hv /sys/kernel/debug/kunit/rusthv*; do
		if [ -e "$left" ]; then
			echo "it has left $left"
			return 1
		fi
	done
	! grep -E 'rusthv|rust_hv' /proc/modules /proc/misc /proc/iomem \
		/sys/devices/system/cpu/hotplug/states || return
	# KVM is of the same opinion.
	! load_kvm
}

# leaks: prints what kmemleak suspects; fails when that is anything.
leaks() {
	file=/sys/kernel/debug/kmemleak
	if [ ! -e $file ]; then
		echo "the kernel has no kmemleak"
		return 1
	fi
	# An object has to be five seconds old and seen unreferenced in two scans.
	sleep 6
	echo scan >$file
	echo scan >$file
	cat $file
	[ ! -s $file ] && [ -z "$(cat $file)" ]
}

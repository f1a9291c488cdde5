// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the objects, on whatever virtualization the machine has.

use kernel::prelude::*;

#[kunit_tests(rusthv_vm)]
mod objects {
    use super::*;
    use crate::host::frame::{NodeSet, Wipe, WIPED};
    use crate::host::kunit::{self, UserMemory};
    use crate::host::pool::{in_use, POOLS};
    use crate::host::supply::Policy;
    use crate::svm::SVM;
    use crate::vcpu::Machine;
    use crate::vendor::Vendor;
    use crate::vm::{alive, Vm, MAX_VCPU_IDS};
    use crate::vmx::VMX;
    use kernel::sync::atomic::ordering::Relaxed;

    /// Runs a generic function on the machine.
    macro_rules! on_this_machine {
        ($test:ident) => {{
            let _memory = UserMemory::new(1)?;
            let pools = POOLS.get()?;
            match VMX.get() {
                Ok(vendor) => $test(Machine { vendor, pools }),
                Err(_) => $test(Machine {
                    vendor: SVM.get()?,
                    pools,
                }),
            }
        }};
    }

    #[test]
    fn ids_are_taken_once() -> Result {
        on_this_machine!(takes_ids)
    }

    fn takes_ids<V: Vendor>(machine: Machine<V>) -> Result {
        let vm = Vm::new(machine)?;
        assert!(!vm.has_vcpus());
        vm.create_vcpu(7)?;
        assert!(vm.has_vcpus());
        assert_eq!(vm.create_vcpu(7).err(), Some(EEXIST));
        assert_eq!(vm.create_vcpu(MAX_VCPU_IDS as usize).err(), Some(EINVAL));
        assert_eq!(vm.create_vcpu(usize::MAX).err(), Some(EINVAL));
        assert_eq!(vm.create_vcpu((1 << 32) + 8).err(), Some(EINVAL));
        vm.create_vcpu(MAX_VCPU_IDS as usize - 1)?;
        Ok(())
    }

    #[test]
    fn a_vcpu_without_a_file_goes() -> Result {
        on_this_machine!(removes_a_vcpu)
    }

    fn removes_a_vcpu<V: Vendor>(machine: Machine<V>) -> Result {
        let vm = Vm::new(machine)?;
        let kept = vm.create_vcpu(1)?;
        let (counts, frames) = (alive(), in_use());
        let vcpu = vm.create_vcpu(2)?;
        assert_eq!(alive(), (counts.0, counts.1 + 1));
        assert!(in_use() > frames);
        vm.remove_vcpu(&vcpu);
        // Again: there is no such one any more.
        vm.remove_vcpu(&vcpu);
        drop(vcpu);
        assert_eq!((alive(), in_use()), (counts, frames));
        assert_eq!(vm.create_vcpu(1).err(), Some(EEXIST));
        vm.create_vcpu(2)?;
        assert_eq!(kept.id, 1);
        Ok(())
    }

    #[test]
    fn everything_goes_with_the_vm() -> Result {
        on_this_machine!(frees_everything)
    }

    fn frees_everything<V: Vendor>(machine: Machine<V>) -> Result {
        let (counts, frames) = (alive(), in_use());
        let vm = Vm::new(machine)?;
        for id in 0..3 {
            vm.create_vcpu(id)?;
        }
        assert_eq!(alive(), (counts.0 + 1, counts.1 + 3));
        drop(vm);
        assert_eq!((alive(), in_use()), (counts, frames));
        Ok(())
    }

    const TRIES: usize = 20;
    const SECRET: u64 = 0x6ec2_e75e_c2e7_6ec2;

    /// How many frames a VM with secrets had, how many were wiped when it went, and how often a
    /// secret is still in the memory of its vCPU and in the page that it shares with its VMM.
    fn secrets_left<V: Vendor>(machine: Machine<V>, wipe: Wipe) -> Result<(u64, u64, usize)> {
        let (frames, wiped) = (in_use(), WIPED.load(Relaxed));
        let vm = Vm::new(machine)?;
        vm.set_wipe(wipe)?;
        let vcpu = vm.create_vcpu(0)?;
        let mut regs = vcpu.regs()?;
        (regs.rbx, regs.rsi, regs.r15) = (SECRET, SECRET, SECRET);
        vcpu.set_regs(&regs)?;
        let page = vcpu.page(0).ok_or(ENOENT)?;
        kunit::fill(page, SECRET);
        let run = page.hpa();
        let had = in_use() - frames;
        let (start, size) = (&raw const *vcpu, core::mem::size_of_val(&*vcpu));
        let inside = kunit::count_in_heap(start.cast(), size, SECRET);
        assert!(inside >= 3);
        drop(vcpu);
        drop(vm);
        let left = kunit::count_in_heap(start.cast(), size, SECRET)
            + kunit::peek(run).filter(|&word| word == SECRET).count();
        Ok((had, WIPED.load(Relaxed) - wiped, left))
    }

    #[test]
    fn a_vm_that_wipes_leaves_nothing() -> Result {
        kunit::free_pages_keep_or_skip!();
        on_this_machine!(leaves_nothing)
    }

    fn leaves_nothing<V: Vendor>(machine: Machine<V>) -> Result {
        // What this test finds is there otherwise, unless somebody gets the memory before it is
        // looked at.
        let mut found = 0;
        for _ in 0..TRIES {
            let (_, wiped, left) = secrets_left(machine, Wipe::Never)?;
            assert_eq!(wiped, 0);
            found = left;
            if found > 3 {
                break;
            }
        }
        assert!(found > 3);
        for wipe in [Wipe::Zeros, Wipe::Random] {
            let (had, wiped, left) = secrets_left(machine, wipe)?;
            assert_eq!(left, 0);
            // A root, a VMCS or VMCB, and the two pages that are shared; each of them.
            assert!(had >= 4);
            assert_eq!(wiped, had);
        }
        Ok(())
    }

    #[test]
    fn what_concerns_all_vcpus_comes_before_them() -> Result {
        on_this_machine!(settles)
    }

    fn settles<V: Vendor>(machine: Machine<V>) -> Result {
        let vm = Vm::new(machine)?;
        vm.set_numa_policy(Policy::Bind(NodeSet::ALL))?;
        vm.set_numa_policy(Policy::Local)?;
        // No such node has memory.
        assert_eq!(
            vm.set_numa_policy(Policy::Bind(NodeSet::from_bits(0)))
                .err(),
            Some(EINVAL)
        );
        vm.set_wipe(Wipe::Zeros)?;
        vm.set_wipe(Wipe::Never)?;
        vm.create_vcpu(0)?;
        assert_eq!(vm.set_numa_policy(Policy::Local).err(), Some(EBUSY));
        assert_eq!(vm.set_wipe(Wipe::Never).err(), Some(EBUSY));
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the objects, on whatever virtualization the machine has.

use kernel::prelude::*;

#[kunit_tests(rusthv_vm)]
mod objects {
    use super::*;
    use crate::host::kunit::UserMemory;
    use crate::host::pool::{in_use, POOLS};
    use crate::svm::SVM;
    use crate::vcpu::Machine;
    use crate::vendor::Vendor;
    use crate::vm::{alive, Vm, MAX_VCPU_IDS};
    use crate::vmx::VMX;

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
}

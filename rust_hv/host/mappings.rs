// SPDX-License-Identifier: GPL-2.0

//! W^X: nothing that the kernel's own tables map for us can be both written and executed.
//!
//! There is nothing to do for it. Frames and the heap are in the direct map, FPU states and tables
//! of the module's in vmalloc memory, and the host maps both without execution; the module's text is
//! read-only where the host has STRICT_MODULE_RWX. No code is made or changed at run time. This
//! file looks whether it is so.

use super::bindings;
use super::cpu::current_node;
use super::frame::{Frame, Frames, ALIVE};
use kernel::prelude::*;

#[kunit_tests(rusthv_mappings)]
mod tests {
    use super::*;

    const DATA: u32 = bindings::RHV_MAPPED | bindings::RHV_WRITABLE;
    const CODE: u32 = bindings::RHV_MAPPED | bindings::RHV_EXECUTABLE;
    const CONSTANT: u32 = bindings::RHV_MAPPED;

    fn mapping<T: ?Sized>(at: *const T) -> u32 {
        // SAFETY: No preconditions.
        unsafe { bindings::rhv_kernel_mapping(at.addr()) }
    }

    #[test]
    fn memory_is_not_executable() -> Result {
        let frame = Frame::new(current_node())?;
        let mut frames = Frames::new(current_node(), 2)?;
        assert_eq!(mapping(frame.as_ptr()), DATA);
        for page in frames.bytes_mut().chunks(4096) {
            assert_eq!(mapping(page.as_ptr()), DATA);
        }
        let heap = KBox::new(0u64, GFP_KERNEL)?;
        assert_eq!(mapping(&*heap), DATA);
        // Per-CPU memory, and the module's own.
        // SAFETY: No preconditions for the addresses.
        let (vmx, svm) = unsafe { (bindings::rhv_cpu_state(0), bindings::rhv_svm_cpu(0)) };
        assert_eq!((mapping(vmx), mapping(svm)), (DATA, DATA));
        assert_eq!(mapping(&raw const ALIVE), DATA);
        Ok(())
    }

    #[test]
    fn code_and_constants_are_not_writable() {
        static NUMBERS: [u64; 4] = [1, 2, 3, 4];
        let entries: [*const (); 6] = [
            mapping::<u8> as *const (),
            current_node as *const (),
            bindings::rhv_enter_guest as *const (),
            bindings::rhv_enter_guest_counted as *const (),
            bindings::rhv_svm_enter as *const (),
            bindings::rhv_svm_enter_counted as *const (),
        ];
        for entry in entries {
            assert_eq!(mapping(entry), CODE);
        }
        assert_eq!(mapping(&raw const NUMBERS), CONSTANT);
        // What is not mapped at all would pass for neither.
        assert_eq!(mapping(core::ptr::null::<u8>()), 0);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Which errno each ioctl may give. What is not here is a finding.

use crate::errno::Errno;
use crate::ioctl::*;
use crate::rusthv::*;

/// Those of an ioctl that there is not.
const MISSING: &[Errno] = &[Errno::ENOTTY, Errno::EINVAL];

/// The documented ones of `request`; for what does not exist, those of an unknown ioctl.
pub fn documented(request: u64) -> &'static [Errno] {
    match request {
        KVM_GET_API_VERSION | KVM_GET_VCPU_MMAP_SIZE => &[Errno::EINVAL],
        KVM_CHECK_EXTENSION => &[],
        // EINTR: registering an MMU notifier gives way to a pending signal.
        KVM_CREATE_VM => &[Errno::EINVAL, Errno::ENOMEM, Errno::EMFILE, Errno::EINTR],
        KVM_GET_SUPPORTED_CPUID => &[Errno::E2BIG, Errno::EFAULT, Errno::ENOMEM],
        KVM_CREATE_VCPU => &[Errno::EINVAL, Errno::EEXIST, Errno::ENOMEM, Errno::EMFILE],
        KVM_SET_USER_MEMORY_REGION => &[Errno::EINVAL, Errno::EEXIST, Errno::EFAULT, Errno::ENOMEM],
        KVM_GET_DIRTY_LOG | KVM_CLEAR_DIRTY_LOG => {
            &[Errno::EINVAL, Errno::ENOENT, Errno::EFAULT, Errno::ENOMEM]
        }
        KVM_ENABLE_CAP => &[Errno::EINVAL, Errno::EFAULT, Errno::EBUSY, Errno::EOPNOTSUPP, Errno::ENOMEM],
        KVM_GET_STATS_FD => &[Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM],
        KVM_SET_TSS_ADDR => &[Errno::EINVAL, Errno::EEXIST, Errno::ENOMEM],
        KVM_SET_IDENTITY_MAP_ADDR => &[Errno::EINVAL, Errno::EFAULT],
        // EOPNOTSUPP: real mode, on VT-x without nested tables.
        KVM_RUN => &[Errno::EINVAL, Errno::EINTR, Errno::EFAULT, Errno::ENOMEM, Errno::EOPNOTSUPP],
        KVM_GET_REGS | KVM_GET_SREGS | KVM_TRANSLATE => &[Errno::EFAULT, Errno::ENOMEM, Errno::EINTR],
        KVM_SET_REGS => &[Errno::EFAULT, Errno::ENOMEM, Errno::EINTR],
        KVM_SET_SREGS => &[Errno::EINVAL, Errno::EFAULT, Errno::ENOMEM, Errno::EINTR],
        KVM_INTERRUPT => &[Errno::EINVAL, Errno::EEXIST, Errno::EFAULT, Errno::EINTR],
        KVM_SET_CPUID2 => &[Errno::EINVAL, Errno::E2BIG, Errno::EFAULT, Errno::ENOMEM, Errno::EINTR],
        RUSTHV_GET_INFO
        | RUSTHV_GET_HOST_STATS
        | RUSTHV_GET_NODE_STATS
        | RUSTHV_GET_VM_STATS
        | RUSTHV_GET_PAGING_STATS
        | RUSTHV_GET_VCPU_STATS => {
            // ENOTTY or EINVAL from a device that is not rusthv; EINVAL for a node that is not there.
            &[Errno::EFAULT, Errno::EINTR, Errno::ENOTTY, Errno::EINVAL]
        }
        RUSTHV_MEASURE => {
            &[Errno::EINVAL, Errno::ENXIO, Errno::EFAULT, Errno::ENOMEM, Errno::EINTR, Errno::ENOTTY]
        }
        // EPERM: the caller may not know where things are in the host.
        RUSTHV_GET_FRAME | RUSTHV_UNMAP_FRAME | RUSTHV_GET_GPA => {
            &[Errno::EPERM, Errno::EINVAL, Errno::ENXIO, Errno::EFAULT, Errno::EINTR, Errno::ENOTTY]
        }
        RUSTHV_WALK => {
            &[Errno::EPERM, Errno::EINVAL, Errno::EAGAIN, Errno::EFAULT, Errno::EINTR, Errno::ENOTTY]
        }
        // EPERM: the guest would reach the host's; EOPNOTSUPP: the CPU has no bitmaps.
        RUSTHV_SET_INTERCEPTS => &[
            Errno::EINVAL,
            Errno::EFAULT,
            Errno::EBUSY,
            Errno::ENOMEM,
            Errno::EPERM,
            Errno::EOPNOTSUPP,
            Errno::ENOTTY,
        ],
        RUSTHV_SET_RIGHTS => {
            &[Errno::EINVAL, Errno::EFAULT, Errno::ENOENT, Errno::ENOMEM, Errno::EOPNOTSUPP, Errno::ENOTTY]
        }
        RUSTHV_SET_NUMA_POLICY | RUSTHV_SET_WIPE => {
            &[Errno::EINVAL, Errno::EFAULT, Errno::EBUSY, Errno::ENOMEM, Errno::ENOTTY]
        }
        _ => MISSING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out() {
        let left_out = IOCTLS.iter().find(|one| documented(one.request) == MISSING);
        assert_eq!(left_out, None);
    }

    #[test]
    fn unknown_is_enotty() {
        assert!(documented(io(KVMIO, 0xFF)).contains(&Errno::ENOTTY));
        assert!(!documented(KVM_RUN).contains(&Errno::ENOTTY));
    }
}

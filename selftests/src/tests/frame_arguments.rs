// SPDX-License-Identifier: GPL-2.0

//! The questions about frames refuse what they should, and tell nothing to those who may not know.

use crate::host;
use crate::prelude::*;
use crate::rusthv::*;
use std::ptr;

pub const TEST: Test = Test::new(20, run);

guest!(frame_arguments, code64, "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let machine = Machine::long(&device, frame_arguments())?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(device.check_extension(RUSTHV_CAP_INVERTED)?, 2);
    for (request, ask) in [
        (RUSTHV_GET_FRAME, &|arg| device.ioctl(RUSTHV_GET_FRAME, arg) as Result<i32, Errno>),
        (RUSTHV_UNMAP_FRAME, &|arg| device.ioctl(RUSTHV_UNMAP_FRAME, arg)),
        (RUSTHV_GET_GPA, &|arg| machine.vm.ioctl(RUSTHV_GET_GPA, arg)),
        (RUSTHV_WALK, &|arg| machine.vcpu.ioctl(RUSTHV_WALK, arg)),
    ] as [(u64, &dyn Fn(u64) -> Result<i32, Errno>); 4]
    {
        check_err!(ask(0), EFAULT, "{request:#x}");
        check_err!(ask(u64::MAX), EFAULT, "{request:#x}");
    }
    for field in 0..4 {
        let mut frame = Frame::default();
        frame.reserved[field] = 1;
        check_err!(device.ioctl(RUSTHV_GET_FRAME, ptr::from_mut(&mut frame) as u64), EINVAL);
        let mut gpa = GpaInfo::default();
        gpa.reserved[field] = 1 << 40;
        check_err!(machine.vm.ioctl(RUSTHV_GET_GPA, ptr::from_mut(&mut gpa) as u64), EINVAL);
        let mut walk = Walk::default();
        walk.reserved[field] = 1 << 63;
        check_err!(machine.vcpu.ioctl(RUSTHV_WALK, ptr::from_mut(&mut walk) as u64), EINVAL);
    }
    for field in 0..6 {
        let mut unmap = Unmap::default();
        unmap.reserved[field] = 1 << 33;
        check_err!(device.ioctl(RUSTHV_UNMAP_FRAME, ptr::from_mut(&mut unmap) as u64), EINVAL);
    }
    let mut unmap = Unmap { unmapped: 1, ..Default::default() };
    check_err!(device.ioctl(RUSTHV_UNMAP_FRAME, ptr::from_mut(&mut unmap) as u64), EINVAL);
    let mut frame = Frame { count: 1, ..Default::default() };
    check_err!(device.ioctl(RUSTHV_GET_FRAME, ptr::from_mut(&mut frame) as u64), EINVAL);
    for walk in [Walk { access: 3, ..Default::default() }, Walk { count: 1, ..Default::default() }] {
        let mut walk = walk;
        check_err!(machine.vcpu.ioctl(RUSTHV_WALK, ptr::from_mut(&mut walk) as u64), EINVAL);
    }
    // Nobody has these; the last is no memory at all.
    for hpa in [0, 0xfee0_0000, 1 << 51, u64::MAX] {
        let frame = device.frame(hpa, 0)?;
        check_eq!((frame.total, frame.count), (0, 0), "{hpa:#x}: {frame:x?}");
        check_eq!(device.unmap_frame(hpa), Ok(0), "{hpa:#x}");
    }
    check_eq!(device.frame(u64::MAX, 0)?.node, -1);
    for gpa in [1 << 45, u64::MAX] {
        check_err!(machine.vm.locate(gpa).map(|_| 0), ENXIO, "{gpa:#x}");
    }
    let found = machine.vm.locate(layout::CODE as u64)?;
    check!(found.page_shift > 0, "{found:x?}");
    // More owners than there are.
    let frame = device.frame(found.hpa, 5)?;
    check_eq!((frame.total, frame.count), (1, 0), "{frame:x?}");
    // Without the capability, whoever has the files.
    let answer = host::in_child(|| {
        // SAFETY: Changes this process only.
        if unsafe { libc::setresuid(65534, 65534, 65534) } != 0 {
            return b"setresuid".to_vec();
        }
        match (device.frame(0x10_0000, 0), device.unmap_frame(0x10_0000)) {
            (Err(told), Err(taken)) => format!("{told}, {taken}").into_bytes(),
            _ => b"told or taken".to_vec(),
        }
    })?;
    let refused = Errno(libc::EPERM);
    check_eq!(String::from_utf8_lossy(&answer), format!("{refused}, {refused}"));
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! The ioctls about frames and their owners. They show or ask for host-physical addresses, as
//! `/proc/PID/pagemap` does, and ask for the same capability.

use crate::host::{task, user};
use crate::mmu::{query, reverse};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::vm::Vm;
use kernel::prelude::*;

/// What `RUSTHV_CAP_INVERTED` answers: 2 with `RUSTHV_UNMAP_FRAME`.
pub(super) const VERSION: isize = 2;

fn allowed() -> Result {
    if task::is_admin() {
        Ok(())
    } else {
        Err(EPERM)
    }
}

/// `RUSTHV_GET_FRAME`.
#[inline(never)]
pub(super) fn frame(arg: usize) -> Result<isize> {
    allowed()?;
    let answer = query::frame(&user::read(arg)?)?;
    user::write(arg, &answer).map(|()| 0)
}

/// `RUSTHV_UNMAP_FRAME`.
#[inline(never)]
pub(super) fn unmap(arg: usize) -> Result<isize> {
    allowed()?;
    let answer = reverse::unmap_frame(&user::read(arg)?)?;
    user::write(arg, &answer).map(|()| 0)
}

/// `RUSTHV_GET_GPA`.
#[inline(never)]
pub(super) fn locate(vm: &Vm<impl Vendor>, arg: usize) -> Result<isize> {
    allowed()?;
    let answer = vm.locate(&user::read(arg)?)?;
    user::write(arg, &answer).map(|()| 0)
}

/// `RUSTHV_WALK`.
#[inline(never)]
pub(super) fn trace(vcpu: &Vcpu<impl Vendor>, arg: usize) -> Result<isize> {
    allowed()?;
    let answer = vcpu.trace(&user::read(arg)?)?;
    user::write(arg, &answer).map(|()| 0)
}

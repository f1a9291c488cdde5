// SPDX-License-Identifier: GPL-2.0

//! The ioctls about frames and their owners. They show host-physical addresses, as
//! `/proc/PID/pagemap` does, and ask for the same capability.

use crate::host::{task, user};
use crate::mmu::query;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::vm::Vm;
use kernel::prelude::*;

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

// SPDX-License-Identifier: GPL-2.0
//! The extension ioctls about frames, as `rust_hv/uapi/rusthv.h` has them.

use std::fs::{File, OpenOptions};
use std::path::Path;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};
use vmm_sys_util::ioctl_iowr_nr;

use crate::Result;

const RUSTHV_IO: u32 = 0xb9;
const KVMIO: u32 = 0xae;
const CAP_INVERTED: u64 = 0x5248_000b;
pub const OWNERS: usize = 8;
pub const ENTRIES: usize = 12;
pub const ZERO: u32 = 3;
pub const TABLE_SHADOW: u32 = 2;
/// Levels that a table can be of.
pub const LEVELS: u32 = 5;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Owner {
    pub vm: u64,
    pub gpa: u64,
    pub pid: u32,
    pub page_shift: u32,
    pub flags: u32,
    pub mode: u32,
}

#[repr(C)]
#[derive(Default)]
pub struct Frame {
    pub hpa: u64,
    pub first: u32,
    pub count: u32,
    pub total: u64,
    pub kind: u32,
    pub node: i32,
    pub owners: [Owner; OWNERS],
    reserved: [u64; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct WalkEntry {
    pub table: u32,
    pub level: u32,
    pub address: u64,
    pub entry: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct Walk {
    pub gva: u64,
    pub access: u32,
    pub result: u32,
    pub gpa: u64,
    pub hpa: u64,
    pub error_code: u32,
    pub count: u32,
    pub entries: [WalkEntry; ENTRIES],
    reserved: [u64; 4],
}

ioctl_iowr_nr!(RUSTHV_GET_FRAME, RUSTHV_IO, 0xd0, Frame);
ioctl_iowr_nr!(RUSTHV_WALK, RUSTHV_IO, 0xd2, Walk);
vmm_sys_util::ioctl_io_nr!(KVM_CHECK_EXTENSION, KVMIO, 0x03);

/// The device, if it has what is asked here.
pub fn open(path: &Path) -> Result<File> {
    let device = OpenOptions::new().read(true).write(true).open(path);
    let device = device.map_err(|error| format!("{}: {error}", path.display()))?;
    // SAFETY: The argument is a number.
    match unsafe { ioctl_with_val(&device, KVM_CHECK_EXTENSION(), CAP_INVERTED) } {
        1.. => Ok(device),
        _ => Err(format!("{}: no inverted page table", path.display())),
    }
}

fn failed(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

/// Who has a frame, but for the first owners.
pub fn frame(device: &File, hpa: u64, first: u32) -> Result<Frame> {
    let mut frame = Frame {
        hpa,
        first,
        ..Default::default()
    };
    // SAFETY: The kernel reads and writes one `Frame`.
    match unsafe { ioctl_with_mut_ref(device, RUSTHV_GET_FRAME(), &mut frame) } {
        0 => Ok(frame),
        _ => Err(failed("RUSTHV_GET_FRAME")),
    }
}

/// Where a read (0), write (1) or fetch (2) goes.
pub fn walk(vcpu: &impl std::os::fd::AsRawFd, gva: u64, access: u32) -> Result<Walk> {
    let mut walk = Walk {
        gva,
        access,
        ..Default::default()
    };
    // SAFETY: The kernel reads and writes one `Walk`.
    match unsafe { ioctl_with_mut_ref(vcpu, RUSTHV_WALK(), &mut walk) } {
        0 => Ok(walk),
        _ => Err(failed("RUSTHV_WALK")),
    }
}

pub fn kind(number: u32) -> &'static str {
    match number {
        0 => "private",
        1 => "copied on write",
        2 => "merged",
        ZERO => "zeroes",
        _ => "shared",
    }
}

pub fn mode(number: u32) -> &'static str {
    match number {
        0 => "EPT",
        1 => "NPT",
        2 => "shadow",
        3 => "trap",
        _ => "unknown",
    }
}

pub fn size(shift: u32) -> &'static str {
    match shift {
        12 => "4K",
        21 => "2M",
        30 => "1G",
        _ => "no",
    }
}

pub fn rights(flags: u32) -> String {
    let write = if flags & 1 << 5 != 0 { 't' } else { 'w' };
    let bits = [(0, 'r'), (1, write), (2, 'x'), (3, 'a'), (4, 'd')];
    let has = |bit: u32| flags & 1 << bit != 0 || bit == 1 && flags & 1 << 5 != 0;
    bits.into_iter()
        .map(|(bit, letter)| if has(bit) { letter } else { '-' })
        .collect()
}

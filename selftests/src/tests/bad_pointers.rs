// SPDX-License-Identifier: GPL-2.0

//! Every ioctl that takes an address answers EFAULT for a null, unmapped, cut-off or protected one, and takes a misaligned one.

use crate::device::Files;
use crate::ioctl::*;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(10, run);

/// Its number says that the structure is written, too, which it never is.
const ONLY_READ: u64 = KVM_CLEAR_DIRTY_LOG;
/// What others do changes these.
const OTHERS_COUNT: &[u64] = &[RUSTHV_GET_HOST_STATS, RUSTHV_GET_NODE_STATS];

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::new(&device)?;
    let before = (machine.vcpu.regs()?, machine.vcpu.sregs()?);
    // Some of a VM's take nothing once there is a vCPU.
    let bare = device.vm()?;
    bare.map(5, 0, &machine.memory)?;
    let without_vcpu = Files { device: &device, vm: &bare, vcpu: &machine.vcpu };
    let with_vcpu = Files { vm: &machine.vm, ..without_vcpu };
    nowhere(&without_vcpu)?;
    read_only(&with_vcpu)?;
    misaligned(&without_vcpu, &before.0, &before.1)?;
    check_eq!((machine.vcpu.regs()?, machine.vcpu.sregs()?), before, "the state after all that");
    Ok(())
}

/// Addresses where the structure is not, or not all of it.
fn nowhere(files: &Files) -> Outcome {
    let pages = Memory::new(2 * PAGE)?;
    pages.protect(PAGE, PAGE, libc::PROT_NONE)?;
    let end = pages.address() + PAGE as u64;
    let unmapped = Memory::new(PAGE)?.address();
    for one in files.ioctls().filter(|one| one.size() > 0) {
        for (what, address) in [
            ("null", 0),
            ("unmapped", unmapped),
            ("no access", end),
            ("cut off", end - 2),
            ("all but its last byte", end + 1 - one.size() as u64),
            ("non-canonical", 0x8000_0000_0000_0000),
            ("the kernel's", 0xFFFF_FFFF_8100_0000),
            ("the last byte", u64::MAX),
        ] {
            check_err!(files.ioctl(one.on, one.request, address), EFAULT, "{}, {what}", one.name);
        }
    }
    Ok(())
}

/// What makes a structure that is otherwise zeroes one that gets an answer.
fn first_words(request: u64) -> &'static [u64] {
    match request {
        // Room for so many entries.
        KVM_GET_SUPPORTED_CPUID => &[256],
        // An address, and so many bytes.
        RUSTHV_MEASURE => &[0, 1],
        // No such vector: the same answer each time.
        KVM_INTERRUPT => &[256],
        _ => &[],
    }
}

fn put(memory: &Memory, offset: usize, words: &[u64]) {
    for (index, word) in words.iter().enumerate() {
        memory.write_u64(offset + 8 * index, *word);
    }
}

/// A structure that may be read and not written.
fn read_only(files: &Files) -> Outcome {
    let page = Memory::new(PAGE)?;
    for one in files.ioctls().filter(|one| one.is_written() && one.request != ONLY_READ) {
        page.protect(0, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        page.fill(0, PAGE, 0);
        put(&page, 0, first_words(one.request));
        page.protect(0, PAGE, libc::PROT_READ)?;
        check_err!(files.ioctl(one.on, one.request, page.address()), EFAULT, "{}", one.name);
    }
    Ok(())
}

/// Misaligned is no error: the kernel copies. The answer is that of an aligned structure, in its place.
fn misaligned(files: &Files, regs: &kvm_regs, sregs: &kvm_sregs) -> Outcome {
    const ODD: usize = 3;
    let room = Memory::new(8 * PAGE)?;
    // SAFETY: integers without gaps between them.
    let (regs, sregs) = unsafe { (bytes_of(regs), bytes_of(sregs)) };
    for one in files.ioctls().filter(|one| one.size() > 0) {
        let answer = |offset: usize| {
            room.fill(0, room.size(), 0xEE);
            room.fill(PAGE + offset, one.size(), 0);
            match one.request {
                KVM_SET_REGS => room.write(PAGE + offset, regs),
                KVM_SET_SREGS => room.write(PAGE + offset, sregs),
                _ => put(&room, PAGE + offset, first_words(one.request)),
            }
            let result = files.ioctl(one.on, one.request, room.address() + (PAGE + offset) as u64);
            (result, room.read(PAGE + offset, one.size()))
        };
        let (even, odd) = (answer(0), answer(ODD));
        check_eq!(odd.0, even.0, "{}, misaligned", one.name);
        if !OTHERS_COUNT.contains(&one.request) {
            check_eq!(odd.1, even.1, "{}, misaligned", one.name);
        }
        check_eq!(room.read(PAGE, ODD), [0xEE; ODD], "{}: bytes before it", one.name);
        if one.request != KVM_GET_SUPPORTED_CPUID && first_words(one.request).len() * 8 <= one.size() {
            let behind = room.read(PAGE + ODD + one.size(), 64);
            check_eq!(behind, [0xEE; 64], "{}: bytes behind it", one.name);
        }
    }
    Ok(())
}

/// # Safety
///
/// There are no gaps in a `T`.
unsafe fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: the bytes of a live value, all of them initialized by the contract.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

// SPDX-License-Identifier: GPL-2.0
//! The kernel's own part of every address space: RAM, mapped to itself, in the first GiB. The first
//! 4 MiB, where the kernel is, in small pages with the rights that each part needs; the rest in
//! large pages. All of it is global, where the processor knows that.

use core::ptr::addr_of;
use core::sync::atomic::Ordering;

use minikernel_abi::call::feature;
use minikernel_abi::MAX_VCPUS;

use crate::frames::Frames;
use crate::paging::{
    self, cell, count, entry, span, target, ACCESSED, DIRTY, GLOBAL, LARGE, LARGE_SIZE, NX, PAGE_SIZE,
    PRESENT, TOP, USER, WRITE,
};
use crate::{cpu, paging::Entry};

/// Where the kernel's part ends and a process's may begin.
pub const END: usize = 0x4000_0000;
const SMALL: usize = 4 << 20;
/// Nothing is behind these addresses of a PC.
const HOLE: core::ops::Range<usize> = 0xa_0000..0xc_0000;

/// No-execute, if there is such a thing.
pub fn nx() -> Entry {
    if cpu::has(feature::NX) {
        NX
    } else {
        0
    }
}

/// Makes the tables for so much RAM; returns their root.
pub fn build(frames: &mut Frames, memory: usize) -> usize {
    extern "C" {
        static _start: u8;
        static _text_end: u8;
        static _rodata_end: u8;
    }
    let start = addr_of!(_start) as usize;
    let text_end = addr_of!(_text_end) as usize;
    let rodata_end = addr_of!(_rodata_end) as usize;

    let root = frames.table().expect("memory for the first table");
    let global = if cpu::has(feature::GLOBAL) { GLOBAL } else { 0 };
    let mut map = |address, level, bits| {
        let place = paging::make(root, address, level, frames).expect("memory for tables");
        place.set(entry(address, bits | PRESENT | global));
    };
    for address in (0..SMALL).step_by(PAGE_SIZE).filter(|a| !HOLE.contains(a)) {
        let bits = match address {
            a if (start..text_end).contains(&a) => 0,
            a if (text_end..rodata_end).contains(&a) => nx(),
            _ => WRITE | nx(),
        };
        map(address, 0, bits);
    }
    for address in (SMALL..memory).step_by(LARGE_SIZE) {
        map(address, 1, WRITE | LARGE | DIRTY | nx());
    }
    root
}

/// The root with which a vCPU turns paging on. For PAE that is one of its own: QEMU sets the accessed
/// bit in PDPTEs, where it is reserved, and the next vCPU that turns paging on with the same ones, on
/// a hypervisor that looks closely, would get an exception for it.
pub fn start_root(index: usize, root: usize) -> usize {
    #[repr(C, align(32))]
    struct Root([paging::Cell; 4]);
    static ROOTS: [Root; MAX_VCPUS as usize] =
        [const { Root([const { paging::Cell::new(0) }; 4]) }; MAX_VCPUS as usize];

    if TOP != 2 {
        return root;
    }
    let own = &ROOTS[index];
    for (i, copy) in own.0.iter().enumerate() {
        copy.store(cell(root, i).load(Ordering::Relaxed) & !ACCESSED, Ordering::Relaxed);
    }
    addr_of!(*own) as usize
}

/// Tables for a new address space, with the kernel's part of them. Returns their root.
pub fn share(kernel_root: usize, frames: &mut Frames) -> Option<usize> {
    let root = frames.table()?;
    let get = |table, index| cell(table, index).load(Ordering::Relaxed);
    let set = |table, index, value| {
        cell(table, index).store(value, Ordering::Relaxed);
    };
    match TOP {
        1 => (0..END / span(TOP)).for_each(|i| set(root, i, get(kernel_root, i))),
        2 => {
            set(root, 0, get(kernel_root, 0));
            // The processor keeps these as they are when CR3 is loaded.
            for i in 1..count(TOP) - 1 {
                set(root, i, entry(frames.table()?, PRESENT));
            }
        }
        _ => {
            let second = frames.table()?;
            set(second, 0, get(target(get(kernel_root, 0)), 0));
            set(root, 0, entry(second, PRESENT | WRITE | USER));
        }
    }
    Some(root)
}

/// Frees the tables of an address space but not those that it shares with the kernel's. Nothing is
/// mapped in it any more, and no vCPU runs it.
pub fn free(root: usize, frames: &mut Frames) {
    free_table(root, TOP, 0, frames);
}

fn free_table(table: usize, level: usize, base: usize, frames: &mut Frames) {
    for index in 0..count(level) {
        let address = base.wrapping_add(index << paging::LEVELS[level].0);
        let ours = address + (span(level) - 1) >= END;
        let below = cell(table, index).load(Ordering::Relaxed);
        if level == 0 {
            assert!(below & PRESENT == 0, "a page is mapped in a dying address space");
        } else if ours && below & PRESENT != 0 {
            assert!(level != 1 || below & LARGE == 0, "a large page is mapped in a dying address space");
            free_table(target(below), level - 1, address, frames);
        }
    }
    frames.drop_table(table);
}

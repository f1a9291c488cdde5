// SPDX-License-Identifier: GPL-2.0

//! The device, its VMs and their vCPUs, one method per ioctl, with the errno as it came.

use crate::errno::Errno;
use crate::ioctl::{self, *};
use crate::memory::{Memory, PAGE};
use crate::rusthv;
use crate::statistics::Statistics;
use kvm_bindings::*;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How rusthv is to virtualize the memory of all VMs: a `RUSTHV_PAGING_*`.
pub static PAGING: AtomicU32 = AtomicU32::new(rusthv::PAGING_NESTED);
/// How rusthv is to track writes to nested tables for the dirty logs of all VMs: a `RUSTHV_TRACK_*`, or
/// else as it does by default.
pub static TRACKING: AtomicU32 = AtomicU32::new(u32::MAX);

/// An open `/dev/rusthv` or `/dev/kvm`.
pub struct Device {
    fd: OwnedFd,
    path: String,
}

impl Device {
    pub fn open(path: &str) -> Result<Self, Errno> {
        let name = CString::new(path).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `name` is a C string that outlives the call.
        let fd = Errno::check(unsafe { libc::open(name.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
        // SAFETY: the descriptor is new, so it is ours.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, path: path.to_owned() })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// True for KVM itself, whose claims go beyond rusthv's tiers.
    pub fn is_kvm(&self) -> bool {
        self.path.ends_with("/kvm")
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn ioctl(&self, request: u64, argument: u64) -> Result<i32, Errno> {
        // SAFETY: callers pass values, or the address of what they lend for the call.
        unsafe { ioctl::ioctl(self.fd(), request, argument) }
    }

    pub fn check_extension(&self, capability: u32) -> Result<i32, Errno> {
        self.ioctl(KVM_CHECK_EXTENSION, u64::from(capability))
    }

    pub fn vm(&self) -> Result<Vm, Errno> {
        let vm = self.plain_vm()?;
        let paging = PAGING.load(Relaxed);
        if paging != rusthv::PAGING_NESTED && self.has_extensions() {
            vm.enable_cap(rusthv::CAP_PAGING, 0, paging.into())?;
        }
        let tracking = TRACKING.load(Relaxed);
        if tracking != u32::MAX && paging == rusthv::PAGING_NESTED && self.has_extensions() {
            vm.enable_cap(rusthv::RUSTHV_CAP_DIRTY_TRACKING, 0, tracking.into())?;
        }
        Ok(vm)
    }

    /// A VM whose memory is virtualized as it is by default.
    pub fn plain_vm(&self) -> Result<Vm, Errno> {
        let fd = self.ioctl(KVM_CREATE_VM, 0)?;
        let run_size = self.ioctl(KVM_GET_VCPU_MMAP_SIZE, 0)? as usize;
        // SAFETY: the descriptor is new, so it is ours.
        Ok(Vm { fd: unsafe { OwnedFd::from_raw_fd(fd) }, run_size })
    }

    /// KVM_GET_SUPPORTED_CPUID with room for `room` entries.
    pub fn supported_cpuid(&self, room: usize) -> Result<Vec<kvm_cpuid_entry2>, Errno> {
        let mut list = CpuidList::with_room(room);
        self.ioctl(KVM_GET_SUPPORTED_CPUID, list.address())?;
        Ok(list.entries())
    }
}

/// One file of each kind.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    pub device: &'a Device,
    pub vm: &'a Vm,
    pub vcpu: &'a Vcpu,
}

impl Files<'_> {
    /// An ioctl on one of them.
    pub fn ioctl(&self, on: FileKind, request: u64, argument: u64) -> Result<i32, Errno> {
        match on {
            FileKind::Device => self.device.ioctl(request, argument),
            FileKind::Vm => self.vm.ioctl(request, argument),
            FileKind::Vcpu => self.vcpu.ioctl(request, argument),
        }
    }

    /// What of the table is on a device like this one.
    pub fn ioctls(&self) -> impl Iterator<Item = &'static Ioctl> {
        let ours = self.device.has_extensions();
        IOCTLS.iter().filter(move |one| ours || one.is_kvms())
    }
}

/// A `struct kvm_cpuid2` with its entries behind it.
pub struct CpuidList {
    // u64 gives the alignment; the structure starts at the first word.
    words: Vec<u64>,
}

const ENTRY_SIZE: usize = size_of::<kvm_cpuid_entry2>();

impl CpuidList {
    /// An empty list with room for `room` entries, its count set to that.
    pub fn with_room(room: usize) -> Self {
        let mut list = Self { words: vec![0; (8 + room * ENTRY_SIZE).div_ceil(8)] };
        list.set_count(room as u32);
        list
    }

    pub fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let mut list = Self::with_room(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            // SAFETY: `with_room` made room for that many, and they need no more alignment than 4.
            unsafe { list.slot(index).write_unaligned(*entry) };
        }
        list
    }

    fn slot(&mut self, index: usize) -> *mut kvm_cpuid_entry2 {
        assert!(8 + (index + 1) * ENTRY_SIZE <= self.words.len() * 8, "no such entry");
        // SAFETY: inside the allocation, as just checked.
        unsafe { self.words.as_mut_ptr().cast::<u8>().add(8 + index * ENTRY_SIZE).cast() }
    }

    pub fn set_count(&mut self, count: u32) {
        self.words[0] = u64::from(count);
    }

    pub fn count(&self) -> u32 {
        self.words[0] as u32
    }

    pub fn address(&mut self) -> u64 {
        self.words.as_mut_ptr() as u64
    }

    pub fn entries(&mut self) -> Vec<kvm_cpuid_entry2> {
        // SAFETY: `slot` checks that the entry is inside.
        (0..self.count() as usize).map(|i| unsafe { self.slot(i).read_unaligned() }).collect()
    }
}

/// A VM.
pub struct Vm {
    fd: OwnedFd,
    run_size: usize,
}

impl Vm {
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn ioctl(&self, request: u64, argument: u64) -> Result<i32, Errno> {
        // SAFETY: as for `Device::ioctl`.
        unsafe { ioctl::ioctl(self.fd(), request, argument) }
    }

    /// KVM_GET_STATS_FD.
    pub fn statistics(&self) -> Result<Statistics, Errno> {
        Statistics::new(self.ioctl(KVM_GET_STATS_FD, 0)?)
    }

    /// KVM_SET_USER_MEMORY_REGION.
    pub fn set_region(&self, region: &kvm_userspace_memory_region) -> Result<i32, Errno> {
        self.ioctl(KVM_SET_USER_MEMORY_REGION, ptr::from_ref(region) as u64)
    }

    /// The same, from its parts.
    pub fn set_slot(&self, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Result<i32, Errno> {
        self.set_region(&kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
        })
    }

    /// All of `memory` at `gpa`.
    pub fn map(&self, slot: u32, gpa: u64, memory: &Memory) -> Result<i32, Errno> {
        self.set_slot(slot, 0, gpa, memory.size() as u64, memory.address())
    }

    /// KVM_GET_DIRTY_LOG into a buffer at an address of the caller's choice.
    pub fn dirty_log_to(&self, slot: u32, address: u64) -> Result<i32, Errno> {
        let log = kvm_dirty_log {
            slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { padding2: address },
        };
        self.ioctl(KVM_GET_DIRTY_LOG, ptr::from_ref(&log) as u64)
    }

    /// KVM_GET_DIRTY_LOG of a slot of so many pages: the numbers of those that were written.
    pub fn dirty_pages(&self, slot: u32, pages: usize) -> Result<Vec<usize>, Errno> {
        // What the call does not write is no page.
        let mut words = vec![0u64; pages.div_ceil(64)];
        self.dirty_log_to(slot, words.as_mut_ptr() as u64)?;
        Ok((0..words.len() * 64).filter(|page| words[page / 64] >> (page % 64) & 1 != 0).collect())
    }

    /// KVM_CLEAR_DIRTY_LOG of `pages` pages from `first` on, by the bitmap at an address of the
    /// caller's choice.
    pub fn clear_log_by(&self, slot: u32, first: u64, pages: u32, address: u64) -> Result<i32, Errno> {
        let log = kvm_clear_dirty_log {
            slot,
            num_pages: pages,
            first_page: first,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { padding2: address },
        };
        self.ioctl(KVM_CLEAR_DIRTY_LOG, ptr::from_ref(&log) as u64)
    }

    /// The same, with the words of the bitmap, whose last one may have bits to spare.
    pub fn clear_log(&self, slot: u32, first: u64, pages: u32, words: &[u64]) -> Result<i32, Errno> {
        assert!(words.len() >= pages.div_ceil(64) as usize, "too few words for {pages} pages");
        self.clear_log_by(slot, first, pages, words.as_ptr() as u64)
    }

    /// KVM_ENABLE_CAP, with one argument.
    pub fn enable_cap(&self, capability: u32, flags: u32, argument: u64) -> Result<i32, Errno> {
        self.enable_cap_with(capability, flags, [argument, 0, 0, 0])
    }

    /// The same with all that there can be.
    pub fn enable_cap_with(&self, capability: u32, flags: u32, args: [u64; 4]) -> Result<i32, Errno> {
        let cap = kvm_enable_cap { cap: capability, flags, args, ..Default::default() };
        self.ioctl(KVM_ENABLE_CAP, ptr::from_ref(&cap) as u64)
    }

    /// Whether, and how, user space clears dirty logs itself.
    pub fn set_manual_log(&self, flags: u32) -> Result<i32, Errno> {
        self.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0, flags.into())
    }

    pub fn vcpu(&self, id: u64) -> Result<Vcpu, Errno> {
        let fd = self.ioctl(KVM_CREATE_VCPU, id)?;
        // SAFETY: the descriptor is new, so it is ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let run = Memory::map(self.run_size, libc::MAP_SHARED, fd.as_raw_fd())?;
        Ok(Vcpu { fd, run })
    }
}

/// Which way a port access goes, seen from the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    In,
    Out,
}

/// Why KVM_RUN came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    Io { direction: Direction, port: u16, size: usize, count: usize, data: Vec<u8> },
    MmioRead { address: u64, length: usize },
    MmioWrite { address: u64, data: Vec<u8> },
    Hlt,
    Shutdown,
    FailEntry { reason: u64 },
    InternalError { suberror: u32, data: Vec<u64> },
    Intr,
    Other(u32),
}

/// A vCPU with its `kvm_run` area.
pub struct Vcpu {
    fd: OwnedFd,
    run: Memory,
}

impl Vcpu {
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn ioctl(&self, request: u64, argument: u64) -> Result<i32, Errno> {
        // SAFETY: as for `Device::ioctl`.
        unsafe { ioctl::ioctl(self.fd(), request, argument) }
    }

    /// KVM_GET_STATS_FD.
    pub fn statistics(&self) -> Result<Statistics, Errno> {
        Statistics::new(self.ioctl(KVM_GET_STATS_FD, 0)?)
    }

    /// The shared area, as the kernel sees it too.
    pub fn kvm_run(&self) -> *mut kvm_run {
        self.run.at(0, size_of::<kvm_run>()).cast()
    }

    pub fn set_immediate_exit(&self, value: u8) {
        // SAFETY: the area is mapped as long as the vCPU lives.
        unsafe { (&raw mut (*self.kvm_run()).immediate_exit).write_volatile(value) };
    }

    pub fn regs(&self) -> Result<kvm_regs, Errno> {
        let mut regs = kvm_regs::default();
        self.ioctl(KVM_GET_REGS, ptr::from_mut(&mut regs) as u64)?;
        Ok(regs)
    }

    pub fn set_regs(&self, regs: &kvm_regs) -> Result<i32, Errno> {
        self.ioctl(KVM_SET_REGS, ptr::from_ref(regs) as u64)
    }

    pub fn sregs(&self) -> Result<kvm_sregs, Errno> {
        let mut sregs = kvm_sregs::default();
        self.ioctl(KVM_GET_SREGS, ptr::from_mut(&mut sregs) as u64)?;
        Ok(sregs)
    }

    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<i32, Errno> {
        self.ioctl(KVM_SET_SREGS, ptr::from_ref(sregs) as u64)
    }

    /// KVM_TRANSLATE: what the kernel makes of `translation`.
    pub fn translate(&self, mut translation: kvm_translation) -> Result<kvm_translation, Errno> {
        self.ioctl(KVM_TRANSLATE, ptr::from_mut(&mut translation) as u64)?;
        Ok(translation)
    }

    /// KVM_INTERRUPT.
    pub fn interrupt(&self, vector: u32) -> Result<i32, Errno> {
        let interrupt = kvm_interrupt { irq: vector };
        self.ioctl(KVM_INTERRUPT, ptr::from_ref(&interrupt) as u64)
    }

    pub fn set_cpuid(&self, entries: &[kvm_cpuid_entry2]) -> Result<i32, Errno> {
        let mut list = CpuidList::of(entries);
        self.ioctl(KVM_SET_CPUID2, list.address())
    }

    /// KVM_RUN and what it says.
    pub fn run(&self) -> Result<Exit, Errno> {
        self.ioctl(KVM_RUN, 0)?;
        Ok(self.exit())
    }

    /// The exit that is in the shared area now.
    pub fn exit(&self) -> Exit {
        // SAFETY: the area is mapped, all of its bit patterns are valid, and each union member
        // is read under the exit reason that says it is filled.
        unsafe {
            let run = &*self.kvm_run();
            match run.exit_reason {
                KVM_EXIT_IO => {
                    let io = run.__bindgen_anon_1.io;
                    let (size, count) = (usize::from(io.size), io.count as usize);
                    let offset = io.data_offset as usize;
                    Exit::Io {
                        direction: match u32::from(io.direction) {
                            KVM_EXIT_IO_IN => Direction::In,
                            _ => Direction::Out,
                        },
                        port: io.port,
                        size,
                        count,
                        data: self.run.read(offset, size * count),
                    }
                }
                KVM_EXIT_MMIO => {
                    let mmio = run.__bindgen_anon_1.mmio;
                    let length = (mmio.len as usize).min(8);
                    if mmio.is_write == 0 {
                        Exit::MmioRead { address: mmio.phys_addr, length }
                    } else {
                        Exit::MmioWrite { address: mmio.phys_addr, data: mmio.data[..length].to_vec() }
                    }
                }
                KVM_EXIT_HLT => Exit::Hlt,
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_FAIL_ENTRY => {
                    Exit::FailEntry { reason: run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason }
                }
                KVM_EXIT_INTERNAL_ERROR => {
                    let error = run.__bindgen_anon_1.internal;
                    let count = (error.ndata as usize).min(error.data.len());
                    Exit::InternalError { suberror: error.suberror, data: error.data[..count].to_vec() }
                }
                KVM_EXIT_INTR => Exit::Intr,
                other => Exit::Other(other),
            }
        }
    }

    /// Flags, address and size of a KVM_EXIT_MEMORY_FAULT.
    pub fn memory_fault(&self) -> [u64; 3] {
        /// Of what exits tell, in `struct kvm_run`.
        const EXIT: usize = 32;
        [0, 8, 16].map(|at| self.run.read_u64(EXIT + at))
    }

    /// Answers a pending IN (or an INS: all of its elements) before the next KVM_RUN.
    pub fn answer_io(&self, data: &[u8]) {
        // SAFETY: as in `exit`; `Memory::write` checks that the data fits.
        let io = unsafe { (*self.kvm_run()).__bindgen_anon_1.io };
        self.run.write(io.data_offset as usize, data);
    }

    /// Answers a pending MMIO read before the next KVM_RUN.
    pub fn answer_mmio(&self, data: &[u8]) {
        // SAFETY: as in `exit`.
        let target = unsafe { &mut (*self.kvm_run()).__bindgen_anon_1.mmio.data };
        target[..data.len()].copy_from_slice(data);
    }

    /// The number alone of why KVM_RUN came back.
    pub fn exit_reason(&self) -> u32 {
        // SAFETY: the area is mapped as long as the vCPU lives.
        unsafe { (&raw const (*self.kvm_run()).exit_reason).read_volatile() }
    }

    /// Overwrites part of the shared area.
    pub fn scribble(&self, offset: usize, bytes: &[u8]) {
        self.run.write(offset, bytes);
    }

    /// Where the data of the last port access is inside the shared area.
    pub fn io_data_offset(&self) -> u64 {
        // SAFETY: as in `exit`.
        unsafe { (*self.kvm_run()).__bindgen_anon_1.io.data_offset }
    }

    pub fn run_area_pages(&self) -> usize {
        self.run.size() / PAGE
    }
}

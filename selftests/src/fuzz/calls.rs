// SPDX-License-Identifier: GPL-2.0

//! Random ioctls with random arguments.

use crate::ioctl::*;
use crate::memory::{Memory, PAGE};
use crate::random::Random;
use crate::rusthv::*;

/// What most of the others are about.
const OFTEN: &[(FileKind, u64)] = &[(FileKind::Vm, KVM_SET_USER_MEMORY_REGION), (FileKind::Vcpu, KVM_RUN)];

/// A request that mostly means something on that kind of file. None makes a VM or a vCPU: those are
/// `round`'s, which closes them.
pub fn request(on: FileKind, random: &mut Random) -> u64 {
    match random.below(30) {
        // Not on this kind of file.
        0 => of(FileKind::Device, random),
        1 => of(FileKind::Vcpu, random),
        // Numbers that nobody has, in rusthv's space. KVM's own space is full of things that a
        // fuzzer of what rusthv has got has no documentation to check against.
        2 => iowr::<u64>(RUSTHV_IO, 0x30 + random.below(0x10)),
        3 => io(0xB8, random.below(256)),
        4 | 5 => match OFTEN.iter().find(|(kind, _)| *kind == on) {
            Some((_, request)) => *request,
            None => of(on, random),
        },
        _ => of(on, random),
    }
}

/// One of those that a kind of file has.
fn of(on: FileKind, random: &mut Random) -> u64 {
    loop {
        let one = random.pick(IOCTLS);
        if one.on == on && !matches!(one.request, KVM_CREATE_VM | KVM_CREATE_VCPU) {
            return one.request;
        }
    }
}

/// Memory that arguments are in. The kernel may write all of it.
pub struct Sandbox(pub Memory);

impl Sandbox {
    const SIZE: usize = 16 * PAGE;

    pub fn new() -> Result<Self, crate::errno::Errno> {
        let memory = Memory::new(Self::SIZE)?;
        // Its last page cannot be touched, so that arguments can be cut off.
        memory.protect(Self::SIZE - PAGE, PAGE, libc::PROT_NONE)?;
        Ok(Self(memory))
    }

    /// An address to pass: good, odd, cut off, or none at all. Never one that Rust uses.
    pub fn address(&self, random: &mut Random) -> u64 {
        let start = self.0.address();
        match random.below(12) {
            0..=2 => self.bad_address(random),
            3 => start + 1 + random.below(4000),
            _ => start + 8 * random.below(64),
        }
    }

    /// An address where no structure of more than 64 bytes can be read.
    pub fn bad_address(&self, random: &mut Random) -> u64 {
        match random.below(3) {
            0 => 0,
            1 => random.pick(&[u64::MAX, 1 << 63, 0xFFFF_FFFF_8000_0000, 0xFFFF_8880_0000_0000, 8]),
            _ => self.0.address() + (Self::SIZE - PAGE) as u64 - random.below(64),
        }
    }

    /// Structure-like contents: words near edges, addresses, small counts.
    pub fn fill(&self, random: &mut Random) {
        for index in 0..80 {
            let word = match random.below(5) {
                0 => random.edge(),
                1 => self.host_address(random),
                2 => random.below(64) << 12,
                _ => random.below(8),
            };
            self.0.write_u64(8 * index, word);
        }
    }

    /// Host memory for a slot: part of the sandbox, or no memory at all.
    pub fn host_address(&self, random: &mut Random) -> u64 {
        match random.below(8) {
            0 => 0,
            1 => 0x7FFF_FFFF_F000,
            2 => u64::MAX << 12,
            _ => self.0.address() + (random.below(16) << 12),
        }
    }

    /// A `kvm_dirty_log` at the start of the sandbox. Its buffer is in the sandbox, too, or no
    /// memory: what it takes for a large slot ends at the page that cannot be touched.
    pub fn log(&self, random: &mut Random) {
        let slot = if random.one_in(10) { random.edge() as u32 } else { random.below(6) as u32 };
        self.0.write_u64(0, slot.into());
        self.0.write_u64(8, self.address(random));
    }

    /// A `kvm_clear_dirty_log` at the start of the sandbox, mostly of one of the small slots.
    pub fn clear_log(&self, random: &mut Random) {
        let slot = if random.one_in(10) { random.edge() as u32 } else { random.below(6) as u32 };
        let edge = random.one_in(4);
        let pages = if edge { random.edge() as u32 } else { random.below(9) as u32 };
        self.0.write_u64(0, u64::from(slot) | u64::from(pages) << 32);
        self.0.write_u64(8, if random.one_in(6) { random.edge() } else { 0 });
        self.0.write_u64(16, self.address(random));
    }

    /// A `kvm_enable_cap` at the start of the sandbox: who clears the dirty logs, as a rule, or what it
    /// is too late for.
    pub fn capability(&self, random: &mut Random) {
        let known = match random.below(6) {
            0 => CAP_PAGING,
            1 => RUSTHV_CAP_DIRTY_TRACKING,
            _ => kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        };
        let capability = if random.one_in(6) { random.edge() as u32 } else { known };
        let flags = if random.one_in(8) { random.edge() as u32 } else { 0 };
        self.0.write_u64(0, u64::from(capability) | u64::from(flags) << 32);
        let argument = if random.one_in(4) { random.edge() } else { random.below(5) };
        self.0.write_u64(8, argument);
    }

    /// One of rusthv's own structures at the start of the sandbox: an address or a choice, a small
    /// number, and mostly zeroes behind them.
    pub fn question(&self, request: u64, random: &mut Random) {
        self.0.fill(0, PAGE, 0);
        let page = random.below(64) << 12 | random.below(4096);
        let first = match request {
            _ if random.one_in(6) => random.edge(),
            // Somewhere in the first GiB of the host.
            RUSTHV_GET_FRAME | RUSTHV_UNMAP_FRAME => random.below(1 << 18) << 12,
            RUSTHV_GET_GPA | RUSTHV_WALK | RUSTHV_MEASURE => page,
            _ => random.below(4),
        };
        let second = if random.one_in(6) { random.edge() } else { random.below(8) };
        self.0.write_u64(0, first);
        self.0.write_u64(8, second);
        if random.one_in(6) {
            self.0.write_u64(8 * random.below(64) as usize, random.edge());
        }
    }

    /// A `kvm_userspace_memory_region` at the start of the sandbox.
    pub fn region(&self, random: &mut Random) {
        let slot = if random.one_in(10) { random.edge() as u32 } else { random.below(6) as u32 };
        let flags = if random.one_in(4) { random.word() as u32 & random.pick(&[1, 15]) } else { 0 };
        self.0.write_u64(0, u64::from(slot) | u64::from(flags) << 32);
        let gpa = if random.one_in(6) { random.edge() } else { random.below(64) << 12 };
        let size = if random.one_in(6) { random.edge() } else { random.below(8) << 12 };
        self.0.write_u64(8, gpa);
        self.0.write_u64(16, size);
        self.0.write_u64(24, self.host_address(random));
    }
}

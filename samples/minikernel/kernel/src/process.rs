// SPDX-License-Identifier: GPL-2.0
//! Processes: registers, an address space, and what becomes of them. One file has the program that
//! all of them run.

use minikernel_abi::{call::prot, Parameters, PROGRAM};

use crate::descriptors::{DATA, USER_CODE};
use crate::frames::Frames;
use crate::paging::PAGE_SIZE;
use crate::space::{Refused, Space};
use crate::traps::Frame;

pub const MAX_PROCESSES: usize = 64;
const STACK_SIZE: usize = 64 << 10;
/// Where the program is linked to, and thus where its first process's stack ends.
const PROGRAM_BASE: usize = 0x4000_0000;
const STACK_TOP: usize = 0x4800_0000;
/// RFLAGS: the bit that is always one, and interrupts on.
const FLAGS: usize = 1 << 1 | 1 << 9;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Free,
    Ready,
    Running,
    /// Waits for this process to end.
    Waiting(usize),
    /// Has ended, and the parent has not yet asked.
    Ended(u64),
}

pub struct Process {
    pub state: State,
    /// Number of its address space.
    pub space: usize,
    pub parent: usize,
    pub frame: Frame,
    /// A fault of the next access is its own business.
    pub catches: bool,
}

impl Process {
    pub const NONE: Self =
        Self { state: State::Free, space: 0, parent: 0, frame: Frame::ZERO, catches: false };

    /// Registers of a process that is about to start.
    pub fn start(entry: usize, stack: usize, argument: usize) -> Frame {
        Frame {
            di: argument,
            ip: entry,
            cs: usize::from(USER_CODE),
            flags: FLAGS,
            sp: stack,
            ss: usize::from(DATA),
            ..Frame::ZERO
        }
    }
}

/// Puts the program into an address space; returns the registers to start with.
pub fn load(space: &mut Space, parameters: &Parameters, frames: &mut Frames) -> Result<Frame, Refused> {
    let word = |offset: usize| {
        // SAFETY: the VMM has put the image there; the header is its first three words.
        unsafe { *((PROGRAM as usize + offset) as *const u32) as usize }
    };
    let (entry, data, end) = (word(0), word(4), word(8));
    let size = parameters.program_size as usize;
    space.map_at(PROGRAM_BASE, data - PROGRAM_BASE, prot::EXECUTE, frames)?;
    let data_size = (end - data).next_multiple_of(PAGE_SIZE);
    space.map_at(data, data_size, prot::WRITE, frames)?;
    for offset in (0..size).step_by(PAGE_SIZE) {
        let address = PROGRAM_BASE + offset;
        let error = crate::space::not_there(address >= data);
        space.fault(address, error, frames)?;
        let page = space.physical(address).expect("it was just made");
        let length = PAGE_SIZE.min(size - offset);
        // SAFETY: the page is new, and the image as long as the VMM says.
        unsafe {
            core::ptr::copy_nonoverlapping((PROGRAM as usize + offset) as *const u8, page as *mut u8, length);
        }
    }
    space.map_at(STACK_TOP - STACK_SIZE, STACK_SIZE, prot::WRITE, frames)?;
    Ok(Process::start(entry, STACK_TOP - 64, 0))
}

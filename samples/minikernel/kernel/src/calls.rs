// SPDX-License-Identifier: GPL-2.0
//! What processes ask the kernel for; `minikernel_abi::call` says what each call does.

use minikernel_abi::call::{self, parameter, NONE};
use minikernel_abi::report::status;

use crate::paging::{self, ACCESSED, DIRTY, LARGE_SIZE, LEVELS, PAGE_SIZE, PRESENT};
use crate::process::{Process, State};
use crate::schedule::{self, Kernel, Next};
use crate::space::{Refused, Space};
use crate::traps::Frame;
use crate::{console, cpu, params, probe, say, tlb};

/// Does what the process asks for in its registers, and leaves the answer there.
pub fn call(k: &mut Kernel, current: usize, frame: &mut Frame) -> Next {
    let arguments = (frame.di, frame.dx, frame.cx);
    match frame.ax {
        call::EXIT => return exit(k, current, join(frame.di, frame.dx)),
        call::WAIT => return wait(k, current, frame),
        call::YIELD => return Next::Others,
        call::FAIL => fail(current, arguments),
        call::CATCH => k.processes[current].catches = true,
        call::PROBE => frame.ax = probe::touch(frame.di, frame.dx),
        call::ENTRY => {
            let entry = entry(k, current, frame.di, frame.dx);
            (frame.ax, frame.dx) = halves(entry);
        }
        other => frame.ax = simple(k, current, other, arguments, frame).unwrap_or(NONE),
    }
    Next::Same
}

/// The calls whose answer is one number, and which may be refused.
fn simple(
    k: &mut Kernel,
    current: usize,
    number: usize,
    (first, second, third): (usize, usize, usize),
    frame: &Frame,
) -> Result<usize, Refused> {
    let number_of_space = k.processes[current].space;
    let space = &mut k.spaces[number_of_space];
    match number {
        call::MAP => return space.map(first, second, &mut k.frames),
        call::UNMAP => space.unmap(first, second, &mut k.frames)?,
        call::PROTECT => space.protect(first, second, third, &mut k.frames)?,
        call::EXCHANGE => space.exchange(first, second, &mut k.frames)?,
        call::TABLE => space.show_table(first, second, &mut k.frames)?,
        call::FLUSH => tlb::changed(number_of_space, first & !(PAGE_SIZE - 1), 1),
        call::CLEAR => {
            let place = paging::find(space.root, first, 0);
            place.clear_bits(second as paging::Entry & (ACCESSED | DIRTY));
            tlb::changed(number_of_space, first & !(PAGE_SIZE - 1), 1);
        }
        call::FORK => return fork(k, current, frame),
        call::SPAWN => {
            k.spaces[number_of_space].processes += 1;
            return Ok(add(
                k,
                Process {
                    state: State::Ready,
                    space: number_of_space,
                    parent: current,
                    frame: Process::start(first, second, third),
                    catches: false,
                },
            ));
        }
        call::PARAMETER => return Ok(parameter(first)),
        _ => panic!("process {current} makes call {number}"),
    }
    Ok(0)
}

fn join(low: usize, high: usize) -> u64 {
    low as u32 as u64 | (high as u32 as u64) << 32
}

fn halves(value: u64) -> (usize, usize) {
    (value as u32 as usize, (value >> 32) as usize)
}

fn add(k: &mut Kernel, process: Process) -> usize {
    let free = k.processes.iter().position(|p| p.state == State::Free);
    let number = free.expect("no more processes than there is room for");
    k.processes[number] = process;
    schedule::woken();
    number
}

fn fork(k: &mut Kernel, current: usize, frame: &Frame) -> Result<usize, Refused> {
    let parent = k.processes[current].space;
    let number = k.spaces.iter().position(|s| s.processes == 0);
    let number = number.expect("no more address spaces than there is room for");
    // Two elements of one array: the child is made outside of it.
    let mut child = Space::NONE;
    child.create(number, k.root, &mut k.frames)?;
    k.spaces[parent].fork(&mut child, &mut k.frames)?;
    k.spaces[number] = child;
    let frame = Frame { ax: 0, ..*frame };
    Ok(add(k, Process { state: State::Ready, space: number, parent: current, frame, catches: false }))
}

fn exit(k: &mut Kernel, current: usize, checksum: u64) -> Next {
    let number = k.processes[current].space;
    // Before its tables go, nobody may use them; other processes in it do.
    tlb::leave(k.root);
    let space = &mut k.spaces[number];
    space.processes -= 1;
    if space.processes == 0 {
        space.destroy(&mut k.frames);
    }
    if current == 0 {
        schedule::end(k, checksum);
    }
    k.processes[current].state = State::Ended(checksum);
    let parent = k.processes[current].parent;
    let parent = &mut k.processes[parent];
    if parent.state == State::Waiting(current) {
        parent.state = State::Ready;
        schedule::woken();
    }
    Next::Gone
}

fn wait(k: &mut Kernel, current: usize, frame: &mut Frame) -> Next {
    let child = &mut k.processes[frame.di];
    assert!(child.parent == current && child.state != State::Free, "process {current} waits for no child");
    let State::Ended(checksum) = child.state else {
        return Next::After(frame.di);
    };
    child.state = State::Free;
    (frame.ax, frame.dx) = halves(checksum);
    Next::Same
}

fn entry(k: &Kernel, current: usize, address: usize, level: usize) -> u64 {
    let root = k.spaces[k.processes[current].space].root;
    let place = paging::find(root, address, level.min(LEVELS.len() - 1));
    let entry = place.get();
    // Nothing on the level that was asked for, unless a large page is above it.
    if place.level != level && entry & PRESENT == 0 {
        return 0;
    }
    #[allow(clippy::unnecessary_cast)] // 32 bits wide in one of the formats
    let entry = entry as u64;
    entry
}

fn parameter(which: usize) -> usize {
    let parameters = params::get();
    match which {
        parameter::WORKLOAD => parameters.workload as usize,
        parameter::SIZE => parameters.size as usize,
        parameter::SEED => parameters.seed as usize,
        parameter::FEATURES => cpu::features(),
        parameter::LEVELS => LEVELS.len(),
        parameter::LARGE => LARGE_SIZE,
        parameter::VCPUS => params::vcpus(),
        _ => NONE,
    }
}

fn fail(current: usize, (line, found, expected): (usize, usize, usize)) -> ! {
    let name = minikernel_abi::WORKLOADS[params::get().workload as usize];
    say!("{name}.rs:{line}: process {current} found {found:#x} instead of {expected:#x}");
    console::end(status::MISMATCH)
}

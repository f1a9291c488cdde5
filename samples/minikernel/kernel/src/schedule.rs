// SPDX-License-Identifier: GPL-2.0
//! Which process runs where. Any vCPU runs any process; each runs one until it calls the kernel
//! and cannot or does not want to go on. The next one is then the first ready one after it, so that
//! processes take turns.

use core::sync::atomic::{AtomicU32, Ordering};

use minikernel_abi::call;
use minikernel_abi::report::{status, Value, Wait};

use crate::counters::{self, count};
use crate::frames::Frames;
use crate::lock::{Guard, Lock};
use crate::process::{Process, State, MAX_PROCESSES};
use crate::space::{Space, MAX_SPACES};
use crate::traps::{Frame, PAGE_FAULT};
use crate::{calls, console, cpu, kernel_map, params, process, say, tlb};

/// All that the kernel knows, behind its one lock.
pub struct Kernel {
    pub frames: Frames,
    pub spaces: [Space; MAX_SPACES],
    pub processes: [Process; MAX_PROCESSES],
    /// The tables with nothing but the kernel's own part.
    pub root: usize,
    /// Which process each vCPU runs.
    pub running: [usize; minikernel_abi::MAX_VCPUS as usize],
    /// Frames in use when there was no process yet.
    baseline: usize,
}

static KERNEL: Lock<Kernel> = Lock::new(Kernel {
    frames: Frames::new(),
    spaces: [const { Space::NONE }; MAX_SPACES],
    processes: [const { Process::NONE }; MAX_PROCESSES],
    root: 0,
    running: [0; minikernel_abi::MAX_VCPUS as usize],
    baseline: 0,
});

/// Grows with each process that becomes ready.
static WOKEN: AtomicU32 = AtomicU32::new(0);

/// A process has become ready. To be called with the lock held.
pub fn woken() {
    WOKEN.fetch_add(1, Ordering::SeqCst);
}

/// What becomes of the process that called.
pub enum Next {
    /// It goes on.
    Same,
    /// It waits its turn, and then goes on.
    Others,
    /// It waits for this process to end, and then makes the same call again.
    After(usize),
    /// It has ended.
    Gone,
}

/// Makes the kernel's page tables and the first process; returns the tables' root.
pub fn init() -> usize {
    let parameters = params::get();
    let memory = parameters.memory as usize;
    let mut kernel = KERNEL.lock();
    let k = &mut *kernel;
    let start = (minikernel_abi::PROGRAM + parameters.program_size) as usize;
    k.frames.init(start, memory);
    k.root = kernel_map::build(&mut k.frames, memory);
    k.baseline = k.frames.taken();
    k.spaces[0].create(0, k.root, &mut k.frames).expect("memory for the first process");
    let frame = process::load(&mut k.spaces[0], &parameters, &mut k.frames);
    k.processes[0] =
        Process { state: State::Ready, frame: frame.expect("memory for the program"), ..Process::NONE };
    k.root
}

/// Where a vCPU begins to run processes.
pub fn start() -> ! {
    let mut frame = Frame::ZERO;
    run_next(KERNEL.lock(), &mut frame);
    crate::traps::enter(&frame)
}

/// A process was interrupted: by its own call, or by a fault.
pub fn trap_from_user(frame: &mut Frame) {
    let address = cpu::cr2();
    tlb::answer();
    let mut kernel = KERNEL.lock();
    let k = &mut *kernel;
    let current = k.running[cpu::index()];
    let next = match frame.vector {
        PAGE_FAULT => fault(k, current, address, frame),
        vector if vector == usize::from(call::VECTOR) => {
            count(Value::Calls);
            k.processes[current].catches = false;
            calls::call(k, current, frame)
        }
        vector => panic!("exception {vector} in process {current} at {:#x}", frame.ip),
    };
    let state = match &next {
        Next::Same => return,
        Next::Others => State::Ready,
        Next::After(child) => {
            // INT is two bytes long.
            frame.ip -= 2;
            State::Waiting(*child)
        }
        Next::Gone => {
            run_next(kernel, frame);
            return;
        }
    };
    if matches!(next, Next::Others) && params::vcpus() != 1 {
        // It waits for others, and they may be waiting for a processor.
        drop(kernel);
        cpu::relax(Wait::Yield);
        kernel = KERNEL.lock();
    }
    let k = &mut *kernel;
    if state == State::Ready {
        woken();
    }
    k.processes[current].state = state;
    k.processes[current].frame = *frame;
    run_next(kernel, frame);
}

fn fault(k: &mut Kernel, current: usize, address: usize, frame: &mut Frame) -> Next {
    count(Value::Faults);
    let process = &mut k.processes[current];
    let space = &mut k.spaces[process.space];
    if space.fault(address, frame.error, &mut k.frames).is_err() {
        assert!(
            process.catches,
            "process {current} at {:#x} must not access {address:#x}, error code {:#x}",
            frame.ip, frame.error
        );
        process.catches = false;
        frame.ax = frame.error;
        frame.ip = frame.dx;
    }
    Next::Same
}

/// Waits until a process is ready, and makes its registers those to return to.
fn run_next(mut kernel: Guard<'static, Kernel>, frame: &mut Frame) {
    let own = cpu::index();
    loop {
        let k = &mut *kernel;
        let after = k.running[own] + 1;
        let ready = (0..MAX_PROCESSES)
            .map(|i| (after + i) % MAX_PROCESSES)
            .find(|i| k.processes[*i].state == State::Ready);
        if let Some(next) = ready {
            let process = &mut k.processes[next];
            process.state = State::Running;
            *frame = process.frame;
            k.running[own] = next;
            tlb::switch_to(process.space, k.spaces[process.space].root);
            return;
        }
        tlb::leave(k.root);
        // Those who work are not to find the lock taken by those who look for work.
        let woken = WOKEN.load(Ordering::SeqCst);
        drop(kernel);
        while WOKEN.load(Ordering::SeqCst) == woken {
            cpu::relax(Wait::Idle);
        }
        kernel = KERNEL.lock();
    }
}

/// The first process has ended, and with it the run.
pub fn end(k: &Kernel, checksum: u64) -> ! {
    let taken = k.frames.taken();
    if taken != k.baseline {
        say!("{taken} frames are in use at the end, {} were at the start", k.baseline);
        console::end(status::PANIC);
    }
    console::report(Value::Checksum, checksum);
    counters::report();
    console::report(Value::Tables, k.frames.most_tables as u64);
    console::end(status::OK)
}

// SPDX-License-Identifier: GPL-2.0
//! One run of the mini-kernel: a virtual machine with several vCPUs, each on a thread, and what
//! comes out of its ports.

use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_enable_cap, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use minikernel_abi::report::{
    status, Value, Wait, CONSOLE_PORT, EXIT_PORT, NAME_PORT, VALUE_PORT, YIELD_PORT,
};
use minikernel_abi::{Parameters, KERNEL, PARAMETERS, PROGRAM};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{register_signal_handler, SIGRTMIN};

use super::counters::Counters;
use super::{ticks, Paging};
use crate::boot::Mode;
use crate::error::{Error, Result};
use crate::machine::{self, FOUR_GIB, IDENTITY_MAP_SIZE};

/// How long a vCPU with nothing to do leaves its processor to others.
const IDLE_SLEEP: Duration = Duration::from_micros(100);
/// The same for one that waits for another vCPU, which may be one of the others. (To yield would not
/// do: the host may think that this thread is still the one to run.)
const SHORT_SLEEP: Duration = Duration::from_micros(20);

const RFLAGS_IF: u64 = 1 << 9;
/// Of <rusthv.h>: how a VM's memory is virtualized.
const RUSTHV_CAP_PAGING: u32 = 0x5248_0001;

/// What is to run.
pub struct Setup<'a> {
    pub device: &'a Path,
    pub kernel: &'a [u8],
    pub program: &'a [u8],
    /// How the kernel starts.
    pub mode: Mode,
    /// How the guest's memory is virtualized, where the device lets us choose.
    pub paging: Option<Paging>,
    pub parameters: Parameters,
    pub timeout: Duration,
    /// Ticks of each entry and exit, where those in the guest are to be counted.
    pub exit_ticks: Option<u64>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// How the guest's memory was virtualized, where the device lets us choose.
    pub paging: Option<Paging>,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    pub values: [u64; Value::COUNT],
    pub exits: Exits,
    pub counters: Counters,
    pub elapsed: Duration,
    /// Of the processor's time-stamp counter.
    pub cycles: u64,
    /// Of those, the guests'.
    pub guest_cycles: Option<u64>,
}

/// How often vCPUs came back to user space.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exits {
    pub port: u64,
    /// Of those, because a vCPU waited for another one.
    pub yields: u64,
}

/// What the vCPUs' threads have in common.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    yields: AtomicU64,
    ports: AtomicU64,
    output: Mutex<Output>,
    counters: Mutex<Counters>,
}

/// What the guest has written so far.
#[derive(Default)]
struct Output {
    text: Vec<u8>,
    values: [u64; Value::COUNT],
    /// Which value is being written, and how many of its bits are there.
    current: usize,
    bits: u32,
}

impl Output {
    fn value(&mut self, half: u32) {
        if let Some(value) = self.values.get_mut(self.current) {
            *value |= u64::from(half).checked_shl(self.bits).unwrap_or(0);
        }
        self.bits += 32;
    }

    fn name(&mut self, number: u8) {
        self.current = usize::from(number);
        self.bits = 0;
    }
}

/// Runs the guest to its end. An error is one of the device or of the VMM; what the guest does
/// wrong is in the report.
pub fn run(setup: &Setup) -> Result<Report> {
    let (vm, memory, vcpus, paging) = create(setup)?;
    register_signal_handler(SIGRTMIN(), nothing).map_err(|e| Error::Ioctl {
        what: "sigaction",
        errno: std::io::Error::from_raw_os_error(e.errno()),
    })?;

    let shared = Arc::new(Shared::default());
    let (sender, receiver) = channel();
    let started = Instant::now();
    let cycles = time_stamp();
    let threads: Vec<JoinHandle<()>> = vcpus
        .into_iter()
        .map(|vcpu| {
            let (shared, sender) = (shared.clone(), sender.clone());
            thread::spawn(move || {
                let mut vcpu = vcpu;
                let end = run_vcpu(&mut vcpu, &shared);
                shared
                    .counters
                    .lock()
                    .expect("no thread has panicked")
                    .add_vcpu(&vcpu);
                if let Some(end) = end {
                    // When nobody listens any more, another vCPU was first.
                    let _ = sender.send(end);
                }
            })
        })
        .collect();
    drop::<Sender<_>>(sender);

    let end = receiver.recv_timeout(setup.timeout);
    let elapsed = started.elapsed();
    let cycles = time_stamp() - cycles;
    stop(&shared, threads);
    let mut counters = *shared.counters.lock().expect("no thread has panicked");
    counters.add_vm(&vm);
    // In this order: the VM has the memory mapped.
    drop(vm);
    drop(memory);

    let output = shared.output.lock().expect("no thread has panicked");
    let text = String::from_utf8_lossy(&output.text).trim_end().to_owned();
    let failure = match end {
        Ok(Ok(status::OK)) if text.is_empty() => None,
        // A kernel that is content has nothing to say.
        Ok(Ok(code)) => Some(format!("status {code}: {text}")),
        Ok(Err(why)) => Some(format!("{why} {text}")),
        Err(RecvTimeoutError::Timeout) => Some(format!(
            "not at its end after {} s {text}",
            setup.timeout.as_secs_f64()
        )),
        Err(RecvTimeoutError::Disconnected) => Some("all vCPUs stopped".to_owned()),
    };
    Ok(Report {
        paging,
        failure,
        values: output.values,
        exits: Exits {
            port: shared.ports.load(Ordering::Relaxed),
            yields: shared.yields.load(Ordering::Relaxed),
        },
        guest_cycles: setup
            .exit_ticks
            .map(|ticks| counters.guest_ticks.saturating_sub(ticks * counters.exits)),
        counters,
        elapsed,
        cycles,
    })
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn time_stamp() -> u64 {
    // SAFETY: every processor with virtualization has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Brings all vCPUs back from the guest. A signal that comes just before KVM_RUN is lost: so it is
/// sent until the thread is gone.
fn stop(shared: &Shared, threads: Vec<JoinHandle<()>>) {
    shared.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        while !thread.is_finished() {
            // SAFETY: the thread has not been joined, so that its handle is good.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
            thread::sleep(Duration::from_micros(200));
        }
        thread.join().expect("no thread has panicked");
    }
}

type Created = (VmFd, GuestMemoryMmap, Vec<VcpuFd>, Option<Paging>);

fn create(setup: &Setup) -> Result<Created> {
    let size = u64::from(setup.parameters.memory);
    let memory = GuestMemoryMmap::from_ranges(&machine::ram_ranges(size)).map_err(Error::memory)?;
    for (image, address) in [(setup.kernel, KERNEL), (setup.program, PROGRAM)] {
        memory
            .write_slice(image, GuestAddress(address.into()))
            .map_err(Error::memory)?;
    }
    let p = setup.parameters;
    let words = [
        p.magic,
        p.vcpus,
        p.memory,
        p.program_size,
        p.workload,
        p.size,
        p.seed,
    ];
    memory
        .write_obj(words, GuestAddress(PARAMETERS.into()))
        .map_err(Error::memory)?;

    let kvm = machine::open(setup.device)?;
    let vm = kvm.create_vm().map_err(Error::ioctl("KVM_CREATE_VM"))?;
    // A device without a choice is asked for nothing but what it would do anyway.
    let choice = kvm.check_extension_raw(RUSTHV_CAP_PAGING.into()) > 0;
    let paging = setup
        .paging
        .filter(|paging| choice || *paging != Paging::Nested);
    if let Some(paging) = paging.filter(|paging| *paging != Paging::Nested) {
        let cap = kvm_enable_cap {
            cap: RUSTHV_CAP_PAGING,
            args: [paging as u64, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap)
            .map_err(Error::ioctl("RUSTHV_CAP_PAGING"))?;
    }
    if setup.exit_ticks.is_some() {
        ticks::count(&vm)?;
    }
    place_host_pages(&kvm, &vm)?;
    machine::map_memory(&vm, &memory, |_| 0)?;

    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    machine::restrict_cpuid(&mut cpuid)?;
    let vcpus = (0..setup.parameters.vcpus)
        .map(|index| {
            let vcpu = vm
                .create_vcpu(index.into())
                .map_err(Error::ioctl("KVM_CREATE_VCPU"))?;
            vcpu.set_cpuid2(&cpuid)
                .map_err(Error::ioctl("KVM_SET_CPUID2"))?;
            let mut regs = vcpu.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?;
            let mut sregs = vcpu.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?;
            setup.mode.prepare(&memory, &mut regs, &mut sregs)?;
            regs.rdi = index.into();
            // No interrupt will come; but an emulated VMX may hold the host's back meanwhile.
            regs.rflags |= RFLAGS_IF;
            vcpu.set_sregs(&sregs)
                .map_err(Error::ioctl("KVM_SET_SREGS"))?;
            vcpu.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))?;
            Ok(vcpu)
        })
        .collect::<Result<_>>()?;
    Ok((vm, memory, vcpus, paging))
}

/// Tells where the host may have its own pages, if it wants to know.
fn place_host_pages(kvm: &Kvm, vm: &VmFd) -> Result<()> {
    let pages = machine::host_pages(FOUR_GIB);
    if kvm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(pages)
            .map_err(Error::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    if kvm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address((pages + IDENTITY_MAP_SIZE) as usize)
            .map_err(Error::ioctl("KVM_SET_TSS_ADDR"))?;
    }
    Ok(())
}

/// Runs a vCPU until it ends the run, with its status or with what went wrong; `None` when another
/// one did.
fn run_vcpu(vcpu: &mut VcpuFd, shared: &Shared) -> Option<std::result::Result<u8, String>> {
    while !shared.stop.load(Ordering::SeqCst) {
        let why = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                shared.ports.fetch_add(1, Ordering::Relaxed);
                match (port, data) {
                    (YIELD_PORT, &[wait]) => {
                        shared.yields.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(if wait == Wait::Idle as u8 {
                            IDLE_SLEEP
                        } else {
                            SHORT_SLEEP
                        });
                    }
                    (EXIT_PORT, &[status]) => return Some(Ok(status)),
                    (CONSOLE_PORT, text) => output(shared).text.extend(text),
                    (NAME_PORT, &[name]) => output(shared).name(name),
                    (VALUE_PORT, &[a, b, c, d]) => {
                        output(shared).value(u32::from_le_bytes([a, b, c, d]));
                    }
                    _ => return Some(Err(format!("the guest writes to port {port:#x}"))),
                }
                continue;
            }
            Ok(VcpuExit::Intr) => continue,
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => continue,
            Ok(VcpuExit::Hlt) if shared.stop.load(Ordering::SeqCst) => return None,
            Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) => {
                format!("the guest touches {address:#x}, where nothing is")
            }
            Ok(other) => format!("unexpected exit {other:?}"),
            Err(e) => format!("KVM_RUN: {e}"),
        };
        return Some(Err(format!("{why}, at {}", place(vcpu))));
    }
    None
}

fn output(shared: &Shared) -> std::sync::MutexGuard<'_, Output> {
    shared.output.lock().expect("no thread has panicked")
}

fn place(vcpu: &VcpuFd) -> String {
    let (Ok(r), Ok(s)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return "a place that the device does not tell".to_owned();
    };
    format!(
        "{:02x}:{:x}, stack {:x}, CR0 {:x}, CR2 {:x}, CR3 {:x}, CR4 {:x}, EFER {:x}",
        s.cs.selector, r.rip, r.rsp, s.cr0, s.cr2, s.cr3, s.cr4, s.efer
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_in_halves() {
        let mut output = Output::default();
        output.name(Value::Faults as u8);
        output.value(0x9abc_def0);
        output.value(0x1234_5678);
        // More than there is room for, and a value that does not exist: neither does harm.
        output.value(1);
        output.name(255);
        output.value(1);
        let mut expected = [0; Value::COUNT];
        expected[Value::Faults as usize] = 0x1234_5678_9abc_def0;
        assert_eq!(output.values, expected);
    }
}

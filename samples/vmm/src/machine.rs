// SPDX-License-Identifier: GPL-2.0
//! A virtual machine with one vCPU: made, run until it ends, and the exits on the way.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Stdout, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::rc::Rc;
use std::slice;
use std::time::{Duration, Instant, SystemTime};

use kvm_bindings::{
    kvm_interrupt, kvm_run, kvm_userspace_memory_region, CpuId, KVMIO, KVM_EXIT_IO_IN,
    KVM_INTERNAL_ERROR_EMULATION, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::boot::Mode;
use crate::console::{Console, Seen};
use crate::devices::{e820_file, Board, End, FwCfg, Now, E820, VGA_WINDOW};
use crate::error::{Error, Result};
use crate::signals::Signals;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// The one version of the ABI that there has been.
const API_VERSION: i32 = 12;
pub const FOUR_GIB: u64 = 1 << 32;
const KIB: u64 = 1 << 10;
/// Where the end of the firmware is found a second time: up to 1 MiB, down to where option ROMs
/// begin. (Firmware of 256 KiB unpacks itself there, once a chipset has made it RAM.)
const LOW_BIOS_SIZE: usize = 256 << 10;
const LOW_BIOS_END: u64 = 1 << 20;
/// One page for an identity map and three for a TSS, which a host may need for real mode.
const HOST_PAGES: u64 = 4 << 12;
pub const IDENTITY_MAP_SIZE: u64 = 1 << 12;

const RFLAGS_IF: u64 = 1 << 9;
const CR0_PE: u64 = 1 << 0;
const EFER_LMA: u64 = 1 << 10;

/// How often a guest that runs without exits is stopped to see whether its timer has ticked.
const TICK_CHECK: Duration = Duration::from_millis(10);
/// How long a halted guest sleeps before it is looked at again.
const HALT_SLEEP: Duration = Duration::from_millis(1);
/// How long the line with the awaited text may take to end.
const REST_OF_LINE: Duration = Duration::from_millis(500);

pub struct Setup<'a> {
    pub device: &'a Path,
    /// Bytes of RAM.
    pub memory: u64,
    pub until: Option<&'a str>,
    pub debug_log: Option<File>,
    /// Whether timer interrupts are injected if the device can.
    pub interrupts: bool,
}

#[derive(Debug)]
pub enum Outcome {
    TextSeen,
    /// The guest came to its end in an orderly way.
    Ended {
        how: &'static str,
        status: u8,
    },
    TimedOut,
    Signal(i32),
}

/// How often the guest exited, and what for.
#[derive(Debug, Default)]
pub struct Stats {
    port_in: u64,
    port_out: u64,
    port_bytes: u64,
    mmio_read: u64,
    mmio_write: u64,
    halt: u64,
    signal: u64,
    window: u64,
    injected: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exits: {} in, {} out ({} bytes), {} MMIO read, {} MMIO write, {} halt, {} signal",
            self.port_in,
            self.port_out,
            self.port_bytes,
            self.mmio_read,
            self.mmio_write,
            self.halt,
            self.signal,
        )?;
        if self.window + self.injected != 0 {
            write!(
                f,
                ", {} interrupt window; {} interrupts injected",
                self.window, self.injected
            )?;
        }
        Ok(())
    }
}

/// Where a guest's output ends up.
type Sink = Box<dyn Write>;
type GuestBoard = Board<Console<Sink>, Console<Sink>>;

/// Fields are dropped in this order: the signal handler lets go of the `kvm_run` page first, and
/// guest memory is the last to be unmapped.
pub struct Machine {
    signals: Signals,
    vcpu: VcpuFd,
    /// Bytes of the mapping that begins with `kvm_run`.
    run_size: usize,
    _vm: VmFd,
    memory: GuestMemoryMmap,
    board: GuestBoard,
    seen: Rc<Cell<Seen>>,
    started: Instant,
    /// Whether timer interrupts are injected.
    interrupts: bool,
    /// Whether a guest that waits for an interrupt, which will not come, is let go on.
    wake_from_halt: bool,
    interrupts_note: Option<&'static str>,
    stats: Stats,
}

/// One run of the vCPU ended for this reason.
enum Exit {
    /// The guest goes on.
    Continue,
    PortIo,
    Halt,
    Shutdown,
    InternalError,
}

impl Machine {
    /// A guest that starts in `mode` with `image`, which must fit.
    pub fn flat(setup: Setup, mode: Mode, image: &[u8]) -> Result<Self> {
        let ram = ram_ranges(setup.memory);
        let memory = GuestMemoryMmap::from_ranges(&ram).map_err(Error::memory)?;
        memory
            .write_slice(image, GuestAddress(mode.load_address()))
            .map_err(Error::memory)?;
        let fw_cfg = FwCfg::new(&[]);
        let machine = Self::new(setup, memory, FOUR_GIB, fw_cfg)?;

        let mut regs = machine
            .vcpu
            .get_regs()
            .map_err(Error::ioctl("KVM_GET_REGS"))?;
        let mut sregs = machine
            .vcpu
            .get_sregs()
            .map_err(Error::ioctl("KVM_GET_SREGS"))?;
        mode.prepare(&machine.memory, &mut regs, &mut sregs)?;
        machine
            .vcpu
            .set_sregs(&sregs)
            .map_err(Error::ioctl("KVM_SET_SREGS"))?;
        machine
            .vcpu
            .set_regs(&regs)
            .map_err(Error::ioctl("KVM_SET_REGS"))?;
        Ok(machine)
    }

    /// A PC that comes out of reset with `bios` at the end of the first 4 GiB.
    pub fn firmware(setup: Setup, bios: &[u8]) -> Result<Self> {
        let rom = FOUR_GIB - bios.len() as u64;
        let mut ranges = ram_ranges(setup.memory);
        ranges.push((GuestAddress(rom), bios.len()));
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(Error::memory)?;
        memory
            .write_slice(bios, GuestAddress(rom))
            .map_err(Error::memory)?;
        // The copy below 1 MiB is RAM, as if a chipset had been told to shadow the ROM there.
        let low = &bios[bios.len().saturating_sub(LOW_BIOS_SIZE)..];
        memory
            .write_slice(low, GuestAddress(LOW_BIOS_END - low.len() as u64))
            .map_err(Error::memory)?;

        let fw_cfg = FwCfg::new(&[(
            "etc/e820",
            e820_file(&[
                (0, setup.memory, E820::Ram),
                (host_pages(rom), HOST_PAGES, E820::Reserved),
            ]),
        )]);
        let mut machine = Self::new(setup, memory, rom, fw_cfg)?;
        machine.wake_from_halt = true;
        machine.interrupts_note = Some(if machine.interrupts {
            "the guest gets timer interrupts through KVM_INTERRUPT"
        } else {
            "the guest gets no interrupts; halts end by time"
        });
        // The vCPU is as the device made it: at the reset vector.
        Ok(machine)
    }

    fn new(setup: Setup, memory: GuestMemoryMmap, rom: u64, fw_cfg: FwCfg) -> Result<Self> {
        let kvm = open(setup.device)?;
        let vm = kvm.create_vm().map_err(Error::ioctl("KVM_CREATE_VM"))?;
        if kvm.check_extension(Cap::SetIdentityMapAddr) {
            vm.set_identity_map_address(host_pages(rom))
                .map_err(Error::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        }
        if kvm.check_extension(Cap::SetTssAddr) {
            vm.set_tss_address((host_pages(rom) + IDENTITY_MAP_SIZE) as usize)
                .map_err(Error::ioctl("KVM_SET_TSS_ADDR"))?;
        }
        let read_only = kvm.check_extension(Cap::ReadonlyMem);
        map_memory(&vm, &memory, |start| {
            if start >= rom && read_only {
                KVM_MEM_READONLY
            } else {
                0
            }
        })?;

        let run_size = kvm
            .get_vcpu_mmap_size()
            .map_err(Error::ioctl("KVM_GET_VCPU_MMAP_SIZE"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(Error::ioctl("KVM_CREATE_VCPU"))?;
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        restrict_cpuid(&mut cpuid)?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(Error::ioctl("KVM_SET_CPUID2"))?;

        let interrupts = setup.interrupts && can_interrupt(&vcpu);
        let immediate_exit = ptr::addr_of_mut!(vcpu.get_kvm_run().immediate_exit);
        // SAFETY: the page stays mapped as long as the vCPU, which is dropped after `signals`.
        // The program has one thread.
        let signals = unsafe { Signals::install(immediate_exit)? };

        let seen = Rc::new(Cell::new(Seen::No));
        let stdout: Rc<RefCell<Sink>> = Rc::new(RefCell::new(Box::new(buffered_stdout())));
        let debug = match setup.debug_log {
            Some(file) => Rc::new(RefCell::new(Box::new(file) as Sink)),
            None => stdout.clone(),
        };
        Ok(Self {
            signals,
            vcpu,
            run_size,
            _vm: vm,
            memory,
            board: Board::new(
                Console::new(stdout, setup.until, seen.clone()),
                Console::new(debug, setup.until, seen.clone()),
                setup.memory,
                fw_cfg,
            ),
            seen,
            started: Instant::now(),
            interrupts,
            wake_from_halt: false,
            interrupts_note: None,
            stats: Stats::default(),
        })
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    pub fn interrupts_note(&self) -> Option<&'static str> {
        self.interrupts_note
    }

    /// Runs the guest until it ends, the awaited text is there, or the time is over.
    pub fn run(&mut self, timeout: Option<Duration>) -> Result<Outcome> {
        let outcome = self.run_until_end(timeout);
        self.signals.alarm(None);
        self.board.flush().map_err(Error::Output)?;
        outcome
    }

    fn run_until_end(&mut self, timeout: Option<Duration>) -> Result<Outcome> {
        self.started = Instant::now();
        let mut deadline = timeout.and_then(|t| self.started.checked_add(t));
        self.signals.alarm(if self.interrupts {
            Some(TICK_CHECK)
        } else {
            timeout
        });
        let mut line_ends_by = None;
        loop {
            if self.interrupts {
                self.offer_interrupt()?;
            }
            match self.run_vcpu()? {
                Exit::Continue => {}
                Exit::PortIo => {
                    if let Some(end) = self.port_io()? {
                        return Ok(match (self.seen.get(), end) {
                            (Seen::No, End::Status(status)) => Outcome::Ended {
                                how: "exit port",
                                status,
                            },
                            (Seen::No, End::Reset(how)) => Outcome::Ended { how, status: 0 },
                            _ => Outcome::TextSeen,
                        });
                    }
                }
                Exit::Halt => {
                    if self.seen.get() != Seen::No {
                        return Ok(Outcome::TextSeen);
                    }
                    let regs = self.vcpu.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?;
                    let can_wake = self.interrupts || self.wake_from_halt;
                    if regs.rflags & RFLAGS_IF == 0 || !can_wake {
                        return Ok(Outcome::Ended {
                            how: "halt",
                            status: 0,
                        });
                    }
                    // The guest has nothing to do: now is the time to show what it wrote.
                    self.board.flush().map_err(Error::Output)?;
                    std::thread::sleep(HALT_SLEEP);
                }
                Exit::Shutdown => {
                    let state = self.describe_state();
                    return Err(Error::GuestDied(format!("triple fault at {state}")));
                }
                Exit::InternalError => {
                    let why = self.describe_internal_error();
                    return Err(Error::GuestDied(why));
                }
            }
            match (self.seen.get(), line_ends_by) {
                (Seen::No, _) => {}
                (Seen::Line, _) => return Ok(Outcome::TextSeen),
                (Seen::Text, None) => {
                    line_ends_by = Instant::now().checked_add(REST_OF_LINE);
                    self.signals.alarm(Some(REST_OF_LINE));
                    // From here on the text's own limit counts.
                    deadline = None;
                }
                (Seen::Text, Some(limit)) if Instant::now() >= limit => {
                    return Ok(Outcome::TextSeen)
                }
                (Seen::Text, Some(_)) => {}
            }
            if let Some(signal) = self.signals.take_end() {
                return Ok(Outcome::Signal(signal));
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(Outcome::TimedOut);
            }
        }
    }

    /// Enters the guest once. MMIO is answered here; port I/O is left to [`Self::port_io`].
    fn run_vcpu(&mut self) -> Result<Exit> {
        let stats = &mut self.stats;
        match self.vcpu.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Ok(Exit::PortIo),
            Ok(VcpuExit::MmioRead(address, data)) => {
                stats.mmio_read += 1;
                self.board.mmio_read(address, data);
                Ok(Exit::Continue)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                stats.mmio_write += 1;
                self.board.mmio_write(address, data);
                Ok(Exit::Continue)
            }
            Ok(VcpuExit::Hlt) => {
                stats.halt += 1;
                Ok(Exit::Halt)
            }
            Ok(VcpuExit::IrqWindowOpen) => {
                stats.window += 1;
                Ok(Exit::Continue)
            }
            Ok(VcpuExit::Intr) => self.interrupted(),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Shutdown),
            Ok(VcpuExit::InternalError) => Ok(Exit::InternalError),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Err(Error::GuestDied(format!(
                "the hardware refuses to enter it: reason {reason:#x} on CPU {cpu}"
            ))),
            Ok(other) => Err(Error::GuestDied(format!("unexpected exit {other:?}"))),
            Err(e) if e.errno() == libc::EINTR => self.interrupted(),
            Err(e) => Err(Error::ioctl("KVM_RUN")(e)),
        }
    }

    /// KVM_RUN came back for a signal. The flag is cleared before the loop looks what the signal
    /// was, so that one that comes in between is not lost.
    fn interrupted(&mut self) -> Result<Exit> {
        self.stats.signal += 1;
        self.vcpu.set_kvm_immediate_exit(0);
        Ok(Exit::Continue)
    }

    fn port_io(&mut self) -> Result<Option<End>> {
        let now = self.now();
        let run = self.vcpu.get_kvm_run();
        // SAFETY: KVM_RUN returned with KVM_EXIT_IO, which makes `io` the valid member.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let length = size.saturating_mul(io.count as usize);
        let end = (io.data_offset as usize).saturating_add(length);
        // The program is also a test of devices: one that errs is reported, not believed.
        if !matches!(size, 1 | 2 | 4) || end > self.run_size {
            return Err(Error::GuestDied(format!("impossible port access {io:?}")));
        }
        let page = ptr::from_mut::<kvm_run>(run).cast::<u8>();
        // SAFETY: the bytes lie inside the mapping, as was just checked, and nothing else refers
        // to them while the slice lives.
        let data = unsafe { slice::from_raw_parts_mut(page.add(io.data_offset as usize), length) };

        self.stats.port_bytes += length as u64;
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            self.stats.port_in += 1;
            for access in data.chunks_exact_mut(size) {
                self.board.port_read(io.port, access, now);
            }
            return Ok(None);
        }
        self.stats.port_out += 1;
        for access in data.chunks_exact(size) {
            let end = self
                .board
                .port_write(io.port, access, now)
                .map_err(Error::Output)?;
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    /// Injects a pending timer interrupt, or asks to be told when the guest can take it.
    fn offer_interrupt(&mut self) -> Result<()> {
        self.board.tick(self.now());
        let pending = self.board.interrupt_pending();
        let run = self.vcpu.get_kvm_run();
        let ready = run.ready_for_interrupt_injection != 0;
        run.request_interrupt_window = u8::from(pending && !ready);
        if !(pending && ready) {
            return Ok(());
        }
        if let Some(vector) = self.board.acknowledge_interrupt() {
            interrupt(&self.vcpu, u32::from(vector)).map_err(|errno| Error::Ioctl {
                what: "KVM_INTERRUPT",
                errno,
            })?;
            self.stats.injected += 1;
        }
        Ok(())
    }

    fn now(&self) -> Now {
        Now {
            ns: self.started.elapsed().as_nanos() as u64,
            unix: SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_secs()),
        }
    }

    fn describe_state(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.vcpu.get_regs(), self.vcpu.get_sregs()) else {
            return "a place that the device does not tell".to_owned();
        };
        let mode = match (sregs.cr0 & CR0_PE != 0, sregs.efer & EFER_LMA != 0) {
            (false, _) => "real mode",
            (true, false) => "protected mode",
            (true, true) => "long mode",
        };
        format!(
            "{:04x}:{:x} in {mode}, rsp {:x}, rflags {:x}, cr0 {:x}, cr2 {:x}, cr3 {:x}, cr4 {:x}, \
             POST code {:02x}",
            sregs.cs.selector,
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            self.board.post_code(),
        )
    }

    fn describe_internal_error(&mut self) -> String {
        let run = self.vcpu.get_kvm_run();
        // SAFETY: KVM_RUN returned with KVM_EXIT_INTERNAL_ERROR, which makes `internal` the valid
        // member; it is plain numbers.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let count = (internal.ndata as usize).min(internal.data.len());
        let data = &internal.data[..count];
        let what = if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
            match instruction_bytes(data) {
                Some(bytes) => format!("an instruction that cannot be emulated ({bytes})"),
                None => "an instruction that cannot be emulated".to_owned(),
            }
        } else {
            format!("internal error {} {data:x?}", internal.suberror)
        };
        format!("{what} at {}", self.describe_state())
    }
}

/// The bytes that an emulation failure carries: a word of flags, then length and bytes.
fn instruction_bytes(data: &[u64]) -> Option<String> {
    let [flags, rest @ ..] = data else {
        return None;
    };
    if flags & 1 == 0 || rest.len() < 2 {
        return None;
    }
    let bytes: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (&length, bytes) = bytes.split_first()?;
    let bytes = bytes.get(..usize::from(length))?;
    Some(
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" "),
    )
}

/// RAM as on a PC, with the hole for the VGA adapter.
pub fn ram_ranges(memory: u64) -> Vec<(GuestAddress, usize)> {
    vec![
        (GuestAddress(0), VGA_WINDOW.start as usize),
        (
            GuestAddress(VGA_WINDOW.end),
            (memory - VGA_WINDOW.end) as usize,
        ),
    ]
}

/// Where the host may put its own pages: below the firmware, whose 256 KiB are kept free even
/// when there is none.
pub fn host_pages(rom: u64) -> u64 {
    rom.min(FOUR_GIB - 256 * KIB) - HOST_PAGES
}

fn buffered_stdout() -> io::BufWriter<Stdout> {
    io::BufWriter::new(io::stdout())
}

/// Gives a VM all of the memory, which has to outlive it; `flags` says from a region's start those of its
/// slot.
pub fn map_memory(vm: &VmFd, memory: &GuestMemoryMmap, flags: impl Fn(u64) -> u32) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let start = region.start_addr();
        let host = memory.get_host_address(start).map_err(Error::memory)?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: flags(start.0),
            guest_phys_addr: start.0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is mapped, and is unmapped after the VM is gone.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

pub fn open(path: &Path) -> Result<Kvm> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::device(path, "not a file name"))?;
    let kvm = Kvm::new_with_path(&name).map_err(|e| {
        let error = io::Error::from_raw_os_error(e.errno());
        match error.kind() {
            io::ErrorKind::NotFound => {
                Error::device(path, format_args!("{error}; is the module loaded?"))
            }
            _ => Error::device(path, error),
        }
    })?;
    match kvm.get_api_version() {
        API_VERSION => {}
        -1 => return Err(Error::device(path, "does not speak the KVM ABI")),
        version => {
            let why = format!("speaks version {version} of the KVM ABI, not {API_VERSION}");
            return Err(Error::device(path, why));
        }
    }
    for (capability, name) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(Error::device(path, format_args!("lacks {name}")));
        }
    }
    Ok(kvm)
}

fn interrupt(vcpu: &VcpuFd, irq: u32) -> io::Result<()> {
    // SAFETY: the argument is the structure that the ioctl reads.
    match unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &kvm_interrupt { irq }) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// No capability tells of KVM_INTERRUPT. A vector that does not exist does: it is refused as
/// invalid by a device that knows the ioctl.
fn can_interrupt(vcpu: &VcpuFd) -> bool {
    interrupt(vcpu, 256).is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
}

/// Takes from the CPU what the board does not have. There is no local APIC to start other CPUs
/// with and no MSR that only an APIC, MTRRs or a paravirtual clock would have.
pub fn restrict_cpuid(cpuid: &mut CpuId) -> Result<()> {
    const APIC: u32 = 1 << 9;
    const MTRR: u32 = 1 << 12;
    const MONITOR: u32 = 1 << 3;
    const VMX: u32 = 1 << 5;
    const SMX: u32 = 1 << 6;
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HTT: u32 = 1 << 28;
    // In EBX of leaf 1.
    const CPU_COUNT: u32 = 0xff << 16;
    const APIC_ID: u32 = 0xff << 24;

    // Leaves 0xb and 0x1f number APICs, 0x40000000 and up are the hypervisor's own.
    let kept: Vec<_> = cpuid
        .as_slice()
        .iter()
        .filter(|e| !matches!(e.function, 0xb | 0x1f | 0x4000_0000..=0x4fff_ffff))
        .map(|e| {
            let mut e = *e;
            match e.function {
                1 => {
                    e.ebx = e.ebx & !(CPU_COUNT | APIC_ID) | 1 << 16;
                    e.ecx &= !(MONITOR | VMX | SMX | X2APIC | TSC_DEADLINE);
                    e.edx &= !(APIC | MTRR | HTT);
                }
                // AMD repeats them here.
                0x8000_0001 => e.edx &= !(APIC | MTRR),
                _ => {}
            }
            e
        })
        .collect();
    *cpuid = CpuId::from_entries(&kept).map_err(|e| Error::Memory(format!("CPUID: {e:?}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn ram_leaves_the_vga_window_out() {
        let memory = 2 << 20;
        let ranges = ram_ranges(memory);
        let end = |r: &(GuestAddress, usize)| r.0 .0 + r.1 as u64;
        assert_eq!(end(&ranges[0]), VGA_WINDOW.start);
        assert_eq!(ranges[1].0 .0, VGA_WINDOW.end);
        assert_eq!(end(&ranges[1]), memory);
    }

    #[test]
    fn host_pages_lie_below_the_firmware() {
        assert_eq!(host_pages(FOUR_GIB), 0xfffb_c000);
        assert_eq!(host_pages(FOUR_GIB - (128 << 10)), 0xfffb_c000);
        assert_eq!(host_pages(FOUR_GIB - (2 << 20)), 0xffdf_c000);
    }

    #[test]
    fn cpuid_without_apic_and_hypervisor() {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let entries = [0, 1, 0xb, 0x4000_0000, 0x4000_0001, 0x8000_0001].map(entry);
        let mut cpuid = CpuId::from_entries(&entries).unwrap();
        restrict_cpuid(&mut cpuid).unwrap();
        let left: Vec<u32> = cpuid.as_slice().iter().map(|e| e.function).collect();
        assert_eq!(left, [0, 1, 0x8000_0001]);
        let one = cpuid.as_slice()[1];
        assert_eq!((one.edx >> 9 & 1, one.edx >> 12 & 1), (0, 0));
        assert_eq!(one.ebx >> 16, 1);
        // TSC, MSR and PAE stay.
        assert_eq!(one.edx & 0x70, 0x70);
    }

    #[test]
    fn instruction_bytes_of_an_emulation_failure() {
        // Three bytes: 0f 01 c1.
        let data = [1, u64::from_le_bytes([3, 0x0f, 0x01, 0xc1, 0, 0, 0, 0]), 0];
        assert_eq!(instruction_bytes(&data).unwrap(), "0f 01 c1");
        assert_eq!(instruction_bytes(&[0, 3, 0]), None);
        assert_eq!(instruction_bytes(&[1, 99, 0]), None);
        assert_eq!(instruction_bytes(&[]), None);
    }
}

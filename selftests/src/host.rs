// SPDX-License-Identifier: GPL-2.0

//! The host: processors, files of proc and sysfs.

use crate::errno::Errno;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// Binds this thread to one processor.
pub fn pin(cpu: usize) -> Result<(), Errno> {
    pin_thread(0, cpu)
}

/// Binds a thread, by its number, to one processor.
pub fn pin_thread(number: libc::pid_t, cpu: usize) -> Result<(), Errno> {
    // Before this thread may go nowhere else.
    let _ = allowed();
    // SAFETY: an all-zero set is valid; the macros only write inside of it.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        Errno::check(libc::sched_setaffinity(number, mem::size_of_val(&set), &set))?;
    }
    Ok(())
}

/// The right to the machine's ports and registers.
pub const CAP_SYS_RAWIO: u32 = 17;

/// Takes a capability from the calling thread, for good (capset(2)).
pub fn drop_capability(number: u32) -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    // Of this thread; effective, permitted and inheritable bits, low words and then high ones.
    let header = [VERSION_3, 0];
    let mut sets = [0u32; 6];
    // SAFETY: Both structures are as the call wants them.
    unsafe {
        Errno::check(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) as i32)?;
        let (word, bit) = (number as usize / 32 * 3, 1 << (number % 32));
        for set in &mut sets[word..word + 2] {
            *set &= !bit;
        }
        Errno::check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) as i32)?;
    }
    Ok(())
}

/// The processors that are online and that programs may use, in order.
pub fn online_cpus() -> Vec<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let set = allowed();
    let room = 8 * mem::size_of_val(set);
    // SAFETY: The macro reads inside of the set.
    parse_list(&text).into_iter().filter(|&cpu| cpu < room && unsafe { libc::CPU_ISSET(cpu, set) }).collect()
}

/// Where the first thread that asked was free to go: before any is bound to a processor.
fn allowed() -> &'static libc::cpu_set_t {
    static ALLOWED: OnceLock<libc::cpu_set_t> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        // SAFETY: An all-zero set is valid, and the call writes no more than its size.
        unsafe {
            let mut set = mem::zeroed();
            libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set);
            set
        }
    })
}

/// The NUMA node of a processor.
pub fn node_of(cpu: usize) -> Option<u32> {
    let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// The nodes that have processors online, each with one of them.
pub fn nodes_with_cpus() -> Vec<(u32, usize)> {
    let mut nodes: Vec<(u32, usize)> = Vec::new();
    for cpu in online_cpus() {
        match node_of(cpu) {
            Some(node) if nodes.iter().all(|(known, _)| *known != node) => nodes.push((node, cpu)),
            _ => {}
        }
    }
    nodes
}

/// Parses a list such as `0-2,5`.
fn parse_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let mut ends = part.split('-').map(str::parse::<usize>);
        match (ends.next(), ends.next()) {
            (Some(Ok(first)), Some(Ok(last))) => cpus.extend(first..=last),
            (Some(Ok(only)), None) => cpus.push(only),
            _ => {}
        }
    }
    cpus
}

/// True when /proc/cpuinfo lists the flag.
pub fn has_flag(name: &str) -> bool {
    lists_flag(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), name)
}

/// True if the first processor in the text of /proc/cpuinfo has the flag.
pub fn lists_flag(cpuinfo: &str, name: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == name)
}

/// The first address behind what user space can have: it depends on the levels of the host's page
/// tables, and the last page is left out.
pub fn end_of_user_space() -> u64 {
    let bits = if has_flag("la57") { 56 } else { 47 };
    (1 << bits) - 0x1000
}

/// A field of /proc/meminfo, in KiB.
pub fn meminfo(name: &str) -> Option<i64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What the kernel holds for itself and what is free, in KiB, once what it can give back is given back.
pub struct KernelMemory {
    pub slab: i64,
    pub free: i64,
}

pub fn kernel_memory() -> Option<KernelMemory> {
    // RCU, deferred frees and caches first, so that two readings can be compared.
    // SAFETY: no arguments.
    unsafe { libc::sync() };
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    // Empty slabs too, and with KASAN what waits in its quarantine: up to a 32nd of all memory.
    for cache in fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten() {
        let _ = fs::write(cache.path().join("shrink"), "1");
    }
    thread::sleep(Duration::from_millis(300));
    // What each processor has counted so far goes into the sums; some kernels answer EINVAL after it.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    Some(KernelMemory { slab: meminfo("Slab")?, free: meminfo("MemFree")? + on_cpu_lists()? })
}

/// Free pages that processors keep for themselves, in KiB. MemFree leaves them out, and they come and go
/// by hundreds.
fn on_cpu_lists() -> Option<i64> {
    const KIB_PER_PAGE: i64 = 4;
    let zones = fs::read_to_string("/proc/zoneinfo").ok()?;
    let counts = zones.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    let pages = counts.map(|count| count.trim().parse::<i64>().ok()).sum::<Option<i64>>()?;
    Some(pages * KIB_PER_PAGE)
}

/// True if the kernel has a function of that name.
pub fn has_symbol(name: &str) -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| line.split_whitespace().nth(2) == Some(name))
}

/// Sets the speed of the serial console again. Bochs' port loses it in a suspend, and tears every line of
/// the host's from then on; nobody else does, and then nothing changes.
pub fn restore_console() {
    let Ok(port) = fs::OpenOptions::new().read(true).write(true).open("/dev/ttyS0") else {
        return;
    };
    // SAFETY: the structure is integers, and all zero is a value of it.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and there is room for the settings.
    if unsafe { libc::tcgetattr(port.as_raw_fd(), &mut settings) } != 0 {
        return;
    }
    let speed = settings.c_cflag & libc::CBAUD;
    // The port is not written where the speed stays the same.
    for speed in [libc::B9600, speed] {
        settings.c_cflag = settings.c_cflag & !libc::CBAUD | speed;
        // SAFETY: the descriptor is open, and the settings are the port's own but for the speed.
        unsafe { libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &settings) };
    }
}

/// How many bytes of the mapping at `address` the host holds in huge pages.
pub fn huge_bytes(address: u64) -> Result<u64, std::io::Error> {
    mapping_field(address, "AnonHugePages:")
}

/// The same of a mapping of a file in memory.
pub fn huge_file_bytes(address: u64) -> Result<u64, std::io::Error> {
    mapping_field(address, "ShmemPmdMapped:")
}

/// A number of bytes that /proc/self/smaps has of the mapping at `address`.
fn mapping_field(address: u64, name: &str) -> Result<u64, std::io::Error> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let bound = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
            inside = (bound(start)..bound(end)).contains(&address);
        } else if inside && first == name {
            let kibibytes: u64 = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
            return Ok(kibibytes << 10);
        }
    }
    Ok(0)
}

/// Where the page at an address of ours is in the host: what `/proc/self/pagemap` says.
pub fn physical(address: u64) -> Result<u64, Errno> {
    let mut entry = [0; 8];
    let read =
        File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, address / 4096 * 8));
    read.map_err(|_| Errno::EIO)?;
    let entry = u64::from_le_bytes(entry);
    match entry >> 63 {
        1 => Ok((entry & ((1 << 55) - 1)) << 12),
        _ => Err(Errno::ENXIO),
    }
}

/// What the kernel says about each hardware vulnerability that it knows.
pub fn vulnerabilities() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, state.trim().to_owned()))
        })
        .collect();
    all.sort();
    all
}

/// A file in memory, of so many bytes.
pub fn memory_file(size: usize, flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: a C string; the descriptor is new.
    let file = unsafe {
        let fd = Errno::check(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC | flags))?;
        OwnedFd::from_raw_fd(fd)
    };
    set_size(&file, size)?;
    Ok(file)
}

/// ftruncate().
pub fn set_size(file: &OwnedFd, size: usize) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    Errno::check(unsafe { libc::ftruncate(file.as_raw_fd(), size as i64) })?;
    Ok(())
}

/// Takes pages out of a file: they read as zeroes.
pub fn punch_hole(file: &OwnedFd, offset: usize, length: usize) -> Result<(), Errno> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    Errno::check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) })?;
    Ok(())
}

/// Runs `work` in a forked child, and hands back what it returns.
pub fn in_child(work: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, Errno> {
    let (reader, writer) = pipe()?;
    // SAFETY: the child only runs `work` and leaves; callers fork from their only thread.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        let _ = File::from(writer).write_all(&work());
        // SAFETY: ends the child without the parent's destructors.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut result = Vec::new();
    let read = File::from(reader).read_to_end(&mut result);
    wait(pid)?;
    read.map_err(|_| Errno::EIO)?;
    Ok(result)
}

/// Runs `work` in a forked child, and says which signal killed it.
pub fn signal_of_child(work: impl FnOnce()) -> Result<Option<i32>, Errno> {
    // SAFETY: as in `in_child`.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        // Not the panic handler's: the signal is to kill.
        work();
        // SAFETY: as in `in_child`.
        unsafe { libc::_exit(0) };
    }
    let status = wait(pid)?;
    Ok(libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)))
}

/// Makes SIGUSR1 interrupt system calls without doing anything else.
pub fn interruptible_by_sigusr1() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero action is valid: no SA_RESTART, nothing blocked; the handler is empty.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

/// A thread to send SIGUSR1 to. The thread must not have been joined yet.
#[derive(Clone, Copy)]
pub struct Thread(libc::pthread_t);

impl Thread {
    pub fn current() -> Self {
        // SAFETY: no arguments.
        Self(unsafe { libc::pthread_self() })
    }

    pub fn interrupt(self) {
        // SAFETY: the thread exists, as the type asks for.
        unsafe { libc::pthread_kill(self.0, libc::SIGUSR1) };
    }
}

/// Does something while another thread sends this one SIGUSR1 every millisecond.
pub fn under_signals<R>(work: impl FnOnce() -> R) -> R {
    interruptible_by_sigusr1();
    let me = Thread::current();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                me.interrupt();
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// A pipe that closes on exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors, and both are new.
    unsafe {
        Errno::check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Waits for a child to end, and gives its status.
pub fn wait(pid: libc::pid_t) -> Result<i32, Errno> {
    let mut status = 0;
    // SAFETY: the status is ours.
    Errno::check(unsafe { libc::waitpid(pid, &mut status, 0) })?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    #[test]
    fn lists() {
        assert_eq!(super::parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(super::parse_list("3"), [3]);
        assert_eq!(super::parse_list(""), []);
    }
}

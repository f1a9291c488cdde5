// SPDX-License-Identifier: GPL-2.0

//! KVM_GET_STATS_FD: a file that describes itself, with counters that count, as KVM's.

use crate::compare::{compare, Log};
use crate::ioctl::*;
use crate::prelude::*;
use crate::statistics::{Statistics, HEADER};
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

pub const TEST: Test = Test::new(20, run);

guest!(
    statistics,
    code64,
    "mov ecx, 10",
    "2: out 0x10, al",
    "loop 2b",
    "mov ebx, 0xd0000000",
    "mov [rbx], eax",
    "mov [rbx], eax",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    compare(t, |device, log| {
        let machine = Machine::long(device, statistics())?;
        note!(log, "capability: {}", device.check_extension(KVM_CAP_BINARY_STATS_FD)?);
        note!(log, "with an argument: {:?}", machine.vm.ioctl(KVM_GET_STATS_FD, 5).is_ok());
        let (vm, vcpu) = (machine.vm.statistics()?, machine.vcpu.statistics()?);
        for statistics in [&vm, &vcpu] {
            describes_itself(statistics)?;
            access(statistics, log)?;
        }
        check!(vcpu.id()?.starts_with(&vm.id()?), "{:?} of {:?}", vcpu.id()?, vm.id()?);
        let names = ["exits", "io_exits", "mmio_exits", "halt_exits"];
        let values = || names.map(|name| vcpu.value(name).ok().flatten());
        note!(log, "before: {:?}", values());
        let mut runs = 0;
        while machine.run()? != Exit::Hlt {
            runs += 1;
        }
        note!(log, "{runs} exits to user space");
        let [exits, io, mmio, halt] = values();
        check!(exits >= Some(13), "exits {exits:?}");
        // KVM counts MMIO by instruction, and HLT when it handles that itself.
        note!(log, "ports {io:?}, device {}, halt {}", mmio >= Some(2), halt >= Some(1));
        check!(vm
            .value("pages_4k")?
            .zip(vm.value("pages_2m")?)
            .is_some_and(|(small, large)| small + large > 0));
        // It lives longer than what it is of.
        drop(machine);
        check!(vcpu.value("exits")? >= exits, "after the VM's file was closed");
        Ok(())
    })
}

/// Every part is where the header says, inside the file and apart from the others.
fn describes_itself(statistics: &Statistics) -> Outcome {
    let [flags, name_size, count, id, descriptors, data] = statistics.header;
    check_eq!(flags, 0, "flags");
    check!(name_size > 0 && count > 0, "{:?}", statistics.header);
    let all = statistics.descriptors()?;
    let values: u32 = all.iter().map(|one| u32::from(one.values)).sum();
    let mut parts =
        [(0, HEADER as u32), (id, name_size), (descriptors, count * (16 + name_size)), (data, 8 * values)];
    parts.sort_unstable();
    for pair in parts.windows(2) {
        check!(pair[0].0 + pair[0].1 <= pair[1].0, "{parts:x?}");
    }
    let size = parts.map(|(start, length)| start + length).into_iter().max().unwrap_or(0);
    let mut whole = Vec::new();
    (&statistics.file).seek(SeekFrom::Start(0)).and_then(|_| (&statistics.file).read_to_end(&mut whole))?;
    check_eq!(whole.len() as u32, size, "bytes in the file");
    let names: BTreeSet<_> = all.iter().map(|one| &one.name).collect();
    check_eq!(names.len(), all.len(), "names are different: {names:?}");
    let offsets: BTreeSet<_> = all.iter().map(|one| one.offset).collect();
    check_eq!(offsets.len(), all.len(), "places are different");
    for one in &all {
        // Cumulative, instant, peak, and two kinds of histograms.
        check!(one.flags & 15 <= 4 && one.values > 0 && !one.name.is_empty(), "{one:?}");
        check!(one.offset + 8 * u32::from(one.values) <= 8 * values && one.offset % 8 == 0, "{one:?}");
    }
    Ok(())
}

/// Reads of odd sizes and places, and what cannot be done to the file.
fn access(statistics: &Statistics, log: &mut Log) -> Outcome {
    let file = &statistics.file;
    let mut whole = vec![0; 1 << 16];
    let size = file.read_at(&mut whole, 0)?;
    // The counters may go on.
    let constant = statistics.header[5] as usize;
    for (at, length) in [(0, 1), (1, 2), (23, 2), (24, 1), (71, 3), (constant - 1, 1), (5, constant - 5)] {
        let mut part = vec![0; length];
        check_eq!(file.read_at(&mut part, at as u64)?, length, "{length} bytes at {at}");
        check_eq!(part, whole[at..at + length].to_vec(), "{length} bytes at {at}");
    }
    let mut some = [0; 16];
    note!(log, "at the end: {:?}", file.read_at(&mut some, size as u64)?);
    note!(log, "before the end: {:?}", file.read_at(&mut some, size as u64 - 3)?);
    note!(log, "far away: {:?}", file.read_at(&mut some, 1 << 40)?);
    note!(log, "nothing: {:?}", file.read_at(&mut [], 0)?);
    note!(log, "write: {:?}", (&*file).write(b"x").map_err(|error| error.raw_os_error()));
    note!(log, "ioctl: {:?}", {
        // SAFETY: the file knows no ioctl.
        unsafe { ioctl(file.as_raw_fd(), KVM_GET_STATS_FD, 0) }
    });
    // SAFETY: the address is nobody's: the kernel refuses it.
    let bad = unsafe { libc::pread(file.as_raw_fd(), 8 as *mut _, 16, 0) };
    note!(log, "to nowhere: {bad} {:?}", std::io::Error::last_os_error().raw_os_error());
    // SAFETY: no memory of ours is given away.
    let mapped = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    note!(log, "mmap: {} {:?}", mapped == libc::MAP_FAILED, std::io::Error::last_os_error().raw_os_error());
    Ok(())
}

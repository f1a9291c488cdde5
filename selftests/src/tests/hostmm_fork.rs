// SPDX-License-Identifier: GPL-2.0

//! fork() of the VMM while vCPUs run: the child keeps the memory of that moment, the guest all of its own.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::verifier::Verifier;
use std::fs::File;
use std::io::{Read, Write};

pub const TEST: Test = Test::new(240, run);

const SIZE: usize = LARGE_PAGE + 64 * PAGE;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    let _ = memory.advise(0, SIZE, libc::MADV_HUGEPAGE);
    let guest = Verifier::new(&device, &memory, 2)?;
    guest.while_running(|running| {
        for round in 0..t.repetitions(3) {
            running.sweeps(1)?;
            let (go_reader, go_writer) = host::pipe()?;
            let (reader, writer) = host::pipe()?;
            // SAFETY: the child reads memory, reads and writes its ends of the pipes, and leaves.
            let pid = Errno::check(unsafe { libc::fork() })?;
            if pid == 0 {
                drop(go_writer);
                let first = digest(&memory);
                let mut go = [0];
                let _ = File::from(go_reader).read(&mut go);
                let mut writer = File::from(writer);
                let _ = writer.write_all(&first.to_le_bytes());
                let _ = writer.write_all(&digest(&memory).to_le_bytes());
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            drop(writer);
            // Every page is written by the guest, more than once.
            let swept = running.sweeps(2);
            drop(go_writer);
            let mut digests = [0; 16];
            let read = File::from(reader).read_exact(&mut digests);
            host::wait(pid)?;
            swept?;
            read?;
            check_eq!(digests[..8], digests[8..], "round {round}: the child's memory, twice");
        }
        Ok(())
    })
}

/// All words, each with its place. Allocates nothing: other threads of the parent may have held locks.
fn digest(memory: &Memory) -> u64 {
    (0..SIZE / 8).fold(0, |sum: u64, word| {
        sum.rotate_left(5).wrapping_add(memory.read_u64(8 * word)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}

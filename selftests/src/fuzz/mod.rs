// SPDX-License-Identifier: GPL-2.0

//! Random ioctls, guests and states, repeatable by seed, each round in a process with a time limit.

pub mod calls;
pub mod errnos;
pub mod guests;
pub mod options;
pub mod round;
pub mod settings;

use crate::errno::Errno;
use crate::harness::runner::{reap, wait_readable};
use crate::host;
use crate::kmsg::KernelLog;
use options::Options;
use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// What a round did.
#[derive(Default, Clone, Copy)]
pub struct Counts {
    pub calls: u64,
    pub exits: u64,
}

/// Runs rounds until the time is over; the failures, each with the seed that repeats it.
pub fn run(options: &Options) -> Result<Vec<String>, String> {
    let mut log = KernelLog::open();
    if !log.is_readable() {
        println!("rusthv-fuzz: the kernel log cannot be read: its complaints go unseen");
    }
    let start = Instant::now();
    let (mut rounds, mut total) = (0, Counts::default());
    let mut failures = Vec::new();
    while more(options, rounds, start.elapsed()) && failures.len() < 10 {
        let seed = options.seed.wrapping_add(rounds);
        rounds += 1;
        // Before it runs: when the whole machine hangs, this is the last thing heard of it.
        println!("rusthv-fuzz: round {rounds}: seed {seed}");
        match one(options, seed) {
            Ok(counts) => {
                total.calls += counts.calls;
                total.exits += counts.exits;
            }
            Err(problem) => failures.push(report(options, seed, &problem)),
        }
        for complaint in log.complaints() {
            failures.push(report(options, seed, &format!("the host's kernel says: {complaint}")));
        }
    }
    println!(
        "rusthv-fuzz: seed {}, {rounds} rounds in {:.0} s: {} ioctls, {} guest exits, {} failures",
        options.seed,
        start.elapsed().as_secs_f64(),
        total.calls,
        total.exits,
        failures.len()
    );
    Ok(failures)
}

fn more(options: &Options, rounds: u64, elapsed: Duration) -> bool {
    match options.rounds {
        Some(limit) => rounds < limit,
        None => elapsed < Duration::from_secs(options.seconds),
    }
}

fn report(options: &Options, seed: u64, problem: &str) -> String {
    let line = format!("{problem}\n  again: {}", options.again(seed));
    println!("rusthv-fuzz: seed {seed}: {line}");
    line
}

/// One round in a child; what was wrong with it otherwise.
fn one(options: &Options, seed: u64) -> Result<Counts, String> {
    let text = |errno: Errno| format!("the fuzzer itself: {errno}");
    let (reader, writer) = host::pipe().map_err(text)?;
    let _ = std::io::stdout().flush();
    // SAFETY: this process has one thread.
    let pid = Errno::check(unsafe { libc::fork() }).map_err(text)?;
    if pid == 0 {
        drop(reader);
        // SAFETY: plain system calls; the round must not outlive a fuzzer that was killed.
        unsafe {
            libc::setpgid(0, 0);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        let line = match round::run(options, seed) {
            Ok(counts) => format!("ok {} {}", counts.calls, counts.exits),
            Err(problem) => format!("not ok {problem}"),
        };
        let _ = File::from(writer).write_all(line.as_bytes());
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut pipe = File::from(reader);
    let mut line = String::new();
    let deadline = Instant::now() + Duration::from_secs(options.limit);
    let answered = wait_readable(&pipe, deadline) && pipe.read_to_string(&mut line).is_ok();
    if !answered {
        // SAFETY: the group that the child made.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
    if reap(pid, Instant::now() + Duration::from_secs(10)).is_none() {
        return Err(format!("process {pid} hangs, and SIGKILL does not end it"));
    }
    if !answered {
        return Err(format!("not finished after {} s", options.limit));
    }
    match line.strip_prefix("ok ").map(|counts| counts.split(' ').map(str::parse::<u64>).collect::<Vec<_>>())
    {
        Some(counts) => match counts.as_slice() {
            [Ok(calls), Ok(exits)] => Ok(Counts { calls: *calls, exits: *exits }),
            _ => Err(format!("garbled report {line:?}")),
        },
        None if line.is_empty() => Err("the process died".into()),
        None => Err(line.trim_start_matches("not ok ").to_owned()),
    }
}

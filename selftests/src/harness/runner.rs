// SPDX-License-Identifier: GPL-2.0

//! Runs each test in a child of its own, within its time limit, and prints TAP version 14.

use super::{checks, options::Options, Context, Failure, Outcome};
use crate::errno::Errno;
use crate::host;
use crate::kmsg::KernelLog;
use crate::tests::{Entry, ALL};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::time::{Duration, Instant};

/// How a test ended.
enum Verdict {
    Passed,
    Skipped(String),
    /// A word for the result line, and the details.
    Failed(String, Vec<String>),
}

/// Runs what the options select; true when nothing failed.
pub fn run(options: &Options) -> Result<bool, String> {
    let names: Vec<&str> = ALL.iter().map(|entry| entry.name).collect();
    let selected: Vec<&Entry> = ALL.iter().filter(|entry| options.selects(entry.name, &names)).collect();
    if selected.is_empty() {
        return Err(format!("no test matches {:?}", options.names));
    }
    if options.list {
        for entry in selected {
            println!("{:32} {} {}", entry.name, entry.test.cpus, entry.shows);
        }
        return Ok(true);
    }
    println!("TAP version 14\n1..{}", selected.len());
    let mut log = KernelLog::open();
    if options.kmsg && !log.is_readable() {
        println!("# the kernel log cannot be read: its complaints go unseen");
    }
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (index, entry) in selected.iter().enumerate() {
        let start = Instant::now();
        let mut verdict = run_one(entry, options);
        let complaints = log.complaints();
        if options.kmsg && !complaints.is_empty() {
            verdict = Verdict::Failed("the kernel complained".into(), complaints);
        }
        let (number, name) = (index + 1, entry.name);
        match verdict {
            Verdict::Passed => {
                passed += 1;
                println!("ok {number} {name} # {} ms", start.elapsed().as_millis());
            }
            Verdict::Skipped(reason) => {
                skipped += 1;
                println!("ok {number} {name} # SKIP {reason}");
            }
            Verdict::Failed(word, details) => {
                failed += 1;
                println!("not ok {number} {name} # {word}");
                println!("  ---\n  shows: {}", entry.shows);
                println!("  details: |");
                for line in details.iter().flat_map(|detail| detail.lines()) {
                    println!("    {line}");
                }
                println!("  ...");
            }
        }
    }
    println!("# {passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}

fn run_one(entry: &Entry, options: &Options) -> Verdict {
    let longer = Duration::from_secs(options.seconds.unwrap_or(0));
    let limit = entry.test.limit * options.limit as u32 / 100 + longer;
    match fork_test(entry, options) {
        Ok((pid, pipe)) => watch(pid, pipe, limit),
        Err(errno) => Verdict::Failed(format!("fork: {errno}"), Vec::new()),
    }
}

/// Starts the child, in a process group of its own; its report comes through the pipe.
fn fork_test(entry: &Entry, options: &Options) -> Result<(libc::pid_t, File), Errno> {
    let (reader, writer) = host::pipe()?;
    // What is buffered must not be printed by both processes.
    let _ = std::io::stdout().flush();
    // SAFETY: this process has one thread, so the child may go on with anything.
    let pid = Errno::check(unsafe { libc::fork() })?;
    if pid == 0 {
        drop(reader);
        // SAFETY: plain system calls. The child must not outlive a killed runner.
        unsafe {
            libc::setpgid(0, 0);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        let report = in_child(entry, options);
        let _ = File::from(writer).write_all(report.as_bytes());
        // No destructors of the runner here: they are the parent's.
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    Ok((pid, File::from(reader)))
}

/// Runs the test and encodes how it ended: one letter, then text.
fn in_child(entry: &Entry, options: &Options) -> String {
    let context = Context::new(options);
    let outcome: Outcome = panic::catch_unwind(AssertUnwindSafe(|| (entry.test.run)(&context)))
        .unwrap_or_else(|_| Err(Failure::failed("the test panicked (message above)")));
    match outcome {
        Ok(()) if checks() == 0 => "F the test checked nothing".into(),
        Ok(()) => "P".into(),
        Err(Failure::Skipped(reason)) => format!("S {reason}"),
        Err(Failure::Failed { at, message }) => format!("F {at}: {message}"),
    }
}

/// Collects the report, kills the child when its time is over.
fn watch(pid: libc::pid_t, mut pipe: File, limit: Duration) -> Verdict {
    let deadline = Instant::now() + limit;
    let mut report = String::new();
    let in_time = wait_readable(&pipe, deadline) && pipe.read_to_string(&mut report).is_ok();
    let status = in_time.then(|| reap(pid, deadline + Duration::from_secs(1))).flatten();
    // The group, so that children of the test do not stay; the child itself if it is still there.
    // SAFETY: signals a process group that we made.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    let Some(status) = status else {
        let seconds = limit.as_secs_f64();
        let details = match reap(pid, Instant::now() + Duration::from_secs(5)) {
            Some(_) => format!("killed after {seconds} s"),
            None => format!("killed after {seconds} s, and did not even die of SIGKILL"),
        };
        return Verdict::Failed("timeout".into(), vec![details]);
    };
    let text = report.get(2..).unwrap_or_default().to_owned();
    match report.as_bytes().first() {
        Some(b'P') => Verdict::Passed,
        Some(b'S') => Verdict::Skipped(text),
        Some(b'F') => Verdict::Failed("failed".into(), vec![text]),
        _ => Verdict::Failed("died".into(), vec![describe(status)]),
    }
}

/// True when the pipe has data or its end before the deadline.
pub fn wait_readable(pipe: &File, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut entry = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = left.as_millis().min(1000) as libc::c_int;
        // SAFETY: one entry, as said.
        if unsafe { libc::poll(&mut entry, 1, milliseconds) } > 0 {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

/// The wait status, if the child ends before the deadline.
pub fn reap(pid: libc::pid_t, deadline: Instant) -> Option<libc::c_int> {
    let mut status = 0;
    loop {
        // SAFETY: the status is ours.
        if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } != 0 {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn describe(status: libc::c_int) -> String {
    if libc::WIFSIGNALED(status) {
        format!("killed by signal {}", libc::WTERMSIG(status))
    } else {
        format!("left with status {}", libc::WEXITSTATUS(status))
    }
}

/// The program: options in, exit status out.
pub fn main() -> process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", super::options::USAGE);
        return process::ExitCode::SUCCESS;
    }
    match Options::parse(arguments.into_iter()).and_then(|options| run(&options)) {
        Ok(true) => process::ExitCode::SUCCESS,
        Ok(false) => process::ExitCode::from(1),
        Err(message) => {
            eprintln!("rusthv-selftests: {message}\n{}", super::options::USAGE);
            process::ExitCode::from(2)
        }
    }
}

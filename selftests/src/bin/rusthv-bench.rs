// SPDX-License-Identifier: GPL-2.0

//! Measures operations on two devices and compares them. See `--help`.

use rusthv_selftests::bench::{self, options, report};
use rusthv_selftests::device::TRACKING;
use rusthv_selftests::harness::Failure;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let options = match options::Options::parse(arguments.into_iter()) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("rusthv-bench: {message}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(code) => code,
        Err(Failure::Failed { at, message }) => {
            eprintln!("rusthv-bench: {at}: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Skipped(reason)) => {
            eprintln!("rusthv-bench: {reason}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &options::Options) -> Result<ExitCode, Failure> {
    if options.tables {
        return bench::tables::run(&options.unit).map(|()| ExitCode::SUCCESS).map_err(Failure::failed);
    }
    if options.layout {
        return bench::layout::run(options.rounds).map(|()| ExitCode::SUCCESS).map_err(Failure::failed);
    }
    if options.parallel {
        return bench::parallel::run(options).map(|()| ExitCode::SUCCESS);
    }
    TRACKING.store(options.tracking.unwrap_or(u32::MAX), Relaxed);
    let lines = bench::measure(options)?;
    print!("{}", report::table(options, &lines));
    if let Some(path) = &options.json {
        std::fs::write(path, report::json(options, &lines))?;
    }
    if !options.check {
        return Ok(ExitCode::SUCCESS);
    }
    let (slower, unmeasured) = (report::slower(&lines), report::unmeasured(&lines));
    for line in &slower {
        println!("# slower than {}: {}", options.devices[0], line.row.name);
    }
    for line in &unmeasured {
        println!("# not compared: {}", line.row.name);
    }
    let good = slower.is_empty() && unmeasured.is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

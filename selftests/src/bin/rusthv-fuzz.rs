// SPDX-License-Identifier: GPL-2.0

//! Random ioctls and guests against a device. See `--help`.

use rusthv_selftests::fuzz::{self, options};
use rusthv_selftests::host;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let options = match options::Options::parse(arguments.into_iter()) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("rusthv-fuzz: {message}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    println!("rusthv-fuzz: seed {}, device {}", options.seed, options.device);
    // Or a guest of random bytes would reach the machine's own ports (RUSTHV_SET_INTERCEPTS).
    if let Err(errno) = host::drop_capability(host::CAP_SYS_RAWIO) {
        eprintln!("rusthv-fuzz: capset: {errno}");
        return ExitCode::from(2);
    }
    match fuzz::run(&options) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(message) => {
            eprintln!("rusthv-fuzz: {message}");
            ExitCode::from(2)
        }
    }
}

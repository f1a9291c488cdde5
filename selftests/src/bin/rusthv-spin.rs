// SPDX-License-Identifier: GPL-2.0

//! Leaves guests behind that run until the machine ends.

use rusthv_selftests::spin;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: rusthv-spin DEVICE...

Starts guests in the background, two on each processor with each device, and
ends with status 0 when all of them run. They go on until they are killed.
";

fn main() -> ExitCode {
    let devices: Vec<String> = std::env::args().skip(1).collect();
    if devices.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if devices.is_empty() || devices.iter().any(|argument| argument.starts_with('-')) {
        eprint!("rusthv-spin: which device?\n{USAGE}");
        return ExitCode::from(2);
    }
    match spin::leave_running(&devices) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("rusthv-spin: {message}");
            ExitCode::FAILURE
        }
    }
}

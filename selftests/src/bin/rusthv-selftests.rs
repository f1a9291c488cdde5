// SPDX-License-Identifier: GPL-2.0

//! Runs the selftests. See `--help`.

fn main() -> std::process::ExitCode {
    rusthv_selftests::harness::runner::main()
}

// SPDX-License-Identifier: GPL-2.0
//! rusthv-vmm: runs a guest on /dev/rusthv, or on any device that speaks the KVM ABI.

mod boot;
mod console;
mod devices;
mod error;
mod machine;
mod minikernel;
mod signals;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use boot::Mode;
use error::{exit_code, Error, Result};
use machine::{Machine, Outcome, Setup};

const MIB: u64 = 1 << 20;

#[derive(Parser)]
#[command(
    name = "rusthv-vmm",
    version,
    args_override_self = true,
    about = "Runs a guest on a device that speaks the KVM ABI",
    long_about = "Runs a guest on a device that speaks the KVM ABI. What the guest writes to its \
                  serial port (0x3f8) and debug port (0x402) goes to standard output, messages of \
                  the VMM itself to standard error.",
    after_long_help = "\
The run ends when the guest writes a status byte to port 0xf4, resets itself, or halts for good.

Exit status:
  0    the guest ended by itself (status 0, halt, reset), or the --until text came
  1    the guest wrote a status other than 0 to port 0xf4
  2    wrong usage
  3    the image or the firmware cannot be used
  4    the device cannot be used, or refused a request
  5    the guest died: triple fault, entry failure, or an instruction that cannot be emulated
  6    the --timeout ran out
  7    the guest ended before the --until text came
  8    the guest's output cannot be written
  130  interrupted (128 plus the number of the signal)"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// The hypervisor's device node
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/dev/rusthv"
    )]
    device: PathBuf,
    /// Guest memory in MiB
    #[arg(long, global = true, value_name = "MIB", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(2..=3072))]
    memory: u64,
    /// End with success when the guest has written TEXT
    #[arg(long, global = true, value_name = "TEXT", value_parser = parse_text)]
    until: Option<String>,
    /// Give up after this time
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Write the debug port's output to FILE instead of standard output
    #[arg(long, global = true, value_name = "FILE")]
    debug_log: Option<PathBuf>,
    /// Never inject timer interrupts, even where the device could
    #[arg(long, global = true)]
    no_interrupts: bool,
    /// Say at the end how often and why the guest exited
    #[arg(long, global = true)]
    stats: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run a flat binary, which starts at its first byte
    Flat {
        /// The CPU mode in which it starts
        #[arg(long, value_enum)]
        mode: Mode,
        /// The binary
        image: PathBuf,
    },
    /// Run PC firmware from the reset vector
    Firmware {
        /// The firmware, for example SeaBIOS
        #[arg(
            long,
            value_name = "PATH",
            default_value = "/usr/share/seabios/bios-256k.bin"
        )]
        bios: PathBuf,
    },
    /// Run the mini-kernel's workloads, and see that they agree
    Minikernel(minikernel::Options),
}

fn parse_seconds(s: &str) -> std::result::Result<Duration, String> {
    s.parse()
        .ok()
        .and_then(|s: f64| Duration::try_from_secs_f64(s).ok())
        .filter(|d| !d.is_zero())
        .ok_or_else(|| "not a positive number of seconds".to_owned())
}

fn parse_text(s: &str) -> std::result::Result<String, String> {
    if s.is_empty() {
        return Err("the text is empty".to_owned());
    }
    Ok(s.to_owned())
}

/// A message of the VMM, told apart from the guest's output by stream and prefix.
fn say(message: impl std::fmt::Display) {
    // Nothing can be done about a closed standard error.
    let _ = writeln!(std::io::stderr(), "rusthv-vmm: {message}");
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::image(path, e))
}

fn run(cli: Cli) -> Result<u8> {
    let Cli { command, options } = cli;
    let memory = options.memory * MIB;
    if let Command::Minikernel(minikernel) = &command {
        return minikernel::run(minikernel, &options.device, memory, options.timeout);
    }
    let debug_log = options
        .debug_log
        .as_deref()
        .map(|path| File::create(path).map_err(|e| Error::image(path, e)))
        .transpose()?;
    let setup = Setup {
        device: &options.device,
        memory,
        until: options.until.as_deref(),
        debug_log,
        interrupts: !options.no_interrupts,
    };
    let mut machine = match &command {
        Command::Flat { mode, image } => {
            let content = read(image)?;
            let limit = mode.image_limit(memory);
            if content.is_empty() {
                return Err(Error::image(image, "the image is empty"));
            }
            if content.len() as u64 > limit {
                let why = format!("the image is larger than the {limit} bytes there is room for");
                return Err(Error::image(image, why));
            }
            Machine::flat(setup, *mode, &content)?
        }
        Command::Firmware { bios } => {
            let content = read(bios)?;
            if content.is_empty() || content.len() % 0x1_0000 != 0 || content.len() as u64 > 4 * MIB
            {
                let why = "not firmware: its size must be a multiple of 64 KiB, 4 MiB at most";
                return Err(Error::image(bios, why));
            }
            Machine::firmware(setup, &content)?
        }
        Command::Minikernel(_) => unreachable!("it has its own machines"),
    };

    if let Some(note) = machine.interrupts_note() {
        say(note);
    }
    let outcome = machine.run(options.timeout);
    if options.stats {
        say(machine.stats());
    }
    Ok(match outcome? {
        Outcome::TextSeen => exit_code::OK,
        Outcome::Ended { how, status } => {
            if let Some(text) = &options.until {
                say(format_args!(
                    "the guest ended ({how}) before it wrote \"{text}\""
                ));
                exit_code::TEXT_NOT_SEEN
            } else if status != 0 {
                say(format_args!("the guest reports failure: status {status}"));
                exit_code::GUEST_FAILED
            } else {
                exit_code::OK
            }
        }
        Outcome::TimedOut => {
            let seconds = options.timeout.unwrap_or_default().as_secs_f64();
            say(format_args!("time limit of {seconds} s reached"));
            exit_code::TIMEOUT
        }
        Outcome::Signal(number) => {
            say(format_args!("ended by signal {number}"));
            exit_code::SIGNAL + number as u8
        }
    })
}

fn main() -> ExitCode {
    ExitCode::from(run(Cli::parse()).unwrap_or_else(|e| {
        say(&e);
        e.exit_code()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_command_and_the_last_one_counts() {
        let cli = Cli::try_parse_from([
            "rusthv-vmm",
            "--memory",
            "9",
            "flat",
            "--mode",
            "64",
            "x.bin",
            "--timeout",
            "0.5",
            "--memory",
            "8",
        ])
        .unwrap();
        assert_eq!(cli.options.memory, 8);
        assert_eq!(cli.options.timeout, Some(Duration::from_millis(500)));
        assert_eq!(cli.options.device, Path::new("/dev/rusthv"));
        assert!(matches!(
            cli.command,
            Command::Flat {
                mode: Mode::Long,
                ..
            }
        ));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            vec!["flat", "x.bin"],
            vec!["flat", "--mode", "48", "x.bin"],
            vec!["firmware", "--memory", "1"],
            vec!["firmware", "--timeout", "-1"],
            vec!["firmware", "--timeout", "nan"],
            vec!["firmware", "--until", ""],
            vec![],
        ] {
            let args = ["rusthv-vmm"].into_iter().chain(bad.iter().copied());
            assert!(Cli::try_parse_from(args).is_err(), "{bad:?}");
        }
    }
}

// SPDX-License-Identifier: GPL-2.0
//! The sub-command that runs the mini-kernel's workloads, one virtual machine after the other, and
//! compares what comes out: the same workload has the same checksum on every device and with any
//! number of vCPUs.

mod guest;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use minikernel_abi::report::Value;
use minikernel_abi::{Parameters, MAGIC, MAX_MEMORY, MAX_VCPUS, WORKLOADS};

use crate::boot::Mode;
use crate::error::{exit_code, Error, Result};
use guest::{Report, Setup};

/// Without --timeout, for each run.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    /// Where the mini-kernel's images are
    #[arg(long, value_name = "DIR", default_value = "/samples/minikernel")]
    images: PathBuf,
    /// The kernel's form, and with it the guest's paging mode
    #[arg(long, value_enum, value_delimiter = ',', default_value = "long")]
    kernel: Vec<Form>,
    /// How many vCPUs
    #[arg(long, value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: Vec<u32>,
    /// Percent of the usual amount of work
    #[arg(long, value_name = "PERCENT", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    size: u32,
    /// Where the workloads' pseudo-random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// First run everything on this device too, with the first number of vCPUs, to set the standard
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Print results in the Test Anything Protocol
    #[arg(long)]
    tap: bool,
    /// The workloads, or all
    #[arg(value_parser = WORKLOADS)]
    workload: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Four levels, in long mode
    Long,
    /// Three levels, in protected mode
    Pae,
    /// Two levels, in protected mode
    Legacy,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Long => "long",
            Self::Pae => "pae",
            Self::Legacy => "legacy",
        }
    }

    fn mode(self) -> Mode {
        match self {
            Self::Long => Mode::Long,
            Self::Pae | Self::Legacy => Mode::Protected,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Long => "program-64.bin",
            Self::Pae | Self::Legacy => "program-32.bin",
        }
    }
}

/// The checksum that all runs of one workload have to have: that of the first that went well.
#[derive(Default)]
struct Standard(Option<u64>);

impl Standard {
    fn check(&mut self, report: &mut Report) {
        if report.failure.is_some() {
            return;
        }
        let checksum = report.values[Value::Checksum as usize];
        let standard = *self.0.get_or_insert(checksum);
        if checksum != standard {
            report.failure = Some(format!(
                "checksum {checksum:016x}, in another run {standard:016x}"
            ));
        }
    }
}

/// Runs what is asked for. Returns the program's exit code.
pub fn run(options: &Options, device: &Path, memory: u64, timeout: Option<Duration>) -> Result<u8> {
    let memory = u32::try_from(memory)
        .ok()
        .filter(|memory| (16 << 20..=MAX_MEMORY).contains(memory) && memory % (4 << 20) == 0)
        .ok_or_else(|| {
            Error::Memory("the mini-kernel takes 16 to 256 MiB, in steps of 4".into())
        })?;
    let workloads: Vec<usize> = (0..WORKLOADS.len())
        .filter(|i| {
            options.workload.is_empty() || options.workload.iter().any(|w| w == WORKLOADS[*i])
        })
        .collect();
    let mut printer = Printer::new(options.tap);
    for &form in &options.kernel {
        let kernel = read(options, &format!("minikernel-{}.bin", form.name()))?;
        let program = read(options, form.program())?;
        for &workload in &workloads {
            let mut standard = Standard::default();
            let against = options
                .against
                .as_deref()
                .map(|other| (other, &options.vcpus[..1]));
            for (device, counts) in against.into_iter().chain([(device, &options.vcpus[..])]) {
                for &vcpus in counts {
                    let parameters = Parameters {
                        magic: MAGIC,
                        vcpus,
                        memory,
                        program_size: program.len() as u32,
                        workload: workload as u32,
                        size: options.size,
                        seed: options.seed,
                    };
                    let mut report = guest::run(&Setup {
                        device,
                        kernel: &kernel,
                        program: &program,
                        mode: form.mode(),
                        parameters,
                        timeout: timeout.unwrap_or(TIMEOUT),
                    })?;
                    standard.check(&mut report);
                    printer.run(
                        &Name {
                            device,
                            form,
                            workload,
                            vcpus,
                        },
                        &report,
                    );
                }
            }
            printer.workload_done(form, workload);
        }
    }
    printer.end();
    Ok(if printer.failed == 0 {
        exit_code::OK
    } else {
        exit_code::GUEST_FAILED
    })
}

fn read(options: &Options, name: &str) -> Result<Vec<u8>> {
    let path = options.images.join(name);
    std::fs::read(&path).map_err(|e| Error::image(&path, e))
}

/// Which run it was.
struct Name<'a> {
    device: &'a Path,
    form: Form,
    workload: usize,
    vcpus: u32,
}

/// Prints a table with a row for each run, or one test result for each workload in each form.
struct Printer {
    tap: bool,
    workloads: u32,
    failed: u32,
    /// What went wrong with the current workload.
    failures: Vec<String>,
}

impl Printer {
    fn new(tap: bool) -> Self {
        if tap {
            println!("TAP version 13");
        } else {
            print!(
                "{:<12} {:<6} {:<10} {:>5}",
                "device", "kernel", "workload", "vcpus"
            );
            print!(" {:<16} {:>8} {:>11}", Value::NAMES[0], "ms", "cycles");
            Value::NAMES[1..]
                .iter()
                .for_each(|name| print!(" {name:>12}"));
            println!(" {:>7} {:>7}", "exits", "yields");
        }
        Self {
            tap,
            workloads: 0,
            failed: 0,
            failures: Vec::new(),
        }
    }

    fn run(&mut self, name: &Name, report: &Report) {
        let device = name.device.display();
        if !self.tap {
            let (form, workload) = (name.form.name(), WORKLOADS[name.workload]);
            let milliseconds = report.elapsed.as_secs_f64() * 1e3;
            print!("{device:<12} {form:<6} {workload:<10} {:>5}", name.vcpus);
            print!(
                " {:016x} {milliseconds:>8.1} {:>11}",
                report.values[0], report.cycles
            );
            report.values[1..]
                .iter()
                .for_each(|value| print!(" {value:>12}"));
            println!(" {:>7} {:>7}", report.exits.port, report.exits.yields);
        }
        if let Some(failure) = &report.failure {
            self.failures
                .push(format!("{device}, {} vCPUs: {failure}", name.vcpus));
        }
    }

    fn workload_done(&mut self, form: Form, workload: usize) {
        self.workloads += 1;
        self.failed += u32::from(!self.failures.is_empty());
        if self.tap {
            let result = if self.failures.is_empty() {
                "ok"
            } else {
                "not ok"
            };
            let workload = WORKLOADS[workload];
            println!(
                "{result} {} minikernel {workload} {}",
                self.workloads,
                form.name()
            );
        }
        for line in self
            .failures
            .drain(..)
            .flat_map(|f| f.lines().map(str::to_owned).collect::<Vec<_>>())
        {
            println!("# {line}");
        }
    }

    fn end(&self) {
        if self.tap {
            println!("1..{}", self.workloads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_good_checksum_is_the_standard() {
        let mut standard = Standard::default();
        for (checksum, failed, good) in [
            (9, true, false),
            (1, false, true),
            (1, false, true),
            (2, false, false),
            (1, false, true),
        ] {
            let mut report = Report::default();
            report.values[Value::Checksum as usize] = checksum;
            report.failure = failed.then(|| "why".to_owned());
            standard.check(&mut report);
            assert_eq!(report.failure.is_none(), good, "{checksum}");
        }
    }
}

// SPDX-License-Identifier: GPL-2.0
//! The sub-command that runs the mini-kernel's workloads, one virtual machine after the other, and
//! compares what comes out: the same workload has the same checksum on every device and with any
//! number of vCPUs.

mod counters;
mod guest;
mod ticks;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use minikernel_abi::report::Value;
use minikernel_abi::{Parameters, MAGIC, MAX_MEMORY, MAX_VCPUS, WORKLOADS};

use crate::boot::Mode;
use crate::error::{exit_code, Error, Result};
use counters::Counters;
use guest::{Exits, Report, Setup};

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
    /// How rusthv virtualizes the guest's memory; other devices do it their way
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nested")]
    paging: Vec<Paging>,
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
    /// Count the guests' own cycles apart, where the device can
    #[arg(long)]
    ticks: bool,
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

/// How a guest's memory is virtualized, with the numbers of RUSTHV_CAP_PAGING.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Paging {
    /// By the CPU: nested page tables
    Nested = 0,
    /// Shadow page tables that follow the guest's when it invalidates translations
    Shadow = 1,
    /// Shadow page tables that follow each write to the guest's
    Trap = 2,
}

impl Paging {
    fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
            Self::Trap => "trap",
        }
    }
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
    let exit_ticks = match options.ticks {
        true => ticks::of_an_exit(device)?,
        false => None,
    };
    let mut printer = Printer::new(options.tap).map_err(Error::Output)?;
    for &form in &options.kernel {
        let kernel = read(options, &format!("minikernel-{}.bin", form.name()))?;
        let program = read(options, form.program())?;
        for &workload in &workloads {
            let mut standard = Standard::default();
            let against = options
                .against
                .as_deref()
                .map(|other| (other, None, &options.vcpus[..1], None));
            let ours = options
                .paging
                .iter()
                .map(|&paging| (device, Some(paging), &options.vcpus[..], exit_ticks));
            for (device, paging, counts, exit_ticks) in against.into_iter().chain(ours) {
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
                        paging,
                        parameters,
                        timeout: timeout.unwrap_or(TIMEOUT),
                        exit_ticks,
                    })?;
                    standard.check(&mut report);
                    let name = Name {
                        device,
                        form,
                        workload,
                        vcpus,
                    };
                    printer.run(&name, &report).map_err(Error::Output)?;
                }
            }
            printer
                .workload_done(form, workload)
                .map_err(Error::Output)?;
        }
    }
    printer.end().map_err(Error::Output)?;
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

/// Prints a table with a row for each run, for people and for whatever splits lines at spaces; or one
/// test result for each workload in each form.
struct Printer {
    tap: bool,
    workloads: u32,
    failed: u32,
    /// What went wrong with the current workload.
    failures: Vec<String>,
}

/// Columns with what the guest has counted are as wide as their names, but not less.
const NARROWEST: usize = 7;

impl Printer {
    fn new(tap: bool) -> io::Result<Self> {
        let mut out = io::stdout().lock();
        if tap {
            writeln!(out, "TAP version 13")?;
        } else {
            write!(
                out,
                "{:<11} {:<6} {:<6} {:<10} vcpus",
                "device", "paging", "kernel", "workload"
            )?;
            write!(out, " {:<16} {:>7} {:>10}", Value::NAMES[0], "ms", "cycles")?;
            write!(out, " {:>10}", "guest")?;
            for name in &Value::NAMES[1..] {
                write!(out, " {name:>NARROWEST$}")?;
            }
            write!(out, " {:>NARROWEST$} {:>NARROWEST$}", "exits", "yields")?;
            for name in Counters::NAMES {
                write!(out, " {name:>NARROWEST$}")?;
            }
            writeln!(out)?;
        }
        Ok(Self {
            tap,
            workloads: 0,
            failed: 0,
            failures: Vec::new(),
        })
    }

    fn run(&mut self, name: &Name, report: &Report) -> io::Result<()> {
        let device = name.device.display();
        let paging = report.paging.map_or("-", Paging::name);
        if !self.tap {
            let mut out = io::stdout().lock();
            let (form, workload) = (name.form.name(), WORKLOADS[name.workload]);
            let milliseconds = report.elapsed.as_secs_f64() * 1e3;
            write!(
                out,
                "{device:<11} {paging:<6} {form:<6} {workload:<10} {:>5}",
                name.vcpus
            )?;
            write!(out, " {:016x}", report.values[0])?;
            write!(out, " {milliseconds:>7.1} {:>10}", report.cycles)?;
            let guest_cycles = report
                .guest_cycles
                .map_or("-".to_owned(), |cycles| cycles.to_string());
            write!(out, " {guest_cycles:>10}")?;
            for (value, column) in report.values.iter().zip(Value::NAMES).skip(1) {
                let width = column.len().max(NARROWEST);
                write!(out, " {value:>width$}")?;
            }
            let Exits { port, yields } = report.exits;
            write!(out, " {port:>NARROWEST$} {yields:>NARROWEST$}")?;
            for value in report.counters.values() {
                write!(out, " {value:>NARROWEST$}")?;
            }
            writeln!(out)?;
        }
        if let Some(failure) = &report.failure {
            let failure = format!("{device}, {paging}, {} vCPUs: {failure}", name.vcpus);
            self.failures.push(failure);
        }
        Ok(())
    }

    fn workload_done(&mut self, form: Form, workload: usize) -> io::Result<()> {
        let mut out = io::stdout().lock();
        self.workloads += 1;
        self.failed += u32::from(!self.failures.is_empty());
        if self.tap {
            let not = if self.failures.is_empty() { "" } else { "not " };
            let (number, form, workload) = (self.workloads, form.name(), WORKLOADS[workload]);
            writeln!(out, "{not}ok {number} minikernel {workload} {form}")?;
        }
        for line in self.failures.iter().flat_map(|failure| failure.lines()) {
            writeln!(out, "# {line}")?;
        }
        self.failures.clear();
        Ok(())
    }

    fn end(&self) -> io::Result<()> {
        if self.tap {
            writeln!(io::stdout(), "1..{}", self.workloads)?;
        }
        Ok(())
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

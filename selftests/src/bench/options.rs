// SPDX-License-Identifier: GPL-2.0

//! The command line of the benchmark.

use crate::harness::options::tracking;

pub const USAGE: &str = "\
usage: rusthv-bench [options] [word...]

Measures operations (those whose names contain a word; all without any) on each
device in turn, and compares the last device with the first.

  --device PATH   a device; again for the next (default /dev/kvm, /dev/rusthv)
  --rounds N      rounds for each row; the best one counts (default 5)
  --unit UNIT     what the TSC counts here: cycles, or instructions (Bochs)
  --json FILE     write all figures there, too
  --tables        measure forward and inverted page tables instead, in memory alone
  --layout        measure cache lines and prefetching instead, on this computer
  --parallel      measure faults of several vCPUs at once instead
  --tracking HOW  how rusthv notices writes for dirty logs: faults, flags, or log
  --check         fail when a row of the last device is slower than the first's
";

pub struct Options {
    pub devices: Vec<String>,
    pub rounds: u32,
    pub unit: String,
    pub json: Option<String>,
    pub check: bool,
    pub tables: bool,
    pub layout: bool,
    pub parallel: bool,
    pub tracking: Option<u32>,
    words: Vec<String>,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            devices: Vec::new(),
            rounds: 5,
            unit: "cycles".into(),
            json: None,
            check: false,
            tables: false,
            layout: false,
            parallel: false,
            tracking: None,
            words: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--device" => options.devices.push(value()?),
                "--rounds" => {
                    let text = value()?;
                    let rounds = text.parse().ok().filter(|rounds| *rounds > 0);
                    options.rounds = rounds.ok_or(format!("--rounds: not a count: {text}"))?;
                }
                "--unit" => {
                    options.unit = value()?;
                    if !["cycles", "instructions"].contains(&options.unit.as_str()) {
                        return Err(format!("--unit: neither cycles nor instructions: {}", options.unit));
                    }
                }
                "--json" => options.json = Some(value()?),
                "--tracking" => options.tracking = Some(tracking(&value()?)?),
                "--check" => options.check = true,
                "--tables" => options.tables = true,
                "--layout" => options.layout = true,
                "--parallel" => options.parallel = true,
                option if option.starts_with('-') => return Err(format!("unknown option {option}")),
                _ => options.words.push(argument),
            }
        }
        if options.devices.is_empty() {
            options.devices = vec!["/dev/kvm".into(), "/dev/rusthv".into()];
        }
        Ok(options)
    }

    pub fn selects(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }
}

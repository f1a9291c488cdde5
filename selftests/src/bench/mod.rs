// SPDX-License-Identifier: GPL-2.0

//! What operations cost on two devices, measured by one program in one boot.

pub mod exits;
pub mod layout;
pub mod options;
pub mod parallel;
pub mod report;
pub mod rows;
pub mod tables;

use crate::device::Device;
use crate::harness::Failure;
use crate::host;
use options::Options;
use rows::{Row, Sample, ROWS};

/// One row on one device: every round that was measured.
#[derive(Default)]
pub struct Measured {
    rounds: Vec<Sample>,
    /// Why there is nothing, if so.
    pub missing: Option<String>,
}

impl Measured {
    /// The cheapest round: what the operation costs when nothing else happens meanwhile.
    pub fn best(&self) -> Option<f64> {
        self.rounds.iter().map(|round| round.cost).min_by(f64::total_cmp)
    }

    pub fn median(&self) -> Option<f64> {
        let mut costs: Vec<f64> = self.rounds.iter().map(|round| round.cost).collect();
        costs.sort_by(f64::total_cmp);
        costs.get(costs.len() / 2).copied()
    }

    /// VM exits for one operation, in the round with the fewest.
    pub fn exits(&self) -> Option<f64> {
        self.rounds.iter().filter_map(|round| round.exits).min_by(f64::total_cmp)
    }
}

/// A row with its results, in the order of the devices.
pub struct Line {
    pub row: &'static Row,
    pub devices: Vec<Measured>,
}

impl Line {
    /// How much the last device costs of what the first does.
    pub fn ratio(&self) -> Option<f64> {
        let (first, last) = (self.devices.first()?, self.devices.last()?);
        (self.devices.len() > 1).then_some(last.best()? / first.best()?)
    }
}

/// Measures everything, round by round, the devices in turn.
pub fn measure(options: &Options) -> Result<Vec<Line>, Failure> {
    if let Some(cpu) = host::online_cpus().first() {
        host::pin(*cpu)?;
    }
    let devices = options
        .devices
        .iter()
        .map(|path| Device::open(path).map_err(|errno| Failure::failed(format!("{path}: {errno}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut lines = Vec::new();
    for row in ROWS.iter().filter(|row| options.selects(row.name)) {
        let mut results: Vec<Measured> = devices.iter().map(|_| Measured::default()).collect();
        for _ in 0..options.rounds {
            for (device, result) in devices.iter().zip(&mut results) {
                match (row.round)(device) {
                    Ok(sample) => result.rounds.push(sample),
                    Err(Failure::Skipped(reason)) => result.missing = Some(reason),
                    Err(Failure::Failed { at, message }) => {
                        return Err(Failure::Failed {
                            at,
                            message: format!("{}: {}: {message}", device.path(), row.name),
                        })
                    }
                }
            }
        }
        lines.push(Line { row, devices: results });
    }
    Ok(lines)
}

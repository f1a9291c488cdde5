// SPDX-License-Identifier: GPL-2.0

//! The command line of the fuzzer.

use crate::harness::options::paging;

pub const USAGE: &str = "\
usage: rusthv-fuzz [options]

Random ioctl sequences and random guests against a device, in rounds. Ends with
status 1 when the host's kernel complained, a round hung or died, or an ioctl
gave an errno that is not documented for it.

  --device PATH    the device (default /dev/rusthv)
  --seed N         the seed of the first round (default: from the clock; printed)
  --seconds N      how long (default 60)
  --rounds N       how many rounds instead; round k has seed + k
  --threads N      threads in a round (default 3)
  --limit N        seconds that one round may take (default 20)
  --paging MODE    nested, shadow or trap for every VM (default: any of them)
  --no-masked-spin no guest that could spin with interrupts off: in Bochs it would
                   hang the machine
";

/// By the number of the mode.
const PAGING_OPTIONS: [&str; 3] = [" --paging nested", " --paging shadow", " --paging trap"];

pub struct Options {
    pub device: String,
    pub seed: u64,
    pub seconds: u64,
    pub rounds: Option<u64>,
    pub threads: u64,
    pub limit: u64,
    pub masked_spin: bool,
    pub paging: Option<u32>,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut options = Self {
            device: "/dev/rusthv".into(),
            seed: clock.map_or(1, |time| time.as_secs() * 1_000_000),
            seconds: 60,
            rounds: None,
            threads: 3,
            limit: 20,
            masked_spin: true,
            paging: None,
        };
        while let Some(argument) = arguments.next() {
            if argument == "--no-masked-spin" {
                options.masked_spin = false;
                continue;
            }
            let value = arguments.next().ok_or(format!("{argument} needs a value, or is unknown"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{argument}: not a number: {value}"));
            match argument.as_str() {
                "--device" => options.device = value,
                "--seed" => options.seed = number()?,
                "--seconds" => options.seconds = number()?,
                "--rounds" => options.rounds = Some(number()?),
                "--threads" => options.threads = number()?.clamp(1, 64),
                "--paging" => options.paging = Some(paging(&value)?),
                "--limit" => options.limit = number()?.max(1),
                _ => return Err(format!("unknown option {argument}")),
            }
        }
        Ok(options)
    }
    /// What runs the round with `seed` again.
    pub fn again(&self, seed: u64) -> String {
        format!(
            "rusthv-fuzz --device {} --seed {seed} --rounds 1 --threads {}{}{}",
            self.device,
            self.threads,
            self.paging.map_or("", |mode| PAGING_OPTIONS[mode as usize]),
            if self.masked_spin { "" } else { " --no-masked-spin" }
        )
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The command line of the test program.

use crate::rusthv::{PAGING_NESTED, PAGING_SHADOW, PAGING_TRAP};
use crate::rusthv::{RUSTHV_TRACK_FAULTS, RUSTHV_TRACK_FLAGS, RUSTHV_TRACK_LOG};

pub const USAGE: &str = "\
usage: rusthv-selftests [options] [name...]

Runs the tests whose names contain one of the given words (all without any; a
word that is a test's whole name means that test alone), and prints TAP.

  --device PATH    the device under test (default /dev/rusthv)
  --skip WORD      leave out the tests whose names contain it (again for more)
  --list           print the names, how many CPUs each is made for and what it
                   shows; run nothing
  --scale N        run N percent of the repetitions (for slow kernels)
  --seconds N      how long the tests that go on for some time do so
  --limit N        multiply every time limit by N percent (default 100)
  --paging MODE    how rusthv virtualizes the memory of every VM: nested (the
                   default), shadow, or trap
  --tracking HOW   how rusthv notices writes for the dirty logs of every VM with
                   nested tables: faults, flags, or log (default: the last of
                   these that the CPU has)
  --exclusive      the machine is the tests' own: also run those that offline
                   processors, suspend, unload the module, or measure free memory
  --module FILE    rust_hv.ko, for the tests that load it again
  --no-kmsg        do not fail a test over what the kernel logs meanwhile
";

#[derive(Debug, PartialEq)]
pub struct Options {
    pub device: String,
    pub list: bool,
    pub scale: u64,
    pub seconds: Option<u64>,
    pub limit: u64,
    pub paging: u32,
    pub tracking: Option<u32>,
    pub exclusive: bool,
    pub module: Option<String>,
    pub kmsg: bool,
    pub names: Vec<String>,
    pub skip: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: "/dev/rusthv".into(),
            list: false,
            scale: 100,
            seconds: None,
            limit: 100,
            paging: PAGING_NESTED,
            tracking: None,
            exclusive: false,
            module: None,
            kmsg: true,
            names: Vec::new(),
            skip: Vec::new(),
        }
    }
}

/// A mode by its name.
pub fn paging(name: &str) -> Result<u32, String> {
    match name {
        "nested" => Ok(PAGING_NESTED),
        "shadow" => Ok(PAGING_SHADOW),
        "trap" => Ok(PAGING_TRAP),
        _ => Err(format!("--paging: {name} is none of nested, shadow, trap")),
    }
}

/// A way to track writes by its name.
pub fn tracking(name: &str) -> Result<u32, String> {
    match name {
        "faults" => Ok(RUSTHV_TRACK_FAULTS),
        "flags" => Ok(RUSTHV_TRACK_FLAGS),
        "log" => Ok(RUSTHV_TRACK_LOG),
        _ => Err(format!("--tracking: {name} is none of faults, flags, log")),
    }
}

/// A percentage with or without its sign.
fn percent(text: &str) -> Option<u64> {
    text.trim_end_matches('%').parse().ok().filter(|value| *value > 0)
}

impl Options {
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            let number = |text: String| percent(&text).ok_or(format!("{argument}: not a percentage: {text}"));
            match argument.as_str() {
                "--device" => options.device = value()?,
                "--list" => options.list = true,
                "--scale" => options.scale = number(value()?)?,
                "--seconds" => {
                    let text = value()?;
                    let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
                    options.seconds = Some(seconds.ok_or(format!("{argument}: not a time: {text}"))?);
                }
                "--limit" => options.limit = number(value()?)?,
                "--paging" => options.paging = paging(&value()?)?,
                "--tracking" => options.tracking = Some(tracking(&value()?)?),
                "--exclusive" => options.exclusive = true,
                "--module" => options.module = Some(value()?),
                "--skip" => options.skip.push(value()?),
                "--no-kmsg" => options.kmsg = false,
                option if option.starts_with('-') => return Err(format!("unknown option {option}")),
                _ => options.names.push(argument),
            }
        }
        Ok(options)
    }

    /// True when the user asked for this one of `all`.
    pub fn selects(&self, name: &str, all: &[&str]) -> bool {
        if self.skip.iter().any(|word| name.contains(word.as_str())) {
            return false;
        }
        self.names.is_empty()
            || self.names.iter().any(|word| {
                if all.contains(&word.as_str()) {
                    name == word
                } else {
                    name.contains(word.as_str())
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options() {
        let options = parse("--device /dev/kvm --scale 10% --limit 2000 a b").unwrap();
        assert_eq!((options.device.as_str(), options.scale, options.limit), ("/dev/kvm", 10, 2000));
        assert_eq!(options.names, ["a", "b"]);
        assert!(parse("--scale 0").is_err());
        assert!(parse("--scale").is_err());
        assert!(parse("--nonsense").is_err());
        assert_eq!(parse("--seconds 90").unwrap().seconds, Some(90));
        assert!(parse("--seconds 1m").is_err());
    }

    #[test]
    fn selection() {
        let all = ["io", "io_string", "mmio"];
        let of = |line: &str| all.iter().filter(|n| parse(line).unwrap().selects(n, &all)).count();
        assert_eq!(of(""), 3);
        assert_eq!(of("io"), 1, "a whole name is that test alone");
        assert_eq!(of("string"), 1);
        assert_eq!(of("mm string"), 2);
        assert_eq!(of("--skip string"), 2);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What a test is, and how it says what went wrong.

pub mod options;
pub mod runner;

use crate::device::{self, Device};
use crate::errno::Errno;
use crate::skip;
use crate::vendor::{vendor, Vendor};
use options::Options;
use std::cell::Cell;
use std::panic::Location;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Why a test did not pass.
#[derive(Debug)]
pub enum Failure {
    /// What was wrong, and the line that noticed.
    Failed { at: String, message: String },
    /// The test cannot say anything here, and why.
    Skipped(String),
}

impl Failure {
    #[track_caller]
    pub fn failed(message: impl Into<String>) -> Self {
        let at = Location::caller();
        Self::Failed { at: format!("{}:{}", at.file(), at.line()), message: message.into() }
    }
}

impl From<Errno> for Failure {
    // The location is that of the `?` that met the error.
    #[track_caller]
    fn from(errno: Errno) -> Self {
        Self::failed(format!("unexpected {errno}"))
    }
}

impl From<std::io::Error> for Failure {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        Self::failed(format!("unexpected error: {error}"))
    }
}

pub type Outcome = Result<(), Failure>;

/// A test: what it runs, how long that may take, and the number of CPUs from which on it shows all that it can.
pub struct Test {
    pub run: fn(&Context) -> Outcome,
    pub limit: Duration,
    pub cpus: usize,
}

impl Test {
    pub const fn new(seconds: u64, run: fn(&Context) -> Outcome) -> Self {
        Self { run, limit: Duration::from_secs(seconds), cpus: 1 }
    }

    /// A test of what CPUs do at the same time, or to each other.
    pub const fn with_several_cpus(self) -> Self {
        Self { cpus: 2, ..self }
    }
}

/// What a test is given.
pub struct Context {
    device: String,
    scale: u64,
    seconds: Option<u64>,
    exclusive: bool,
    module: Option<String>,
}

impl Context {
    pub fn new(options: &Options) -> Self {
        device::PAGING.store(options.paging, Relaxed);
        device::TRACKING.store(options.tracking.unwrap_or(u32::MAX), Relaxed);
        Self {
            device: options.device.clone(),
            scale: options.scale,
            seconds: options.seconds,
            exclusive: options.exclusive,
            module: options.module.clone(),
        }
    }

    /// For tests of what only rusthv has.
    pub fn rusthv(&self) -> Result<Device, Failure> {
        let device = self.device()?;
        if device.is_kvm() {
            skip!("{} is KVM", self.device);
        }
        Ok(device)
    }

    /// For tests of what nested tables do: how many there are, where they go, what the CPU's own walk is like.
    pub fn nested(&self) -> Outcome {
        if !crate::emulator::is_nested() {
            skip!("is about nested tables");
        }
        Ok(())
    }

    /// For tests with guests in real mode, which VT-x runs with nested tables alone.
    pub fn real_mode(&self) -> Outcome {
        if !crate::emulator::is_nested() && vendor() == Vendor::Intel {
            skip!("has guests in real mode");
        }
        Ok(())
    }

    /// For tests that other users of the machine would notice, or be noticed by.
    pub fn exclusive(&self) -> Outcome {
        if !self.exclusive {
            skip!("disturbs the machine: needs --exclusive");
        }
        Ok(())
    }

    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// The module's file.
    pub fn module(&self) -> Result<&str, Failure> {
        self.module.as_deref().ok_or(Failure::Skipped("needs --module".into()))
    }

    pub fn path(&self) -> &str {
        &self.device
    }

    pub fn device(&self) -> Result<Device, Failure> {
        Device::open(&self.device).map_err(|errno| Failure::failed(format!("{}: {errno}", self.device)))
    }

    /// KVM beside the device under test, or the reason to skip.
    pub fn reference(&self) -> Result<Device, Failure> {
        Device::open("/dev/kvm").map_err(|errno| Failure::Skipped(format!("/dev/kvm: {errno}")))
    }

    /// How long to go on, for a test that finds more the longer it does; none if nobody has said.
    pub fn duration(&self) -> Option<Duration> {
        self.seconds.map(Duration::from_secs)
    }

    /// A repetition count, scaled to the speed of the machine; never zero.
    pub fn repetitions(&self, full: u64) -> u64 {
        (full * self.scale / 100).max(1)
    }
}

thread_local! {
    static CHECKS: Cell<u64> = const { Cell::new(0) };
}

/// Counts a check that held. A test that makes none fails: see `runner`.
pub fn count_check() {
    CHECKS.set(CHECKS.get() + 1);
}

/// How many checks this thread has made.
pub fn checks() -> u64 {
    CHECKS.get()
}

/// Fails the test when the condition does not hold.
#[macro_export]
macro_rules! check {
    ($condition:expr) => {
        $crate::check!($condition, "{}", stringify!($condition))
    };
    ($condition:expr, $($message:tt)+) => {
        if $condition {
            $crate::harness::count_check();
        } else {
            return Err($crate::harness::Failure::failed(format!($($message)+)));
        }
    };
}

/// Fails the test when the values differ, and prints both.
#[macro_export]
macro_rules! check_eq {
    ($actual:expr, $expected:expr $(,)?) => {
        $crate::check_eq!($actual, $expected, "{}", stringify!($actual))
    };
    ($actual:expr, $expected:expr, $($message:tt)+) => {
        match (&$actual, &$expected) {
            (actual, expected) => $crate::check!(
                *actual == *expected,
                "{}: got {:x?}, expected {:x?}",
                format_args!($($message)+), actual, expected
            ),
        }
    };
}

/// Fails the test unless the result is this error number (named as in `Errno`).
#[macro_export]
macro_rules! check_err {
    ($result:expr, $name:ident) => {
        $crate::check_err!($result, $name, "{}", stringify!($result))
    };
    ($result:expr, $name:ident, $($message:tt)+) => {
        match $result {
            result => $crate::check_eq!(
                result.as_ref().err(), Some(&$crate::errno::Errno::$name), $($message)+
            ),
        }
    };
}

/// Fails the test.
#[macro_export]
macro_rules! fail {
    ($($message:tt)+) => {
        return Err($crate::harness::Failure::failed(format!($($message)+)))
    };
}

/// Ends the test without a verdict.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {
        return Err($crate::harness::Failure::Skipped(format!($($reason)+)))
    };
}

// SPDX-License-Identifier: GPL-2.0

//! The tests, one behaviour per file. Each file's first line of documentation says what it shows.

use crate::harness::Test;

mod api_version;
mod create_vm;
mod real_mode;

/// A test in the registry.
pub struct Entry {
    pub name: &'static str,
    pub shows: &'static str,
    pub test: &'static Test,
}

include!(concat!(env!("OUT_DIR"), "/registry.rs"));

// SPDX-License-Identifier: GPL-2.0
//! What debugfs shows of VMs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{number, Result};

/// A VM's directory.
pub struct Vm(PathBuf);

/// A memory slot.
pub struct Slot {
    pub id: u64,
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
}

/// Neighbouring pages with everything in common.
pub struct Stretch {
    pub gpa: u64,
    pub hpa: u64,
    pub count: u64,
    /// Bytes of a page.
    pub page: u64,
    /// `rwxad`, a dash for each that is not.
    pub flags: String,
    pub kind: String,
    pub node: String,
}

impl Slot {
    pub fn contains(&self, gpa: u64) -> bool {
        (self.gpa..self.gpa + self.size).contains(&gpa)
    }
}

impl Stretch {
    pub fn bytes(&self) -> u64 {
        self.count * self.page
    }

    pub fn contains(&self, gpa: u64) -> bool {
        (self.gpa..self.gpa + self.bytes()).contains(&gpa)
    }

    pub fn size_name(&self) -> &'static str {
        match self.page {
            0x1000 => "4K",
            0x20_0000 => "2M",
            _ => "1G",
        }
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The VMs that there are.
pub fn list(debugfs: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(debugfs).map_err(|error| format!("{}: {error}", debugfs.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("pages").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

impl Vm {
    pub fn open(debugfs: &Path, name: &str) -> Result<Self> {
        let path = debugfs.join(name);
        match path.join("pages").exists() {
            true => Ok(Self(path)),
            false => Err(format!(
                "{}: no such VM (see `rusthv-map list`)",
                path.display()
            )),
        }
    }

    pub fn slots(&self) -> Result<Vec<Slot>> {
        let parse = |line: &str| -> Option<Slot> {
            let mut words = line.split(' ');
            let mut next = || number(words.next()?).ok();
            Some(Slot {
                id: next()?,
                gpa: next()?,
                size: next()?,
                hva: next()?,
            })
        };
        parsed(&self.0.join("slots"), parse)
    }

    pub fn stretches(&self) -> Result<Vec<Stretch>> {
        let parse = |line: &str| -> Option<Stretch> {
            let words: Vec<&str> = line.split(' ').collect();
            let &[gpa, hpa, count, size, flags, kind, node] = words.as_slice() else {
                return None;
            };
            Some(Stretch {
                gpa: number(gpa).ok()?,
                hpa: number(hpa).ok()?,
                count: number(count).ok()?,
                page: match size {
                    "4K" => 4 << 10,
                    "2M" => 2 << 20,
                    "1G" => 1 << 30,
                    _ => return None,
                },
                flags: flags.to_owned(),
                kind: kind.to_owned(),
                node: node.to_owned(),
            })
        };
        parsed(&self.0.join("pages"), parse)
    }
}

fn parsed<T>(path: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let text = read(path)?;
    let line = |line: &str| {
        parse(line)
            .ok_or_else(|| format!("{}: a line that is not understood: {line}", path.display()))
    };
    text.lines().map(line).collect()
}

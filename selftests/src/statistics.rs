// SPDX-License-Identifier: GPL-2.0

//! Statistics that describe themselves (Documentation/virt/kvm/api.rst, 4.133), of KVM or of rusthv.

use crate::errno::Errno;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of the header: flags, size of a name, number of descriptors, offsets of the
/// identification, the descriptors and the data.
pub const HEADER: u64 = 24;
/// Bytes of a descriptor before its name: flags, exponent and number of values, offset of the
/// first value, size of a bucket.
const DESCRIPTOR: u64 = 16;

/// The file that `KVM_GET_STATS_FD` gives.
pub struct Statistics {
    pub file: File,
    pub header: [u32; 6],
}

/// One descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    pub name: String,
    pub flags: u32,
    pub exponent: i16,
    pub values: u16,
    pub offset: u32,
    pub bucket: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Statistics {
    /// From what the ioctl has answered.
    pub fn new(fd: i32) -> Result<Self, Errno> {
        // SAFETY: the descriptor is new, so it is ours.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut this = Self { file, header: [0; 6] };
        let bytes = this.read(0, HEADER)?;
        for (index, field) in this.header.iter_mut().enumerate() {
            *field = word(&bytes, 4 * index);
        }
        Ok(this)
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|_| Errno::EIO)?;
        Ok(bytes)
    }

    /// What the statistics are of.
    pub fn id(&self) -> Result<String, Errno> {
        let [_, name_size, _, id, ..] = self.header.map(u64::from);
        Ok(text(&self.read(id, name_size)?))
    }

    /// What there is.
    pub fn descriptors(&self) -> Result<Vec<Descriptor>, Errno> {
        let [_, name_size, count, _, descriptors, _] = self.header.map(u64::from);
        let size = DESCRIPTOR + name_size;
        (0..count)
            .map(|index| {
                let bytes = self.read(descriptors + index * size, size)?;
                let second = word(&bytes, 4);
                Ok(Descriptor {
                    flags: word(&bytes, 0),
                    exponent: second as i16,
                    values: (second >> 16) as u16,
                    offset: word(&bytes, 8),
                    bucket: word(&bytes, 12),
                    name: text(&bytes[DESCRIPTOR as usize..]),
                })
            })
            .collect()
    }

    /// The value of one, if it exists.
    pub fn value(&self, name: &str) -> Result<Option<u64>, Errno> {
        let all = self.descriptors()?;
        let Some(one) = all.iter().find(|one| one.name == name) else {
            return Ok(None);
        };
        let bytes = self.read(u64::from(self.header[5]) + u64::from(one.offset), 8)?;
        Ok(Some(u64::from(word(&bytes, 0)) | u64::from(word(&bytes, 4)) << 32))
    }
}

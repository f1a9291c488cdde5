// SPDX-License-Identifier: GPL-2.0

//! What the executor needs of guest memory, and how device accesses leave and come back.

use super::types::{Access, Exception, Width};
use crate::model::arch::addr::{Gpa, Gva};

/// What is behind a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Memory, for loads and stores.
    Ram,
    /// Memory for loads, a device for stores: a read-only slot.
    Rom,
    /// A device.
    Mmio,
}

/// Where a linear address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// What is there, up to the end of its page.
    pub backing: Backing,
}

/// Why an access cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop<E> {
    /// The guest gets this exception.
    Fault(Exception),
    /// Other CPUs got in the way; trying again later may help.
    Retry,
    /// The host failed; the guest is not to blame.
    Failed(E),
}

/// Guest memory as the current virtual CPU sees it.
///
/// The executor never passes an address range that crosses a page. Mappings must hold still from
/// the first translation to the end of one [`execute`](super::execute()) call.
pub trait Memory {
    /// A failure on the host's side, such as guest memory that user space has unmapped.
    type Error;

    /// Translates through the guest's tables, checks permissions at the CPU's privilege level and
    /// sets accessed and dirty bits.
    ///
    /// With [`Access::Write`] the page must allow both loads and stores.
    fn translate(&mut self, gva: Gva, access: Access) -> Result<Place, Stop<Self::Error>>;

    /// Loads from [`Backing::Ram`] or [`Backing::Rom`]. What is naturally aligned must be loaded
    /// in one piece, as another virtual CPU may store it meanwhile.
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// Stores to [`Backing::Ram`]; what is naturally aligned, in one piece.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Stores `new` to naturally aligned [`Backing::Ram`] if `old` is there, atomically against
    /// other virtual CPUs; tells if it did.
    fn compare_exchange(
        &mut self,
        gpa: Gpa,
        width: Width,
        old: u64,
        new: u64,
    ) -> Result<bool, Self::Error>;
}

/// A load from a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioRead {
    /// Address.
    pub gpa: Gpa,
    /// Length in bytes, 1 to 8.
    pub len: u8,
}

/// A store to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioWrite {
    /// Address.
    pub gpa: Gpa,
    /// Length in bytes, 1 to 8.
    pub len: u8,
    data: [u8; 8],
}

impl MmioWrite {
    pub(super) fn new(gpa: Gpa, len: u8, value: u64) -> Self {
        Self {
            gpa,
            len,
            data: value.to_le_bytes(),
        }
    }

    /// The bytes to store, in memory order.
    pub fn bytes(&self) -> &[u8] {
        self.data.get(..usize::from(self.len)).unwrap_or(&self.data)
    }
}

/// The device stores of one transaction, oldest first. There are two where the operand crosses
/// from one device page into another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MmioWrites {
    first: Option<MmioWrite>,
    second: Option<MmioWrite>,
}

impl MmioWrites {
    /// None.
    pub const NONE: Self = Self {
        first: None,
        second: None,
    };

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Removes the oldest.
    pub fn pop(&mut self) -> Option<MmioWrite> {
        let oldest = self.first.take();
        self.first = self.second.take();
        oldest
    }

    pub(super) fn push(&mut self, write: MmioWrite) {
        if self.first.is_none() {
            self.first = Some(write);
        } else {
            self.second = Some(write);
        }
    }
}

/// Most device loads in one transaction: two operands that each cross a page.
const LOG_LEN: usize = 4;

/// The device loads of the current transaction that are done.
///
/// It lives as long as the instruction does: over exits to user space, until
/// [`execute`](super::execute()) reports anything but [`MmioRead`]. The executor empties it when
/// the transaction ends; whoever gives an instruction up halfway must [`clear`](Self::clear) it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MmioLog {
    done: [Option<(MmioRead, u64)>; LOG_LEN],
}

/// The log has no room: more answers than questions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFull;

impl MmioLog {
    /// An empty log.
    pub const fn new() -> Self {
        Self {
            done: [None; LOG_LEN],
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.done = [None; LOG_LEN];
    }

    /// True if it holds no load.
    pub fn is_empty(&self) -> bool {
        self.done.iter().all(Option::is_none)
    }

    /// Adds the answer to the load that was just reported: `data` in memory order, of which
    /// `read.len` bytes count.
    pub fn record(&mut self, read: MmioRead, data: [u8; 8]) -> Result<(), LogFull> {
        let slot = self.done.iter_mut().find(|slot| slot.is_none());
        *slot.ok_or(LogFull)? = Some((read, u64::from_le_bytes(data)));
        Ok(())
    }

    /// The answer to the transaction's load number `index`.
    ///
    /// If the guest's tables changed meanwhile, the load may now go elsewhere: then this answer
    /// and those after it are worthless, and are dropped.
    pub(super) fn replay(&mut self, index: usize, read: MmioRead) -> Option<u64> {
        match self.done.get(index) {
            Some(&Some((done, value))) if done == read => Some(value),
            _ => {
                for slot in self.done.iter_mut().skip(index) {
                    *slot = None;
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(gpa: u64) -> MmioRead {
        MmioRead {
            gpa: Gpa::new(gpa),
            len: 4,
        }
    }

    #[test]
    fn replays_in_order_and_drops_what_no_longer_fits() {
        let mut log = MmioLog::new();
        log.record(read(0x1000), [1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        log.record(read(0x2000), [2, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(log.replay(0, read(0x1000)), Some(1));
        assert_eq!(log.replay(1, read(0x3000)), None);
        assert_eq!(log.replay(1, read(0x2000)), None);
        assert_eq!(log.replay(0, read(0x1000)), Some(1));
    }

    #[test]
    fn refuses_a_fifth_answer() {
        let mut log = MmioLog::new();
        for i in 0..4 {
            assert_eq!(log.record(read(i), [0; 8]), Ok(()));
        }
        assert_eq!(log.record(read(4), [0; 8]), Err(LogFull));
        log.clear();
        assert!(log.is_empty());
    }

    #[test]
    fn writes_come_out_in_order() {
        let mut writes = MmioWrites::default();
        writes.push(MmioWrite::new(Gpa::new(8), 2, 0x0201));
        writes.push(MmioWrite::new(Gpa::new(16), 1, 3));
        let first = writes.pop().unwrap();
        assert_eq!((first.gpa.raw(), first.bytes()), (8, &[1u8, 2][..]));
        assert_eq!(writes.pop().unwrap().bytes(), &[3]);
        assert_eq!(writes.pop(), None);
        assert!(writes.is_empty());
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The pages that a vCPU shares with its VMM: `struct kvm_run`, and the data of port I/O.
//!
//! User space may write them at any moment. Every read is one volatile load whose result is used
//! from then on; nothing is read twice.

use super::bindings::{self, kvm_run};
use super::frame::{Frame, Place};
use crate::model::arch::addr::{Gpa, PAGE_SIZE};
use crate::model::paging::Permissions;
use core::ptr::addr_of_mut;
use kernel::prelude::*;

/// Bytes of port I/O data that one exit can carry.
pub const PIO_BYTES: usize = PAGE_SIZE as usize;
/// Pages of a vCPU's mapping: `kvm_run`, then port I/O data.
pub const PAGES: usize = 2;

const PIO_OFFSET: u64 = bindings::KVM_PIO_PAGE_OFFSET as u64 * PAGE_SIZE;

/// Why `KVM_RUN` returns to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserExit {
    /// `KVM_EXIT_UNKNOWN` with the hardware's reason.
    Unknown(u64),
    /// `KVM_EXIT_IO`: `count` items of `size` bytes in the port I/O page.
    Io {
        /// The guest writes.
        out: bool,
        /// Bytes of an item: 1, 2 or 4.
        size: u8,
        /// The port.
        port: u16,
        /// Items.
        count: u32,
    },
    /// `KVM_EXIT_MMIO` of `len` bytes, at most eight.
    Mmio {
        /// Where.
        gpa: Gpa,
        /// Bytes.
        len: u8,
        /// What the guest writes; `None` when it reads.
        write: Option<[u8; 8]>,
    },
    /// `KVM_EXIT_HLT`
    Hlt,
    /// `KVM_EXIT_SHUTDOWN`
    Shutdown,
    /// `KVM_EXIT_FAIL_ENTRY` with the hardware's reason.
    FailEntry(u64),
    /// `KVM_EXIT_INTERNAL_ERROR`: an instruction that could not be emulated.
    Emulation {
        /// Its bytes.
        bytes: [u8; 15],
        /// How many are known.
        len: u8,
    },
    /// `KVM_EXIT_INTERNAL_ERROR` with another suberror and its data.
    Internal {
        /// `KVM_INTERNAL_ERROR_*`
        suberror: u32,
        /// Data words.
        data: [u64; 4],
        /// How many of them count.
        ndata: u32,
    },
    /// `KVM_EXIT_MEMORY_FAULT`: the slot does not give the right to the page, and the guest has not had
    /// the access.
    MemoryFault {
        /// First byte of the page.
        gpa: Gpa,
        /// What it takes.
        right: Permissions,
    },
    /// `KVM_EXIT_INTR`
    Intr,
    /// `KVM_EXIT_IRQ_WINDOW_OPEN`
    IrqWindowOpen,
    /// `KVM_EXIT_SET_TPR`: the guest has lowered CR8.
    SetTpr,
}

impl UserExit {
    /// An instruction that could not be emulated, and whose bytes nobody knows.
    pub const UNKNOWN_INSTRUCTION: Self = Self::Emulation {
        bytes: [0; 15],
        len: 0,
    };
}

/// The shared pages of one vCPU.
///
/// # Invariants
///
/// `raw` is the start of `run`.
pub struct RunPages {
    raw: *mut kvm_run,
    run: Frame,
    pio: Frame,
}

// SAFETY: The pages are shared with user space anyway; every access is volatile.
unsafe impl Send for RunPages {}
// SAFETY: As above.
unsafe impl Sync for RunPages {}

macro_rules! load {
    ($self:ident, $($field:tt)+) => {{
        let run = $self.raw();
        // SAFETY: The frame holds a `kvm_run` and lives as long as `self`; every bit pattern is a
        // value of these integers. User space may write at the same time: one volatile access.
        unsafe { addr_of_mut!((*run).$($field)+).read_volatile() }
    }};
}

macro_rules! store {
    ($self:ident, $($field:ident).+, $value:expr) => {{
        let run = $self.raw();
        let value = $value;
        // SAFETY: As in `load!`.
        unsafe { addr_of_mut!((*run).$($field).+).write_volatile(value) }
    }};
}

impl RunPages {
    /// Zeroed pages on a node.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        let run = Frame::new(place)?;
        // INVARIANT: The frame stays where it is.
        Ok(Self {
            raw: run.as_ptr().cast(),
            run,
            pio: Frame::new(place)?,
        })
    }

    #[inline]
    fn raw(&self) -> *mut kvm_run {
        self.raw
    }

    /// The frame of a page of the vCPU's mapping.
    pub fn page(&self, index: usize) -> Option<&Frame> {
        [&self.run, &self.pio].get(index).copied()
    }

    /// The VMM wants `KVM_RUN` to come back at once.
    #[inline]
    pub fn immediate_exit(&self) -> bool {
        load!(self, immediate_exit__unsafe) != 0
    }

    /// The VMM wants to hear when the guest can take an interrupt.
    #[inline]
    pub fn wants_interrupt_window(&self) -> bool {
        load!(self, request_interrupt_window) != 0
    }

    /// CR8 as the VMM set it.
    #[inline]
    pub fn cr8(&self) -> u64 {
        load!(self, cr8)
    }

    /// Register sets that the VMM says it wants or has changed.
    #[inline]
    pub fn sync_regs(&self) -> u64 {
        load!(self, kvm_valid_regs) | load!(self, kvm_dirty_regs)
    }

    /// Clears `flags` at the start of a run.
    #[inline]
    pub fn begin(&self) {
        store!(self, flags, 0);
    }

    /// The guest is about to be entered: no exit has a reason yet, and an error has none of its own, as
    /// with KVM.
    #[inline]
    pub fn forget_exit(&self) {
        store!(self, exit_reason, bindings::KVM_EXIT_UNKNOWN);
    }

    /// Fills what every return reports.
    #[inline]
    pub fn finish(&self, if_flag: bool, ready_for_interrupt: bool, cr8: u64, apic_base: u64) {
        store!(self, if_flag, u8::from(if_flag));
        store!(
            self,
            ready_for_interrupt_injection,
            u8::from(ready_for_interrupt)
        );
        store!(self, cr8, cr8);
        store!(self, apic_base, apic_base);
    }

    /// Bytes of the MMIO read that the VMM answered.
    pub fn mmio_data(&self) -> [u8; 8] {
        load!(self, __bindgen_anon_1.mmio.data)
    }

    /// Copies port I/O data that the guest writes to where the VMM reads it.
    pub fn put_pio(&self, offset: usize, bytes: &[u8]) {
        let room = PIO_BYTES.saturating_sub(offset);
        let start = self.pio.as_ptr();
        for (index, &byte) in bytes.iter().take(room).enumerate() {
            // SAFETY: `offset + index` is inside the frame.
            unsafe { start.add(offset + index).write_volatile(byte) };
        }
    }

    /// Copies port I/O data that the VMM answered.
    pub fn get_pio(&self, offset: usize, bytes: &mut [u8]) {
        let room = PIO_BYTES.saturating_sub(offset);
        let start = self.pio.as_ptr();
        for (index, byte) in bytes.iter_mut().take(room).enumerate() {
            // SAFETY: `offset + index` is inside the frame.
            *byte = unsafe { start.add(offset + index).read_volatile() };
        }
    }

    fn internal(&self, suberror: u32, data: &[u64]) {
        store!(self, __bindgen_anon_1.internal.suberror, suberror);
        store!(self, __bindgen_anon_1.internal.ndata, data.len() as u32);
        let run = self.raw();
        for (index, &word) in data.iter().take(16).enumerate() {
            // SAFETY: The array has 16 words; see `load!`.
            unsafe {
                addr_of_mut!((*run).__bindgen_anon_1.internal.data)
                    .cast::<u64>()
                    .add(index)
                    .write_volatile(word)
            };
        }
    }

    /// Tells the VMM why the guest stopped.
    pub fn set_exit(&self, exit: UserExit, cpu: u32) {
        let reason = match exit {
            UserExit::Unknown(reason) => {
                store!(self, __bindgen_anon_1.hw.hardware_exit_reason, reason);
                bindings::KVM_EXIT_UNKNOWN
            }
            UserExit::Io {
                out,
                size,
                port,
                count,
            } => {
                let direction = if out {
                    bindings::KVM_EXIT_IO_OUT
                } else {
                    bindings::KVM_EXIT_IO_IN
                };
                store!(self, __bindgen_anon_1.io.direction, direction as u8);
                store!(self, __bindgen_anon_1.io.size, size);
                store!(self, __bindgen_anon_1.io.port, port);
                store!(self, __bindgen_anon_1.io.count, count);
                store!(self, __bindgen_anon_1.io.data_offset, PIO_OFFSET);
                bindings::KVM_EXIT_IO
            }
            UserExit::Mmio { gpa, len, write } => {
                store!(self, __bindgen_anon_1.mmio.phys_addr, gpa.raw());
                store!(self, __bindgen_anon_1.mmio.len, u32::from(len));
                store!(
                    self,
                    __bindgen_anon_1.mmio.is_write,
                    u8::from(write.is_some())
                );
                if let Some(data) = write {
                    store!(self, __bindgen_anon_1.mmio.data, data);
                }
                bindings::KVM_EXIT_MMIO
            }
            UserExit::Hlt => bindings::KVM_EXIT_HLT,
            UserExit::Shutdown => bindings::KVM_EXIT_SHUTDOWN,
            UserExit::FailEntry(reason) => {
                store!(
                    self,
                    __bindgen_anon_1.fail_entry.hardware_entry_failure_reason,
                    reason
                );
                store!(self, __bindgen_anon_1.fail_entry.cpu, cpu);
                bindings::KVM_EXIT_FAIL_ENTRY
            }
            UserExit::Emulation { bytes, len } => {
                self.set_emulation_failure(&bytes, len);
                bindings::KVM_EXIT_INTERNAL_ERROR
            }
            UserExit::Internal {
                suberror,
                data,
                ndata,
            } => {
                let data = data.get(..ndata as usize).unwrap_or(&data);
                self.internal(suberror, data);
                bindings::KVM_EXIT_INTERNAL_ERROR
            }
            UserExit::MemoryFault { gpa, right } => {
                let flags = u64::from(right.bits());
                store!(self, __bindgen_anon_1.memory_fault.flags, flags);
                store!(self, __bindgen_anon_1.memory_fault.gpa, gpa.raw());
                store!(self, __bindgen_anon_1.memory_fault.size, PAGE_SIZE);
                bindings::KVM_EXIT_MEMORY_FAULT
            }
            UserExit::Intr => bindings::KVM_EXIT_INTR,
            UserExit::IrqWindowOpen => bindings::KVM_EXIT_IRQ_WINDOW_OPEN,
            UserExit::SetTpr => bindings::KVM_EXIT_SET_TPR,
        };
        store!(self, exit_reason, reason);
    }

    /// As KVM lays out `KVM_INTERNAL_ERROR_EMULATION`: flags, then size and bytes of the
    /// instruction packed into the data words behind them.
    fn set_emulation_failure(&self, bytes: &[u8; 15], len: u8) {
        let flag = u64::from(bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let mut packed = [0u8; 16];
        let (size, rest) = packed.split_at_mut(1);
        size.fill(len);
        rest.copy_from_slice(bytes);
        let (low, high) = packed.split_at(8);
        let word = |half: &[u8]| half.iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
        self.internal(
            bindings::KVM_INTERNAL_ERROR_EMULATION,
            &[flag, word(low), word(high)],
        );
    }
}

#[kunit_tests(rusthv_run_page)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;

    /// `struct kvm_run` of the UAPI, by offsets.
    const IMMEDIATE_EXIT: usize = 1;
    const REASON: usize = 8;
    const READY: usize = 12;
    const IF_FLAG: usize = 13;
    const FLAGS: usize = 14;
    const CR8: usize = 16;
    const APIC_BASE: usize = 24;
    const EXIT: usize = 32;
    const VALID_REGS: usize = 288;
    const DIRTY_REGS: usize = 296;

    fn pages() -> Result<RunPages> {
        RunPages::new(current_node())
    }

    fn bytes<const N: usize>(pages: &RunPages, offset: usize) -> [u8; N] {
        // SAFETY: Inside the frame, which nobody maps.
        core::array::from_fn(|index| unsafe { *pages.run.as_ptr().add(offset + index) })
    }

    fn put(pages: &RunPages, offset: usize, value: &[u8]) {
        for (index, &byte) in value.iter().enumerate() {
            // SAFETY: As in `bytes`.
            unsafe { *pages.run.as_ptr().add(offset + index) = byte };
        }
    }

    /// The exit's reason and the first 24 bytes of its own part.
    fn exit(exit: UserExit) -> Result<(u32, [u8; 24])> {
        let pages = pages()?;
        pages.set_exit(exit, 0x0102_0304);
        let reason = u32::from_le_bytes(bytes(&pages, REASON));
        Ok((reason, bytes(&pages, EXIT)))
    }

    #[test]
    fn exits_without_data() -> Result {
        let zeros = [0; 24];
        assert_eq!(exit(UserExit::Hlt)?, (5, zeros));
        assert_eq!(exit(UserExit::IrqWindowOpen)?, (7, zeros));
        assert_eq!(exit(UserExit::Shutdown)?, (8, zeros));
        assert_eq!(exit(UserExit::Intr)?, (10, zeros));
        assert_eq!(exit(UserExit::SetTpr)?, (11, zeros));
        Ok(())
    }

    #[test]
    fn io() -> Result {
        let access = |out| UserExit::Io {
            out,
            size: 4,
            port: 0xcf8,
            count: 0x0102,
        };
        let (reason, out) = exit(access(true))?;
        assert_eq!(reason, 2);
        // Direction, size, port, count; the data is in the second page.
        assert_eq!(&out[..8], &[1, 4, 0xf8, 0x0c, 2, 1, 0, 0]);
        assert_eq!(&out[8..16], &[0, 0x10, 0, 0, 0, 0, 0, 0]);
        let (_, inward) = exit(access(false))?;
        assert_eq!(inward[0], 0);
        assert_eq!(&inward[1..], &out[1..]);
        Ok(())
    }

    #[test]
    fn mmio() -> Result {
        let access = |write| UserExit::Mmio {
            gpa: Gpa::new(0x8_1234_5678),
            len: 8,
            write,
        };
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        let (reason, write) = exit(access(Some(data)))?;
        assert_eq!(reason, 6);
        assert_eq!(&write[..8], &[0x78, 0x56, 0x34, 0x12, 8, 0, 0, 0]);
        assert_eq!(&write[8..16], &data);
        assert_eq!(&write[16..21], &[8, 0, 0, 0, 1]);
        let (_, read) = exit(access(None))?;
        assert_eq!(&read[8..16], &[0; 8]);
        assert_eq!(&read[16..21], &[8, 0, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn memory_fault() -> Result {
        let (reason, fault) = exit(UserExit::MemoryFault {
            gpa: Gpa::new(0x8_1234_5000),
            right: Permissions::X,
        })?;
        assert_eq!(reason, 39);
        assert_eq!(&fault[..8], &[4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&fault[8..16], &[0, 0x50, 0x34, 0x12, 8, 0, 0, 0]);
        assert_eq!(&fault[16..], &[0, 0x10, 0, 0, 0, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn hardware_reasons() -> Result {
        let number = 0x8877_6655_4433_2211u64;
        let (reason, unknown) = exit(UserExit::Unknown(number))?;
        assert_eq!(reason, 0);
        assert_eq!(&unknown[..8], &number.to_le_bytes());
        let (reason, failed) = exit(UserExit::FailEntry(number))?;
        assert_eq!(reason, 9);
        assert_eq!(&failed[..8], &number.to_le_bytes());
        // The CPU.
        assert_eq!(&failed[8..12], &[4, 3, 2, 1]);
        Ok(())
    }

    #[test]
    fn internal_errors() -> Result {
        let data = [0x11, 0x22, 0x33, 0x44];
        let error = |ndata| UserExit::Internal {
            suberror: 3,
            data,
            ndata,
        };
        let (reason, two) = exit(error(2))?;
        assert_eq!(reason, 17);
        assert_eq!(&two[..8], &[3, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&two[8..16], &0x11u64.to_le_bytes());
        assert_eq!(&two[16..24], &0x22u64.to_le_bytes());
        let (_, one) = exit(error(1))?;
        assert_eq!(&one[4..8], &[1, 0, 0, 0]);
        assert_eq!(&one[16..24], &[0; 8]);
        Ok(())
    }

    /// Flags, then the instruction's length, then its bytes.
    #[test]
    fn emulation_failures_carry_the_instruction() -> Result {
        let pages = pages()?;
        let instruction: [u8; 15] = core::array::from_fn(|index| 0xa0 + index as u8);
        let exit = UserExit::Emulation {
            bytes: instruction,
            len: 7,
        };
        pages.set_exit(exit, 0);
        assert_eq!(bytes(&pages, REASON), 17u32.to_le_bytes());
        assert_eq!(bytes(&pages, EXIT), [1, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes(&pages, EXIT + 8), 1u64.to_le_bytes());
        assert_eq!(bytes(&pages, EXIT + 16), [7]);
        assert_eq!(bytes(&pages, EXIT + 17), instruction);
        Ok(())
    }

    #[test]
    fn every_return_reports() -> Result {
        let pages = pages()?;
        put(&pages, FLAGS, &[0xff; 2]);
        pages.begin();
        assert_eq!(bytes(&pages, FLAGS), [0, 0]);
        pages.finish(true, false, 0xb, 0xfee0_0900);
        assert_eq!(bytes(&pages, READY), [0]);
        assert_eq!(bytes(&pages, IF_FLAG), [1]);
        assert_eq!(bytes(&pages, CR8), 0xbu64.to_le_bytes());
        assert_eq!(bytes(&pages, APIC_BASE), 0xfee0_0900u64.to_le_bytes());
        pages.finish(false, true, 0, 0);
        assert_eq!(bytes(&pages, READY), [1]);
        assert_eq!(bytes(&pages, IF_FLAG), [0]);
        Ok(())
    }

    #[test]
    fn requests_are_read() -> Result {
        let pages = pages()?;
        let requests = || (pages.wants_interrupt_window(), pages.immediate_exit());
        assert_eq!(requests(), (false, false));
        put(&pages, 0, &[1]);
        assert_eq!(requests(), (true, false));
        put(&pages, 0, &[0]);
        put(&pages, IMMEDIATE_EXIT, &[0x80]);
        assert_eq!(requests(), (false, true));
        put(&pages, CR8, &[9]);
        assert_eq!(pages.cr8(), 9);
        assert_eq!(pages.sync_regs(), 0);
        put(&pages, VALID_REGS, &[1]);
        assert_eq!(pages.sync_regs(), 1);
        put(&pages, DIRTY_REGS + 7, &[0x80]);
        assert_eq!(pages.sync_regs(), 1 | 1 << 63);
        put(&pages, EXIT + 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(pages.mmio_data(), [1, 2, 3, 4, 5, 6, 7, 8]);
        Ok(())
    }

    #[test]
    fn port_data_stays_in_its_page() -> Result {
        let pages = pages()?;
        pages.put_pio(0, &[1, 2, 3]);
        let mut seen = [0xee; 4];
        pages.get_pio(1, &mut seen);
        assert_eq!(seen, [2, 3, 0, 0]);
        // What does not fit is dropped, on either side.
        pages.put_pio(PIO_BYTES - 2, &[4, 5, 6]);
        let mut seen = [0xee; 4];
        pages.get_pio(PIO_BYTES - 2, &mut seen);
        assert_eq!(seen, [4, 5, 0xee, 0xee]);
        let mut seen = [0xee; 4];
        pages.get_pio(PIO_BYTES, &mut seen);
        pages.get_pio(usize::MAX, &mut seen);
        pages.put_pio(usize::MAX, &[7]);
        assert_eq!(seen, [0xee; 4]);
        Ok(())
    }
}

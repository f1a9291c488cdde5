// SPDX-License-Identifier: GPL-2.0

//! The pages that a vCPU shares with its VMM: `struct kvm_run`, and the data of port I/O.
//!
//! User space may write them at any moment. Every read is one volatile load whose result is used
//! from then on; nothing is read twice.

use super::bindings::{self, kvm_run};
use super::file::NewArea;
use super::frame::Frame;
use crate::model::arch::addr::{Gpa, PAGE_SIZE};
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
    /// `KVM_EXIT_INTR`
    Intr,
    /// `KVM_EXIT_IRQ_WINDOW_OPEN`
    IrqWindowOpen,
    /// `KVM_EXIT_SET_TPR`: the guest has lowered CR8.
    SetTpr,
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
    pub fn new(node: i32) -> Result<Self> {
        let run = Frame::new(node)?;
        // INVARIANT: The frame stays where it is.
        Ok(Self {
            raw: run.as_ptr().cast(),
            run,
            pio: Frame::new(node)?,
        })
    }

    #[inline]
    fn raw(&self) -> *mut kvm_run {
        self.raw
    }

    /// Shows the pages in a mapping of the vCPU's file. What lies past them is a bus error.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn map(&self, area: &NewArea) -> Result {
        let first = area.page_offset();
        for (page, frame) in [&self.run, &self.pio].into_iter().enumerate() {
            if let Some(index) = page.checked_sub(first) {
                if index < area.pages() {
                    area.insert(index, frame)?;
                }
            }
        }
        Ok(())
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

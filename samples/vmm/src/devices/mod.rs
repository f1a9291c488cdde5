// SPDX-License-Identifier: GPL-2.0
//! The board: which device answers at which port and address.
//!
//! Devices are 8 bits wide; a wider access to them is split into bytes at rising ports, as the
//! bus of a PC does. What nobody claims reads as all ones and ignores writes; PCI's configuration
//! ports are among that, so firmware finds a board without PCI.

mod cmos;
mod fw_cfg;
mod i8042;
mod pic;
mod pit;

use std::io::{self, Write};

use vm_superio::{serial::NoEvents, Serial, Trigger};

use cmos::Cmos;
pub use fw_cfg::{e820_file, FwCfg, E820};
use i8042::{Line, I8042};
use pic::Pics;
use pit::Pit;

/// The guest writes a status byte here to end the run.
pub const EXIT_PORT: u16 = 0xf4;

const DEBUG_PORT: u16 = 0x402;
/// What the debug port reads as, so that firmware knows it is there.
const DEBUG_PORT_PRESENT: u8 = 0xe9;

/// The window of the VGA adapter's memory. No adapter draws it, but it keeps what is written.
pub const VGA_WINDOW: std::ops::Range<u64> = 0xa_0000..0xc_0000;

/// Moments that devices need; taken once for each exit.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Nanoseconds, monotonic.
    pub ns: u64,
    /// Seconds since 1970, UTC.
    pub unix: u64,
}

/// How the guest asked for the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A status byte was written to the exit port.
    Status(u8),
    /// The machine was reset, by the means named.
    Reset(&'static str),
}

/// The serial port's interrupt, which is not wired.
pub struct NotWired;

impl Trigger for NotWired {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

pub struct Board<S: Write, D: Write> {
    serial: Serial<NotWired, NoEvents, S>,
    debug: D,
    cmos: Cmos,
    pit: Pit,
    pics: Pics,
    keyboard: I8042,
    fw_cfg: FwCfg,
    post_code: u8,
    system_control_a: u8,
    vga: Vec<u8>,
}

impl<S: Write, D: Write> Board<S, D> {
    /// `memory`: the guest's RAM in bytes.
    pub fn new(serial: S, debug: D, memory: u64, fw_cfg: FwCfg) -> Self {
        Self {
            serial: Serial::new(NotWired, serial),
            debug,
            cmos: Cmos::new(memory),
            pit: Pit::new(),
            pics: Pics::new(),
            keyboard: I8042::new(),
            fw_cfg,
            post_code: 0,
            // A20 is on, and stays so.
            system_control_a: 2,
            vga: vec![0; (VGA_WINDOW.end - VGA_WINDOW.start) as usize],
        }
    }

    /// The last POST code that firmware showed on port 0x80.
    pub fn post_code(&self) -> u8 {
        self.post_code
    }

    /// One IN: fills `data`, which is 1, 2 or 4 bytes.
    pub fn port_read(&mut self, port: u16, data: &mut [u8], now: Now) {
        for (byte, port) in data.iter_mut().zip(port..=u16::MAX) {
            *byte = self.read_byte(port, now);
        }
    }

    /// One OUT of 1, 2 or 4 bytes.
    pub fn port_write(&mut self, port: u16, data: &[u8], now: Now) -> io::Result<Option<End>> {
        if let (0x510, &[low, high]) = (port, data) {
            self.fw_cfg.select(u16::from_le_bytes([low, high]));
            return Ok(None);
        }
        if (0xcf8..=0xcfb).contains(&port) && data.len() > 1 {
            // PCI's address register, which is absent; byte accesses there reach port 0xcf9.
            return Ok(None);
        }
        for (&byte, port) in data.iter().zip(port..=u16::MAX) {
            if let Some(end) = self.write_byte(port, byte, now)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    fn read_byte(&mut self, port: u16, now: Now) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pics.read(port),
            0x40..=0x42 => self.pit.read(usize::from(port - 0x40), now.ns),
            0x60 => self.keyboard.read(),
            0x61 => self.pit.read_control_b(now.ns),
            0x64 => self.keyboard.status(),
            0x71 => self.cmos.read(now.unix),
            0x80 => self.post_code,
            0x92 => self.system_control_a,
            0x3f8..=0x3ff => self.serial.read((port - 0x3f8) as u8),
            DEBUG_PORT => DEBUG_PORT_PRESENT,
            0x511 => self.fw_cfg.read(),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: Now) -> io::Result<Option<End>> {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pics.write(port, value),
            0x40..=0x43 => self.pit.write(usize::from(port - 0x40), value, now.ns),
            0x60 | 0x64 => {
                let line = if port == 0x60 {
                    self.keyboard.write(value)
                } else {
                    self.keyboard.command(value)
                };
                if line == Line::Reset {
                    return Ok(Some(End::Reset("keyboard controller")));
                }
            }
            0x61 => self.pit.write_control_b(value, now.ns),
            0x70 => self.cmos.select(value),
            0x71 => self.cmos.write(value),
            0x80 => self.post_code = value,
            0x92 => {
                self.system_control_a = value | 2;
                if value & 1 != 0 {
                    return Ok(Some(End::Reset("port 0x92")));
                }
            }
            EXIT_PORT => return Ok(Some(End::Status(value))),
            0x3f8..=0x3ff => self
                .serial
                .write((port - 0x3f8) as u8, value)
                .map_err(serial_error)?,
            DEBUG_PORT => self.debug.write_all(&[value])?,
            // Bit 2 resets, bit 1 alone chooses how.
            0xcf9 if value & 4 != 0 => return Ok(Some(End::Reset("port 0xcf9"))),
            _ => {}
        }
        Ok(None)
    }

    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        for (byte, address) in data.iter_mut().zip(address..) {
            *byte = if VGA_WINDOW.contains(&address) {
                self.vga[(address - VGA_WINDOW.start) as usize]
            } else {
                0xff
            };
        }
    }

    pub fn mmio_write(&mut self, address: u64, data: &[u8]) {
        for (&byte, address) in data.iter().zip(address..) {
            if VGA_WINDOW.contains(&address) {
                self.vga[(address - VGA_WINDOW.start) as usize] = byte;
            }
        }
    }

    /// Lets time pass for the interrupt timer.
    pub fn tick(&mut self, now: Now) {
        if self.pit.take_tick(now.ns) {
            self.pics.raise(0);
        }
    }

    pub fn interrupt_pending(&self) -> bool {
        self.pics.pending()
    }

    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.pics.acknowledge()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.serial.writer_mut().flush()?;
        self.debug.flush()
    }
}

fn serial_error(e: vm_superio::serial::Error<io::Error>) -> io::Error {
    use vm_superio::serial::Error;
    match e {
        Error::IOError(e) | Error::Trigger(e) => e,
        other => io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { ns: 0, unix: 0 };

    fn board() -> Board<Vec<u8>, Vec<u8>> {
        Board::new(Vec::new(), Vec::new(), 16 << 20, FwCfg::new(&[]))
    }

    fn read<const N: usize>(board: &mut Board<Vec<u8>, Vec<u8>>, port: u16) -> [u8; N] {
        let mut data = [0; N];
        board.port_read(port, &mut data, NOW);
        data
    }

    #[test]
    fn output_goes_to_its_own_stream() {
        let mut board = board();
        assert_eq!(board.port_write(0x3f8, b"s", NOW).unwrap(), None);
        assert_eq!(board.port_write(DEBUG_PORT, b"d", NOW).unwrap(), None);
        assert_eq!(board.serial.writer(), b"s");
        assert_eq!(board.debug, b"d");
        assert_eq!(read(&mut board, DEBUG_PORT), [0xe9]);
        // Line status: empty, idle.
        assert_eq!(read(&mut board, 0x3fd), [0x60]);
    }

    #[test]
    fn absent_devices_read_as_ones() {
        let mut board = board();
        assert_eq!(
            board.port_write(0xcf8, &[0, 4, 0, 0x80], NOW).unwrap(),
            None
        );
        assert_eq!(read(&mut board, 0xcf8), [0xff; 4]);
        assert_eq!(read(&mut board, 0xcfc), [0xff; 4]);
        // The last port has nothing after it.
        assert_eq!(read(&mut board, 0xffff), [0xff, 0, 0, 0]);
        let mut data = [0; 4];
        board.mmio_read(0xfed4_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn wide_accesses_reach_each_byte_port() {
        let mut board = board();
        // Index and data of the CMOS in one OUT.
        assert_eq!(board.port_write(0x70, &[0x0f, 0xa5], NOW).unwrap(), None);
        assert_eq!(read(&mut board, 0x71), [0xa5]);
        assert_eq!(board.port_write(0x510, &[0, 0], NOW).unwrap(), None);
        assert_eq!(read(&mut board, 0x511), *b"Q");
    }

    #[test]
    fn ways_to_end() {
        let mut board = board();
        for (port, value, end) in [
            (EXIT_PORT, 3, Some(End::Status(3))),
            (0xcf9, 0x02, None),
            (0xcf9, 0x06, Some(End::Reset("port 0xcf9"))),
            (0x92, 0x02, None),
            (0x92, 0x03, Some(End::Reset("port 0x92"))),
            (0x64, 0xfe, Some(End::Reset("keyboard controller"))),
        ] {
            assert_eq!(board.port_write(port, &[value], NOW).unwrap(), end);
        }
    }

    #[test]
    fn vga_window_keeps_what_is_written_up_to_its_edges() {
        let mut board = board();
        board.mmio_write(VGA_WINDOW.end - 2, &[1, 2, 3, 4]);
        let mut data = [0; 4];
        board.mmio_read(VGA_WINDOW.end - 2, &mut data);
        assert_eq!(data, [1, 2, 0xff, 0xff]);
    }

    #[test]
    fn the_timer_reaches_the_cpu_through_the_controller() {
        let mut board = board();
        let at = |ns| Now { ns, unix: 0 };
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x08),
            (0x21, 0x04),
            (0x21, 0x01),
            (0x21, 0xfe),
            (0x43, 0x34),
            (0x40, 0xe8),
            (0x40, 0x03),
        ] {
            assert_eq!(board.port_write(port, &[value], at(0)).unwrap(), None);
        }
        board.tick(at(800_000));
        assert!(!board.interrupt_pending());
        board.tick(at(900_000));
        assert_eq!(board.acknowledge_interrupt(), Some(0x08));
    }
}

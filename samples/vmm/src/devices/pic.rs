// SPDX-License-Identifier: GPL-2.0
//! The two 8259A interrupt controllers of a PC (ports 0x20, 0x21, 0xa0, 0xa1), edge-triggered,
//! fixed priority. Rotation, special mask mode and polling are not implemented.

/// The input of the first controller that the second is wired to.
const CASCADE: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Done,
    Base,
    Wiring,
    Mode,
}

#[derive(Debug)]
struct Chip {
    base: u8,
    mask: u8,
    requests: u8,
    in_service: u8,
    read_in_service: bool,
    auto_eoi: bool,
    init: Init,
    init_has_mode: bool,
    single: bool,
}

impl Chip {
    fn new() -> Self {
        Self {
            base: 0,
            // Until the guest sets it up, nothing comes through.
            mask: 0xff,
            requests: 0,
            in_service: 0,
            read_in_service: false,
            auto_eoi: false,
            init: Init::Done,
            init_has_mode: false,
            single: false,
        }
    }

    fn command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.mask = 0;
            self.requests = 0;
            self.in_service = 0;
            self.read_in_service = false;
            self.auto_eoi = false;
            self.init_has_mode = value & 1 != 0;
            self.single = value & 2 != 0;
            self.init = Init::Base;
        } else if value & 0x08 != 0 {
            match value & 3 {
                2 => self.read_in_service = false,
                3 => self.read_in_service = true,
                _ => {}
            }
        } else if value & 0x20 != 0 {
            let line = if value & 0x40 != 0 {
                u32::from(value & 7)
            } else {
                // The one of highest priority, if any.
                self.in_service.trailing_zeros()
            };
            self.in_service &= !(1u8.checked_shl(line).unwrap_or(0));
        }
    }

    fn data(&mut self, value: u8) {
        let after_wiring = if self.init_has_mode {
            Init::Mode
        } else {
            Init::Done
        };
        match self.init {
            Init::Done => self.mask = value,
            Init::Base => {
                self.base = value & 0xf8;
                self.init = if self.single {
                    after_wiring
                } else {
                    Init::Wiring
                };
            }
            Init::Wiring => self.init = after_wiring,
            Init::Mode => {
                self.auto_eoi = value & 2 != 0;
                self.init = Init::Done;
            }
        }
    }

    fn read_command(&self) -> u8 {
        if self.read_in_service {
            self.in_service
        } else {
            self.requests
        }
    }

    /// The line that would interrupt now: unmasked, and above everything in service.
    fn winner(&self) -> Option<u8> {
        let line = (self.requests & !self.mask).trailing_zeros();
        (line < 8 && line < self.in_service.trailing_zeros()).then_some(line as u8)
    }

    fn acknowledge(&mut self, line: u8) -> u8 {
        self.requests &= !(1 << line);
        if !self.auto_eoi {
            self.in_service |= 1 << line;
        }
        self.base + line
    }
}

#[derive(Debug)]
pub struct Pics {
    first: Chip,
    second: Chip,
}

impl Pics {
    pub fn new() -> Self {
        Self {
            first: Chip::new(),
            second: Chip::new(),
        }
    }

    pub fn read(&self, port: u16) -> u8 {
        match port {
            0x20 => self.first.read_command(),
            0x21 => self.first.mask,
            0xa0 => self.second.read_command(),
            0xa1 => self.second.mask,
            _ => 0xff,
        }
    }

    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.first.command(value),
            0x21 => self.first.data(value),
            0xa0 => self.second.command(value),
            0xa1 => self.second.data(value),
            _ => {}
        }
        self.cascade();
    }

    /// A rising edge on `line`, 0 to 15.
    pub fn raise(&mut self, line: u8) {
        if line < 8 {
            self.first.requests |= 1 << line;
        } else {
            self.second.requests |= 1 << (line - 8);
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        if self.second.winner().is_some() {
            self.first.requests |= 1 << CASCADE;
        } else {
            self.first.requests &= !(1 << CASCADE);
        }
    }

    pub fn pending(&self) -> bool {
        self.first.winner().is_some()
    }

    /// The vector of the interrupt that the CPU now takes.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let line = self.first.winner()?;
        let mut vector = self.first.acknowledge(line);
        if line == CASCADE {
            let line = self.second.winner()?;
            vector = self.second.acknowledge(line);
            self.cascade();
        }
        Some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PC firmware does: vectors 8 and 0x70, all lines masked but those in `open`.
    fn pics(open: u16) -> Pics {
        let mut pics = Pics::new();
        for (port, value) in [
            (0x20, 0x11),
            (0xa0, 0x11),
            (0x21, 0x08),
            (0xa1, 0x70),
            (0x21, 0x04),
            (0xa1, 0x02),
            (0x21, 0x01),
            (0xa1, 0x01),
            (0x21, !open as u8),
            (0xa1, (!open >> 8) as u8),
        ] {
            pics.write(port, value);
        }
        pics
    }

    #[test]
    fn quiet_before_it_is_set_up() {
        let mut pics = Pics::new();
        pics.raise(0);
        assert!(!pics.pending());
        assert_eq!(pics.acknowledge(), None);
    }

    #[test]
    fn timer_once_until_end_of_interrupt() {
        let mut pics = pics(0x0001);
        pics.raise(0);
        assert_eq!(pics.acknowledge(), Some(0x08));
        pics.raise(0);
        assert!(!pics.pending());
        pics.write(0x20, 0x20);
        assert_eq!(pics.acknowledge(), Some(0x08));
    }

    #[test]
    fn masked_lines_wait() {
        let mut pics = pics(0);
        assert_eq!(pics.read(0x21), 0xff);
        pics.raise(1);
        assert!(!pics.pending());
        pics.write(0x21, 0xfd);
        assert_eq!(pics.acknowledge(), Some(0x09));
    }

    #[test]
    fn lower_number_goes_first_and_nests() {
        let mut pics = pics(0x00ff);
        pics.raise(4);
        assert_eq!(pics.acknowledge(), Some(0x0c));
        pics.raise(5);
        assert!(!pics.pending());
        pics.raise(1);
        assert_eq!(pics.acknowledge(), Some(0x09));
        pics.write(0x20, 0x0b);
        assert_eq!(pics.read(0x20), 0b1_0010);
        // Ends the inner one.
        pics.write(0x20, 0x20);
        assert_eq!(pics.read(0x20), 0b1_0000);
        pics.write(0x20, 0x64);
        assert_eq!(pics.read(0x20), 0);
        assert_eq!(pics.acknowledge(), Some(0x0d));
    }

    #[test]
    fn second_chip_comes_through_the_first() {
        let mut pics = pics(0x0104);
        pics.raise(8);
        assert_eq!(pics.acknowledge(), Some(0x70));
        assert_eq!(pics.acknowledge(), None);
        pics.raise(8);
        assert!(!pics.pending());
        pics.write(0xa0, 0x20);
        pics.write(0x20, 0x20);
        assert_eq!(pics.acknowledge(), Some(0x70));
    }
}

// SPDX-License-Identifier: GPL-2.0
//! Keyboard controller (ports 0x60 and 0x64) with a keyboard on which nobody types.
//!
//! Enough for firmware to find it, test it and set it up; no mouse, no interrupts.

use std::collections::VecDeque;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUX: u8 = 1 << 5;

const CONTROL_SYSTEM: u8 = 1 << 2;
const CONTROL_KEYBOARD_OFF: u8 = 1 << 4;
const CONTROL_AUX_OFF: u8 = 1 << 5;

/// Output port: reset line not pulled, A20 on.
const OUTPUT_PORT: u8 = 0x03;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// What the next byte on port 0x60 is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keyboard,
    KeyboardParameter,
    Control,
    OutputPort,
    Aux,
}

#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Line {
    Quiet,
    /// The controller pulled the CPU's reset line.
    Reset,
}

#[derive(Debug)]
pub struct I8042 {
    output: VecDeque<(u8, bool)>,
    control: u8,
    next: Next,
    last_was_command: bool,
}

impl I8042 {
    pub fn new() -> Self {
        Self {
            output: VecDeque::new(),
            control: CONTROL_SYSTEM | CONTROL_KEYBOARD_OFF | CONTROL_AUX_OFF,
            next: Next::Keyboard,
            last_was_command: false,
        }
    }

    pub fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | (self.control & STATUS_SYSTEM);
        if let Some((_, aux)) = self.output.front() {
            status |= STATUS_OUTPUT_FULL | if *aux { STATUS_AUX } else { 0 };
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    pub fn read(&mut self) -> u8 {
        self.output.pop_front().map_or(0, |(byte, _)| byte)
    }

    pub fn command(&mut self, command: u8) -> Line {
        self.last_was_command = true;
        self.next = Next::Keyboard;
        match command {
            0x20 => self.answer(self.control),
            0x60 => self.next = Next::Control,
            0xa7 => self.control |= CONTROL_AUX_OFF,
            0xa8 => self.control &= !CONTROL_AUX_OFF,
            // Controller, then keyboard and mouse wires: passed.
            0xaa => self.answer(0x55),
            0xa9 | 0xab => self.answer(0x00),
            0xad => self.control |= CONTROL_KEYBOARD_OFF,
            0xae => self.control &= !CONTROL_KEYBOARD_OFF,
            0xd0 => self.answer(OUTPUT_PORT),
            0xd1 => self.next = Next::OutputPort,
            0xd4 => self.next = Next::Aux,
            // Pulses the output lines whose bit is 0; line 0 is reset.
            0xf0..=0xff if command & 1 == 0 => return Line::Reset,
            _ => {}
        }
        Line::Quiet
    }

    pub fn write(&mut self, byte: u8) -> Line {
        self.last_was_command = false;
        match std::mem::replace(&mut self.next, Next::Keyboard) {
            Next::Control => self.control = byte,
            // A20 stays on whatever is written.
            Next::OutputPort if byte & 1 == 0 => return Line::Reset,
            Next::OutputPort => {}
            // Nothing is plugged in there.
            Next::Aux => self.output.push_back((RESEND, true)),
            Next::KeyboardParameter => self.answer(ACK),
            Next::Keyboard => self.keyboard(byte),
        }
        Line::Quiet
    }

    fn keyboard(&mut self, command: u8) {
        match command {
            0xed | 0xf0 | 0xf3 => {
                self.next = Next::KeyboardParameter;
                self.answer(ACK);
            }
            0xee => self.answer(0xee),
            0xf2 => {
                self.answer(ACK);
                self.answer(0xab);
                self.answer(0x83);
            }
            0xf4..=0xf6 => self.answer(ACK),
            0xff => {
                self.answer(ACK);
                self.answer(0xaa);
            }
            _ => self.answer(RESEND),
        }
    }

    fn answer(&mut self, byte: u8) {
        self.output.push_back((byte, false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(kbd: &mut I8042) -> Vec<u8> {
        let mut bytes = Vec::new();
        while kbd.status() & STATUS_OUTPUT_FULL != 0 {
            bytes.push(kbd.read());
        }
        bytes
    }

    #[test]
    fn self_tests_pass() {
        let mut kbd = I8042::new();
        assert_eq!(kbd.command(0xaa), Line::Quiet);
        assert_eq!(kbd.command(0xab), Line::Quiet);
        assert_eq!(drain(&mut kbd), [0x55, 0x00]);
    }

    #[test]
    fn control_byte_reads_back() {
        let mut kbd = I8042::new();
        assert_eq!(kbd.command(0x60), Line::Quiet);
        assert_eq!(kbd.write(0x61), Line::Quiet);
        assert_eq!(kbd.command(0xa7), Line::Quiet);
        assert_eq!(kbd.command(0x20), Line::Quiet);
        assert_eq!(drain(&mut kbd), [0x61]);
        assert_eq!(kbd.command(0xa8), Line::Quiet);
        assert_eq!(kbd.command(0x20), Line::Quiet);
        assert_eq!(drain(&mut kbd), [0x41]);
    }

    #[test]
    fn keyboard_resets_and_takes_parameters() {
        let mut kbd = I8042::new();
        assert_eq!(kbd.write(0xff), Line::Quiet);
        assert_eq!(drain(&mut kbd), [ACK, 0xaa]);
        // 0xff is a parameter here, not a reset.
        assert_eq!(kbd.write(0xf0), Line::Quiet);
        assert_eq!(kbd.write(0xff), Line::Quiet);
        assert_eq!(drain(&mut kbd), [ACK, ACK]);
        assert_eq!(kbd.write(0x00), Line::Quiet);
        assert_eq!(drain(&mut kbd), [RESEND]);
    }

    #[test]
    fn mouse_bytes_are_marked() {
        let mut kbd = I8042::new();
        assert_eq!(kbd.command(0xd4), Line::Quiet);
        assert_eq!(kbd.write(0xff), Line::Quiet);
        assert_ne!(kbd.status() & STATUS_AUX, 0);
        assert_eq!(drain(&mut kbd), [RESEND]);
        assert_eq!(kbd.status() & STATUS_AUX, 0);
    }

    #[test]
    fn pulse_of_line_0_resets() {
        let mut kbd = I8042::new();
        assert_eq!(kbd.command(0xfd), Line::Quiet);
        assert_eq!(kbd.command(0xfe), Line::Reset);
        assert_eq!(kbd.command(0xd1), Line::Quiet);
        assert_eq!(kbd.write(0x02), Line::Reset);
    }
}

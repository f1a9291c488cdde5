// SPDX-License-Identifier: GPL-2.0
//! MC146818 real-time clock and the CMOS memory behind it (ports 0x70 and 0x71).
//!
//! The clock follows the host and cannot be set. Periodic and alarm interrupts do not exist here:
//! register C always reads 0.

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const B_24_HOURS: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;

/// Bits 3..0 of 0x3d: first boot device, bits 7..4: second. 1 is floppy, 2 hard disk, 3 CD.
const BOOT_ORDER: u8 = 0x3d;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[derive(Debug)]
pub struct Cmos {
    index: u8,
    data: [u8; 128],
}

impl Cmos {
    /// `memory` is the guest's RAM in bytes, all of it below 4 GiB.
    pub fn new(memory: u64) -> Self {
        let mut data = [0; 128];
        data[usize::from(STATUS_A)] = 0x26;
        data[usize::from(STATUS_B)] = B_24_HOURS;
        // The RAM and time are valid.
        data[usize::from(STATUS_D)] = 0x80;
        data[usize::from(BOOT_ORDER)] = 0x12;

        let mut word = |at: usize, value: u64| {
            data[at..at + 2].copy_from_slice(&(value.min(0xffff) as u16).to_le_bytes());
        };
        word(0x15, 640);
        // KiB above 1 MiB, twice: as the board says and as the BIOS found.
        let extended = memory.saturating_sub(MIB) / KIB;
        word(0x17, extended);
        word(0x30, extended);
        // 64 KiB units above 16 MiB.
        word(0x34, memory.saturating_sub(16 * MIB) / (64 * KIB));
        Self { index: 0, data }
    }

    pub fn select(&mut self, value: u8) {
        // Bit 7 masks NMI, of which there are none.
        self.index = value & 0x7f;
    }

    pub fn write(&mut self, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | STATUS_C | STATUS_D | CENTURY => {}
            index => self.data[usize::from(index)] = value,
        }
    }

    /// `now`: seconds since 1970, UTC.
    pub fn read(&self, now: u64) -> u8 {
        let t = Time::from_unix(now);
        match self.index {
            SECONDS => self.number(t.second),
            MINUTES => self.number(t.minute),
            HOURS => self.hour(t.hour),
            WEEKDAY => self.number(t.weekday),
            DAY => self.number(t.day),
            MONTH => self.number(t.month),
            YEAR => self.number((t.year % 100) as u8),
            CENTURY => self.number((t.year / 100) as u8),
            // Never "update in progress": a read is a whole moment.
            STATUS_A => self.data[usize::from(STATUS_A)] & 0x7f,
            STATUS_C => 0,
            index => self.data[usize::from(index)],
        }
    }

    fn number(&self, n: u8) -> u8 {
        if self.data[usize::from(STATUS_B)] & B_BINARY != 0 {
            n
        } else {
            ((n / 10) << 4) | (n % 10)
        }
    }

    fn hour(&self, hour: u8) -> u8 {
        if self.data[usize::from(STATUS_B)] & B_24_HOURS != 0 {
            return self.number(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.number((hour + 11) % 12 + 1) | afternoon
    }
}

struct Time {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Time {
    fn from_unix(now: u64) -> Self {
        let (days, rest) = (now / 86_400, now % 86_400);
        let leap = |y: u64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
        let mut year = 1970;
        let mut left = days;
        loop {
            let length = if leap(year) { 366 } else { 365 };
            if left < length {
                break;
            }
            left -= length;
            year += 1;
        }
        let february = if leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if left < length {
                break;
            }
            left -= length;
            month += 1;
        }
        Self {
            year,
            month,
            day: left as u8 + 1,
            // 1 January 1970 was a Thursday.
            weekday: ((days + 4) % 7) as u8 + 1,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cmos: &mut Cmos, index: u8, now: u64) -> u8 {
        cmos.select(index | 0x80);
        cmos.read(now)
    }

    fn set(cmos: &mut Cmos, index: u8, value: u8) {
        cmos.select(index);
        cmos.write(value);
    }

    fn word(cmos: &mut Cmos, index: u8) -> u16 {
        u16::from_le_bytes([get(cmos, index, 0), get(cmos, index + 1, 0)])
    }

    #[test]
    fn date_in_bcd() {
        let mut cmos = Cmos::new(0);
        // 29 February 2024 23:59:58 UTC, a Thursday.
        let now = 1_709_251_198;
        let got = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
            .map(|i| get(&mut cmos, i, now));
        assert_eq!(got, [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]);
        // Two seconds later it is March.
        let got = [MONTH, DAY, HOURS].map(|i| get(&mut cmos, i, now + 2));
        assert_eq!(got, [0x03, 0x01, 0x00]);
    }

    #[test]
    fn last_day_of_a_leap_year() {
        let mut cmos = Cmos::new(0);
        let got = [YEAR, MONTH, DAY].map(|i| get(&mut cmos, i, 1_735_603_200));
        assert_eq!(got, [0x24, 0x12, 0x31]);
    }

    #[test]
    fn binary_and_twelve_hours() {
        let mut cmos = Cmos::new(0);
        let at = |hour: u64| hour * 3600 + 45 * 60;
        set(&mut cmos, STATUS_B, B_BINARY | B_24_HOURS);
        assert_eq!(get(&mut cmos, HOURS, at(15)), 15);
        assert_eq!(get(&mut cmos, MINUTES, at(15)), 45);
        set(&mut cmos, STATUS_B, B_BINARY);
        assert_eq!(get(&mut cmos, HOURS, at(15)), 0x83);
        assert_eq!(get(&mut cmos, HOURS, at(12)), 0x8c);
        assert_eq!(get(&mut cmos, HOURS, at(0)), 12);
    }

    #[test]
    fn the_clock_cannot_be_set_but_memory_can() {
        let mut cmos = Cmos::new(0);
        set(&mut cmos, YEAR, 0x99);
        set(&mut cmos, 0x0f, 0x05);
        assert_eq!(get(&mut cmos, YEAR, 0), 0x70);
        assert_eq!(get(&mut cmos, 0x0f, 0), 0x05);
    }

    #[test]
    fn memory_size() {
        let mut cmos = Cmos::new(8 * MIB);
        assert_eq!(word(&mut cmos, 0x15), 640);
        assert_eq!(word(&mut cmos, 0x30), 7 * 1024);
        assert_eq!(word(&mut cmos, 0x34), 0);
        let mut cmos = Cmos::new(512 * MIB);
        assert_eq!(word(&mut cmos, 0x17), 0xffff);
        assert_eq!(
            u64::from(word(&mut cmos, 0x34)) * 64 * KIB + 16 * MIB,
            512 * MIB
        );
    }
}

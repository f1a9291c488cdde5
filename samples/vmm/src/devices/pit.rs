// SPDX-License-Identifier: GPL-2.0
//! Intel 8254 programmable interval timer, channels 0 to 2, and port 0x61's view of channel 2.
//!
//! There is no ticking thread: every question is answered from the time that has passed since the
//! count was loaded. Time is an argument (nanoseconds, monotonic), so that tests choose it.

/// Input clock of the counters in Hz.
const CLOCK_HZ: u128 = 1_193_182;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    Word,
}

/// A byte of a value that is read or written low byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

#[derive(Debug)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// The count in clock pulses, 1 to 65536 (10000 in BCD). `None` until one is written.
    count: Option<u32>,
    /// When counting began; the count is not loaded in modes 1 and 5 until the gate rises.
    start: Option<u64>,
    /// Pulses that passed before the gate stopped the counter.
    held: u64,
    write_low: u8,
    write_half: Half,
    read_half: Half,
    latch: Option<u16>,
    status: Option<u8>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Word,
            gate,
            count: None,
            start: None,
            held: 0,
            write_low: 0,
            write_half: Half::Low,
            read_half: Half::Low,
            latch: None,
            status: None,
        }
    }

    fn control(&mut self, value: u8) {
        self.access = match (value >> 4) & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Word,
        };
        // Modes 6 and 7 are 2 and 3: the top bit is not decoded.
        self.mode = match (value >> 1) & 7 {
            m @ 0..=5 => m,
            m => m - 4,
        };
        self.bcd = value & 1 != 0;
        self.count = None;
        self.start = None;
        self.held = 0;
        self.write_half = Half::Low;
        self.read_half = Half::Low;
        self.latch = None;
        self.status = None;
    }

    /// Whether the counter waits for a rising gate instead of starting when it is loaded.
    fn triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    fn load(&mut self, raw: u16, now: u64) {
        let count = match (raw, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (n, false) => u32::from(n),
            (n, true) => u32::from(from_bcd(n)),
        };
        self.count = Some(count);
        self.held = 0;
        if !self.triggered() {
            self.start = self.gate.then_some(now);
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.write_half) {
            (Access::Low, _) => self.load(u16::from(value), now),
            (Access::High, _) => self.load(u16::from(value) << 8, now),
            (Access::Word, Half::Low) => {
                self.write_low = value;
                self.write_half = Half::High;
            }
            (Access::Word, Half::High) => {
                self.write_half = Half::Low;
                self.load(u16::from_le_bytes([self.write_low, value]), now);
            }
        }
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        match (self.mode, gate) {
            // The gate only pauses the count.
            (0 | 4, false) => {
                self.held = self.pulses(now);
                self.start = None;
            }
            (0 | 4, true) => self.start = self.count.map(|_| now),
            // A rising gate begins the count afresh; one-shots ignore a falling one.
            (_, true) => {
                self.held = 0;
                self.start = self.count.map(|_| now);
            }
            (2 | 3, false) => self.start = None,
            _ => {}
        }
        self.gate = gate;
    }

    /// Clock pulses counted so far.
    fn pulses(&self, now: u64) -> u64 {
        let passed = self.start.map_or(0, |start| {
            (u128::from(now.saturating_sub(start)) * CLOCK_HZ / 1_000_000_000) as u64
        });
        self.held + passed
    }

    fn value(&self, now: u64) -> u16 {
        let Some(count) = self.count else { return 0 };
        let pulses = self.pulses(now);
        let period = u64::from(count);
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let left = match self.mode {
            2 => period - pulses % period,
            // Counts by two, twice in a period.
            3 => period - (2 * pulses) % period,
            // Goes on below zero after the terminal count.
            _ => (period + wrap - pulses % wrap) % wrap,
        };
        let left = (left % wrap) as u16;
        if self.bcd {
            to_bcd(left)
        } else {
            left
        }
    }

    fn output(&self, now: u64) -> bool {
        let Some(count) = self.count else {
            // Only mode 0 starts low.
            return self.mode != 0;
        };
        let period = u64::from(count);
        let pulses = self.pulses(now);
        match self.mode {
            0 => pulses >= period,
            1 => self.start.is_none() || pulses >= period,
            2 => self.start.is_none() || pulses % period != period - 1,
            3 => self.start.is_none() || pulses % period < period.div_ceil(2),
            _ => self.start.is_none() || pulses != period,
        }
    }

    /// How often the output rose since the count was loaded.
    fn edges(&self, now: u64) -> u64 {
        let Some(count) = self.count else { return 0 };
        let pulses = self.pulses(now);
        match self.mode {
            2 | 3 => pulses / u64::from(count),
            _ => u64::from(pulses >= u64::from(count)),
        }
    }

    fn latch_count(&mut self, now: u64) {
        // A second latch command before the value is read changes nothing.
        if self.latch.is_none() {
            self.latch = Some(self.value(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Word => 3,
        };
        self.status.get_or_insert(
            u8::from(self.output(now)) << 7
                | u8::from(self.count.is_none()) << 6
                | access << 4
                | self.mode << 1
                | u8::from(self.bcd),
        );
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latch.unwrap_or_else(|| self.value(now)).to_le_bytes();
        match (self.access, self.read_half) {
            (Access::Low, _) => {
                self.latch = None;
                low
            }
            (Access::High, _) => {
                self.latch = None;
                high
            }
            (Access::Word, Half::Low) => {
                self.read_half = Half::High;
                low
            }
            (Access::Word, Half::High) => {
                self.read_half = Half::Low;
                self.latch = None;
                high
            }
        }
    }
}

fn from_bcd(n: u16) -> u16 {
    (0..4)
        .rev()
        .fold(0, |sum, i| sum * 10 + ((n >> (4 * i)) & 0xf))
}

fn to_bcd(n: u16) -> u16 {
    (0..4).fold(0, |sum, i| sum | ((n / 10u16.pow(i)) % 10) << (4 * i))
}

#[derive(Debug)]
pub struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    /// Rising edges of channel 0 that `take_tick` has reported.
    ticks_taken: u64,
}

impl Pit {
    pub fn new() -> Self {
        Self {
            // The gates of channels 0 and 1 are wired high; port 0x61 drives channel 2's.
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            ticks_taken: 0,
        }
    }

    /// Ports 0x40 to 0x42; the control port 0x43 cannot be read.
    pub fn read(&mut self, index: usize, now: u64) -> u8 {
        self.channels.get_mut(index).map_or(0xff, |c| c.read(now))
    }

    /// Ports 0x40 to 0x43.
    pub fn write(&mut self, index: usize, value: u8, now: u64) {
        if let Some(channel) = self.channels.get_mut(index) {
            channel.write(value, now);
            if index == 0 {
                self.ticks_taken = 0;
            }
            return;
        }
        let select = usize::from(value >> 6);
        if select == 3 {
            // Read-back: bits are active low.
            for (i, channel) in self.channels.iter_mut().enumerate() {
                if value & (2 << i) != 0 {
                    if value & 0x20 == 0 {
                        channel.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
        } else if value & 0x30 == 0 {
            self.channels[select].latch_count(now);
        } else {
            self.channels[select].control(value);
            if select == 0 {
                self.ticks_taken = 0;
            }
        }
    }

    /// Port 0x61: gate and speaker as written, channel 2's output, the DRAM refresh toggle.
    pub fn read_control_b(&self, now: u64) -> u8 {
        let refresh = (now / 15_085) & 1;
        u8::from(self.channels[2].gate)
            | u8::from(self.speaker) << 1
            | (refresh as u8) << 4
            | u8::from(self.channels[2].output(now)) << 5
    }

    pub fn write_control_b(&mut self, value: u8, now: u64) {
        self.channels[2].set_gate(value & 1 != 0, now);
        self.speaker = value & 2 != 0;
    }

    /// Whether channel 0 has ticked since the last call. Ticks that were missed count once, as an
    /// interrupt line that is already pending would have them.
    pub fn take_tick(&mut self, now: u64) -> bool {
        let edges = self.channels[0].edges(now);
        let ticked = edges > self.ticks_taken;
        self.ticks_taken = edges;
        ticked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first nanosecond at which `pulses` clock pulses have passed.
    fn after(pulses: u64) -> u64 {
        (u128::from(pulses) * 1_000_000_000).div_ceil(CLOCK_HZ) as u64
    }

    fn read_word(pit: &mut Pit, index: usize, now: u64) -> u16 {
        u16::from_le_bytes([pit.read(index, now), pit.read(index, now)])
    }

    #[test]
    fn tsc_calibration_sees_channel_2_rise_after_its_count() {
        let mut pit = Pit::new();
        pit.write_control_b(1, 0);
        pit.write(3, 0b1011_0000, 0);
        assert_eq!(pit.read_control_b(0) & 0x20, 0);
        pit.write(2, 0x00, 1_000);
        pit.write(2, 0x08, 1_000);
        assert_eq!(pit.read_control_b(1_000 + after(0x7ff)) & 0x21, 0x01);
        assert_eq!(pit.read_control_b(1_000 + after(0x800)) & 0x21, 0x21);
        // 2048 pulses of 838 ns.
        assert_eq!(after(0x800), 1_716_419);
    }

    #[test]
    fn gate_pauses_mode_0() {
        let mut pit = Pit::new();
        pit.write_control_b(1, 0);
        pit.write(3, 0b1011_0000, 0);
        pit.write(2, 100, 0);
        pit.write(2, 0, 0);
        pit.write_control_b(0, after(60));
        assert_eq!(pit.read_control_b(after(1_000)) & 0x20, 0);
        pit.write_control_b(1, after(1_000));
        assert_eq!(pit.read_control_b(after(1_039)) & 0x20, 0);
        assert_eq!(pit.read_control_b(after(1_041)) & 0x20, 0x20);
    }

    #[test]
    fn rate_generator_counts_down_and_reloads() {
        let mut pit = Pit::new();
        pit.write(3, 0b0011_0100, 0);
        pit.write(0, 0xe8, 0);
        pit.write(0, 0x03, 0);
        assert_eq!(read_word(&mut pit, 0, after(1)), 999);
        assert_eq!(read_word(&mut pit, 0, after(999)), 1);
        assert_eq!(read_word(&mut pit, 0, after(1_000)), 1_000);
        assert!(pit.take_tick(after(1_000)));
        assert!(!pit.take_tick(after(1_999)));
        // Three periods later there is still one pending tick, not three.
        assert!(pit.take_tick(after(4_000)));
        assert!(!pit.take_tick(after(4_001)));
    }

    #[test]
    fn a_count_of_zero_is_the_longest() {
        let mut pit = Pit::new();
        pit.write(3, 0b0011_0100, 0);
        pit.write(0, 0, 0);
        pit.write(0, 0, 0);
        assert!(!pit.take_tick(after(0xffff)));
        assert!(pit.take_tick(after(0x1_0000)));
        // 18.2 times a second.
        assert_eq!(1_000_000_000_000 / after(0x1_0000), 18_206);
    }

    #[test]
    fn square_wave_halves() {
        let mut pit = Pit::new();
        pit.write_control_b(1, 0);
        pit.write(3, 0b1011_0110, 0);
        pit.write(2, 10, 0);
        pit.write(2, 0, 0);
        let wave: Vec<u8> = (0..20)
            .map(|i| pit.read_control_b(after(i)) >> 5 & 1)
            .collect();
        assert_eq!(wave, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0].repeat(2));
    }

    #[test]
    fn latch_holds_both_bytes_of_one_moment() {
        let mut pit = Pit::new();
        pit.write(3, 0b0011_0100, 0);
        pit.write(0, 0, 0);
        pit.write(0, 0x10, 0);
        pit.write(3, 0, after(1));
        assert_eq!(pit.read(0, after(1)), 0xff);
        assert_eq!(pit.read(0, after(0x300)), 0x0f);
        assert_eq!(read_word(&mut pit, 0, after(0x300)), 0x0d00);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let mut pit = Pit::new();
        pit.write(3, 0b0011_0100, 0);
        assert_eq!(
            {
                pit.write(3, 0b1110_0010, 0);
                pit.read(0, 0)
            },
            0b1111_0100
        );
        pit.write(0, 0x34, 0);
        pit.write(0, 0x12, 0);
        pit.write(3, 0b1100_0010, 0);
        assert_eq!(pit.read(0, 0), 0b1011_0100);
        assert_eq!(read_word(&mut pit, 0, after(7)), 0x1234);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut pit = Pit::new();
        pit.write(3, 0b0011_0001, 0);
        pit.write(0, 0x00, 0);
        pit.write(0, 0x10, 0);
        assert_eq!(read_word(&mut pit, 0, after(1)), 0x0999);
        assert_eq!(read_word(&mut pit, 0, after(1_001)), 0x9999);
    }
}

// SPDX-License-Identifier: GPL-2.0
//! A VM's memory as a map in the terminal.

use clap::{Args, ValueEnum};

use crate::files::{Slot, Stretch};

#[derive(Args)]
pub struct Style {
    /// Characters in a line
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=512))]
    width: u16,
    /// Bytes that a character stands for: a power of two, at least 4096; by default so many that
    /// a slot has at most 16 lines
    #[arg(long, value_parser = crate::number)]
    scale: Option<u64>,
    /// What the characters say
    #[arg(long, value_enum, default_value_t = What::Pages)]
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// How pages are mapped
    Pages,
    /// On which NUMA node they are
    Node,
}

const LINES: u64 = 16;
const PAGE: u64 = 4096;

/// The letter of a page, and how much it says: of several in a cell the one that says most is shown.
fn letter(stretch: &Stretch, what: What) -> (u8, char) {
    if what == What::Node {
        return (1, stretch.node.chars().last().unwrap_or('-'));
    }
    let has = |flag| stretch.flags.contains(flag);
    let large = stretch.page > PAGE;
    match stretch.kind.as_str() {
        "zero" => (2, '0'),
        "shared" | "ksm" | "cow" => (6, if large { 'S' } else { 's' }),
        _ if !has('w') && !has('t') => (5, if large { 'R' } else { 'r' }),
        _ if has('t') => (4, if large { 'T' } else { 't' }),
        _ if has('d') => (3, if large { 'D' } else { 'd' }),
        _ => (1, if large { 'L' } else { 'o' }),
    }
}

/// Bytes of a cell for a slot.
fn scale(slot: &Slot, style: &Style) -> u64 {
    let cells = u64::from(style.width) * LINES;
    let wanted = slot.size.div_ceil(cells).max(PAGE).next_power_of_two();
    style
        .scale
        .map_or(wanted, |scale| scale.max(PAGE).next_power_of_two())
}

/// The cells of a slot.
fn cells(slot: &Slot, stretches: &[Stretch], style: &Style, scale: u64) -> Vec<char> {
    let mut cells = vec![(0, '.'); slot.size.div_ceil(scale) as usize];
    for stretch in stretches {
        let start = stretch.gpa.max(slot.gpa);
        let end = (stretch.gpa + stretch.bytes()).min(slot.gpa + slot.size);
        if start >= end {
            continue;
        }
        let shown = letter(stretch, style.what);
        let first = ((start - slot.gpa) / scale) as usize;
        let last = ((end - 1 - slot.gpa) / scale) as usize;
        for cell in cells.iter_mut().take(last + 1).skip(first) {
            *cell = (*cell).max(shown);
        }
    }
    cells.into_iter().map(|(_, letter)| letter).collect()
}

/// Prints the map.
pub fn draw(slots: &[Slot], stretches: &[Stretch], style: &Style) {
    for slot in slots {
        let scale = scale(slot, style);
        println!(
            "slot {}: {:#x} to {:#x}, {} KiB in a character",
            slot.id,
            slot.gpa,
            slot.gpa + slot.size - 1,
            scale >> 10
        );
        let cells = cells(slot, stretches, style, scale);
        for (number, line) in cells.chunks(style.width.into()).enumerate() {
            let at = slot.gpa + number as u64 * u64::from(style.width) * scale;
            println!("{at:#14x} {}", line.iter().collect::<String>());
        }
    }
    match style.what {
        What::Pages => println!(
            "not mapped .  not written o  written d  read-only r  waits for a write t  shared s  \
             zeroes 0; capitals: large pages"
        ),
        What::Node => println!("not mapped .  else the node's last digit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(gpa: u64, count: u64, page: u64, flags: &str, kind: &str) -> Stretch {
        Stretch {
            gpa,
            hpa: 0,
            count,
            page,
            flags: flags.into(),
            kind: kind.into(),
            node: "1".into(),
        }
    }

    fn text(stretches: &[Stretch], scale: u64, what: What) -> String {
        let slot = Slot {
            id: 0,
            gpa: 0x10_0000,
            size: 8 * PAGE,
            hva: 0,
        };
        let style = Style {
            width: 64,
            scale: None,
            what,
        };
        cells(&slot, stretches, &style, scale).into_iter().collect()
    }

    #[test]
    fn each_page_has_its_letter() {
        let at = |page: u64| 0x10_0000 + page * PAGE;
        let pages = [
            stretch(at(0), 1, PAGE, "rwxa-", "private"),
            stretch(at(1), 2, PAGE, "rwxad", "private"),
            stretch(at(3), 1, PAGE, "r-xa-", "private"),
            stretch(at(5), 1, PAGE, "rwxa-", "shared"),
            stretch(at(6), 1, PAGE, "r-xa-", "zero"),
            // Behind the slot, and before it.
            stretch(at(8), 4, PAGE, "rwxad", "private"),
            stretch(0, 4, PAGE, "rwxad", "private"),
        ];
        assert_eq!(text(&pages, PAGE, What::Pages), "oddr.s0.");
        assert_eq!(text(&pages, 4 * PAGE, What::Pages), "rs");
        assert_eq!(text(&pages, PAGE, What::Node), "1111.11.");
        let large = [stretch(0, 1, 2 << 20, "rwxad", "private")];
        assert_eq!(text(&large, PAGE, What::Pages), "DDDDDDDD");
        let huge = [stretch(0, 1, 1 << 30, "r-xa-", "private")];
        assert_eq!(text(&huge, PAGE, What::Pages), "RRRRRRRR");
    }

    #[test]
    fn a_slot_has_few_lines() {
        let style = Style {
            width: 64,
            scale: None,
            what: What::Pages,
        };
        for size in [PAGE, 1 << 20, 3 << 30, 1 << 40] {
            let slot = Slot {
                id: 0,
                gpa: 0,
                size,
                hva: 0,
            };
            let scale = scale(&slot, &style);
            assert!(size.div_ceil(scale).div_ceil(64) <= LINES, "{size:#x}");
        }
    }
}

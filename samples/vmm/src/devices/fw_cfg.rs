// SPDX-License-Identifier: GPL-2.0
//! fw_cfg: how a VMM hands settings and files to firmware (ports 0x510 and 0x511).
//!
//! A 16-bit write to 0x510 selects an item, each byte read from 0x511 is the next byte of it.
//! The DMA interface is not offered (the interface number says so), which makes firmware fetch
//! files with `rep insb`.

use std::collections::BTreeMap;

const SIGNATURE: u16 = 0x00;
const INTERFACE: u16 = 0x01;
const CPUS: u16 = 0x05;
const BOOT_MENU: u16 = 0x0e;
const MAX_CPUS: u16 = 0x0f;
const FILE_DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;

const NAME_LENGTH: usize = 56;

/// What a range of guest-physical addresses holds, with the numbers of the BIOS memory map.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum E820 {
    Ram = 1,
    Reserved = 2,
}

/// The file `etc/e820`: 20 bytes for each range.
pub fn e820_file(ranges: &[(u64, u64, E820)]) -> Vec<u8> {
    let mut file = Vec::with_capacity(20 * ranges.len());
    for &(start, length, kind) in ranges {
        file.extend(start.to_le_bytes());
        file.extend(length.to_le_bytes());
        file.extend((kind as u32).to_le_bytes());
    }
    file
}

#[derive(Debug)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    selected: u16,
    offset: usize,
}

impl FwCfg {
    /// One CPU, no boot menu, and `files` in the directory.
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let mut items = BTreeMap::from([
            (SIGNATURE, b"QEMU".to_vec()),
            // Bit 0: this interface; bit 1 would be DMA.
            (INTERFACE, 1u32.to_le_bytes().to_vec()),
            (CPUS, 1u16.to_le_bytes().to_vec()),
            (MAX_CPUS, 1u16.to_le_bytes().to_vec()),
            // A menu would wait for a key for seconds, counted in timer interrupts.
            (BOOT_MENU, 0u16.to_le_bytes().to_vec()),
        ]);

        // Unlike the items, the directory is big-endian.
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        for (select, (name, content)) in (FIRST_FILE..).zip(files) {
            assert!(name.len() < NAME_LENGTH, "file name {name} is too long");
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(select.to_be_bytes());
            directory.extend([0; 2]);
            let mut padded = [0; NAME_LENGTH];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(padded);
            items.insert(select, content.clone());
        }
        items.insert(FILE_DIRECTORY, directory);

        Self {
            items,
            selected: SIGNATURE,
            offset: 0,
        }
    }

    pub fn select(&mut self, item: u16) {
        self.selected = item;
        self.offset = 0;
    }

    /// The next byte; 0 after the end and for items that do not exist.
    pub fn read(&mut self) -> u8 {
        let byte = self
            .items
            .get(&self.selected)
            .and_then(|item| item.get(self.offset))
            .copied()
            .unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(cfg: &mut FwCfg) -> [u8; N] {
        std::array::from_fn(|_| cfg.read())
    }

    #[test]
    fn signature_can_be_read_again_after_select() {
        let mut cfg = FwCfg::new(&[]);
        assert_eq!(&read::<4>(&mut cfg), b"QEMU");
        assert_eq!(read::<2>(&mut cfg), [0, 0]);
        cfg.select(SIGNATURE);
        assert_eq!(&read::<4>(&mut cfg), b"QEMU");
    }

    #[test]
    fn interface_has_no_dma() {
        let mut cfg = FwCfg::new(&[]);
        cfg.select(INTERFACE);
        assert_eq!(u32::from_le_bytes(read(&mut cfg)), 1);
    }

    #[test]
    fn unknown_items_are_empty() {
        let mut cfg = FwCfg::new(&[]);
        cfg.select(0x8002);
        assert_eq!(read::<3>(&mut cfg), [0; 3]);
    }

    #[test]
    fn a_file_is_found_through_the_directory() {
        let map = e820_file(&[
            (0, 0x10_0000, E820::Ram),
            (0xffff_0000, 0x1_0000, E820::Reserved),
        ]);
        let mut cfg = FwCfg::new(&[("etc/first", vec![7; 3]), ("etc/e820", map.clone())]);
        cfg.select(FILE_DIRECTORY);
        let count = u32::from_be_bytes(read(&mut cfg));
        let mut found = None;
        for _ in 0..count {
            let size = u32::from_be_bytes(read(&mut cfg));
            let select = u16::from_be_bytes(read(&mut cfg));
            read::<2>(&mut cfg);
            let name = read::<NAME_LENGTH>(&mut cfg);
            if name.starts_with(b"etc/e820\0") {
                found = Some((size, select));
            }
        }
        let (size, select) = found.expect("etc/e820 is in the directory");
        assert_eq!(size, 40);
        cfg.select(select);
        let content: Vec<u8> = (0..size).map(|_| cfg.read()).collect();
        assert_eq!(content, map);
        assert_eq!(
            &content[20..],
            b"\0\0\xff\xff\0\0\0\0\0\0\x01\0\0\0\0\0\x02\0\0\0"
        );
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The statistics file, read back as user space reads it.

use rusthv_model::stats::*;

fn file(id: &[u8], stats: &[Stat]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let done: Result<(), ()> = write(id, stats, |piece| {
        bytes.extend(piece);
        Ok(())
    });
    done.unwrap();
    bytes
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap();
    std::str::from_utf8(&bytes[..end]).unwrap()
}

#[test]
fn everything_is_where_the_header_says() {
    let stats = [
        Stat("exits", Kind::Cumulative, 7),
        Stat("pages_4k", Kind::Instant, u64::MAX),
        Stat("last", Kind::Cumulative, 0x1234_5678_9abc_def0),
    ];
    let bytes = file(b"somebody-1", &stats);
    let [flags, name_size, count, id, descriptors, data] =
        [0, 4, 8, 12, 16, 20].map(|at| word(&bytes, at));
    assert_eq!((flags, name_size, count), (0, NAME_SIZE, stats.len()));
    assert_eq!(text(&bytes[id..][..name_size]), "somebody-1");
    assert_eq!(bytes.len(), data + stats.len() * 8);
    for (index, Stat(name, kind, value)) in stats.iter().enumerate() {
        let one = &bytes[descriptors + index * (16 + name_size)..][..16 + name_size];
        assert_eq!(word(one, 0), usize::from(*kind == Kind::Instant));
        // Exponent and number of values.
        assert_eq!(one[4..8], [0, 0, 1, 0]);
        assert_eq!(word(one, 12), 0);
        assert_eq!(text(&one[16..]), *name);
        let at = data + word(one, 8);
        assert_eq!(bytes[at..at + 8], value.to_le_bytes());
    }
}

#[test]
fn long_names_end_with_a_zero() {
    let bytes = file(&[b'x'; 100], &[]);
    assert_eq!(bytes.len(), HEADER + NAME_SIZE);
    assert_eq!(text(&bytes[HEADER..]).len(), NAME_SIZE - 1);
}

#[test]
fn a_reader_that_gives_up_ends_it() {
    let mut pieces = 0;
    let stopped = write(b"", &[Stat("a", Kind::Instant, 1)], |_| {
        pieces += 1;
        if pieces == 3 {
            Err("enough")
        } else {
            Ok(())
        }
    });
    assert_eq!((stopped, pieces), (Err("enough"), 3));
}

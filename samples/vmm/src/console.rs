// SPDX-License-Identifier: GPL-2.0
//! Where the guest's output goes, and the watch for a text in it.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::rc::Rc;

/// Looks for a text in a stream of bytes.
#[derive(Debug)]
struct Watch {
    text: Vec<u8>,
    /// The last bytes of the stream, never more than the text is long.
    tail: Vec<u8>,
}

impl Watch {
    fn new(text: &str) -> Self {
        Self {
            text: text.as_bytes().to_vec(),
            tail: Vec::new(),
        }
    }

    fn push(&mut self, byte: u8) -> bool {
        if self.tail.len() == self.text.len() {
            self.tail.remove(0);
        }
        self.tail.push(byte);
        self.tail == self.text
    }
}

/// How far the awaited text has come; shared by all consoles of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    No,
    /// The text is there, its line goes on.
    Text,
    /// The text and the end of its line.
    Line,
}

/// One stream of the guest's output. Streams are watched apart, so that a text is not torn by
/// another stream's bytes, and may share a sink.
pub struct Console<W: Write> {
    sink: Rc<RefCell<W>>,
    watch: Option<Watch>,
    seen: Rc<Cell<Seen>>,
}

impl<W: Write> Console<W> {
    /// An empty `until` watches nothing.
    pub fn new(sink: Rc<RefCell<W>>, until: Option<&str>, seen: Rc<Cell<Seen>>) -> Self {
        Self {
            sink,
            watch: until.filter(|t| !t.is_empty()).map(Watch::new),
            seen,
        }
    }
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            let matched = self.watch.as_mut().is_some_and(|w| w.push(byte));
            match self.seen.get() {
                Seen::No if matched => self.seen.set(Seen::Text),
                Seen::Text if byte == b'\n' => self.seen.set(Seen::Line),
                _ => {}
            }
        }
        let mut sink = self.sink.borrow_mut();
        sink.write_all(bytes)?;
        if bytes.contains(&b'\n') {
            sink.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.borrow_mut().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Bytes = Rc<RefCell<Vec<u8>>>;

    fn console(until: &str) -> (Console<Vec<u8>>, Rc<Cell<Seen>>, Bytes) {
        let seen = Rc::new(Cell::new(Seen::No));
        let sink = Rc::new(RefCell::new(Vec::new()));
        (
            Console::new(sink.clone(), Some(until), seen.clone()),
            seen,
            sink,
        )
    }

    #[test]
    fn text_across_writes_then_the_end_of_its_line() {
        let (mut console, seen, sink) = console("aab");
        console.write_all(b"xaa").unwrap();
        assert_eq!(seen.get(), Seen::No);
        console.write_all(b"ab").unwrap();
        assert_eq!(seen.get(), Seen::Text);
        console.write_all(b" tail\n").unwrap();
        assert_eq!(seen.get(), Seen::Line);
        assert_eq!(*sink.borrow(), b"xaaab tail\n");
    }

    #[test]
    fn a_text_that_does_not_come() {
        let (mut console, seen, _) = console("abc");
        console.write_all(b"ab\nc abd\n").unwrap();
        assert_eq!(seen.get(), Seen::No);
    }

    #[test]
    fn streams_do_not_mix() {
        let (mut one, seen, sink) = console("ab");
        let mut two = Console::new(sink, Some("ab"), seen.clone());
        one.write_all(b"a").unwrap();
        two.write_all(b"b").unwrap();
        assert_eq!(seen.get(), Seen::No);
        one.write_all(b"b").unwrap();
        assert_eq!(seen.get(), Seen::Text);
    }
}

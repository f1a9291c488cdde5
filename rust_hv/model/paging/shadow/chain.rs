// SPDX-License-Identifier: GPL-2.0

//! Chains through the entries of shadow tables: from a frame to the entries that map it, and from a
//! table to the entries that refer to it.
//!
//! An entry is in one chain, as it is one or the other. Both neighbours, and the table that the
//! entry refers to, are in one word beside the entry.

/// An entry of a table: the table's number, then the entry's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Node(u32);

impl Node {
    const BITS: u32 = 24;
    /// The end of a chain.
    pub(super) const NONE: Self = Self((1 << Self::BITS) - 1);

    pub(super) const fn new(table: TableId, index: usize) -> Self {
        Self((table.0 as u32) << 9 | (index as u32 & 511))
    }

    /// What [`Node::raw`] has given, or all ones for none.
    pub(super) const fn from_raw(raw: u32) -> Self {
        Self(raw & Self::NONE.0)
    }

    pub(super) const fn raw(self) -> u32 {
        self.0
    }

    pub(super) const fn table(self) -> TableId {
        TableId((self.0 >> 9) as u16)
    }

    pub(super) const fn index(self) -> usize {
        (self.0 & 511) as usize
    }

    pub(super) fn get(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// Number of a shadow table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableId(pub(super) u16);

impl TableId {
    /// None.
    pub(super) const NONE: Self = Self(u16::MAX);
    /// Numbers are below this, so that nodes fit.
    pub(super) const LIMIT: usize = 1 << 14;

    pub(super) fn get(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// What stands beside an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Links {
    pub(super) next: Node,
    pub(super) prev: Node,
    /// The table that the entry refers to.
    pub(super) child: TableId,
}

impl Links {
    pub(super) const fn unpack(word: u64) -> Self {
        let mask = (1 << Node::BITS) - 1;
        Self {
            next: Node((word as u32) & mask),
            prev: Node((word >> Node::BITS) as u32 & mask),
            child: TableId((word >> (2 * Node::BITS)) as u16),
        }
    }

    pub(super) const fn pack(self) -> u64 {
        self.next.0 as u64
            | (self.prev.0 as u64) << Node::BITS
            | (self.child.0 as u64) << (2 * Node::BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_packed_without_loss() {
        let last = TableId(TableId::LIMIT as u16 - 1);
        for (next, prev, child) in [
            (Node::NONE, Node::NONE, TableId::NONE),
            (Node::new(last, 511), Node::new(TableId(0), 0), last),
            (Node::new(TableId(7), 3), Node::NONE, TableId(0)),
        ] {
            let links = Links { next, prev, child };
            assert_eq!(Links::unpack(links.pack()), links);
        }
        let node = Node::new(last, 300);
        assert_eq!((node.table(), node.index()), (last, 300));
        assert_ne!(Node::new(last, 511), Node::NONE);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Hardware sets flags while the editor changes entries: none may be lost, none seen twice.
//!
//! Two threads would seldom meet on a busy machine. Instead, the entry format that is given to the
//! editor lets the CPU in: each time the editor asks the format for something, it is between a
//! look at an entry and a change of it. Every operation is run again and again, with a write of
//! the guest at one more of these points each time, until all were had.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use rusthv_model::arch::addr::{Gfn, GfnRange, Gpa, Hpa};
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::{Entry, Format, Leaf, Notice};
use rusthv_model::paging::frames::{Gather, TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::grow::Grown;
use rusthv_model::paging::nested::Nested;
use rusthv_model::paging::npt::Npt;
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::{MapError, Mapped, Table};
use rusthv_model::paging::{Level, PageSize, Permissions};

const EPT: Ept = Ept {
    accessed_dirty: true,
    notice: Notice::Fault,
    execute_only: false,
    largest: PageSize::Size1G,
    five_level: false,
};

const NPT: Npt = Npt {
    largest: PageSize::Size1G,
    five_level: false,
    notice: Notice::Fault,
};

/// The page that the guest writes to.
const PAGE: u64 = 3;

/// Host memory, and the CPU beside it.
struct Host {
    format: Nested,
    frames: Vec<[AtomicU64; ENTRIES]>,
    used: Cell<usize>,
    root: Cell<u64>,
    /// Points that are left until the guest writes.
    countdown: Cell<Option<usize>>,
    cpu: RefCell<Cpu>,
}

/// What the CPU did.
#[derive(Default, Debug)]
struct Cpu {
    /// Dirty flags turned on in 4 KiB entries, and in those of larger pages.
    small: u32,
    large: u32,
    faults: u32,
}

impl Host {
    fn at(&self, hpa: u64) -> &[AtomicU64; ENTRIES] {
        &self.frames[(hpa >> 12) as usize]
    }

    /// A write by the guest: a walk as in the SDM or the APM, with the flags set.
    fn write(&self) {
        // What must be set for it (R and W; P, R/W and U/S), and what the CPU sets.
        let (rights, accessed, dirty) = match self.format {
            Nested::Ept(_) => (0b11, 1 << 8, 1 << 9),
            Nested::Npt(_) => (0b111, 1 << 5, 1 << 6),
        };
        let mut cpu = self.cpu.borrow_mut();
        let mut table = self.root.get();
        for shift in [39, 30, 21, 12] {
            let entry = &self.at(table)[(PAGE << 12 >> shift & 0x1ff) as usize];
            let raw = entry.load(Ordering::Relaxed);
            if raw & rights != rights {
                cpu.faults += 1;
                return;
            }
            if shift == 12 || raw & 1 << 7 != 0 {
                let new = u32::from(raw & dirty == 0);
                *(if shift == 12 {
                    &mut cpu.small
                } else {
                    &mut cpu.large
                }) += new;
                entry.store(raw | accessed | dirty, Ordering::Relaxed);
                return;
            }
            table = raw & 0x000f_ffff_ffff_f000;
        }
    }

    /// One point at which the guest may write.
    fn point(&self) {
        match self.countdown.get() {
            Some(0) => {
                self.countdown.set(None);
                self.write();
            }
            Some(left) => self.countdown.set(Some(left - 1)),
            None => {}
        }
    }
}

impl TableMemory for &Host {
    fn alloc(&mut self) -> Option<TableFrame> {
        self.used.set(self.used.get() + 1);
        Some(TableFrame::new(Hpa::new(
            (self.used.get() as u64 - 1) << 12,
        )))
    }

    fn free(&mut self, _frame: TableFrame) {}

    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        self.at(table.hpa().raw())
    }
}

/// Entries of either vendor, with a point before everything that is asked of them.
#[derive(Clone, Copy)]
struct Interrupted<'a>(&'a Host);

impl Interrupted<'_> {
    fn format(&self) -> Nested {
        self.0.point();
        self.0.format
    }
}

impl Format for Interrupted<'_> {
    fn decode(&self, raw: u64, level: Level) -> Entry {
        self.format().decode(raw, level)
    }

    fn leaf(&self, leaf: &Leaf) -> Option<u64> {
        self.format().leaf(leaf)
    }

    fn table(&self, table: Hpa) -> u64 {
        self.format().table(table)
    }

    fn accessed_mask(&self) -> u64 {
        self.format().accessed_mask()
    }

    fn dirty_mask(&self) -> u64 {
        self.format().dirty_mask()
    }

    fn withhold(&self, raw: u64, level: Level) -> Option<u64> {
        self.format().withhold(raw, level)
    }

    fn give_back(&self, raw: u64, level: Level) -> Option<u64> {
        self.format().give_back(raw, level)
    }

    fn address_mask(&self) -> u64 {
        self.format().address_mask()
    }
}

/// How often each of the first pages was reported dirty.
struct Seen([u32; ENTRIES]);

impl Seen {
    fn see(&mut self, gfn: Gfn, leaf: Leaf) {
        let (first, pages) = (gfn.raw() as usize, leaf.size.pages() as usize);
        for times in self.0.iter_mut().skip(first).take(pages) {
            *times += u32::from(leaf.dirty);
        }
    }
}

impl Gather for Seen {
    fn leaf(&mut self, gfn: Gfn, leaf: Leaf) {
        self.see(gfn, leaf);
    }

    fn table(&mut self, _frame: TableFrame) {}
}

type Edit = fn(&mut &Host, &mut Table<Interrupted<'_>>, &mut Seen);

/// Runs `edit` on a mapped page with a write at each point in turn. Returns how many writes turned
/// a flag on, and how many came too late.
fn at_every_point(format: Nested, size: PageSize, edit: Edit) -> (u32, u32) {
    let (mut hits, mut faults) = (0, 0);
    for point in 0.. {
        let host = Host {
            format,
            frames: (0..8)
                .map(|_| [const { AtomicU64::new(0) }; ENTRIES])
                .collect(),
            used: Cell::new(0),
            root: Cell::new(0),
            countdown: Cell::new(None),
            cpu: RefCell::default(),
        };
        let mut memory = &host;
        let mut table = Table::new(&mut memory, Interrupted(&host), Level::Pml4).unwrap();
        host.root.set(table.root().raw());
        let mut seen = Seen([0; ENTRIES]);
        for gfn in (0..ENTRIES as u64).step_by(size.pages() as usize) {
            let page = leaf(gfn, size, Permissions::RW);
            map(&mut memory, &mut table, gfn, page, &mut seen).unwrap();
        }

        host.countdown.set(Some(point));
        edit(&mut memory, &mut table, &mut seen);
        let more = host.countdown.take().is_none();
        table.destroy(&mut memory, |gfn, leaf| seen.see(gfn, leaf));

        let cpu = host.cpu.borrow();
        // A write to a large page counts for all of it, a write to a small one for itself.
        let others = seen.0[PAGE as usize + 1];
        assert_eq!(
            seen.0[PAGE as usize],
            cpu.small + cpu.large,
            "point {point}"
        );
        assert_eq!(others, cpu.large, "point {point}");
        hits += cpu.small + cpu.large;
        faults += cpu.faults;
        if !more {
            break;
        }
    }
    (hits, faults)
}

fn leaf(gfn: u64, size: PageSize, perms: Permissions) -> Leaf {
    Leaf::new(Hpa::new(gfn << 12), size, perms)
}

fn map(
    memory: &mut &Host,
    table: &mut Table<Interrupted<'_>>,
    gfn: u64,
    leaf: Leaf,
    seen: &mut Seen,
) -> Result<Mapped, MapError> {
    table.map(memory, Gpa::new(gfn << 12), leaf, seen)
}

fn whole() -> Sweep {
    Sweep::new(GfnRange::ALL)
}

const BUDGET: usize = usize::MAX;
const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

fn zap_reports_the_last_state(format: Nested) {
    for size in SIZES {
        let (hits, faults) = at_every_point(format, size, |memory, table, seen| {
            let done = table.zap(memory, &mut whole(), BUDGET, seen);
            assert_eq!(done, Progress::Done);
        });
        assert!(hits > 0 && faults > 0, "{hits} hits, {faults} faults");
    }
}

fn flags_survive_a_change_of_rights(format: Nested) {
    for size in SIZES {
        // The page gets a right more: the fault handler's way.
        let (hits, _) = if size == PageSize::Size4K {
            at_every_point(format, size, |memory, table, seen| {
                let more = leaf(PAGE, PageSize::Size4K, Permissions::RWX);
                let mapped = map(memory, table, PAGE, more, seen);
                assert_eq!(mapped, Ok(Mapped::Relaxed));
            })
        } else {
            at_every_point(format, size, |memory, table, seen| {
                let size = table.lookup(memory, Gpa::new(0)).unwrap().size;
                let more = leaf(0, size, Permissions::RWX);
                assert_eq!(map(memory, table, 0, more, seen), Ok(Mapped::Relaxed));
            })
        };
        assert!(hits > 0);
        let (hits, faults) = at_every_point(format, size, |memory, table, _| {
            let mut changed = false;
            let done = table.track(memory, &mut whole(), BUDGET, &mut changed);
            assert_eq!((done, changed), (Progress::Done, true));
        });
        // After the last change there is no point left: with a large page, after the only one.
        assert!(hits > 0 && (faults > 0 || size != PageSize::Size4K));
    }
}

fn flags_survive_a_right_that_is_added(format: Nested) {
    fn relax(memory: &mut &Host, table: &mut Table<Interrupted<'_>>, page: u64, size: PageSize) {
        let mut grow = table.grow();
        let more = leaf(page, size, Permissions::RWX);
        let grown = grow.map(memory, Gpa::new(page << 12), more);
        assert_eq!(grown, Ok(Grown::Relaxed));
        let added = grow.finish();
        assert_eq!((added.tables, added.leaves), (0, [0; 3]));
    }
    let (hits, _) = at_every_point(format, PageSize::Size4K, |memory, table, _| {
        relax(memory, table, PAGE, PageSize::Size4K);
    });
    assert!(hits > 0);
    let (hits, _) = at_every_point(format, PageSize::Size2M, |memory, table, _| {
        relax(memory, table, 0, PageSize::Size2M);
    });
    assert!(hits > 0);
}

fn a_replaced_page_goes_with_its_flags(format: Nested) {
    let (hits, _) = at_every_point(format, PageSize::Size4K, |memory, table, seen| {
        let other = leaf(PAGE + 1, PageSize::Size4K, Permissions::RW);
        let mapped = map(memory, table, PAGE, other, seen);
        assert_eq!(mapped, Ok(Mapped::Replaced));
    });
    assert!(hits > 0);
    // All of them at once, by a large page: writes after it are to the large page.
    let (hits, _) = at_every_point(format, PageSize::Size4K, |memory, table, seen| {
        let large = leaf(0, PageSize::Size2M, Permissions::RW);
        assert_eq!(map(memory, table, 0, large, seen), Ok(Mapped::Replaced));
    });
    assert!(hits > 0);
}

fn parts_of_a_large_page_inherit_its_flag(format: Nested) {
    for size in [PageSize::Size2M, PageSize::Size1G] {
        let (hits, _) = at_every_point(format, size, |memory, table, _| {
            let before = table.lookup(memory, Gpa::new(0)).unwrap().size;
            assert_eq!(table.split(memory, Gpa::new(0)), Ok(true));
            let after = table.lookup(memory, Gpa::new(0)).map(|leaf| leaf.size);
            assert_eq!(after, before.smaller());
        });
        // Each of the 512 parts that is being written is a point.
        assert!(hits > 512);
    }
}

/// Makes two tests of each function: with EPT entries and with NPT entries.
macro_rules! with_both_formats {
    ($($test:ident),* $(,)?) => {
        mod ept {
            $(
                #[test]
                fn $test() {
                    super::$test(super::Nested::Ept(super::EPT));
                }
            )*
        }

        mod npt {
            $(
                #[test]
                fn $test() {
                    super::$test(super::Nested::Npt(super::NPT));
                }
            )*
        }
    };
}

with_both_formats! {
    zap_reports_the_last_state,
    flags_survive_a_change_of_rights,
    flags_survive_a_right_that_is_added,
    a_replaced_page_goes_with_its_flags,
    parts_of_a_large_page_inherit_its_flag,
}

// SPDX-License-Identifier: GPL-2.0

//! Forward and inverted page tables side by side: what they take for a mapped GiB, and what a
//! question costs in each direction. The code is the module's own (`rust_hv/model`); frames are
//! plain memory, locks are none.

use super::rows::now;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gpa, Hpa};
use rusthv_model::memory::inverted::{Group, Inverted, Locks, Owner, Run, Spare, GROUPS};
use rusthv_model::paging::ept::Ept;
use rusthv_model::paging::format::{Leaf, Notice};
use rusthv_model::paging::frames::{Gather, TableFrame, TableMemory, TableRef, ENTRIES};
use rusthv_model::paging::sweep::{Progress, Sweep};
use rusthv_model::paging::table::Table;
use rusthv_model::paging::{Level, PageSize, Permissions};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;

/// Guest pages: 1 GiB.
const PAGES: u64 = 1 << 18;
const ASKED: u64 = 512;

/// Frames of a table.
#[derive(Default)]
struct Frames(Vec<Box<[AtomicU64; ENTRIES]>>);

impl TableMemory for Frames {
    fn alloc(&mut self) -> Option<TableFrame> {
        self.0.push(Box::new([const { AtomicU64::new(0) }; ENTRIES]));
        Some(TableFrame::new(Hpa::new((self.0.len() as u64) << 12)))
    }

    fn free(&mut self, _frame: TableFrame) {}

    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        &self.0[(table.hpa().raw() >> 12) as usize - 1]
    }
}

/// One thread needs no locks.
struct Alone {
    groups: [Cell<Group>; GROUPS],
    spare: Cell<Spare>,
}

impl Locks for Alone {
    fn group<R>(&self, index: usize, f: impl FnOnce(&mut Group) -> R) -> R {
        let mut group = self.groups[index].take();
        let result = f(&mut group);
        self.groups[index].set(group);
        result
    }

    fn spare<R>(&self, f: impl FnOnce(&mut Spare) -> R) -> R {
        let mut spare = self.spare.take();
        let result = f(&mut spare);
        self.spare.set(spare);
        result
    }
}

struct Nothing;

impl Gather for Nothing {
    fn leaf(&mut self, _gfn: Gfn, _leaf: Leaf) {}

    fn table(&mut self, _frame: TableFrame) {}
}

/// Where the host has the pages.
#[derive(Clone, Copy)]
enum Host {
    /// In a row, as it handed them out.
    InARow,
    /// All over its memory.
    Scattered,
}

/// The guest frames in use: every hundredth page, every second one, or all.
fn used(percent: u64) -> impl Iterator<Item = u64> + Clone {
    let apart = 100 / percent;
    (0..PAGES).filter(move |page| page % apart == 0)
}

impl Host {
    /// The frame of the page that was touched as the so many-th.
    fn frame(self, number: u64) -> u64 {
        match self {
            Self::InARow => (1 << 20) + number,
            Self::Scattered => number.wrapping_mul(0x9e37_79b1) & 0xff_ffff,
        }
    }
}

struct Both {
    forward: Table<Ept>,
    tables: Frames,
    inverted: Inverted,
    lines: Frames,
    locks: Alone,
}

impl Both {
    fn new(host: Host, percent: u64) -> Option<Self> {
        let format = Ept {
            accessed_dirty: true,
            notice: Notice::Fault,
            execute_only: false,
            largest: PageSize::Size2M,
            five_level: false,
        };
        let mut tables = Frames::default();
        let mut both = Self {
            forward: Table::new(&mut tables, format, Level::Pml4)?,
            tables,
            inverted: Inverted::new(0x9e37_79b9_7f4a_7c15),
            lines: Frames::default(),
            locks: Alone { groups: [const { Cell::new(Group::EMPTY) }; GROUPS], spare: Cell::default() },
        };
        both.inverted.grow(&mut both.lines, &both.locks).ok()?;
        let mut waiting: Option<Run> = None;
        for (number, page) in (0..).zip(used(percent)) {
            let hpa = Hpa::new(host.frame(number) << 12);
            let leaf = Leaf::new(hpa, PageSize::Size4K, Permissions::RWX);
            both.forward.map(&mut both.tables, Gpa::new(page << 12), leaf, &mut Nothing).ok()?;
            // As faults bring them, in runs of at most so many.
            let extended = waiting
                .as_mut()
                .is_some_and(|run| run.count < 1024 && run.extend(Gfn::new(page), hpa, PageSize::Size4K));
            if !extended {
                let next = Run::page(Gfn::new(page), hpa, PageSize::Size4K);
                both.add(waiting.replace(next))?;
            }
        }
        both.add(waiting)?;
        Some(both)
    }

    fn add(&mut self, run: Option<Run>) -> Option<()> {
        if let Some(run) = run {
            self.inverted.add(&mut self.lines, &self.locks, Owner::new(1), &run).ok()?;
            while self.inverted.is_short() {
                self.inverted.grow(&mut self.lines, &self.locks).ok()?;
            }
        }
        Some(())
    }

    /// The frame of a guest page, by walking down.
    fn frame_of(&self, page: u64) -> Option<Hpa> {
        self.forward.lookup(&self.tables, Gpa::new(page << 12)).map(|leaf| leaf.hpa)
    }

    /// Who has a frame, by the hash.
    fn owner_of(&self, frame: u64) -> u64 {
        let mut found = 0;
        self.inverted.for_each_alias(&self.lines, &self.locks, Hpa::new(frame << 12), |alias| {
            found = alias.gfn.raw();
        });
        found
    }

    /// Who has a frame, by looking at every leaf of the VM.
    fn owner_by_sweep(&self, frame: u64) -> u64 {
        let range = GfnRange::new(Gfn::new(0), Gfn::new(PAGES));
        let (mut sweep, mut found) = (Sweep::new(range), 0);
        let on_leaf = |gfn: Gfn, leaf: Leaf| {
            if leaf.hpa.raw() >> 12 == frame {
                found = gfn.raw();
            }
        };
        let done = self.forward.for_each_leaf(&self.tables, &mut sweep, usize::MAX, on_leaf);
        debug_assert_eq!(done, Progress::Done);
        found
    }

    /// Where a guest page is, by looking at every entry of the inverted table.
    fn frame_by_sweep(&self, page: u64) -> u64 {
        let mut found = 0;
        for group in 0..GROUPS {
            let mut chain = 0;
            while self.inverted.for_each_in(&self.lines, &self.locks, group, chain, |alias| {
                if alias.gfn.raw() == page {
                    found = alias.hpa.raw();
                }
            }) {
                chain += 1;
            }
        }
        found
    }
}

/// What one of so many calls costs.
fn cost<R>(times: u64, mut call: impl FnMut(u64) -> R) -> f64 {
    let start = now();
    for turn in 0..times {
        black_box(call(turn));
    }
    (now() - start) as f64 / times as f64
}

/// Prints the table.
pub fn run(unit: &str) -> Result<(), String> {
    println!("1 GiB of guest memory in 4 KiB pages; {unit} for a question, bytes for a mapped GiB");
    println!(
        "                      forward tables             inverted table       the other way round, by sweep"
    );
    println!("use  host frames      bytes  gpa->hpa     bytes  hpa->owner    forward hpa->  inverted gpa->");
    for host in [Host::InARow, Host::Scattered] {
        for percent in [1, 50, 100] {
            let both = Both::new(host, percent).ok_or("no memory")?;
            let pages: Vec<(u64, u64)> = (0..).zip(used(percent)).collect();
            let asked = |turn: u64| pages[(turn * 7919) as usize % pages.len()];
            // They agree.
            for turn in 0..ASKED {
                let (number, page) = asked(turn);
                let hpa = host.frame(number) << 12;
                if both.frame_of(page) != Some(Hpa::new(hpa)) || both.owner_of(hpa >> 12) != page {
                    return Err(format!("page {page:#x} is not found"));
                }
            }
            let choose = cost(ASKED, &asked);
            let down = cost(ASKED, |turn| both.frame_of(asked(turn).1)) - choose;
            let up = cost(ASKED, |turn| both.owner_of(host.frame(asked(turn).0))) - choose;
            let sweep = cost(1, |turn| both.owner_by_sweep(host.frame(asked(turn).0)));
            let back = cost(1, |turn| both.frame_by_sweep(asked(turn).1));
            let gib = |frames: &Frames| frames.0.len() as f64 * 4096.0 * PAGES as f64 / pages.len() as f64;
            let (forward, inverted) = (gib(&both.tables), gib(&both.lines));
            let name = match host {
                Host::InARow => "in a row",
                Host::Scattered => "scattered",
            };
            println!(
                "{percent:>3}% {name:<10} {forward:>11.0} {down:>9.0} {inverted:>9.0} {up:>11.0} {sweep:>16.0} {back:>15.0}"
            );
        }
    }
    Ok(())
}

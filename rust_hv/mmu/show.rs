// SPDX-License-Identifier: GPL-2.0

//! Frames and their owners in debugfs.
//!
//! `frames` is the inverted page table, chain by chain; `verify` compares it with the VMs' own
//! tables when 1 is written to it; `inverted` says how large it is. A VM's `pages` are its own
//! tables, 2 MiB by 2 MiB, and `slots` what they can map. Each record is copied under the locks and
//! printed without them.

use super::owners::{Member, OWNERS};
use super::paging::Paging;
use super::verify::{chain, verify, Report};
use super::Mmu;
use crate::host::debugfs::{Content, Dir, File};
use crate::host::frame::{node_of, PageKind};
use crate::host::inverted::INVERTED;
use crate::host::tables::Tables;
use crate::model::arch::addr::{Gfn, GfnRange, PAGE_SHIFT, PAGE_SIZE};
use crate::model::memory::inverted::GROUPS;
use crate::model::memory::slots::Slot;
use crate::model::paging::format::Leaf;
use crate::model::paging::{PageSize, Permissions};
use kernel::fmt;
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::seq_print;
use kernel::sync::atomic::ordering::Relaxed;
use kernel::sync::{new_mutex, Arc, Mutex};

/// Pages in a record of a VM's `pages`.
const REGION: u64 = PageSize::Size2M.pages();
/// What shadow tables may have there in addition: the same memory in one piece, and at another place
/// while a slot moves.
const LARGE: usize = 8;

/// Rights and flags of a mapping, a letter or a dash for each.
struct Flags<'a>(&'a Leaf);

impl fmt::Display for Flags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.0;
        let letter = |yes: bool, letter: char| if yes { letter } else { '-' };
        let may = |right| leaf.perms.contains(right);
        let write = match (may(Permissions::W), leaf.tracked) {
            (true, _) => 'w',
            // Writable, and the next write is waited for.
            (false, true) => 't',
            (false, false) => '-',
        };
        write!(
            f,
            "{}{}{}{}{}",
            letter(may(Permissions::R), 'r'),
            write,
            letter(may(Permissions::X), 'x'),
            letter(leaf.accessed, 'a'),
            letter(leaf.dirty, 'd'),
        )
    }
}

/// Size of a page as people write it.
fn size_name(size: PageSize) -> &'static str {
    match size {
        PageSize::Size4K => "4K",
        PageSize::Size2M => "2M",
        PageSize::Size1G => "1G",
    }
}

fn kind_name(kind: PageKind) -> &'static str {
    match kind {
        PageKind::Private => "private",
        PageKind::CopiedOnWrite => "cow",
        PageKind::Merged => "ksm",
        PageKind::Zero => "zero",
        PageKind::Shared => "shared",
    }
}

/// Neighbours with everything in common.
struct Stretch {
    gfn: Gfn,
    leaf: Leaf,
    kind: PageKind,
    count: u64,
}

impl Stretch {
    fn new(gfn: Gfn, leaf: Leaf, kind: PageKind) -> Self {
        Self {
            gfn,
            leaf,
            kind,
            count: 1,
        }
    }

    fn extend(&mut self, gfn: Gfn, leaf: &Leaf, kind: PageKind) -> bool {
        let pages = self.count * self.leaf.size.pages();
        let next = Leaf {
            hpa: self.leaf.hpa.wrapping_add(pages << PAGE_SHIFT),
            ..self.leaf
        };
        let same = next == *leaf && self.kind == kind && gfn.raw() == self.gfn.raw() + pages;
        self.count += u64::from(same);
        same
    }

    /// `GPA HPA COUNT SIZE RIGHTS KIND NODE`, the rest is the caller's.
    fn print(&self, out: &SeqFile) {
        seq_print!(
            out,
            "{:#x} {:#x} {} {} {} {} ",
            self.gfn.raw() << PAGE_SHIFT,
            self.leaf.hpa.raw(),
            self.count,
            size_name(self.leaf.size),
            Flags(&self.leaf),
            kind_name(self.kind),
        );
        match node_of(self.leaf.hpa) {
            Some(node) => seq_print!(out, "{}", node),
            None => seq_print!(out, "-"),
        }
    }
}

/// The inverted page table, chain by chain: owner and mapping of each frame.
pub struct Frames;

impl Content for Frames {
    fn records(&self) -> u64 {
        let chains = INVERTED.get().map_or(0, |table| table.chains());
        u64::from(chains) * GROUPS as u64
    }

    fn show(&self, record: u64, out: &SeqFile) {
        let (Ok(table), Ok(owners)) = (INVERTED.get(), OWNERS.get()) else {
            return;
        };
        if record == 0 {
            owners.settle();
        }
        let mut room = KVec::new();
        let (group, number) = (record as usize % GROUPS, (record / GROUPS as u64) as u32);
        if !matches!(chain(table, group, number, &mut room), Ok(true)) {
            return;
        }
        let mut last: Option<(Member, Option<Stretch>)> = None;
        for what in room.iter() {
            if last.as_ref().map(|(member, _)| member.mmu.number()) != Some(what.owner) {
                print_owned(last.take(), out);
                last = owners.find(what.owner).map(|member| (member, None));
            }
            let Some((member, stretch)) = &mut last else {
                continue;
            };
            let Ok(Some(leaf)) = member.mmu.leaf_of(what) else {
                continue;
            };
            let kind = PageKind::of(what.hpa);
            let extended = stretch
                .as_mut()
                .is_some_and(|stretch| stretch.extend(what.gfn, &leaf, kind));
            if !extended {
                let next = Some(Stretch::new(what.gfn, leaf, kind));
                let done = core::mem::replace(stretch, next);
                print_owned(done.map(|done| (member.clone(), Some(done))), out);
            }
        }
        print_owned(last, out);
    }
}

/// A line of `frames`: `PID-ID MODE`, and the stretch.
fn print_owned(done: Option<(Member, Option<Stretch>)>, out: &SeqFile) {
    if let Some((member, Some(stretch))) = done {
        seq_print!(out, "{}-{} {} ", member.pid, member.id, member.mmu.mode().0);
        stretch.print(out);
        seq_print!(out, "\n");
    }
}

/// Size of the inverted page table, and what it has noticed.
pub struct Size;

impl Content for Size {
    fn show(&self, _record: u64, out: &SeqFile) {
        let (Ok(table), Ok(owners)) = (INVERTED.get(), OWNERS.get()) else {
            return;
        };
        owners.settle();
        let usage = table.usage();
        let [small, large, huge] = usage.mapped;
        seq_print!(out, "pages_4k {small}\npages_2m {large}\npages_1g {huge}\n");
        seq_print!(out, "entries {}\nlinks {}\n", usage.entries, usage.links);
        seq_print!(out, "bytes {}\n", usage.frames * PAGE_SIZE);
        seq_print!(out, "lost {}\n", table.lost.load(Relaxed));
        seq_print!(out, "violations {}\n", owners.violations());
    }
}

/// The last comparison of the inverted page table with the VMs' own; writing 1 makes one.
#[pin_data]
pub struct Verify {
    #[pin]
    last: Mutex<(u64, Report)>,
}

impl Content for Verify {
    const WRITABLE: bool = true;

    fn show(&self, _record: u64, out: &SeqFile) {
        let (runs, report) = *self.last.lock();
        let [small, large, huge] = report.mapped;
        seq_print!(out, "runs {}\nvms {}\n", runs, report.vms);
        seq_print!(out, "pages_4k {small}\npages_2m {large}\npages_1g {huge}\n");
        seq_print!(out, "zero {}\nshared {}\n", report.zero, report.shared);
        seq_print!(out, "missing {}\nstale {}\n", report.missing, report.stale);
        seq_print!(
            out,
            "lost {}\nviolations {}\n",
            report.lost,
            report.violations
        );
        let result = match (runs, report.is_good()) {
            (0, _) => "none",
            (_, true) => "good",
            (_, false) => "bad",
        };
        seq_print!(out, "result {result}\n");
    }

    fn store(&self, text: &[u8]) -> Result {
        if text != b"1" {
            return Err(EINVAL);
        }
        let mut last = self.last.lock();
        let report = verify()?;
        *last = (last.0.wrapping_add(1), report);
        if report.is_good() {
            return Ok(());
        }
        pr_err!(
            "inverted page table: {} missing, {} stale, {} lost, {} violations\n",
            report.missing,
            report.stale,
            report.lost,
            report.violations,
        );
        Err(EIO)
    }
}

/// The machine's files.
pub struct MachineFiles {
    _frames: File<Frames>,
    _size: File<Size>,
    _verify: File<Verify>,
}

impl MachineFiles {
    /// Makes them in a directory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(dir: &Dir) -> Result<Self> {
        let verify = pin_init!(Verify {
            last <- new_mutex!((0, Report::default())),
        });
        Ok(Self {
            _frames: dir.file(c"frames", Arc::new(Frames, GFP_KERNEL)?),
            _size: dir.file(c"inverted", Arc::new(Size, GFP_KERNEL)?),
            _verify: dir.file(c"verify", Arc::pin_init(verify, GFP_KERNEL)?),
        })
    }
}

/// What a VM has mapped.
pub struct Pages(Arc<Mmu>);

/// Regions of [`REGION`] pages that a range touches.
fn regions(range: GfnRange) -> u64 {
    range.end.raw().div_ceil(REGION) - range.start.raw() / REGION
}

impl Mmu {
    /// The part of a slot that is in the region of a number, counting those of all slots.
    fn region(&self, number: u64) -> Option<GfnRange> {
        let state = self.state.read();
        let mut left = number;
        for slot in &state.slots {
            let range = slot.gfns();
            let here = regions(range);
            if left < here {
                let first = (range.start.raw() / REGION + left) * REGION;
                let start = range.start.raw().max(first);
                let end = range.end.raw().min(first + REGION);
                return Some(GfnRange::new(Gfn::new(start), Gfn::new(end)));
            }
            left -= here;
        }
        None
    }
}

impl Content for Pages {
    fn records(&self) -> u64 {
        let state = self.0.state.read();
        state.slots.iter().map(|slot| regions(slot.gfns())).sum()
    }

    fn show(&self, record: u64, out: &SeqFile) {
        let mmu = &*self.0;
        let Some(range) = mmu.region(record) else {
            return;
        };
        let Ok(mut leaves) = KVec::with_capacity(REGION as usize + LARGE, GFP_KERNEL) else {
            return;
        };
        let memory = Tables::existing(&mmu.supply);
        if let Some(mode) = &mmu.state.read().tree.mode {
            mode.for_each_page(&memory, range, |gfn, leaf| {
                // A page of 1 GiB is in the record where it begins, and in no other.
                if gfn < range.start {
                    return;
                }
                // Within the capacity. While it is mapped, what the host says holds.
                let found = Stretch::new(gfn, leaf, PageKind::of(leaf.hpa));
                drop(leaves.push_within_capacity(found));
            });
        }
        let mut stretch: Option<Stretch> = None;
        for next in leaves {
            let extended = stretch
                .as_mut()
                .is_some_and(|stretch| stretch.extend(next.gfn, &next.leaf, next.kind));
            if !extended {
                print_line(stretch.replace(next), out);
            }
        }
        print_line(stretch, out);
    }
}

fn print_line(stretch: Option<Stretch>, out: &SeqFile) {
    if let Some(stretch) = stretch {
        stretch.print(out);
        seq_print!(out, "\n");
    }
}

/// What guests may do with a slot, if that is less than they may.
fn rights(slot: &Slot) -> &'static str {
    match slot.rights {
        Permissions::NONE => ",---",
        Permissions::R => ",r--",
        Permissions::RW => ",rw-",
        Permissions::RX => ",r-x",
        Permissions::X => ",--x",
        _ => "",
    }
}

/// A VM's memory slots, and where the VMM has them.
pub struct Slots(Arc<Mmu>);

impl Content for Slots {
    fn records(&self) -> u64 {
        self.0.state.read().slots.len() as u64
    }

    fn show(&self, record: u64, out: &SeqFile) {
        let slot = self.0.state.read().slots.get(record as usize).copied();
        if let Some(slot) = slot {
            seq_print!(
                out,
                "{} {:#x} {:#x} {:#x} {}{}{}\n",
                slot.id,
                slot.base.raw() << PAGE_SHIFT,
                slot.pages << PAGE_SHIFT,
                slot.hva.raw(),
                if slot.flags.read_only() { "ro" } else { "rw" },
                if slot.flags.log_dirty() { ",log" } else { "" },
                rights(&slot),
            );
        }
    }
}

/// A VM's files about its memory.
pub struct VmFiles {
    _pages: File<Pages>,
    _slots: File<Slots>,
}

impl VmFiles {
    /// Makes them in the VM's directory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(dir: &Dir, mmu: Arc<Mmu>) -> Result<Self> {
        let slots = Arc::new(Slots(mmu.clone()), GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            _pages: dir.file(c"pages", Arc::new(Pages(mmu), GFP_KERNEL_ACCOUNT)?),
            _slots: dir.file(c"slots", slots),
        })
    }
}

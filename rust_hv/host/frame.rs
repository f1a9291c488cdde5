// SPDX-License-Identifier: GPL-2.0

//! Frames of the hypervisor's own.
//!
//! A [`Frame`] is one zeroed 4 KiB page that is freed on drop; VMCSs, bitmaps, page tables and the
//! pages that user space maps are all made of them.

use super::bindings;
use crate::model::arch::addr::{Hpa, PAGE_SIZE};
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};

/// Finds out where the host's direct map is. Comes before everything that uses frames.
pub fn note_direct_map() {
    // SAFETY: Called while the module loads, by nobody else at the same time.
    unsafe { bindings::rhv_note_direct_map() };
}

/// A number of frames for each NUMA node.
pub struct NodeCounts([Atomic<i64>; bindings::RHV_MAX_NODES as usize]);

impl NodeCounts {
    /// None anywhere.
    pub const fn new() -> Self {
        Self([const { Atomic::new(0) }; bindings::RHV_MAX_NODES as usize])
    }

    /// Counts so many more on a node that has memory.
    pub fn add(&self, node: i32, frames: i64) {
        // A frame's node is below `MAX_NUMNODES`.
        if let Some(count) = self.0.get(node as usize) {
            count.add(frames, Relaxed);
        }
    }

    /// On one node.
    pub fn on(&self, node: usize) -> u64 {
        let count = self.0.get(node).map_or(0, |count| count.load(Relaxed));
        count.max(0) as u64
    }

    /// On all of them.
    pub fn all(&self) -> u64 {
        let sum: i64 = self.0.iter().map(|count| count.load(Relaxed)).sum();
        sum.max(0) as u64
    }
}

/// A set of NUMA nodes, by their numbers below 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeSet(u64);

impl NodeSet {
    /// All that there are, whatever their numbers.
    pub const ALL: Self = Self(u64::MAX);

    /// The nodes whose bits are set.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// One node; all, should its number be too high.
    pub const fn only(node: i32) -> Self {
        match node {
            0..64 => Self(1 << node),
            _ => Self::ALL,
        }
    }

    /// Their bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// True when the node is one of them.
    pub fn contains(self, node: i32) -> bool {
        self == Self::ALL || (0..64).contains(&node) && self.0 >> node & 1 != 0
    }
}

/// What becomes of a frame's contents when it is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wipe {
    /// The host finds them, and zeroes them when it wants to.
    #[default]
    Never,
    /// Zeros.
    Zeros,
    /// Random bytes: whoever still uses the frame notices.
    Random,
}

impl Wipe {
    /// Writes a page.
    ///
    /// # Safety
    ///
    /// It is ours to write. User space may do so at the same time.
    unsafe fn apply(self, start: *mut u8) {
        match self {
            Self::Never => return,
            // SAFETY: By the contract. The host reads what it frees, as far as the compiler knows:
            // this is not left out.
            Self::Zeros => unsafe { start.write_bytes(0, PAGE_SIZE as usize) },
            // SAFETY: By the contract.
            Self::Random => unsafe {
                kernel::bindings::get_random_bytes(start.cast(), PAGE_SIZE as usize)
            },
        }
        WIPED.add(1, Relaxed);
    }
}

/// Where a frame is to come from, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The node to try first; the others follow in the order of their distance.
    pub node: i32,
    /// The nodes to try.
    pub among: NodeSet,
    /// For the end.
    pub wipe: Wipe,
}

impl From<i32> for Place {
    /// Near a node, and no secret.
    fn from(node: i32) -> Self {
        Self {
            node,
            among: NodeSet::ALL,
            wipe: Wipe::Never,
        }
    }
}

/// Frames alive, those that wait in pools among them.
pub static ALIVE: NodeCounts = NodeCounts::new();

/// Frames that were wiped as their VM has asked for it.
pub static WIPED: Atomic<u64> = Atomic::new(0);

/// All frames alive.
pub fn alive() -> u64 {
    ALIVE.all()
}

/// One more than the highest number of a NUMA node.
pub fn max_nodes() -> usize {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_max_nodes() as usize }
}

/// True for nodes that have memory.
pub fn node_has_memory(node: i32) -> bool {
    // SAFETY: No preconditions.
    u32::try_from(node).is_ok_and(|node| unsafe { bindings::rhv_node_has_memory(node) })
}

/// How far two nodes are apart, as the firmware says; a node is 10 from itself.
pub fn distance(from: i32, to: i32) -> i32 {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_node_distance(from, to) }
}

/// The node of a set, of those with memory, that is nearest to `from`, behind `last` in that order.
pub fn nearest(from: i32, among: NodeSet, last: Option<i32>) -> Option<i32> {
    let key = |node: i32| (distance(from, node), node);
    (0..max_nodes() as i32)
        .filter(|&node| among.contains(node) && node_has_memory(node))
        .filter(|&node| last.is_none_or(|last| key(last) < key(node)))
        .min_by_key(|&node| key(node))
}

fn node_of_page(page: NonNull<kernel::bindings::page>) -> i32 {
    // SAFETY: Callers have a live page.
    unsafe { bindings::rhv_page_node(page.as_ptr()) }
}

/// NUMA node of host memory; none for what is not memory.
pub fn node_of(hpa: Hpa) -> Option<u32> {
    // SAFETY: No preconditions.
    u32::try_from(unsafe { bindings::rhv_phys_to_node(hpa.raw()) }).ok()
}

/// What a page that a guest has mapped is to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageKind {
    /// Anonymous memory of one process, and of no other.
    Private,
    /// Anonymous memory that several processes have had since a fork; it is copied before it is
    /// written.
    CopiedOnWrite,
    /// Same pages that the host has merged (KSM).
    Merged,
    /// The host's page of zeroes.
    Zero,
    /// Of a file, shared memory or a device.
    Shared,
}

impl PageKind {
    /// The kind of a page. It holds as long as the page stays mapped.
    pub fn of(hpa: Hpa) -> Self {
        // SAFETY: No preconditions.
        match unsafe { bindings::rhv_page_kind(hpa.raw()) } {
            bindings::rhv_page_kind_RHV_PAGE_PRIVATE => Self::Private,
            bindings::rhv_page_kind_RHV_PAGE_COPIED_ON_WRITE => Self::CopiedOnWrite,
            bindings::rhv_page_kind_RHV_PAGE_KSM => Self::Merged,
            bindings::rhv_page_kind_RHV_PAGE_ZERO => Self::Zero,
            _ => Self::Shared,
        }
    }
}

/// One 4 KiB page of the host, zeroed when it was allocated, freed on drop.
///
/// # Invariants
///
/// `page` is a live order-0 page that nobody else owns; the kernel's direct map has it at `start`.
pub struct Frame {
    page: NonNull<kernel::bindings::page>,
    start: *mut u8,
    wipe: Wipe,
}

// SAFETY: A frame is owned memory; it may be used and freed from any thread.
unsafe impl Send for Frame {}
// SAFETY: `&Frame` gives addresses only.
unsafe impl Sync for Frame {}

impl Frame {
    /// Allocates a zeroed frame, on the wanted node if it has memory, else on the nearest one that
    /// has. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(place: impl Into<Place>) -> Result<Self> {
        Self::allocate(place.into(), false)
    }

    fn allocate(place: Place, low: bool) -> Result<Self> {
        let Place { node, among, wipe } = place;
        // SAFETY: No preconditions; a node without memory falls back to the nearest.
        let page = unsafe { bindings::rhv_alloc_page(node, among.bits(), low) };
        let page = NonNull::new(page).ok_or(ENOMEM)?;
        ALIVE.add(node_of_page(page), 1);
        // INVARIANT: Fresh from the allocator.
        let mut frame = Self::from_page(page);
        frame.wipe = wipe;
        Ok(frame)
    }

    /// As [`Frame::new`], at an address of 32 bits.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new_below_4g(place: Place) -> Result<Self> {
        Self::allocate(place, true)
    }

    fn from_page(page: NonNull<kernel::bindings::page>) -> Self {
        // SAFETY: Pure arithmetic.
        let start = unsafe { bindings::rhv_page_address(page.as_ptr()) }.cast();
        Self {
            page,
            start,
            wipe: Wipe::Never,
        }
    }

    /// What becomes of its contents, from now on.
    pub fn set_wipe(&mut self, wipe: Wipe) {
        self.wipe = wipe;
    }

    /// Host-physical address, 4 KiB-aligned.
    pub fn hpa(&self) -> Hpa {
        // SAFETY: `page` is live by the invariant.
        Hpa::new(unsafe { bindings::rhv_page_to_phys(self.page.as_ptr()) })
    }

    /// The frame in the kernel's direct map; valid for reads and writes of 4 KiB while `self`
    /// lives.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// The whole frame, to be filled by its only owner.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE as usize] {
        // SAFETY: 4 KiB that `self` owns, initialised by the allocator, borrowed mutably.
        unsafe { &mut *self.as_ptr().cast() }
    }

    /// NUMA node of the frame.
    pub fn node(&self) -> i32 {
        node_of_page(self.page)
    }

    /// The `struct page`, for the host's interfaces that want one.
    pub fn as_page(&self) -> *mut kernel::bindings::page {
        self.page.as_ptr()
    }

    /// Gives up the frame for its address; [`Frame::from_hpa`] takes it back.
    pub fn into_hpa(self) -> Hpa {
        let hpa = self.hpa();
        core::mem::forget(self);
        hpa
    }

    /// Takes back a frame that [`Frame::into_hpa`] gave up.
    ///
    /// # Safety
    ///
    /// `hpa` comes from `into_hpa` and was not taken back yet.
    pub unsafe fn from_hpa(hpa: Hpa) -> Self {
        // SAFETY: The address is a live frame's, so it has a `struct page`.
        let page = unsafe { bindings::rhv_phys_to_page(hpa.raw()) };
        // INVARIANT: The caller hands over the ownership that `into_hpa` gave up.
        // SAFETY: The `struct page` of a frame is never at null.
        Self::from_page(unsafe { NonNull::new_unchecked(page) })
    }

    /// Where the kernel's direct map has a physical address.
    #[inline]
    pub fn direct_map(hpa: Hpa) -> *mut u8 {
        // SAFETY: Written once, by `note_direct_map`, before there are frames.
        let base = unsafe { (&raw const bindings::rhv_direct_map).read() };
        core::ptr::with_exposed_provenance_mut(base.wrapping_add(hpa.raw() as usize))
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: The frame is ours until it is freed below.
        unsafe { self.wipe.apply(self.start) };
        ALIVE.add(self.node(), -1);
        // SAFETY: `self` owns the page by the invariant, and is gone after this.
        unsafe { bindings::rhv_free_page(self.page.as_ptr()) };
    }
}

/// Contiguous frames, a power of two of them: zeroed when they were allocated, freed on drop.
///
/// # Invariants
///
/// `page` is a live allocation of this order that nobody else owns.
pub struct Frames {
    page: NonNull<kernel::bindings::page>,
    order: u32,
}

// SAFETY: As for `Frame`.
unsafe impl Send for Frames {}
// SAFETY: As for `Frame`.
unsafe impl Sync for Frames {}

impl Frames {
    /// Allocates 2^`order` zeroed frames, near `node`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(node: i32, order: u32) -> Result<Self> {
        // SAFETY: As in `Frame::new`.
        let page = NonNull::new(unsafe { bindings::rhv_alloc_pages(node, order) }).ok_or(ENOMEM)?;
        ALIVE.add(node_of_page(page), 1 << order);
        // INVARIANT: Fresh from the allocator.
        Ok(Self { page, order })
    }

    /// Host-physical address of the first, aligned to the size of all.
    pub fn hpa(&self) -> Hpa {
        // SAFETY: `page` is live by the invariant.
        Hpa::new(unsafe { bindings::rhv_page_to_phys(self.page.as_ptr()) })
    }

    /// All of it, to be filled by its only owner.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `page` is live by the invariant.
        let start: *mut u8 = unsafe { bindings::rhv_page_address(self.page.as_ptr()) }.cast();
        // SAFETY: So many bytes that `self` owns, initialised by the allocator, borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(start, (PAGE_SIZE as usize) << self.order) }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        ALIVE.add(node_of_page(self.page), -(1 << self.order));
        // SAFETY: `self` owns the pages by the invariant, and is gone after this.
        unsafe { bindings::rhv_free_pages(self.page.as_ptr(), self.order) };
    }
}

#[kunit_tests(rusthv_frame)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;
    use crate::host::kunit::{free_pages_keep_or_skip, peek};

    const COUNT: usize = 32;

    fn several() -> Result<KVec<Frame>> {
        let mut frames = KVec::new();
        for _ in 0..COUNT {
            frames.push(Frame::new(current_node())?, GFP_KERNEL)?;
        }
        Ok(frames)
    }

    /// Frames that were used and freed come back, and must be empty then.
    #[test]
    fn zeroed_when_reused() -> Result {
        let mut frames = several()?;
        for frame in frames.iter_mut() {
            frame.bytes_mut().fill(0xa5);
        }
        drop(frames);
        let mut frames = several()?;
        let dirty = frames
            .iter_mut()
            .map(|frame| frame.bytes_mut().iter().any(|&byte| byte != 0))
            .filter(|&dirty| dirty)
            .count();
        assert_eq!(dirty, 0);
        Ok(())
    }

    #[test]
    fn alive_counts_allocations() -> Result {
        let before = alive();
        let mut frames = several()?;
        assert_eq!(alive(), before + COUNT as u64);
        drop(frames.pop());
        assert_eq!(alive(), before + COUNT as u64 - 1);
        drop(frames);
        assert_eq!(alive(), before);
        Ok(())
    }

    /// A frame that was given up for its address is still alive, and comes back the same.
    #[test]
    fn hpa_round_trip() -> Result {
        let before = alive();
        let mut frame = Frame::new(current_node())?;
        frame.bytes_mut().fill(0x5a);
        let (page, pointer) = (frame.as_page(), frame.as_ptr());
        let hpa = frame.into_hpa();
        assert_eq!(alive(), before + 1);
        assert_eq!(hpa.raw() % PAGE_SIZE, 0);
        assert_eq!(Frame::direct_map(hpa), pointer);
        // SAFETY: From `into_hpa` above, taken back once.
        let mut frame = unsafe { Frame::from_hpa(hpa) };
        assert_eq!(frame.as_page(), page);
        assert!(frame.bytes_mut().iter().all(|&byte| byte == 0x5a));
        drop(frame);
        assert_eq!(alive(), before);
        Ok(())
    }

    /// On every node that has memory; and counted there.
    #[test]
    fn node_is_the_wanted_one() -> Result {
        let mut nodes = 0;
        for node in 0..max_nodes() {
            if !node_has_memory(node as i32) {
                continue;
            }
            let before = (ALIVE.on(node), ALIVE.all());
            let frame = Frame::new(node as i32)?;
            let frames = Frames::new(node as i32, 1)?;
            assert_eq!(
                (frame.node(), node_of_page(frames.page)),
                (node as i32, node as i32)
            );
            assert_eq!((ALIVE.on(node), ALIVE.all()), (before.0 + 3, before.1 + 3));
            drop((frame, frames));
            assert_eq!((ALIVE.on(node), ALIVE.all()), before);
            nodes += 1;
        }
        assert!(nodes > 0);
        Ok(())
    }

    #[test]
    fn frames_do_not_overlap() -> Result {
        let mut frames = several()?;
        for (index, frame) in frames.iter_mut().enumerate() {
            frame.bytes_mut().fill(index as u8);
        }
        let kept = frames.iter_mut().enumerate().all(|(index, frame)| {
            let mark = index as u8;
            frame.bytes_mut().iter().all(|&byte| byte == mark)
        });
        assert!(kept);
        Ok(())
    }

    #[test]
    fn several_are_contiguous_and_zeroed() -> Result {
        let before = alive();
        for order in 0..3 {
            let mut frames = Frames::new(current_node(), order)?;
            let size = PAGE_SIZE << order;
            assert_eq!(alive(), before + (1 << order));
            assert_eq!(frames.hpa().raw() % size, 0);
            let bytes = frames.bytes_mut();
            assert_eq!(bytes.len() as u64, size);
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(0xa5);
            drop(frames);
            assert_eq!(alive(), before);
        }
        Ok(())
    }

    const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

    /// Physical memory after frames with a secret in them were freed: how many pages still hold
    /// some of it, and in how many all is zero.
    fn secrets_left(wipe: Wipe) -> Result<(usize, usize)> {
        let mut places = KVec::new();
        let mut frames = KVec::new();
        for _ in 0..COUNT {
            let mut frame = Frame::new(Place {
                wipe,
                ..current_node().into()
            })?;
            for word in frame.bytes_mut().chunks_exact_mut(8) {
                word.copy_from_slice(&SECRET.to_le_bytes());
            }
            places.push(frame.hpa(), GFP_KERNEL)?;
            frames.push(frame, GFP_KERNEL)?;
        }
        drop(frames);
        let left = |&&hpa: &&Hpa| peek(hpa).any(|word| word == SECRET);
        let zero = |&&hpa: &&Hpa| peek(hpa).all(|word| word == 0);
        Ok((
            places.iter().filter(left).count(),
            places.iter().filter(zero).count(),
        ))
    }

    /// The test could see a secret: without wiping, physical memory keeps it.
    #[test]
    fn freed_frames_keep_what_they_held() -> Result {
        free_pages_keep_or_skip!();
        let (left, _) = secrets_left(Wipe::Never)?;
        assert!(left > COUNT / 2);
        Ok(())
    }

    #[test]
    fn wiped_frames_hold_nothing() -> Result {
        free_pages_keep_or_skip!();
        let (left, _) = secrets_left(Wipe::Zeros)?;
        assert_eq!(left, 0);
        let (left, zero) = secrets_left(Wipe::Random)?;
        assert_eq!(left, 0);
        // Random bytes are not zero; some pages may be others' by now.
        assert!(zero < COUNT / 2);
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Memory slots: each rule by itself, and any sequence of requests against a naive map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rusthv_model::arch::addr::{Gfn, GfnRange, Gpa, Hva};
use rusthv_model::memory::slots::{
    plan, Change, Limits, Request, Slot, SlotError, SlotFlags, SlotView, MAX_PAGES, USER_SLOTS,
};

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;
const MAX_HVA: u64 = (1 << 47) - 4096;
const LIMITS: Limits = Limits::new(39, Hva::new(MAX_HVA));

fn request(slot: u32, gpa: u64, size: u64, hva: u64) -> Request {
    Request {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
    }
}

fn apply(slots: &mut Vec<Slot>, request: &Request) -> Result<Change, SlotError> {
    let change = plan(SlotView::new(slots), request, &LIMITS)?;
    *slots = change.applied(SlotView::new(slots)).collect();
    Ok(change)
}

fn refused(slots: &[Slot], request: Request, error: SlotError, errno: i32) {
    assert_eq!(plan(SlotView::new(slots), &request, &LIMITS), Err(error));
    assert_eq!(error.errno(), errno);
}

/// Slot 0 at 1 MiB, 16 pages.
fn one() -> Vec<Slot> {
    let mut slots = Vec::new();
    apply(&mut slots, &request(0, 0x10_0000, 0x1_0000, 0x7000_0000)).unwrap();
    slots
}

#[test]
fn create_and_find() {
    let slots = one();
    let view = SlotView::new(&slots);
    let slot = view.find(Gfn::new(0x100)).unwrap();
    assert_eq!(slot.id, 0);
    assert_eq!(view.find(Gfn::new(0x10f)), Some(slot));
    assert_eq!(view.find(Gfn::new(0x0ff)), None);
    assert_eq!(view.find(Gfn::new(0x110)), None);
    assert_eq!(view.find(Gfn::new(u64::MAX)), None);
    assert_eq!(
        slot.hva_of_gpa(Gpa::new(0x10_1234)),
        Some(Hva::new(0x7000_1234))
    );
    assert_eq!(slot.hva_of_gpa(Gpa::new(0x11_0000)), None);
    assert_eq!(slot.index(Gfn::new(0x10f)), Some(15));
    assert_eq!(view.find_id(0), Some(slot));
    assert_eq!(view.find_id(1), None);
}

#[test]
fn gaps_lie_between_slots() {
    let none = SlotView::new(&[]);
    assert_eq!(none.gap(Gfn::new(5)), Some(GfnRange::ALL));
    let mut slots = Vec::new();
    for (id, gpa) in [(0, 0x10_0000), (1, 0x20_0000), (2, 0x21_0000)] {
        let request = request(id, gpa, 0x1_0000, 0x7000_0000 + gpa);
        apply(&mut slots, &request).unwrap();
    }
    let view = SlotView::new(&slots);
    let range = |start, end| Some(GfnRange::new(Gfn::new(start), Gfn::new(end)));
    for (gfn, gap) in [
        (0, range(0, 0x100)),
        (0xff, range(0, 0x100)),
        (0x100, None),
        (0x10f, None),
        (0x110, range(0x110, 0x200)),
        (0x1ff, range(0x110, 0x200)),
        (0x200, None),
        // No room between two that touch.
        (0x20f, None),
        (0x210, None),
        (0x220, range(0x220, u64::MAX)),
    ] {
        assert_eq!(view.gap(Gfn::new(gfn)), gap, "{gfn:#x}");
    }
}

#[test]
fn flags() {
    let base = request(1, 0, 0x1000, 0);
    for (flags, good) in [
        (0, true),
        (1, true),
        (2, true),
        (3, true),
        (4, false),
        (1 << 31, false),
    ] {
        let asked = Request { flags, ..base };
        let result = plan(SlotView::new(&[]), &asked, &LIMITS);
        match result {
            Ok(Change::Create(slot)) if good => assert_eq!(slot.flags.raw(), flags),
            Err(SlotError::Flags) if !good => assert_eq!(SlotError::Flags.errno(), EINVAL),
            other => panic!("{flags}: {other:?}"),
        }
    }
    // A host that cannot do read-only slots.
    let limits = Limits {
        flags: SlotFlags::LOG_DIRTY,
        ..LIMITS
    };
    let asked = Request { flags: 2, ..base };
    assert_eq!(
        plan(SlotView::new(&[]), &asked, &limits),
        Err(SlotError::Flags)
    );
}

#[test]
fn ids() {
    let with = |slot| request(slot, 0, 0x1000, 0);
    let last = u32::from(USER_SLOTS) - 1;
    assert_eq!(last, 32763);
    assert!(plan(SlotView::new(&[]), &with(last), &LIMITS).is_ok());
    for slot in [last + 1, 32767, 0xffff, 0x1_0000, 0x1_0001, u32::MAX] {
        refused(&[], with(slot), SlotError::Id, EINVAL);
    }
}

#[test]
fn alignment() {
    for low in [1, 0x800, 0xfff] {
        refused(&[], request(0, 0, low, 0), SlotError::Size, EINVAL);
        refused(
            &[],
            request(0, low, 0x1000, 0),
            SlotError::GuestAlignment,
            EINVAL,
        );
        refused(&[], request(0, 0, 0x1000, low), SlotError::User, EINVAL);
        // Removal is checked in the same way.
        refused(
            &one(),
            request(0, low, 0, 0),
            SlotError::GuestAlignment,
            EINVAL,
        );
        refused(&one(), request(0, 0, 0, low), SlotError::User, EINVAL);
    }
}

#[test]
fn wrap_around_and_limits() {
    let top = !0xfff;
    refused(
        &[],
        request(0, top, 0x1000, 0),
        SlotError::GuestWrap,
        EINVAL,
    );
    refused(
        &[],
        request(0, top, 0x2000, 0),
        SlotError::GuestWrap,
        EINVAL,
    );
    refused(&[], request(0, 0, 0x1000, top), SlotError::User, EINVAL);
    refused(&[], request(0, 0, top, 0x1000), SlotError::User, EINVAL);
    // The end of user memory may be the limit, not more.
    let last = MAX_HVA - 0x1000;
    assert!(plan(SlotView::new(&[]), &request(0, 0, 0x1000, last), &LIMITS).is_ok());
    refused(&[], request(0, 0, 0x2000, last), SlotError::User, EINVAL);
    refused(
        &[],
        request(0, 0, 0x1000, 0xffff_8000_0000_0000),
        SlotError::User,
        EINVAL,
    );
    // 39 bits of guest-physical address.
    let last = (1 << 39) - 0x1000;
    assert!(plan(SlotView::new(&[]), &request(0, last, 0x1000, 0), &LIMITS).is_ok());
    refused(
        &[],
        request(0, last, 0x2000, 0),
        SlotError::GuestLimit,
        EINVAL,
    );
    refused(
        &[],
        request(0, 1 << 39, 0x1000, 0),
        SlotError::GuestLimit,
        EINVAL,
    );
}

#[test]
fn size_limit() {
    let limits = Limits::new(52, Hva::new(MAX_HVA));
    let with = |pages: u64| request(0, 0, pages << 12, 0);
    assert!(plan(SlotView::new(&[]), &with(MAX_PAGES), &limits).is_ok());
    assert_eq!(
        plan(SlotView::new(&[]), &with(MAX_PAGES + 1), &limits),
        Err(SlotError::TooLarge)
    );
    assert_eq!(SlotError::TooLarge.errno(), EINVAL);
}

#[test]
fn removal() {
    refused(&[], request(0, 0, 0, 0), SlotError::Absent, EINVAL);
    refused(&one(), request(1, 0, 0, 0), SlotError::Absent, EINVAL);
    // The addresses of a removal do not have to be those of the slot.
    let mut slots = one();
    let old = slots[0];
    let change = apply(&mut slots, &request(0, 0, 0, 0)).unwrap();
    assert_eq!(change, Change::Delete(old));
    assert!(change.unmaps());
    assert!(slots.is_empty());
}

#[test]
fn what_a_slot_may_change() {
    let slots = one();
    let same = request(0, 0x10_0000, 0x1_0000, 0x7000_0000);
    let asked = |change: fn(&mut Request)| {
        let mut request = same;
        change(&mut request);
        plan(SlotView::new(&slots), &request, &LIMITS)
    };
    assert_eq!(asked(|_| ()), Ok(Change::Nothing));
    assert_eq!(
        asked(|r| r.memory_size = 0x2_0000),
        Err(SlotError::Immutable)
    );
    assert_eq!(asked(|r| r.memory_size = 0x1000), Err(SlotError::Immutable));
    assert_eq!(
        asked(|r| r.userspace_addr = 0x1000),
        Err(SlotError::Immutable)
    );
    assert_eq!(asked(|r| r.flags = 2), Err(SlotError::Immutable));
    assert_eq!(SlotError::Immutable.errno(), EINVAL);

    let flags = asked(|r| r.flags = 1).unwrap();
    assert!(matches!(flags, Change::Flags { old, new }
        if !old.flags.log_dirty() && new.flags.log_dirty() && new.base == old.base));
    assert!(!flags.unmaps());
    let moved = asked(|r| {
        r.guest_phys_addr = 0x20_0000;
        r.flags = 1;
    });
    assert!(matches!(moved, Ok(Change::Move { old, new })
        if old.base.raw() == 0x100 && new.base.raw() == 0x200 && new.flags.log_dirty()));
    // By one page: the slot does not collide with itself.
    assert!(matches!(
        asked(|r| r.guest_phys_addr = 0x10_1000),
        Ok(Change::Move { .. })
    ));
    // A move is held to the limit too.
    let beyond = asked(|r| r.guest_phys_addr = (1 << 39) - 0x1000);
    assert_eq!(beyond, Err(SlotError::GuestLimit));
}

#[test]
fn overlap() {
    let slots = one();
    for (gpa, size) in [
        (0x10_0000, 0x1_0000),
        (0x0f_f000, 0x2000),
        (0x10_f000, 0x1000),
        (0, 1 << 30),
        (0x10_4000, 0x1000),
    ] {
        refused(&slots, request(1, gpa, size, 0), SlotError::Overlap, EEXIST);
    }
    for gpa in [0x0f_f000, 0x11_0000] {
        assert!(plan(SlotView::new(&slots), &request(1, gpa, 0x1000, 0), &LIMITS).is_ok());
    }
    // Both wrong: KVM looks at the overlap first.
    let mut slots = slots;
    apply(&mut slots, &request(1, (1 << 39) - 0x1000, 0x1000, 0)).unwrap();
    refused(
        &slots,
        request(2, (1 << 39) - 0x1000, 0x2000, 0),
        SlotError::Overlap,
        EEXIST,
    );
    // The same user memory may appear twice.
    assert!(apply(&mut slots, &request(2, 0, 0x1000, 0x7000_0000)).is_ok());
}

#[test]
fn user_ranges_find_guest_frames() {
    let mut slots = one();
    apply(&mut slots, &request(5, 0, 0x2000, 0x7000_f000)).unwrap();
    let view = SlotView::new(&slots);
    let find = |start, end| -> Vec<_> {
        view.find_hva_range(Hva::new(start), Hva::new(end), 0)
            .map(|(index, gfns)| (slots[index].id, gfns.start.raw(), gfns.end.raw()))
            .collect()
    };
    assert_eq!(find(0, u64::MAX), [(5, 0, 2), (0, 0x100, 0x110)]);
    assert_eq!(
        find(0x7000_f000, 0x7001_0000),
        [(5, 0, 1), (0, 0x10f, 0x110)]
    );
    // One after the other.
    let next = |from| {
        view.find_hva_range(Hva::new(0), Hva::new(u64::MAX), from)
            .next()
            .map(|(index, gfns)| (index, gfns.start.raw()))
    };
    assert_eq!(
        [0, 1, 2, usize::MAX].map(next),
        [Some((0, 0)), Some((1, 0x100)), None, None]
    );
    // Parts of pages count as pages.
    assert_eq!(find(0x7000_1fff, 0x7000_2001), [(0, 0x101, 0x103)]);
    assert_eq!(find(0x7001_1000, u64::MAX), []);
    assert_eq!(find(0x7000_2000, 0x7000_2000), []);
    assert_eq!(find(0x7000_3000, 0x7000_2000), []);
}

#[test]
fn large_pages_need_alignment_and_room() {
    let mut slots = Vec::new();
    // 4 MiB at 1 MiB, equally aligned in user space; the same, shifted by a page.
    apply(&mut slots, &request(0, 0x10_0000, 0x40_0000, 0x4010_0000)).unwrap();
    apply(&mut slots, &request(1, 0x80_0000, 0x40_0000, 0x8000_1000)).unwrap();
    let fits = |slot: usize, gfn| slots[slot].fits_large(Gfn::new(gfn), 512);
    assert!(!fits(0, 0x100) && !fits(0, 0x1ff));
    assert!(fits(0, 0x200) && fits(0, 0x3ff));
    assert!(!fits(0, 0x400));
    assert!(!fits(1, 0x800) && !fits(1, 0xa00));
    assert!(!slots[0].fits_large(Gfn::new(0x200), 512 * 512));
}

/// The slots of a VM, as simply as possible: every page by itself.
#[derive(Default)]
struct Naive {
    /// Slot id: base page, pages, user page, flags.
    slots: BTreeMap<u16, (u64, u64, u64, u32)>,
}

impl Naive {
    fn pages(&self) -> BTreeMap<u64, (u16, u64)> {
        let mut pages = BTreeMap::new();
        for (&id, &(base, count, user, _)) in &self.slots {
            for i in 0..count {
                assert_eq!(pages.insert(base + i, (id, user + i)), None);
            }
        }
        pages
    }

    fn set(&mut self, r: &Request) -> i32 {
        let id = r.slot as u16;
        let all = r.guest_phys_addr | r.memory_size | r.userspace_addr;
        if r.slot >= 32764 || r.flags > 3 || all % 4096 != 0 {
            return EINVAL;
        }
        let (base, count, user) = (
            r.guest_phys_addr / 4096,
            r.memory_size / 4096,
            r.userspace_addr / 4096,
        );
        if u128::from(user) + u128::from(count) > u128::from(MAX_HVA / 4096)
            || u128::from(base) + u128::from(count) >= 1 << 52
            || count >= 1 << 31
        {
            return EINVAL;
        }
        let old = self.slots.get(&id).copied();
        if count == 0 {
            return if self.slots.remove(&id).is_some() {
                0
            } else {
                EINVAL
            };
        }
        if let Some((_, pages, hva, flags)) = old {
            if pages != count || hva != user || (flags ^ r.flags) & 2 != 0 {
                return EINVAL;
            }
        }
        let taken = self.slots.iter().any(|(&other, &(start, pages, _, _))| {
            other != id && start < base + count && base < start + pages
        });
        if taken {
            return EEXIST;
        }
        if old.is_none_or(|(start, ..)| start != base) && base + count > 1 << 27 {
            return EINVAL;
        }
        self.slots.insert(id, (base, count, user, r.flags));
        0
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    let gpa = prop_oneof![20 => (0..40u64).prop_map(|p| p << 12), 1 => Just(0x1234), 1 => any::<u64>(), 1 => Just((1 << 39) - 0x2000)];
    let size = prop_oneof![20 => (0..8u64).prop_map(|p| p << 12), 1 => Just(1), 1 => any::<u64>()];
    let hva = prop_oneof![20 => (0..3u64).prop_map(|p| p << 12), 1 => Just(8), 1 => any::<u64>()];
    let slot = prop_oneof![20 => 0..6u32, 1 => any::<u32>()];
    let flags = prop_oneof![5 => Just(0), 5 => 0..4u32, 1 => any::<u32>()];
    (slot, flags, gpa, size, hva).prop_map(|(slot, flags, gpa, size, hva)| Request {
        flags,
        ..request(slot, gpa, size, hva)
    })
}

proptest! {
    #[test]
    fn any_sequence_agrees_with_the_naive_map(requests in prop::collection::vec(any_request(), 1..60)) {
        let mut slots = Vec::new();
        let mut naive = Naive::default();
        for request in &requests {
            let errno = naive.set(request);
            let result = apply(&mut slots, request);
            prop_assert_eq!(result.map_or_else(SlotError::errno, |_| 0), errno, "{:?}", request);
            prop_assert!(slots.windows(2).all(|w| w[0].gfns().end <= w[1].base));

            let view = SlotView::new(&slots);
            let pages = naive.pages();
            for gfn in (0..64).chain((1 << 27) - 4..(1 << 27) + 4) {
                let found = view.find(Gfn::new(gfn)).map(|slot| {
                    (slot.id, slot.hva_of(Gfn::new(gfn)).unwrap().raw() >> 12)
                });
                prop_assert_eq!(found, pages.get(&gfn).copied());
            }
            for (start, end) in [(0u64, 5u64), (2, 3), (1, 9)] {
                let mut expected: Vec<_> = pages
                    .iter()
                    .filter(|(_, &(_, user))| start <= user && user < end)
                    .map(|(&gfn, _)| gfn)
                    .collect();
                expected.sort_unstable();
                let found: Vec<_> = view
                    .find_hva_range(Hva::new(start << 12), Hva::new(end << 12), 0)
                    .flat_map(|(_, gfns)| gfns.start.raw()..gfns.end.raw())
                    .collect();
                prop_assert_eq!(found, expected);
                let found: Vec<_> = view
                    .find_range(GfnRange::new(Gfn::new(start), Gfn::new(end)))
                    .map(|slot| slot.id)
                    .collect();
                let mut expected: Vec<_> = pages.range(start..end).map(|(_, &(id, _))| id).collect();
                expected.dedup();
                prop_assert_eq!(found, expected);
            }
        }
    }
}

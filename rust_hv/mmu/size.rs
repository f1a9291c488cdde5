// SPDX-License-Identifier: GPL-2.0

//! How large the page may be that is mapped for a guest.

use super::Mmu;
use crate::host::notifier::HvaRange;
use crate::model::arch::addr::{Gfn, Hva};
use crate::model::memory::slots::Slot;
use crate::model::paging::PageSize;
use kernel::prelude::*;

impl Mmu {
    /// The largest page that can be mapped at a frame of a slot: the tables have it, the slot holds
    /// all of it, with guest and user address aligned alike, and the host maps one at least as large
    /// there, of 2 to the power of what `host_shift` says. That is asked only where it matters.
    #[inline]
    pub(super) fn page_size(
        &self,
        slot: &Slot,
        gfn: Gfn,
        host_shift: impl FnOnce() -> u32,
    ) -> PageSize {
        largest(self.format.largest(), slot, gfn, host_shift)
    }
}

#[inline]
fn largest(largest: PageSize, slot: &Slot, gfn: Gfn, host_shift: impl FnOnce() -> u32) -> PageSize {
    let fits = |size: PageSize| size <= largest && slot.fits_large(gfn, size.pages());
    if !fits(PageSize::Size2M) {
        return PageSize::Size4K;
    }
    let shift = host_shift();
    let in_host = |size: PageSize| size.level().shift() <= shift;
    match (in_host(PageSize::Size2M), in_host(PageSize::Size1G)) {
        (true, true) if fits(PageSize::Size1G) => PageSize::Size1G,
        (true, _) => PageSize::Size2M,
        (false, _) => PageSize::Size4K,
    }
}

/// The host range of the page of a size that holds a user address.
pub(super) fn host_page(hva: Hva, size: PageSize) -> HvaRange {
    let start = Hva::new(hva.raw() & !(size.bytes() - 1));
    HvaRange {
        start,
        end: start.wrapping_add(size.bytes()),
    }
}

#[kunit_tests(rusthv_page_size)]
mod tests {
    use super::*;
    use crate::model::memory::slots::SlotFlags;
    use crate::model::paging::Permissions;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    /// A slot of so many bytes.
    fn slot(gpa: u64, hva: u64, bytes: u64) -> Slot {
        Slot {
            id: 0,
            base: Gfn::new(gpa >> 12),
            pages: bytes >> 12,
            hva: Hva::new(hva),
            flags: SlotFlags::NONE,
            rights: Permissions::RWX,
        }
    }

    fn size(slot: &Slot, gpa: u64, shift: u32) -> PageSize {
        largest(PageSize::Size1G, slot, Gfn::new(gpa >> 12), || shift)
    }

    #[test]
    fn no_page_is_larger_than_the_hosts() {
        let slot = slot(4 * GIB, 8 * GIB, 2 * GIB);
        for (shift, wanted) in [
            (12, PageSize::Size4K),
            (20, PageSize::Size4K),
            (21, PageSize::Size2M),
            (29, PageSize::Size2M),
            (30, PageSize::Size1G),
            (39, PageSize::Size1G),
        ] {
            assert_eq!(size(&slot, 5 * GIB + 0x5000, shift), wanted);
        }
    }

    #[test]
    fn no_page_is_larger_than_the_cpus() {
        let slot = slot(GIB, GIB, GIB);
        let gfn = Gfn::new(GIB >> 12);
        for limit in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
            assert_eq!(largest(limit, &slot, gfn, || 30), limit);
        }
    }

    #[test]
    fn a_page_lies_in_its_slot_and_is_aligned_as_the_hosts() {
        // From the middle of one gigabyte to the middle of the last.
        let wide = slot(GIB + 4 * MIB, 9 * GIB + 4 * MIB, 2 * GIB);
        assert_eq!(size(&wide, GIB + 4 * MIB, 30), PageSize::Size2M);
        assert_eq!(size(&wide, 2 * GIB - 1, 30), PageSize::Size2M);
        assert_eq!(size(&wide, 2 * GIB, 30), PageSize::Size1G);
        assert_eq!(size(&wide, 3 * GIB - 1, 30), PageSize::Size1G);
        assert_eq!(size(&wide, 3 * GIB, 30), PageSize::Size2M);
        // Aligned alike to 2 MiB, but not to 1 GiB; to neither.
        assert_eq!(
            size(&slot(GIB, 2 * MIB, 2 * GIB), GIB, 30),
            PageSize::Size2M
        );
        assert_eq!(size(&slot(GIB, 0x1000, 2 * GIB), GIB, 30), PageSize::Size4K);
    }

    #[test]
    fn the_host_is_asked_where_it_matters() {
        let mut asked = false;
        let small = slot(GIB, GIB, 0x5000);
        let found = largest(PageSize::Size1G, &small, small.base, || {
            asked = true;
            30
        });
        assert_eq!((found, asked), (PageSize::Size4K, false));
    }

    #[test]
    fn a_host_page_is_all_of_it() {
        let range = host_page(Hva::new(3 * GIB + 0x12_3456), PageSize::Size1G);
        assert_eq!((range.start.raw(), range.end.raw()), (3 * GIB, 4 * GIB));
        let range = host_page(Hva::new(3 * GIB + 0x32_3456), PageSize::Size2M);
        let start = 3 * GIB + 2 * MIB;
        assert_eq!(
            (range.start.raw(), range.end.raw()),
            (start, start + 2 * MIB)
        );
    }
}

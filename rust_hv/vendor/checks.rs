// SPDX-License-Identifier: GPL-2.0

//! For KUnit: what every vendor's [`Window`] has to do alike.
//!
//! Nothing is asserted here: a failed assertion ends the thread at once, and would leave interrupts
//! off. Each check writes and reads in a window, and gives back pairs of what was found and what is
//! wanted.

use super::{Guest, SegmentRegister, TableRegister, Window};
use crate::model::arch::segment::{AccessRights, Segment};
use kernel::prelude::*;

/// Registers that are read as they were written.
pub fn registers(guest: &mut impl Guest) -> Result<[(u64, u64); 10]> {
    let gdtr = TableRegister {
        base: 0xffff_8000_0000_2000,
        limit: 0x7f,
    };
    let idtr = TableRegister {
        base: 0x3000,
        limit: 0xffff,
    };
    let mut window = guest.open()?;
    window.set_rip(0xffff_8000_0000_1000)?;
    window.set_rsp(0x7fff_ffff_f000)?;
    window.set_rflags(0x246 & !2)?;
    window.set_cr3(0x1234_5000)?;
    window.set_dr7(0x400)?;
    window.set_pat(0x0007_0406_0007_0406)?;
    window.set_gdtr(gdtr)?;
    window.set_idtr(idtr)?;
    let (found_gdtr, found_idtr) = (window.gdtr()?, window.idtr()?);
    Ok([
        (window.rip()?, 0xffff_8000_0000_1000),
        (window.rsp()?, 0x7fff_ffff_f000),
        // Bit 1 is always set.
        (window.rflags()?, 0x246),
        (window.cr3()?, 0x1234_5000),
        (window.dr7()?, 0x400),
        (window.pat()?, 0x0007_0406_0007_0406),
        (found_gdtr.base, gdtr.base),
        (found_gdtr.limit.into(), gdtr.limit.into()),
        (found_idtr.base, idtr.base),
        (found_idtr.limit.into(), idtr.limit.into()),
    ])
}

/// Segment registers, each with a place of its own; `rights` is what the hardware keeps as it is,
/// by the segment's number.
pub fn segments(guest: &mut impl Guest, rights: fn(u32) -> u32) -> Result<[(Segment, Segment); 8]> {
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    let all = [Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr].map(|which| {
        let index = which as u32;
        let segment = Segment {
            selector: 0x100 + 8 * index as u16,
            base: 0x1_0000 * (u64::from(index) + 1),
            limit: 0xfff + index,
            rights: AccessRights::from_raw(rights(index)),
        };
        (which, segment)
    });
    let mut window = guest.open()?;
    for (which, segment) in &all {
        window.set_segment(*which, segment)?;
    }
    let mut pairs = [(Segment::default(), Segment::default()); 8];
    for (pair, (which, segment)) in pairs.iter_mut().zip(all) {
        *pair = (window.segment(which)?, segment);
    }
    Ok(pairs)
}

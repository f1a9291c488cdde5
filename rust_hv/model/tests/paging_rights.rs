// SPDX-License-Identifier: GPL-2.0

//! The walk of the guest's tables: who may do what, and the error codes of who may not.

#[path = "paging_support/guest.rs"]
mod guest;

use guest::*;
use rusthv_model::arch::regs::{Cr0, Cr4, Rflags};
use rusthv_model::paging::state::{Access, AccessKind, Mode, Privilege};
use rusthv_model::paging::Permissions;
use AccessKind::{Fetch, Read, Write};

#[test]
fn user_and_supervisor_pages() {
    for mode in PAGED {
        let mut kernel = Guest::with(mode, P | W);
        assert_eq!(kernel.fault(Read, KERNEL), None);
        assert_eq!(kernel.fault(Read, Privilege::Implicit), None);
        assert_eq!(kernel.fault(Read, USER), Some(5));
        assert_eq!(kernel.fault(Write, USER), Some(7));
        // One level is enough to keep users out.
        let paged = if mode == Mode::Pae {
            2
        } else {
            kernel.levels()
        };
        for level in 2..=paged {
            let mut user = Guest::with(mode, P | W | U);
            assert_eq!(user.fault(Write, USER), None);
            let entry = user.entry(level);
            user.put(level, entry & !U);
            assert_eq!(user.fault(Write, USER), Some(7), "{mode:?} {level}");
        }
    }
}

#[test]
fn read_only_pages_and_write_protect() {
    for mode in PAGED {
        let mut guest = Guest::with(mode, P | U);
        assert_eq!(guest.fault(Write, KERNEL), Some(3));
        assert_eq!(guest.fault(Write, Privilege::Implicit), Some(3));
        assert_eq!(guest.fault(Write, USER), Some(7));
        assert_eq!(guest.fault(Read, USER), None);
        guest.registers.cr0 = guest.registers.cr0.without(Cr0::WP);
        assert_eq!(guest.fault(Write, KERNEL), None);
        assert_eq!(guest.fault(Write, USER), Some(7));
        let mut upper = Guest::with(mode, P | W | U);
        let entry = upper.entry(2);
        upper.put(2, entry & !W);
        assert_eq!(upper.fault(Write, KERNEL), Some(3));
    }
}

#[test]
fn no_execute() {
    for mode in [Mode::Pae, Mode::FourLevel, Mode::FiveLevel] {
        for level in [1, 2] {
            let mut guest = Guest::with(mode, P | W | U).nxe();
            assert_eq!(guest.fault(Fetch, USER), None);
            let entry = guest.entry(level);
            guest.put(level, entry | NX);
            assert_eq!(guest.fault(Fetch, USER), Some(0x15));
            assert_eq!(guest.fault(Fetch, KERNEL), Some(0x11));
            assert_eq!(guest.fault(Write, USER), None);
        }
    }
}

#[test]
fn smep() {
    for mode in PAGED {
        let mut guest = Guest::with(mode, P | U);
        assert_eq!(guest.fault(Fetch, KERNEL), None);
        let mut guest = guest.cr4(Cr4::SMEP);
        assert_eq!(guest.fault(Fetch, KERNEL), Some(0x11));
        assert_eq!(guest.fault(Fetch, KERNEL_AC), Some(0x11));
        assert_eq!(guest.fault(Fetch, USER), None);
        assert_eq!(guest.fault(Read, KERNEL), None);
        assert_eq!(
            Guest::with(mode, P).cr4(Cr4::SMEP).fault(Fetch, KERNEL),
            None
        );
    }
}

#[test]
fn smap() {
    for mode in PAGED {
        let mut guest = Guest::with(mode, P | W | U).cr4(Cr4::SMAP);
        assert_eq!(guest.fault(Read, KERNEL), Some(1));
        assert_eq!(guest.fault(Write, KERNEL), Some(3));
        assert_eq!(guest.fault(Write, KERNEL_AC), None);
        // The CPU's own accesses are held to it whatever AC says.
        assert_eq!(guest.fault(Read, Privilege::Implicit), Some(1));
        assert_eq!(guest.fault(Fetch, KERNEL), None);
        assert_eq!(guest.fault(Write, USER), None);
        assert_eq!(
            Guest::with(mode, P).cr4(Cr4::SMAP).fault(Read, KERNEL),
            None
        );
    }
}

#[test]
fn the_fetch_bit_is_shown_only_by_cpus_that_tell_fetches() {
    let absent = |mode, cr4, nxe: bool| {
        let guest = Guest::new(mode).cr4(cr4);
        let mut guest = if nxe { guest.nxe() } else { guest };
        guest.fault(Fetch, USER)
    };
    assert_eq!(absent(Mode::FourLevel, Cr4::NONE, false), Some(0x4));
    assert_eq!(absent(Mode::FourLevel, Cr4::NONE, true), Some(0x14));
    assert_eq!(absent(Mode::FourLevel, Cr4::SMEP, false), Some(0x14));
    // NXE without PAE tells nothing.
    assert_eq!(absent(Mode::Bits32, Cr4::NONE, true), Some(0x4));
    assert_eq!(absent(Mode::Bits32, Cr4::SMEP, false), Some(0x14));
}

#[test]
fn protection_keys() {
    let guest = |pkru: u32, wp: bool, user: u64| {
        let mut guest = Guest::with(Mode::FourLevel, P | W | user | 5 << 59).cr4(Cr4::PKE);
        guest.registers.pkru = pkru << 10;
        guest.registers.cr0 = guest.registers.cr0.with(Cr0::WP, wp);
        guest
    };
    let (access, write) = (1, 2);
    assert_eq!(guest(access, true, U).fault(Read, USER), Some(0x25));
    assert_eq!(guest(access, true, U).fault(Write, KERNEL), Some(0x23));
    assert_eq!(guest(access, true, U).fault(Fetch, USER), None);
    assert_eq!(guest(write, true, U).fault(Read, USER), None);
    assert_eq!(guest(write, true, U).fault(Write, USER), Some(0x27));
    assert_eq!(guest(write, true, U).fault(Write, KERNEL), Some(0x23));
    assert_eq!(guest(write, false, U).fault(Write, USER), Some(0x27));
    assert_eq!(guest(write, false, U).fault(Write, KERNEL), None);
    // Keys are for user pages, of their own number, in 64-bit mode, while they are on.
    assert_eq!(guest(access, true, 0).fault(Read, KERNEL), None);
    let mut other = guest(0, true, U);
    other.registers.pkru = !(3 << 10);
    assert_eq!(other.fault(Write, USER), None);
    let mut off = guest(access, true, U);
    off.registers.cr4 = off.registers.cr4.without(Cr4::PKE);
    assert_eq!(off.fault(Write, USER), None);
    // The key is shown even when something else forbids the access too.
    let mut both = guest(write, true, U);
    both.put(1, PAGE | P | U | 5 << 59);
    assert_eq!(both.fault(Write, USER), Some(0x27));
    assert_eq!(
        guest(access, true, U).cr4(Cr4::SMAP).fault(Read, KERNEL),
        Some(0x21)
    );
}

#[test]
fn accesses_by_instructions() {
    let by = |cpl, rflags| Access::explicit(Read, cpl, rflags).privilege;
    assert_eq!(by(3, Rflags::AC), USER);
    assert_eq!(by(0, Rflags::AC | Rflags::IF), KERNEL_AC);
    assert_eq!(by(2, Rflags::IF), KERNEL);
    assert_eq!(Access::implicit(Write).privilege, Privilege::Implicit);
}

#[test]
fn permissions_sum_up_what_accesses_may() {
    let mut guest = Guest::with(Mode::FourLevel, P | U | NX)
        .nxe()
        .cr4(Cr4::SMAP);
    let rights = guest.walk(Read, USER).unwrap().rights;
    assert!(rights.user && !rights.writable && !rights.executable);
    let state = guest.state();
    assert_eq!(state.permissions(&rights, USER), Permissions::R);
    assert_eq!(state.permissions(&rights, KERNEL), Permissions::NONE);
    guest.registers.cr0 = guest.registers.cr0.without(Cr0::WP);
    assert_eq!(
        guest.state().permissions(&rights, KERNEL_AC),
        Permissions::RW
    );
}

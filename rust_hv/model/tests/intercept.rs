// SPDX-License-Identifier: GPL-2.0

//! Ranges of ports and MSRs, and what a guest may be let through to.

use rusthv_model::arch::intercept::{may_pass, passes_anyway, Intercepted, Numbers, PORTS};
use rusthv_model::arch::msr;

#[test]
fn ranges_end_where_numbers_do() {
    assert_eq!(Numbers::new(0, 0), None);
    assert_eq!(Numbers::new(0, PORTS + 1), None);
    assert_eq!(Numbers::new(u32::MAX, 2), None);
    let last = Numbers::new(u32::MAX, 1).unwrap();
    assert_eq!((last.first(), last.last()), (u32::MAX, u32::MAX));
    let all = Numbers::new(0, PORTS).unwrap();
    assert_eq!(all.iter().count(), 1 << 16);
    assert!(all.are_in(0, PORTS) && !all.are_in(0, PORTS - 1) && !all.are_in(1, PORTS));
    let two = Numbers::new(0xffff, 2).unwrap();
    assert!(!two.are_in(0, PORTS));
    assert!(Numbers::new(0xffff, 1).unwrap().are_in(0, PORTS));
    let high = Numbers::new(0xc000_1fff, 1).unwrap();
    assert!(high.are_in(0xc000_0000, 0x2000) && !high.are_in(0, 0x2000));
}

#[test]
fn nothing_of_the_hosts_may_be_written() {
    let one = |number| Numbers::new(number, 1).unwrap();
    for number in [msr::EFER, msr::LSTAR, msr::TSC, msr::APIC_BASE, msr::PAT] {
        assert!(!may_pass(Intercepted::MsrWrite, one(number)));
        assert!(may_pass(Intercepted::MsrRead, one(number)));
    }
    let bases = Numbers::new(msr::FS_BASE, 3).unwrap();
    assert!(may_pass(Intercepted::MsrWrite, bases));
    assert!(passes_anyway(Intercepted::MsrWrite, bases));
    // With TSC_AUX behind them.
    let more = Numbers::new(msr::FS_BASE, 4).unwrap();
    assert!(!may_pass(Intercepted::MsrWrite, more));
    assert!(passes_anyway(Intercepted::MsrRead, one(msr::TSC)));
    assert!(!passes_anyway(Intercepted::MsrWrite, one(msr::TSC)));
    assert!(!passes_anyway(Intercepted::Port, one(0x80)));
    assert!(may_pass(Intercepted::Port, one(0x80)));
}

// SPDX-License-Identifier: GPL-2.0

//! From exit code and exit information to a neutral [`Exit`] (APM Vol. 2, appendix "SVM Intercept
//! Exit Codes").

use super::caps::Caps;
use super::vmcb::Control;
use crate::model::arch::addr::{Gpa, Gva};
use crate::model::arch::exception::PageFaultError;
use crate::model::exit::{
    ControlAccess, Direction, Event, EventKind, Exit, NestedFault, Origin, PortAccess,
};
use kernel::prelude::kunit_tests;

pub(super) mod code {
    pub(crate) const READ_CR0: u64 = 0x00;
    pub(crate) const READ_CR15: u64 = 0x0f;
    pub(crate) const WRITE_CR0: u64 = 0x10;
    pub(crate) const WRITE_CR15: u64 = 0x1f;
    pub(crate) const READ_DR0: u64 = 0x20;
    pub(crate) const READ_DR15: u64 = 0x2f;
    pub(crate) const WRITE_DR0: u64 = 0x30;
    pub(crate) const WRITE_DR15: u64 = 0x3f;
    pub(crate) const EXCEPTION_0: u64 = 0x40;
    pub(crate) const DEBUG: u64 = 0x41;
    pub(crate) const PAGE_FAULT: u64 = 0x4e;
    pub(crate) const EXCEPTION_31: u64 = 0x5f;
    pub(crate) const INTR: u64 = 0x60;
    pub(crate) const INIT: u64 = 0x63;
    pub(crate) const VINTR: u64 = 0x64;
    pub(crate) const RDPMC: u64 = 0x6f;
    pub(crate) const CPUID: u64 = 0x72;
    pub(crate) const RSM: u64 = 0x73;
    pub(crate) const INVD: u64 = 0x76;
    pub(crate) const HLT: u64 = 0x78;
    pub(crate) const INVLPG: u64 = 0x79;
    pub(crate) const INVLPGA: u64 = 0x7a;
    pub(crate) const IO: u64 = 0x7b;
    pub(crate) const MSR: u64 = 0x7c;
    pub(crate) const TASK_SWITCH: u64 = 0x7d;
    pub(crate) const SHUTDOWN: u64 = 0x7f;
    pub(crate) const VMRUN: u64 = 0x80;
    pub(crate) const RDTSCP: u64 = 0x87;
    pub(crate) const INT1: u64 = 0x88;
    pub(crate) const WBINVD: u64 = 0x89;
    pub(crate) const MONITOR: u64 = 0x8a;
    pub(crate) const MWAIT_ARMED: u64 = 0x8c;
    pub(crate) const XSETBV: u64 = 0x8d;
    pub(crate) const RDPRU: u64 = 0x8e;
    pub(crate) const INVPCID: u64 = 0xa2;
    pub(crate) const NESTED_PAGE_FAULT: u64 = 0x400;
}

/// Exit code of a triple fault.
pub(super) const SHUTDOWN: u64 = code::SHUTDOWN;

const VALID: u64 = 1 << 31;
const HAS_ERROR_CODE: u64 = 1 << 11;
const VECTOR_DEBUG: u8 = 1;
const VECTOR_BREAKPOINT: u8 = 3;
const VECTOR_OVERFLOW: u8 = 4;
const VECTOR_MACHINE_CHECK: u8 = 18;

/// True when VMRUN did not enter the guest.
///
/// The codes for that are negative. There are hypervisors which run us as their guest that leave
/// the upper half of the field zero.
#[inline]
pub(super) const fn is_failure(code: u64) -> bool {
    (code as i32) < 0
}

/// The word for an event (APM Vol. 2, "Event Injection").
pub(super) const fn event_word(event: &Event) -> u64 {
    let kind = match event.kind {
        EventKind::Interrupt => 0,
        EventKind::Nmi => 2,
        EventKind::Exception
        | EventKind::PrivilegedSoftwareException
        | EventKind::SoftwareException => 3,
        EventKind::SoftwareInterrupt => 4,
    };
    let word = VALID | kind << 8 | event.vector as u64;
    match event.error_code {
        Some(code) => word | HAS_ERROR_CODE | (code as u64) << 32,
        None => word,
    }
}

/// The event whose delivery the exit interrupted.
///
/// Those that an instruction of the guest's raised come without a length. RIP is still at the
/// instruction, which raises them again: see [`runs_again`].
pub(super) const fn interrupted_event(word: u64) -> Option<Event> {
    if word & VALID == 0 {
        return None;
    }
    let vector = word as u8;
    let kind = match word >> 8 & 7 {
        0 => EventKind::Interrupt,
        2 => EventKind::Nmi,
        3 if vector == VECTOR_BREAKPOINT || vector == VECTOR_OVERFLOW => {
            EventKind::SoftwareException
        }
        3 => EventKind::Exception,
        4 => EventKind::SoftwareInterrupt,
        _ => return None,
    };
    Some(Event {
        vector,
        kind,
        error_code: if word & HAS_ERROR_CODE != 0 {
            Some((word >> 32) as u32)
        } else {
            None
        },
        instruction_len: 0,
    })
}

/// True for an event that the guest's next instruction will raise.
pub(super) const fn runs_again(event: &Event) -> bool {
    let software = matches!(
        event.kind,
        EventKind::SoftwareInterrupt | EventKind::SoftwareException
    );
    software && event.instruction_len == 0
}

/// Says what an exit is. [`Exit::Fetch`] when the CPU has not told enough about the instruction.
pub(super) fn decode(control: &Control, caps: &Caps) -> Exit {
    let code = control.exit_code;
    // The length of the instruction is known.
    let measured = caps.next_rip && control.next_rip != 0;
    let info = control.exit_info1;
    match code {
        code::NESTED_PAGE_FAULT => memory(info, control.exit_info2),
        code::INTR..=code::INIT => Exit::HostEvent,
        code::IO => port(info),
        code::VINTR => Exit::InterruptWindow,
        code::EXCEPTION_0..=code::EXCEPTION_31 => {
            exception((code - code::EXCEPTION_0) as u8, info as u32)
        }
        code::SHUTDOWN => Exit::TripleFault,
        code::RDPMC => Exit::Rdpmc,
        code::TASK_SWITCH => Exit::TaskSwitch,
        code::RSM
        | code::INVLPGA
        | code::VMRUN..=code::RDTSCP
        | code::MONITOR..=code::MWAIT_ARMED
        | code::RDPRU
        | code::INVPCID => Exit::Undefined,
        code::READ_CR0..=code::WRITE_DR15 if measured => special_register(code, info, caps),
        code::READ_CR0..=code::WRITE_DR15 => Exit::Fetch,
        code::CPUID
        | code::INVD
        | code::HLT
        | code::MSR
        | code::INT1
        | code::WBINVD
        | code::XSETBV
            if !measured =>
        {
            Exit::Fetch
        }
        code::CPUID => Exit::Cpuid,
        code::INVD | code::WBINVD => Exit::CacheControl,
        code::HLT => Exit::Halt,
        code::MSR => Exit::Msr(msr_direction(info)),
        code::INT1 => Exit::Exception {
            vector: VECTOR_DEBUG,
            error_code: None,
        },
        code::XSETBV => Exit::Xsetbv,
        _ if is_failure(code) => Exit::EntryFailed { reason: code },
        _ => Exit::Unknown { reason: code },
    }
}

/// The exits that are intercepted without nested tables alone.
pub(super) fn of_tables(control: &Control, caps: &Caps, invpcid: bool) -> Option<Exit> {
    let measured = caps.next_rip && control.next_rip != 0;
    Some(match control.exit_code {
        code::PAGE_FAULT => Exit::PageFault {
            gva: Gva::new(control.exit_info2),
            code: PageFaultError::from_raw(control.exit_info1 as u32),
        },
        code::INVLPG if measured && caps.decode_assists => {
            Exit::Invalidate(Some(Gva::new(control.exit_info1)))
        }
        code::INVLPG if measured => Exit::Invalidate(None),
        code::INVLPG => Exit::Fetch,
        // CPUs with the instruction have both.
        code::INVPCID if invpcid && measured => Exit::InvalidateContext,
        _ => return None,
    })
}

/// RDMSR or WRMSR.
pub(super) const fn msr_direction(info: u64) -> Direction {
    if info & 1 == 0 {
        Direction::Read
    } else {
        Direction::Write
    }
}

/// APM Vol. 2, "EXITINFO1 for IOIO Intercept".
const fn port(info: u64) -> Exit {
    Exit::Port(PortAccess {
        port: (info >> 16) as u16,
        // One of bits 6:4, for 4, 2 and 1 bytes.
        size: (info >> 4 & 7) as u8,
        out: info & 1 == 0,
        string: info & 1 << 2 != 0,
        repeated: info & 1 << 3 != 0,
    })
}

/// APM Vol. 2, "Nested versus Guest Page Faults, Fault Ordering".
const fn memory(info: u64, address: u64) -> Exit {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    const FINAL: u64 = 1 << 32;
    if info & RESERVED != 0 {
        return Exit::Misconfigured(Gpa::new(address));
    }
    Exit::Memory(NestedFault {
        gpa: Gpa::new(address),
        write: info & WRITE != 0,
        fetch: info & FETCH != 0,
        present: info & PRESENT != 0,
        origin: if info & FINAL != 0 {
            Origin::Access(None)
        } else {
            Origin::Tables
        },
    })
}

const fn exception(vector: u8, error_code: u32) -> Exit {
    match vector {
        VECTOR_MACHINE_CHECK => Exit::MachineCheck,
        // APM Vol. 2, "Error Codes".
        8 | 10..=14 | 17 => Exit::Exception {
            vector,
            error_code: Some(error_code),
        },
        _ => Exit::Exception {
            vector,
            error_code: None,
        },
    }
}

/// APM Vol. 2, "Decode Assists, MOV CRx/DRx Intercepts". What is not a MOV has bit 63 clear.
fn special_register(code: u64, info: u64, caps: &Caps) -> Exit {
    const IS_MOV: u64 = 1 << 63;
    let register = (code & 0xf) as u8;
    let gpr = (info & 0xf) as u8;
    match code {
        _ if !caps.decode_assists => Exit::Fetch,
        code::READ_CR0..=code::WRITE_CR15 if info & IS_MOV == 0 => Exit::Fetch,
        code::READ_CR0..=code::READ_CR15 => Exit::Control(ControlAccess::Read { register, gpr }),
        code::WRITE_CR0..=code::WRITE_CR15 => Exit::Control(ControlAccess::Write { register, gpr }),
        code::READ_DR0..=code::READ_DR15 => Exit::Debug {
            register,
            gpr,
            direction: Direction::Read,
        },
        _ => Exit::Debug {
            register,
            gpr,
            direction: Direction::Write,
        },
    }
}

#[kunit_tests(rusthv_svm_exit)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;
    use crate::svm::vmcb::VmcbPage;
    use crate::vendor;
    use kernel::prelude::*;

    fn event(vector: u8, kind: EventKind, error_code: Option<u32>) -> Event {
        Event {
            vector,
            kind,
            error_code,
            instruction_len: 0,
        }
    }

    fn caps(full: bool) -> Caps {
        Caps {
            common: vendor::Caps::default(),
            asids: 16,
            flush_by_asid: full,
            next_rip: full,
            decode_assists: full,
            clean_bits: full,
            invpcid: full,
        }
    }

    /// Words after APM Vol. 2, figure "EVENTINJ Field in the VMCB".
    #[test]
    fn known_words() {
        let word = |vector, kind, code| event_word(&event(vector, kind, code));
        assert_eq!(word(0x20, EventKind::Interrupt, None), 0x8000_0020);
        assert_eq!(word(2, EventKind::Nmi, None), 0x8000_0202);
        assert_eq!(word(6, EventKind::Exception, None), 0x8000_0306);
        let page_fault = word(14, EventKind::Exception, Some(2));
        assert_eq!(page_fault, 0x0000_0002_8000_0b0e);
        let int1 = word(1, EventKind::PrivilegedSoftwareException, None);
        assert_eq!(int1, 0x8000_0301);
    }

    #[test]
    fn interrupted_events_come_back() {
        for kind in [EventKind::Interrupt, EventKind::Nmi, EventKind::Exception] {
            for vector in 5..=255u8 {
                for code in [None, Some(0), Some(u32::MAX)] {
                    let event = event(vector, kind, code);
                    assert_eq!(interrupted_event(event_word(&event)), Some(event));
                }
            }
        }
        assert_eq!(interrupted_event(0x20), None);
    }

    /// The instruction raises them again.
    #[test]
    fn software_events_are_told_apart() {
        for (word, again) in [
            (0x8000_0480, true),
            (0x8000_0303, true),
            (0x8000_0304, true),
            (0x8000_0301, false),
            (0x8000_0080, false),
        ] {
            let event = interrupted_event(word);
            assert_eq!(event.map(|event| runs_again(&event)), Some(again));
            assert_eq!(event.map(|event| event_word(&event)), Some(word));
        }
    }

    #[test]
    fn port_accesses() {
        let plain = PortAccess {
            port: 0x3f8,
            size: 1,
            out: true,
            string: false,
            repeated: false,
        };
        assert_eq!(port(0x03f8_0090), Exit::Port(PortAccess { ..plain }));
        let read = PortAccess {
            out: false,
            ..plain
        };
        assert_eq!(port(0x03f8_0091), Exit::Port(read));
        let wide = PortAccess { size: 4, ..plain };
        assert_eq!(port(0x03f8_0140), Exit::Port(wide));
        let highest = PortAccess {
            port: 0xffff,
            size: 2,
            string: true,
            repeated: true,
            ..plain
        };
        assert_eq!(port(0xffff_02ac), Exit::Port(highest));
    }

    #[test]
    fn nested_faults() {
        let fault = NestedFault {
            gpa: Gpa::new(0x1234_5678),
            write: true,
            fetch: false,
            present: false,
            origin: Origin::Access(None),
        };
        // The final address, of a user access.
        assert_eq!(memory(0x1_0000_0006, 0x1234_5678), Exit::Memory(fault));
        let fetch = NestedFault {
            write: false,
            fetch: true,
            present: true,
            ..fault
        };
        assert_eq!(memory(0x1_0000_0015, 0x1234_5678), Exit::Memory(fetch));
        let walk = NestedFault {
            origin: Origin::Tables,
            ..fault
        };
        assert_eq!(memory(0x2_0000_0006, 0x1234_5678), Exit::Memory(walk));
        let reserved = Exit::Misconfigured(Gpa::new(0x1000));
        assert_eq!(memory(0x1_0000_000d, 0x1000), reserved);
    }

    /// Codes of exits by instructions, with and without what newer CPUs tell of these.
    #[test]
    fn instructions_are_fetched_when_need_be() -> Result {
        const MOV: u64 = 1 << 63;
        let write = ControlAccess::Write {
            register: 4,
            gpr: 9,
        };
        let read = ControlAccess::Read {
            register: 0,
            gpr: 15,
        };
        let debug = Exit::Debug {
            register: 7,
            gpr: 12,
            direction: Direction::Write,
        };
        let int1 = Exit::Exception {
            vector: 1,
            error_code: None,
        };
        let cases = [
            (0x72, 0, Exit::Cpuid),
            (0x78, 0, Exit::Halt),
            (0x7c, 0, Exit::Msr(Direction::Read)),
            (0x7c, 1, Exit::Msr(Direction::Write)),
            (0x76, 0, Exit::CacheControl),
            (0x89, 0, Exit::CacheControl),
            (0x8d, 0, Exit::Xsetbv),
            (0x88, 0, int1),
            (0x14, MOV | 9, Exit::Control(write)),
            (0x00, MOV | 15, Exit::Control(read)),
            (0x37, 12, debug),
        ];
        let mut page = VmcbPage::new(current_node())?;
        let control = &mut page.get_mut().control;
        control.next_rip = 0x1000;
        for (code, info, exit) in cases {
            control.exit_code = code;
            control.exit_info1 = info;
            assert_eq!(decode(control, &caps(true)), exit);
            assert_eq!(decode(control, &caps(false)), Exit::Fetch);
        }
        // LMSW, CLTS, SMSW: not a MOV.
        control.exit_code = 0x10;
        control.exit_info1 = 0;
        assert_eq!(decode(control, &caps(true)), Exit::Fetch);
        control.exit_code = 0x14;
        control.exit_info1 = MOV | 9;
        control.next_rip = 0;
        assert_eq!(decode(control, &caps(true)), Exit::Fetch);
        Ok(())
    }

    #[test]
    fn other_codes() -> Result {
        let alignment = Exit::Exception {
            vector: 17,
            error_code: Some(0),
        };
        let failed = |reason| Exit::EntryFailed { reason };
        let cases = [
            (0x60, Exit::HostEvent),
            (0x61, Exit::HostEvent),
            (0x62, Exit::HostEvent),
            (0x63, Exit::HostEvent),
            (0x64, Exit::InterruptWindow),
            (0x51, alignment),
            (0x52, Exit::MachineCheck),
            (0x6f, Exit::Rdpmc),
            (0x7d, Exit::TaskSwitch),
            (0x7f, Exit::TripleFault),
            (0x80, Exit::Undefined),
            (0x81, Exit::Undefined),
            (0x87, Exit::Undefined),
            (0x8b, Exit::Undefined),
            (0xa2, Exit::Undefined),
            (0x75, Exit::Unknown { reason: 0x75 }),
            (u64::MAX, failed(u64::MAX)),
            // As some hypervisors tell it.
            (0xffff_ffff, failed(0xffff_ffff)),
        ];
        let mut page = VmcbPage::new(current_node())?;
        let control = &mut page.get_mut().control;
        for (code, exit) in cases {
            control.exit_code = code;
            for full in [false, true] {
                assert_eq!(decode(control, &caps(full)), exit);
            }
        }
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! From exit reason and qualification to a neutral [`Exit`] (SDM Vol. 3D, appendix "VMX Basic Exit
//! Reasons"; Vol. 3C, "Basic VM-Exit Information").
//!
//! Only what the kind of exit needs is read from the VMCS.

use super::fields::*;
use super::vmcs::Window;
use crate::model::arch::addr::{Gpa, Gva};
use crate::model::arch::exception::PageFaultError;
use crate::model::exit::{
    ControlAccess, Direction, Event, EventKind, Exit, NestedFault, Origin, PortAccess,
};
use crate::vendor::HwError;
use kernel::prelude::kunit_tests;

/// Exit reason, bit 31: the entry failed.
const ENTRY_FAILURE: u32 = 1 << 31;

mod reason {
    pub(super) const EXCEPTION_OR_NMI: u16 = 0;
    pub(super) const EXTERNAL_INTERRUPT: u16 = 1;
    pub(super) const TRIPLE_FAULT: u16 = 2;
    pub(super) const INTERRUPT_WINDOW: u16 = 7;
    pub(super) const TASK_SWITCH: u16 = 9;
    pub(super) const CPUID: u16 = 10;
    pub(super) const GETSEC: u16 = 11;
    pub(super) const HLT: u16 = 12;
    pub(super) const INVD: u16 = 13;
    pub(super) const INVLPG: u16 = 14;
    pub(super) const RDPMC: u16 = 15;
    pub(super) const VMCALL: u16 = 18;
    pub(super) const VMXON: u16 = 27;
    pub(super) const CR_ACCESS: u16 = 28;
    pub(super) const DR_ACCESS: u16 = 29;
    pub(super) const IO: u16 = 30;
    pub(super) const RDMSR: u16 = 31;
    pub(super) const WRMSR: u16 = 32;
    pub(super) const MWAIT: u16 = 36;
    pub(super) const MONITOR: u16 = 39;
    pub(super) const MACHINE_CHECK: u16 = 41;
    pub(super) const EPT_VIOLATION: u16 = 48;
    pub(super) const EPT_MISCONFIGURATION: u16 = 49;
    pub(super) const INVEPT: u16 = 50;
    pub(super) const INVVPID: u16 = 53;
    pub(super) const WBINVD: u16 = 54;
    pub(super) const XSETBV: u16 = 55;
    pub(super) const INVPCID: u16 = 58;
    pub(super) const VMFUNC: u16 = 59;
    pub(super) const ENCLS: u16 = 60;
    pub(super) const LOG_FULL: u16 = 62;
    pub(super) const SEAMCALL: u16 = 76;
    pub(super) const TDCALL: u16 = 77;
}

const VALID: u32 = 1 << 31;
const HAS_ERROR_CODE: u32 = 1 << 11;
const VECTOR_NMI: u8 = 2;
const VECTOR_PAGE_FAULT: u8 = 14;
const VECTOR_MACHINE_CHECK: u8 = 18;

/// Interruption type, bits 10:8 of the interruption-information fields.
const fn kind_of(info: u32) -> EventKind {
    match info >> 8 & 7 {
        0 => EventKind::Interrupt,
        2 => EventKind::Nmi,
        4 => EventKind::SoftwareInterrupt,
        5 => EventKind::PrivilegedSoftwareException,
        6 => EventKind::SoftwareException,
        _ => EventKind::Exception,
    }
}

/// The interruption-information word for an event (SDM Vol. 3C, "VM-Entry Controls for Event
/// Injection").
pub(super) const fn interruption_info(event: &Event) -> u32 {
    let kind = match event.kind {
        EventKind::Interrupt => 0,
        EventKind::Nmi => 2,
        EventKind::Exception => 3,
        EventKind::SoftwareInterrupt => 4,
        EventKind::PrivilegedSoftwareException => 5,
        EventKind::SoftwareException => 6,
    };
    let code = if event.error_code.is_some() {
        HAS_ERROR_CODE
    } else {
        0
    };
    VALID | kind << 8 | code | event.vector as u32
}

/// The event whose delivery the exit interrupted; it has to be injected again.
#[inline]
pub(super) fn interrupted_event(window: &Window<'_>) -> Result<Option<Event>, HwError> {
    let info = window.read(IDT_VECTORING_INFO)?;
    if info & VALID == 0 {
        return Ok(None);
    }
    let kind = kind_of(info);
    let instruction_len = match kind {
        EventKind::SoftwareInterrupt
        | EventKind::PrivilegedSoftwareException
        | EventKind::SoftwareException => window.read(EXIT_INSTRUCTION_LENGTH)? as u8,
        _ => 0,
    };
    let error_code = if info & HAS_ERROR_CODE != 0 {
        Some(window.read(IDT_VECTORING_ERROR_CODE)?)
    } else {
        None
    };
    Ok(Some(Event {
        vector: info as u8,
        kind,
        error_code,
        instruction_len,
    }))
}

/// Says what an exit reason means.
pub(super) fn decode(window: &Window<'_>, raw: u32) -> Result<Exit, HwError> {
    if raw & ENTRY_FAILURE != 0 {
        if raw as u16 == reason::MACHINE_CHECK {
            return Ok(Exit::MachineCheck);
        }
        return Ok(Exit::EntryFailed {
            reason: u64::from(raw),
        });
    }
    Ok(match raw as u16 {
        reason::EXTERNAL_INTERRUPT => Exit::HostEvent,
        reason::CPUID => Exit::Cpuid,
        reason::IO => port(window.read(EXIT_QUALIFICATION)?),
        reason::EPT_VIOLATION => memory(window)?,
        reason::HLT => Exit::Halt,
        reason::RDMSR => Exit::Msr(Direction::Read),
        reason::WRMSR => Exit::Msr(Direction::Write),
        reason::CR_ACCESS => control(window.read(EXIT_QUALIFICATION)?),
        reason::DR_ACCESS => debug(window.read(EXIT_QUALIFICATION)?),
        reason::EXCEPTION_OR_NMI => exception(window)?,
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::INVD | reason::WBINVD => Exit::CacheControl,
        reason::XSETBV => Exit::Xsetbv,
        reason::INVLPG => Exit::Invalidate(Some(Gva::new(window.read(EXIT_QUALIFICATION)?))),
        reason::INVPCID => Exit::InvalidateContext,
        reason::RDPMC => Exit::Rdpmc,
        reason::EPT_MISCONFIGURATION => {
            Exit::Misconfigured(Gpa::new(window.read(GUEST_PHYSICAL_ADDRESS)?))
        }
        reason::LOG_FULL => Exit::LogFull,
        reason::MACHINE_CHECK => Exit::MachineCheck,
        reason::TASK_SWITCH => Exit::TaskSwitch,
        reason::GETSEC
        | reason::VMCALL..=reason::VMXON
        | reason::MWAIT
        | reason::MONITOR
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        | reason::ENCLS
        | reason::SEAMCALL
        | reason::TDCALL => Exit::Undefined,
        _ => Exit::Unknown {
            reason: u64::from(raw),
        },
    })
}

fn exception(window: &Window<'_>) -> Result<Exit, HwError> {
    let info = window.read(EXIT_INTERRUPTION_INFO)?;
    let vector = info as u8;
    match (kind_of(info), vector) {
        // The host's handler ran before anything else did.
        (EventKind::Nmi, VECTOR_NMI) => Ok(Exit::HostEvent),
        (EventKind::Exception, VECTOR_MACHINE_CHECK) => Ok(Exit::MachineCheck),
        // Asked for without EPT only.
        (EventKind::Exception, VECTOR_PAGE_FAULT) => Ok(Exit::PageFault {
            gva: Gva::new(window.read(EXIT_QUALIFICATION)?),
            code: PageFaultError::from_raw(window.read(EXIT_ERROR_CODE)?),
        }),
        _ => Ok(Exit::Exception {
            vector,
            error_code: if info & HAS_ERROR_CODE != 0 {
                Some(window.read(EXIT_ERROR_CODE)?)
            } else {
                None
            },
        }),
    }
}

/// True when the exit's exception was raised by INT1.
pub(super) fn by_int1(window: &Window<'_>) -> Result<bool, HwError> {
    let info = window.read(EXIT_INTERRUPTION_INFO)?;
    Ok(kind_of(info) == EventKind::PrivilegedSoftwareException)
}

/// SDM Vol. 3C, table "Exit Qualification for I/O Instructions".
const fn port(qualification: u64) -> Exit {
    Exit::Port(PortAccess {
        port: (qualification >> 16) as u16,
        size: (qualification as u8 & 7) + 1,
        out: qualification & 1 << 3 == 0,
        string: qualification & 1 << 4 != 0,
        repeated: qualification & 1 << 5 != 0,
    })
}

/// SDM Vol. 3C, table "Exit Qualification for Control-Register Accesses".
const fn control(qualification: u64) -> Exit {
    let register = (qualification & 0xf) as u8;
    let gpr = (qualification >> 8 & 0xf) as u8;
    Exit::Control(match qualification >> 4 & 3 {
        0 => ControlAccess::Write { register, gpr },
        1 => ControlAccess::Read { register, gpr },
        2 => ControlAccess::ClearTaskSwitched,
        _ => ControlAccess::LoadMachineStatus((qualification >> 16) as u16),
    })
}

/// SDM Vol. 3C, table "Exit Qualification for MOV DR".
const fn debug(qualification: u64) -> Exit {
    Exit::Debug {
        register: (qualification & 7) as u8,
        gpr: (qualification >> 8 & 0xf) as u8,
        direction: if qualification & 1 << 4 != 0 {
            Direction::Read
        } else {
            Direction::Write
        },
    }
}

/// SDM Vol. 3C, table "Exit Qualification for EPT Violations".
fn memory(window: &Window<'_>) -> Result<Exit, HwError> {
    let qualification = window.read(EXIT_QUALIFICATION)?;
    let gpa = Gpa::new(window.read(GUEST_PHYSICAL_ADDRESS)?);
    // Bit 7: the linear address is valid; bit 8: it is the access's own, not a table walk's.
    let origin = if qualification & (1 << 7 | 1 << 8) == 1 << 7 | 1 << 8 {
        Origin::Access(Some(Gva::new(window.read(GUEST_LINEAR_ADDRESS)?)))
    } else {
        Origin::Tables
    };
    Ok(Exit::Memory(NestedFault {
        gpa,
        write: qualification & 1 << 1 != 0,
        fetch: qualification & 1 << 2 != 0,
        present: qualification & 0b111 << 3 != 0,
        origin,
    }))
}

#[kunit_tests(rusthv_exit)]
mod tests {
    use super::*;

    fn event(vector: u8, kind: EventKind, error_code: Option<u32>) -> Event {
        Event {
            vector,
            kind,
            error_code,
            instruction_len: 0,
        }
    }

    /// Words from the SDM's table "Format of the VM-Entry Interruption-Information Field".
    #[test]
    fn known_words() {
        let word = |vector, kind, code| interruption_info(&event(vector, kind, code));
        assert_eq!(word(0x20, EventKind::Interrupt, None), 0x8000_0020);
        assert_eq!(word(2, EventKind::Nmi, None), 0x8000_0202);
        assert_eq!(word(6, EventKind::Exception, None), 0x8000_0306);
        assert_eq!(word(13, EventKind::Exception, Some(0)), 0x8000_0b0d);
        assert_eq!(word(14, EventKind::Exception, Some(2)), 0x8000_0b0e);
        assert_eq!(word(0x80, EventKind::SoftwareInterrupt, None), 0x8000_0480);
        let int1 = word(1, EventKind::PrivilegedSoftwareException, None);
        assert_eq!(int1, 0x8000_0501);
        assert_eq!(word(3, EventKind::SoftwareException, None), 0x8000_0603);
    }

    #[test]
    fn kinds_round_trip() {
        let kinds = [
            EventKind::Interrupt,
            EventKind::Nmi,
            EventKind::Exception,
            EventKind::SoftwareInterrupt,
            EventKind::PrivilegedSoftwareException,
            EventKind::SoftwareException,
        ];
        for kind in kinds {
            for vector in 0..=255u8 {
                for code in [None, Some(0), Some(u32::MAX)] {
                    let word = interruption_info(&event(vector, kind, code));
                    assert_eq!(kind_of(word), kind);
                    assert_eq!(word as u8, vector);
                    assert_eq!((word & HAS_ERROR_CODE != 0), code.is_some());
                    // Bits 30:12 are reserved, and the entry fails when they are set.
                    assert_eq!(word & 0x7fff_f000, 0);
                    assert_eq!(word & VALID, VALID);
                }
            }
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
        assert_eq!(port(0x03f8_0000), Exit::Port(plain));
        let read = PortAccess {
            out: false,
            ..plain
        };
        assert_eq!(port(0x03f8_0008), Exit::Port(read));
        let wide = PortAccess { size: 4, ..plain };
        assert_eq!(port(0x03f8_0003), Exit::Port(wide));
        let highest = PortAccess {
            port: 0xffff,
            size: 2,
            string: true,
            repeated: true,
            ..plain
        };
        assert_eq!(port(0xffff_0031), Exit::Port(highest));
    }

    #[test]
    fn control_register_accesses() {
        let write = ControlAccess::Write {
            register: 3,
            gpr: 15,
        };
        assert_eq!(control(0x0f03), Exit::Control(write));
        let read = ControlAccess::Read {
            register: 8,
            gpr: 1,
        };
        assert_eq!(control(0x0118), Exit::Control(read));
        assert_eq!(
            control(0x20),
            Exit::Control(ControlAccess::ClearTaskSwitched)
        );
        let lmsw = ControlAccess::LoadMachineStatus(0xfff1);
        assert_eq!(control(0xfff1_0030), Exit::Control(lmsw));
    }

    #[test]
    fn debug_register_accesses() {
        let write = Exit::Debug {
            register: 7,
            gpr: 12,
            direction: Direction::Write,
        };
        assert_eq!(debug(0x0c07), write);
        let read = Exit::Debug {
            register: 6,
            gpr: 0,
            direction: Direction::Read,
        };
        assert_eq!(debug(0x0016), read);
    }
}

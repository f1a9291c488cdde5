// SPDX-License-Identifier: GPL-2.0

//! Why a guest stopped, in words that no CPU vendor owns.
//!
//! The hardware rooms turn their exit reasons into these; `vcpu` handles them.

use super::arch::addr::{Gpa, Gva};
use super::arch::exception::{PageFaultError, Vector};

/// Direction of a transfer between a register and something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Into the register.
    Read,
    /// From the register.
    Write,
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// OUT rather than IN.
    pub out: bool,
    /// INS or OUTS: the data is in memory.
    pub string: bool,
    /// With a REP prefix.
    pub repeated: bool,
}

/// A MOV to or from a control register, or its kin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlAccess {
    /// MOV CRn, register.
    Write {
        /// n
        register: u8,
        /// General-purpose register.
        gpr: u8,
    },
    /// MOV register, CRn.
    Read {
        /// n
        register: u8,
        /// General-purpose register.
        gpr: u8,
    },
    /// CLTS.
    ClearTaskSwitched,
    /// LMSW with its operand.
    LoadMachineStatus(u16),
}

/// A guest-physical access that the nested tables do not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedFault {
    /// Where.
    pub gpa: Gpa,
    /// The access was a write.
    pub write: bool,
    /// The access was an instruction fetch.
    pub fetch: bool,
    /// The page is mapped, with fewer rights.
    pub present: bool,
    /// What the access was part of.
    pub origin: Origin,
}

/// What made a guest-physical access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A walk of the guest's own tables, or nothing that has a linear address.
    Tables,
    /// The access of an instruction itself, which the guest's tables allow; at this linear address,
    /// where the CPU tells it.
    Access(Option<Gva>),
}

/// Why a guest stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A host interrupt or NMI, taken when the window closes or taken already.
    HostEvent,
    /// The guest raised an exception that we asked for.
    Exception {
        /// Vector.
        vector: u8,
        /// Error code, for vectors that have one.
        error_code: Option<u32>,
    },
    /// The guest raised a page fault where the hypervisor keeps the tables that the CPU walks.
    PageFault {
        /// Where.
        gva: Gva,
        /// What the CPU says of it, which may not be what the guest's own tables say.
        code: PageFaultError,
    },
    /// INVLPG, there; at this address, where the CPU tells it.
    Invalidate(Option<Gva>),
    /// INVPCID, there, before its operands were looked at.
    InvalidateContext,
    /// The CPU met a machine check: on the way into the guest, or in it.
    MachineCheck,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// Triple fault.
    TripleFault,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// INVD or WBINVD: caches, which stay the host's.
    CacheControl,
    /// RDMSR or WRMSR; the number is in ECX.
    Msr(Direction),
    /// IN, OUT, INS or OUTS.
    Port(PortAccess),
    /// Control registers.
    Control(ControlAccess),
    /// MOV to or from DRn.
    Debug {
        /// n
        register: u8,
        /// General-purpose register.
        gpr: u8,
        /// Read: from DRn.
        direction: Direction,
    },
    /// XSETBV; the register's number is in ECX.
    Xsetbv,
    /// An instruction exited, and the CPU does not say enough of it: its bytes are needed.
    Fetch,
    /// RDPMC: no counters are offered.
    Rdpmc,
    /// An instruction that the guest's CPU does not have.
    Undefined,
    /// A nested-paging fault: memory to be mapped, or MMIO.
    Memory(NestedFault),
    /// An entry of the nested tables that hardware does not understand.
    Misconfigured(Gpa),
    /// The guest is about to write to a page, and there is no room left in the log for it.
    LogFull,
    /// A hardware task switch.
    TaskSwitch,
    /// The entry failed: the guest's state is not valid.
    EntryFailed {
        /// The hardware's reason.
        reason: u64,
    },
    /// What we did not ask for.
    Unknown {
        /// The hardware's reason.
        reason: u64,
    },
}

/// An event for the guest: injected at the next entry, or found interrupted at an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// What kind of event.
    pub kind: EventKind,
    /// Error code, for exceptions that push one.
    pub error_code: Option<u32>,
    /// Length of the instruction, for software events.
    pub instruction_len: u8,
}

/// What kind of event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// External interrupt.
    Interrupt,
    /// Non-maskable interrupt.
    Nmi,
    /// Hardware exception.
    Exception,
    /// INT n.
    SoftwareInterrupt,
    /// INT1.
    PrivilegedSoftwareException,
    /// INT3, INTO.
    SoftwareException,
}

impl Event {
    /// A hardware exception.
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        Self {
            vector,
            kind: EventKind::Exception,
            error_code,
            instruction_len: 0,
        }
    }

    /// True for a hardware exception that is a fault for certain: not #DB, which may be a trap, nor a
    /// trap or an abort (SDM Vol. 3A, "Exception Classifications").
    pub const fn is_fault(&self) -> bool {
        const OTHERS: u32 = 1 << Vector::DB.raw()
            | 1 << Vector::NMI.raw()
            | 1 << Vector::BP.raw()
            | 1 << Vector::OF.raw()
            | 1 << Vector::DF.raw()
            | 1 << Vector::MC.raw();
        matches!(self.kind, EventKind::Exception)
            && self.vector < 32
            && OTHERS >> self.vector & 1 == 0
    }

    /// An external interrupt.
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            vector,
            kind: EventKind::Interrupt,
            error_code: None,
            instruction_len: 0,
        }
    }

    /// True for external interrupts.
    pub const fn is_interrupt(&self) -> bool {
        matches!(self.kind, EventKind::Interrupt)
    }

    /// True for exceptions that are contributory in the sense of the double-fault table (SDM
    /// Vol. 3A, "Interrupt 8—Double Fault Exception").
    const fn is_contributory(&self) -> bool {
        matches!(self.kind, EventKind::Exception) && matches!(self.vector, 0 | 10..=13)
    }

    const fn is_page_fault(&self) -> bool {
        matches!(self.kind, EventKind::Exception) && self.vector == 14
    }

    /// What the CPU delivers when `second` comes up during the delivery of `self`: `second`, a
    /// double fault, or `None` for a triple fault.
    pub const fn then(&self, second: Self) -> Option<Self> {
        if !matches!(self.kind, EventKind::Exception) {
            return Some(second);
        }
        let double = (self.is_contributory() && second.is_contributory())
            || (self.is_page_fault() && (second.is_contributory() || second.is_page_fault()));
        if self.vector == 8 && (second.is_contributory() || second.is_page_fault()) {
            None
        } else if double {
            Some(Self::exception(8, Some(0)))
        } else {
            Some(second)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GP: Event = Event::exception(13, Some(0));
    const PF: Event = Event::exception(14, Some(2));
    const UD: Event = Event::exception(6, None);
    const DF: Event = Event::exception(8, Some(0));

    #[test]
    fn exceptions_combine_as_in_the_double_fault_table() {
        assert_eq!(GP.then(GP), Some(DF));
        assert_eq!(GP.then(PF), Some(PF));
        assert_eq!(PF.then(GP), Some(DF));
        assert_eq!(PF.then(PF), Some(DF));
        assert_eq!(UD.then(GP), Some(GP));
        assert_eq!(GP.then(UD), Some(UD));
        assert_eq!(DF.then(GP), None);
        assert_eq!(DF.then(PF), None);
        assert_eq!(DF.then(UD), Some(UD));
        assert_eq!(Event::interrupt(32).then(PF), Some(PF));
    }
}

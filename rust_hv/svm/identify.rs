// SPDX-License-Identifier: GPL-2.0

//! What an exit by an instruction is, where the CPU does not say enough: from its bytes.
//!
//! They are not the bytes that the CPU has seen, but those that are there now. So the exit code
//! counts, and they have to go with it.

use super::exit::{code, msr_direction};
use super::guest::GuestWindow;
use super::vmcb::Control;
use crate::model::arch::regs::Efer;
use crate::model::emulate::system::{Kind, System};
use crate::model::emulate::{Gpr, Mode, Operand, Reg, Width};
use crate::model::exit::{ControlAccess, Direction, Exit};
use crate::vendor::{HwError, SegmentRegister, Window};
use kernel::prelude::*;

/// What an instruction has exited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Identity {
    /// This.
    Exit(Exit),
    /// LMSW of a register.
    LoadMachineStatus(Gpr),
    /// CR0 in a form that only the CPU can execute, or CR2.
    Unhandled,
}

/// What the instruction has exited for; `None` when it cannot have.
fn identity(control: &Control, kind: &Kind) -> Option<Identity> {
    let code = control.exit_code;
    let exit = match *kind {
        Kind::Cpuid if code == code::CPUID => Exit::Cpuid,
        // To the guest they are the same, and QEMU 7.2 takes one for the other.
        Kind::Invd | Kind::Wbinvd | Kind::Wbnoinvd if matches!(code, code::INVD | code::WBINVD) => {
            Exit::CacheControl
        }
        Kind::Hlt if code == code::HLT => Exit::Halt,
        Kind::Invlpg(_) if code == code::INVLPG => Exit::Invalidate(None),
        Kind::Xsetbv if code == code::XSETBV => Exit::Xsetbv,
        Kind::Int1 if code == code::INT1 => Exit::Exception {
            vector: 1,
            error_code: None,
        },
        Kind::Rdmsr if is_msr(control, Direction::Read) => Exit::Msr(Direction::Read),
        Kind::Wrmsr if is_msr(control, Direction::Write) => Exit::Msr(Direction::Write),
        // See `control_register`. CR2 never exits: it is in the CPU alone.
        Kind::Control {
            register: 2,
            direction: Direction::Read,
            ..
        } if code == code::READ_CR0 => return Some(Identity::Unhandled),
        Kind::Control {
            register,
            gpr,
            direction,
        } => control_register(code, register, gpr, direction)?,
        Kind::Debug {
            register,
            gpr,
            direction,
        } => debug_register(code, register, gpr, direction)?,
        Kind::Clts if code == code::WRITE_CR0 => Exit::Control(ControlAccess::ClearTaskSwitched),
        Kind::Lmsw(operand) if code == code::WRITE_CR0 => return Some(lmsw(&operand)),
        Kind::Smsw { destination, width } if code == code::READ_CR0 => {
            return Some(smsw(&destination, width));
        }
        _ => return None,
    };
    Some(Identity::Exit(exit))
}

fn is_msr(control: &Control, direction: Direction) -> bool {
    control.exit_code == code::MSR && msr_direction(control.exit_info1) == direction
}

/// A read with the code for CR0 may be one of any control register: QEMU 10 checks all of them against
/// the intercept of CR0's (`decode_op`), and a guest that may read one may read all.
fn control_register(exit: u64, register: u8, gpr: Gpr, direction: Direction) -> Option<Exit> {
    let (number, gpr) = (u64::from(register), gpr.number());
    let (fits, access) = match direction {
        Direction::Read => (
            exit == code::READ_CR0 || exit == code::READ_CR0 + number,
            ControlAccess::Read { register, gpr },
        ),
        Direction::Write => (
            exit == code::WRITE_CR0 + number,
            ControlAccess::Write { register, gpr },
        ),
    };
    fits.then_some(Exit::Control(access))
}

fn debug_register(exit: u64, register: u8, gpr: Gpr, direction: Direction) -> Option<Exit> {
    let first = match direction {
        Direction::Read => code::READ_DR0,
        Direction::Write => code::WRITE_DR0,
    };
    (exit == first + u64::from(register)).then_some(Exit::Debug {
        register,
        gpr: gpr.number(),
        direction,
    })
}

fn lmsw(operand: &Operand) -> Identity {
    match operand {
        Operand::Reg(Reg::Low(gpr)) => Identity::LoadMachineStatus(*gpr),
        _ => Identity::Unhandled,
    }
}

/// To a register of 32 or 64 bits it is a MOV of CR0. The lower 16 bits, which is what the other
/// forms store, are the same in the CPU as the guest sees them.
fn smsw(destination: &Operand, width: Width) -> Identity {
    match (destination, width) {
        (Operand::Reg(Reg::Low(gpr)), Width::Dword | Width::Qword) => {
            Identity::Exit(Exit::Control(ControlAccess::Read {
                register: 0,
                gpr: gpr.number(),
            }))
        }
        _ => Identity::Unhandled,
    }
}

impl GuestWindow<'_> {
    /// See [`Window::identify`].
    pub(super) fn identify_exit(&mut self, bytes: &[u8]) -> Result<Option<Exit>, HwError> {
        let long = Efer::from_raw(self.efer()?).contains(Efer::LMA);
        let code = self.segment(SegmentRegister::Cs)?.rights;
        let mode = Mode::new(long, code.long(), code.default_big());
        let Ok(system) = System::decode(bytes, mode) else {
            return Ok(None);
        };
        let Some(identity) = identity(&self.guest.vmcb.get().control, &system.kind) else {
            return Ok(None);
        };
        self.guest.identified = Some(system.len);
        Ok(match identity {
            Identity::Exit(exit) => Some(exit),
            Identity::LoadMachineStatus(gpr) => {
                let value = self.gpr(gpr)?;
                let access = ControlAccess::LoadMachineStatus(value as u16);
                Some(Exit::Control(access))
            }
            Identity::Unhandled => {
                self.guest.lift_cr0();
                None
            }
        })
    }

    fn gpr(&self, gpr: Gpr) -> Result<u64, HwError> {
        if gpr == Gpr::RSP {
            return self.rsp();
        }
        let gprs = &self.guest.regs.gpr;
        Ok(gprs.get(usize::from(gpr.number())).copied().unwrap_or(0))
    }
}

#[kunit_tests(rusthv_identify)]
mod tests {
    use super::*;
    use crate::host::cpu::current_node;
    use crate::svm::vmcb::VmcbPage;

    fn identified(exit: u64, info: u64, bytes: &[u8], mode: Mode) -> Result<Option<Identity>> {
        let mut page = VmcbPage::new(current_node())?;
        let control = &mut page.get_mut().control;
        control.exit_code = exit;
        control.exit_info1 = info;
        Ok(match System::decode(bytes, mode) {
            Ok(system) => identity(control, &system.kind),
            Err(_) => None,
        })
    }

    const CPUID: [u8; 2] = [0x0f, 0xa2];
    const RDMSR: [u8; 2] = [0x0f, 0x32];
    /// MOV CR4, R9
    const MOV_CR4_R9: [u8; 4] = [0x41, 0x0f, 0x22, 0xe1];

    #[test]
    fn bytes_go_with_the_code() -> Result {
        let long = Mode::Bits64;
        let exit = |exit| Some(Identity::Exit(exit));
        assert_eq!(identified(0x72, 0, &CPUID, long)?, exit(Exit::Cpuid));
        assert_eq!(
            identified(0x7c, 0, &RDMSR, long)?,
            exit(Exit::Msr(Direction::Read))
        );
        let write = ControlAccess::Write {
            register: 4,
            gpr: 9,
        };
        assert_eq!(
            identified(0x14, 0, &MOV_CR4_R9, long)?,
            exit(Exit::Control(write))
        );
        let clts = identified(0x10, 0, &[0x0f, 0x06], long)?;
        assert_eq!(clts, exit(Exit::Control(ControlAccess::ClearTaskSwitched)));
        Ok(())
    }

    #[test]
    fn other_bytes_are_nothing() -> Result {
        let long = Mode::Bits64;
        // Another instruction, another direction, another register, no instruction.
        assert_eq!(identified(0x78, 0, &CPUID, long)?, None);
        assert_eq!(identified(0x7c, 1, &RDMSR, long)?, None);
        assert_eq!(identified(0x10, 0, &MOV_CR4_R9, long)?, None);
        assert_eq!(identified(0x04, 0, &MOV_CR4_R9, long)?, None);
        assert_eq!(identified(0x14, 0, &MOV_CR4_R9, Mode::Bits32)?, None);
        assert_eq!(identified(0x72, 0, &[0x90], long)?, None);
        assert_eq!(identified(0x72, 0, &[], long)?, None);
        Ok(())
    }

    /// MOV RAX, CR0 to CR8, with the code for reads of CR0, of CR4, and for writes of CR0.
    #[test]
    fn reads_with_the_code_of_cr0() -> Result {
        let long = Mode::Bits64;
        for (register, bytes) in [
            (0, &[0x0f, 0x20, 0xc0][..]),
            (3, &[0x0f, 0x20, 0xd8]),
            (4, &[0x0f, 0x20, 0xe0]),
            (8, &[0x44, 0x0f, 0x20, 0xc0]),
        ] {
            let read = Identity::Exit(Exit::Control(ControlAccess::Read { register, gpr: 0 }));
            assert_eq!(identified(0x00, 0, bytes, long)?, Some(read));
            let of_cr4 = (register == 4).then_some(read);
            assert_eq!(identified(0x04, 0, bytes, long)?, of_cr4);
            assert_eq!(identified(0x10, 0, bytes, long)?, None);
        }
        let cr2 = [0x0f, 0x20, 0xd0];
        assert_eq!(identified(0x00, 0, &cr2, long)?, Some(Identity::Unhandled));
        assert_eq!(identified(0x04, 0, &cr2, long)?, None);
        Ok(())
    }

    #[test]
    fn machine_status() -> Result {
        let mode = Mode::Bits16;
        // LMSW AX; LMSW [BX]; SMSW AX; SMSW EAX; SMSW [BX].
        let lmsw = identified(0x10, 0, &[0x0f, 0x01, 0xf0], mode)?;
        assert_eq!(lmsw, Some(Identity::LoadMachineStatus(Gpr::RAX)));
        let memory = identified(0x10, 0, &[0x0f, 0x01, 0x37], mode)?;
        assert_eq!(memory, Some(Identity::Unhandled));
        let word = identified(0x00, 0, &[0x0f, 0x01, 0xe0], mode)?;
        assert_eq!(word, Some(Identity::Unhandled));
        let read = ControlAccess::Read {
            register: 0,
            gpr: 0,
        };
        let dword = identified(0x00, 0, &[0x66, 0x0f, 0x01, 0xe0], mode)?;
        assert_eq!(dword, Some(Identity::Exit(Exit::Control(read))));
        let store = identified(0x00, 0, &[0x0f, 0x01, 0x27], mode)?;
        assert_eq!(store, Some(Identity::Unhandled));
        Ok(())
    }
}

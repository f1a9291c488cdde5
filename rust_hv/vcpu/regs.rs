// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_REGS`, `KVM_SET_REGS`, `KVM_GET_SREGS`, `KVM_SET_SREGS`, and the state after reset.

use super::control::{self, Pdptes};
use super::{State, Vcpu};
use crate::host::bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use crate::model::arch::regs::{Cr0, Cr4, Efer, Rflags, DR7_RESET, PAT_RESET};
use crate::model::arch::segment::{AccessRights, Segment, SegmentFields};
use crate::model::exit::Event;
use crate::vendor::{Guest, SegmentRegister, TableRegister, Vendor, Window};
use kernel::prelude::*;

const APIC_BASE: u64 = 0xfee0_0000;
const APIC_ENABLED: u64 = 1 << 11;
const APIC_BSP: u64 = 1 << 8;

/// IA32_APIC_BASE after a reset: vCPU 0 is the bootstrap processor.
pub(super) const fn apic_base_after_reset(id: u32) -> u64 {
    APIC_BASE | APIC_ENABLED | if id == 0 { APIC_BSP } else { 0 }
}

/// Brings all registers to their state after reset (SDM Vol. 3A, "Processor State After Reset").
pub(super) fn reset<G: Guest>(state: &mut State, guest: &mut G) -> Result {
    let rights = G::RESET;
    *guest.gprs_mut() = [0; 16];
    // EDX has the processor's signature: family 6.
    let [_, _, rdx, ..] = guest.gprs_mut();
    *rdx = 0x600;
    let mut window = guest.open()?;
    window.set_rip(0xfff0)?;
    window.set_rsp(0)?;
    window.set_rflags(Rflags::FIXED.raw())?;
    window.set_cr0(Cr0::RESET.raw())?;
    window.set_cr3(0)?;
    window.set_cr4(0)?;
    window.set_efer(0)?;
    window.set_dr7(DR7_RESET)?;
    window.set_pat(PAT_RESET)?;
    window.set_sysenter(0, 0, 0)?;
    window.set_pdptes([0; 4])?;
    let segment = |selector, base, rights| Segment {
        selector,
        base,
        limit: 0xffff,
        rights,
    };
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    window.set_segment(Cs, &segment(0xf000, 0xffff_0000, rights.code))?;
    window.set_segment(Ss, &segment(0, 0, rights.stack))?;
    for register in [Ds, Es, Fs, Gs] {
        window.set_segment(register, &segment(0, 0, AccessRights::REAL_DATA))?;
    }
    window.set_segment(Ldtr, &segment(0, 0, AccessRights::LDT))?;
    window.set_segment(Tr, &segment(0, 0, rights.task))?;
    let table = TableRegister {
        base: 0,
        limit: 0xffff,
    };
    window.set_gdtr(table)?;
    window.set_idtr(table)?;
    window.offer(false, false)?;
    drop(window);
    state.dr6 = 0;
    Ok(())
}

fn to_kvm(segment: &Segment) -> kvm_segment {
    let fields = segment.rights.fields();
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: fields.type_,
        present: fields.present,
        dpl: fields.dpl,
        db: fields.db,
        s: fields.s,
        l: fields.l,
        g: fields.g,
        avl: fields.avl,
        unusable: fields.unusable,
        padding: 0,
    }
}

fn from_kvm(segment: &kvm_segment) -> Segment {
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        rights: AccessRights::from_fields(&SegmentFields {
            type_: segment.type_,
            present: segment.present,
            dpl: segment.dpl,
            db: segment.db,
            s: segment.s,
            l: segment.l,
            g: segment.g,
            avl: segment.avl,
            unusable: segment.unusable,
        }),
    }
}

fn table_to_kvm(table: TableRegister) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

const fn table_from_kvm(table: &kvm_dtable) -> TableRegister {
    TableRegister {
        base: table.base,
        limit: table.limit,
    }
}

impl<V: Vendor> Vcpu<V> {
    /// `KVM_GET_REGS`.
    ///
    /// # Errors
    ///
    /// `EINTR`, `EIO`.
    pub fn regs(&self) -> Result<kvm_regs> {
        let mut inner = self.lock()?;
        let mut window = inner.guest.open()?;
        let (rip, rsp, rflags) = (window.rip()?, window.rsp()?, window.rflags()?);
        let [rax, rcx, rdx, rbx, _, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
            *window.gprs_mut();
        Ok(kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        })
    }

    /// `KVM_SET_REGS`. An exception that waits for delivery belongs to the old registers, and is
    /// dropped; interrupts are not.
    ///
    /// # Errors
    ///
    /// `EINTR`, `EIO`.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let mut window = inner.guest.open()?;
        *window.gprs_mut() = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, 0, regs.rbp, regs.rsi, regs.rdi, regs.r8,
            regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        window.set_rsp(regs.rsp)?;
        window.set_rip(regs.rip)?;
        window.set_rflags(regs.rflags)?;
        if !inner.state.event.is_some_and(|event| event.is_interrupt()) {
            inner.state.event = None;
        }
        inner.mmio.forget_registers();
        Ok(())
    }

    /// `KVM_GET_SREGS`.
    ///
    /// # Errors
    ///
    /// `EINTR`, `EIO`.
    pub fn sregs(&self) -> Result<kvm_sregs> {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let cr2 = inner.guest.cr2();
        let window = inner.guest.open()?;
        let segment = |register| window.segment(register).map(|segment| to_kvm(&segment));
        let mut interrupt_bitmap = [0u64; 4];
        let interrupted = inner.state.event.filter(Event::is_interrupt);
        let injected = interrupted.map(|event| event.vector);
        if let Some(vector) = injected.or(inner.state.interrupt) {
            if let Some(word) = interrupt_bitmap.get_mut(usize::from(vector / 64)) {
                *word |= 1 << (vector % 64);
            }
        }
        Ok(kvm_sregs {
            cs: segment(Cs)?,
            ds: segment(Ds)?,
            es: segment(Es)?,
            fs: segment(Fs)?,
            gs: segment(Gs)?,
            ss: segment(Ss)?,
            tr: segment(Tr)?,
            ldt: segment(Ldtr)?,
            gdt: table_to_kvm(window.gdtr()?),
            idt: table_to_kvm(window.idtr()?),
            cr0: window.cr0()?,
            cr2,
            cr3: window.cr3()?,
            cr4: window.cr4()?,
            cr8: inner.state.cr8,
            efer: window.efer()?,
            apic_base: inner.state.apic_base,
            interrupt_bitmap,
        })
    }

    /// `KVM_SET_SREGS`. All is checked before anything changes.
    ///
    /// # Errors
    ///
    /// `EINVAL` for values that the guest's CPU cannot have, `EINTR`, `EIO`.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        inner.mmio.forget_registers();
        let state = &mut inner.state;
        let cr0 = Cr0::from_raw(sregs.cr0);
        let cr4 = Cr4::from_raw(sregs.cr4);
        let efer = Efer::from_raw(sregs.efer);
        let caps = self.machine.vendor.caps();
        let apic_unchanged = sregs.apic_base == state.apic_base;
        if !sregs_are_valid(state, sregs)
            || !control::cr4_is_valid(caps, state, cr4)
            || !control::cr0_is_valid(caps, cr0)
            || !control::efer_is_valid(state, efer)
            || !(apic_unchanged || control::apic_base_is_valid(state, sregs.apic_base))
        {
            return Err(EINVAL);
        }
        // Read from guest memory before the window opens: that may sleep.
        let pae = cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA);
        let pdptes = match pae {
            true => Pdptes::read(&self.mmu, state, sregs.cr3),
            false => Pdptes::Unread,
        };

        inner.guest.set_cr2(sregs.cr2);
        let mut window = inner.guest.open()?;
        window.set_idtr(table_from_kvm(&sregs.idt))?;
        window.set_gdtr(table_from_kvm(&sregs.gdt))?;
        window.set_cr3(sregs.cr3)?;
        window.set_efer(efer.raw())?;
        window.set_cr0(cr0.raw())?;
        window.set_cr4(cr4.raw())?;
        if let Pdptes::Read(entries) = pdptes {
            state.note_pointers(entries);
            window.set_pdptes(entries)?;
        }
        state.translate_anew();
        set_segments(&mut window, sregs)?;
        window.flush_guest_tables()?;
        drop(window);

        state.osxsave = cr4.contains(Cr4::OSXSAVE);
        state.apic_base = sregs.apic_base;
        // As in KVM, a priority that does not exist is left out.
        if sregs.cr8 & !0xf == 0 {
            state.cr8 = sregs.cr8;
        }
        if let Some(vector) = first_vector(&sregs.interrupt_bitmap) {
            match &mut state.event {
                Some(event) if event.is_interrupt() => event.vector = vector,
                _ => state.interrupt = Some(vector),
            }
        }
        control::want_user_msrs(state, &inner.switch, efer);
        Ok(())
    }
}

/// What `KVM_SET_SREGS` asks of the registers together.
fn sregs_are_valid(state: &State, sregs: &kvm_sregs) -> bool {
    let cr0 = Cr0::from_raw(sregs.cr0);
    let cr4 = Cr4::from_raw(sregs.cr4);
    let efer = Efer::from_raw(sregs.efer);
    if efer.contains(Efer::LME) && cr0.contains(Cr0::PG) {
        let legal_cr3 = sregs.cr3 >> state.cpuid.facts().phys_bits == 0;
        cr4.contains(Cr4::PAE) && efer.contains(Efer::LMA) && legal_cr3
    } else {
        !efer.contains(Efer::LMA) && sregs.cs.l == 0
    }
}

fn set_segments(window: &mut impl Window, sregs: &kvm_sregs) -> Result {
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
    for (register, segment) in [
        (Cs, &sregs.cs),
        (Ds, &sregs.ds),
        (Es, &sregs.es),
        (Fs, &sregs.fs),
        (Gs, &sregs.gs),
        (Ss, &sregs.ss),
        (Tr, &sregs.tr),
        (Ldtr, &sregs.ldt),
    ] {
        window.set_segment(register, &from_kvm(segment))?;
    }
    Ok(())
}

/// The lowest vector of an interrupt bitmap.
fn first_vector(bitmap: &[u64; 4]) -> Option<u8> {
    let (index, word) = bitmap.iter().enumerate().find(|(_, word)| **word != 0)?;
    u8::try_from(index as u32 * 64 + word.trailing_zeros()).ok()
}

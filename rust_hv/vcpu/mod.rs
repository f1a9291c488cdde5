// SPDX-License-Identifier: GPL-2.0

//! Virtual CPUs.
//!
//! | File | What it holds |
//! |---|---|
//! | `mod` | the object and its state |
//! | `run` | `KVM_RUN`: the loop around the entry |
//! | `exits` | what each exit does |
//! | `software` | vCPUs whose page tables the hypervisor keeps |
//! | `control` | writes of control registers, and their checks |
//! | `cpuid`, `msr` | what the guest's CPU has |
//! | `port`, `direct`, `mmio` | accesses that user space answers |
//! | `code` | where the next instruction is, and its bytes |
//! | `snapshot`, `memory` | registers and memory for the emulator |
//! | `regs` | the register ioctls, and reset |
//!
//! # Locks
//!
//! [`Vcpu::state`] (a mutex that a killed task does not wait for) is held through every vCPU
//! ioctl, all of `KVM_RUN` included. It comes before the locks of `mmu`.

pub mod code;
pub mod control;
pub mod cpuid;
pub mod direct;
pub mod exits;
pub mod memory;
pub mod mmio;
pub mod msr;
pub mod port;
pub mod regs;
pub mod run;
pub mod snapshot;
pub mod software;
pub mod trace;

use crate::host::bindings::rusthv_vcpu_stats;
use crate::host::fpu::GuestFpu;
use crate::host::frame::{Frame, Wipe};
use crate::host::pool::Pools;
use crate::host::run_page::RunPages;
use crate::host::switch::HostSwitch;
use crate::host::sync::{KillableGuard, KillableMutex};
use crate::mmu::access::SlotCache;
use crate::mmu::choice::PagingMode;
use crate::mmu::vcpu::PagedVcpu;
use crate::mmu::Mmu;
use crate::model::arch::regs::Efer;
use crate::model::exit::Event;
use crate::model::sync::{AtomicU64, Ordering};
use crate::vendor::{Guest, Translation, Vendor, Window};
use cpuid::Cpuid;
use direct::PendingLoad;
use kernel::prelude::*;
use kernel::sync::Arc;
use mmio::Mmio;
use msr::Msrs;
use port::PendingPort;
use software::Software;

/// What all guests of the machine share.
pub struct Machine<V: Vendor> {
    /// The CPUs' virtualization.
    pub vendor: &'static V,
    /// Where frames for tables come from.
    pub pools: &'static Pools,
}

impl<V: Vendor> Clone for Machine<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: Vendor> Copy for Machine<V> {}

/// What the next `KVM_RUN` has to finish first.
enum Pending {
    /// Nothing.
    None,
    /// A port access.
    Port(PendingPort),
    /// A plain load of a device's.
    Load(PendingLoad),
}

/// What the vCPUs of a VM have to do with time.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Added to the host's time-stamp counter.
    pub tsc_offset: u64,
    /// How long they are in the guest is counted.
    pub count_guest_ticks: bool,
}

/// What is special about entries: in one byte, as most entries are not, and ask once.
#[derive(Clone, Copy)]
struct Special(u8);

impl Special {
    /// DR7 has breakpoints: DR0 to DR3 must be in the CPU.
    const BREAKPOINTS: u8 = 1 << 0;
    /// Ticks in the guest are counted.
    const COUNTED: u8 = 1 << 1;

    fn new(counted: bool) -> Self {
        Self(if counted { Self::COUNTED } else { 0 })
    }

    #[inline]
    fn any(self) -> bool {
        self.0 != 0
    }

    fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    fn set_breakpoints(&mut self, on: bool) {
        self.0 = self.0 & !Self::BREAKPOINTS | if on { Self::BREAKPOINTS } else { 0 };
    }
}

/// The part of a vCPU's state that no hardware holds.
pub struct State {
    cpuid: Cpuid,
    pending: Pending,
    /// To be injected at the next entry.
    event: Option<Event>,
    /// An exception came up that cannot be delivered: the vCPU has shut down.
    triple_fault: bool,
    /// The first `KVM_RUN` has come.
    has_run: bool,
    /// An external interrupt that user space wants delivered.
    interrupt: Option<u8>,
    cr8: u64,
    apic_base: u64,
    xcr0: u64,
    /// CR4.OSXSAVE: the guest's XCR0 counts.
    osxsave: bool,
    dr: [u64; 4],
    dr6: u64,
    special: Special,
    msrs: Msrs,
    /// Without nested tables.
    software: Option<Software>,
    /// Where the VMM has the memory that was last reached in software.
    slots: SlotCache,
    /// For `kvm_run`, as of the last exit.
    /// This and the next say how it is now.
    noted: bool,
    if_flag: bool,
    ready_for_interrupt: bool,
}

macro_rules! counters {
    ($($name:ident: $uapi:ident),* $(,)?) => {
        /// Exits by kind. Written by the vCPU's own task, read by anyone.
        pub struct Counters {
            $(#[allow(missing_docs)] pub $name: Counter,)*
        }

        impl Counters {
            const fn new() -> Self {
                Self { $($name: Counter(AtomicU64::new(0)),)* }
            }

            /// For `RUSTHV_GET_VCPU_STATS`.
            pub fn read(&self) -> rusthv_vcpu_stats {
                rusthv_vcpu_stats {
                    $($uapi: self.$name.get(),)*
                    reserved: [0; 7],
                }
            }
        }
    };
}

// What is counted, and its name in the UAPI.
counters!(
    exits: exits,
    io: io,
    mmio: mmio,
    nested_faults: ept_faults,
    cpuid: cpuid,
    hlt: hlt,
    msr: msr,
    cr: cr,
    interrupts: interrupts,
    exceptions: exceptions,
    other: other,
    user_exits: user_exits,
    page_faults: page_faults,
    invalidations: invalidations,
    table_writes: table_writes,
    node_moves: node_moves,
    guest_ticks: guest_ticks,
);

/// One counter with a single writer.
pub struct Counter(AtomicU64);

impl Counter {
    /// One more. No locked access: nobody else writes.
    #[inline]
    pub fn bump(&self) {
        self.add(1);
    }

    /// So many more.
    #[inline]
    pub fn add(&self, more: u64) {
        let count = self.get().wrapping_add(more);
        self.0.store(count, Ordering::Relaxed);
    }

    /// What it is now, or was a moment ago.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A virtual CPU.
#[pin_data]
pub struct Vcpu<V: Vendor> {
    /// Its number, as user space chose it.
    pub id: u32,
    machine: Machine<V>,
    mmu: Arc<Mmu>,
    run: RunPages,
    counters: Counters,
    #[pin]
    state: KillableMutex<Inner<V>>,
}

impl State {
    /// Of a vCPU that has not been reset yet.
    fn new(id: u32, software: Option<Software>, clock: Clock) -> Self {
        Self {
            cpuid: Cpuid::empty(),
            pending: Pending::None,
            event: None,
            triple_fault: false,
            has_run: false,
            interrupt: None,
            cr8: 0,
            apic_base: regs::apic_base_after_reset(id),
            xcr0: 1,
            osxsave: false,
            dr: [0; 4],
            dr6: 0,
            special: Special::new(clock.count_guest_ticks),
            msrs: Msrs::new(),
            software,
            slots: SlotCache::new(),
            noted: false,
            if_flag: false,
            ready_for_interrupt: false,
        }
    }
}

/// What a vCPU's mutex protects. In parts, as an open window borrows `guest`.
struct Inner<V: Vendor> {
    switch: Pin<KBox<HostSwitch>>,
    guest: V::Guest,
    fpu: GuestFpu,
    paging: PagedVcpu,
    mmio: Mmio,
    state: State,
}

impl<V: Vendor> Vcpu<V> {
    /// A vCPU in its state after reset.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EIO` when the hardware refuses.
    pub fn new(
        machine: Machine<V>,
        mmu: Arc<Mmu>,
        intercepts: Option<Arc<V::Intercepts>>,
        id: u32,
        clock: Clock,
    ) -> Result<Arc<Self>> {
        let place = mmu.supply().place();
        let mode = mmu.settle();
        let paging = PagedVcpu::new(mmu.clone(), mode)?;
        let (translation, software) = match mode {
            PagingMode::Nested => {
                let root = Mmu::root(&mmu).with_log(paging.write_log());
                (Translation::Nested(root), None)
            }
            PagingMode::Shadow | PagingMode::Trap => {
                let software = Some(Software::new());
                (Translation::Software(mmu.clone()), software)
            }
        };
        let vendor = machine.vendor;
        let run = RunPages::new(place)?;
        let inner = try_init!(Inner {
            switch: KBox::pin_init(HostSwitch::new(V::LEAVES), GFP_KERNEL_ACCOUNT)?,
            guest: vendor.guest(translation, intercepts, clock.tsc_offset, place)?,
            fpu: GuestFpu::new(place.wipe)?,
            paging,
            mmio: Mmio::new(),
            state: State::new(id, software, clock),
        });
        let vcpu = Arc::pin_init(
            try_pin_init!(Self {
                id,
                machine,
                mmu,
                run,
                counters: Counters::new(),
                state <- KillableMutex::new(
                    inner,
                    place.wipe != Wipe::Never,
                    c"rusthv vcpu",
                    kernel::static_lock_class!(),
                ),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut inner = vcpu.lock()?;
        let Inner { guest, state, .. } = &mut *inner;
        regs::reset(state, guest)?;
        drop(inner);
        Ok(vcpu)
    }

    fn lock(&self) -> Result<KillableGuard<'_, Inner<V>>> {
        self.state.lock()
    }

    /// The frame of a page of the vCPU's mapping.
    pub fn page(&self, index: usize) -> Option<&Frame> {
        self.run.page(index)
    }

    /// Exits by kind.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// `KVM_SET_CPUID2`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another CPUID after the first `KVM_RUN`, and for impossible address widths;
    /// `EINTR` when killed while waiting for the vCPU; `EIO`.
    pub fn set_cpuid(&self, cpuid: Cpuid) -> Result {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        if inner.state.has_run {
            return match inner.state.cpuid.is_same(&cpuid) {
                true => Ok(()),
                false => Err(EINVAL),
            };
        }
        if !cpuid.is_possible() {
            return Err(EINVAL);
        }
        let facts = *cpuid.facts();
        inner.state.cpuid = cpuid;
        inner.state.translate_anew();
        let mut window = inner.guest.open()?;
        window.offer(facts.rdtscp, facts.invpcid)?;
        let efer = window.efer()?;
        drop(window);
        control::want_user_msrs(&inner.state, &inner.switch, Efer::from_raw(efer));
        Ok(())
    }

    /// `KVM_INTERRUPT`: an external interrupt for the guest, as soon as it takes one.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a vector above 255, `EEXIST` while another one waits, `EINTR`.
    pub fn interrupt(&self, vector: u32) -> Result {
        let vector = u8::try_from(vector).map_err(|_| EINVAL)?;
        let mut inner = self.lock()?;
        if inner.state.interrupt.is_some() {
            return Err(EEXIST);
        }
        inner.state.interrupt = Some(vector);
        Ok(())
    }
}

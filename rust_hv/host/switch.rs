// SPDX-License-Identifier: GPL-2.0

//! Host state that changes hands less often than a VM exit comes.
//!
//! A VM exit of VT-x leaves KERNEL_GS_BASE and the system-call MSRs as the guest had them, and FS,
//! GS, LDTR, DS, ES, the GDT limit and the TSS limit not as the host wants them. None of that
//! matters to kernel code, so it is put back only when the task leaves the CPU (a preempt notifier
//! says when) or `KVM_RUN`. AMD-V has instructions that switch all of it at each exit but TSC_AUX:
//! [`Leaves`] says which of the two it is.
//!
//! Nothing here is locked: the state belongs to the task inside `KVM_RUN` ([`Running`]), and is
//! touched with interrupts off by that task or by its own `sched_out`.

use super::bindings;
use super::cpu::{IrqsOff, IrqsSaved};
use super::msr;
use core::cell::UnsafeCell;
use kernel::container_of;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::types::{NotThreadSafe, Opaque};

/// MSRs that matter in user space alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserMsr {
    /// IA32_STAR
    Star,
    /// IA32_LSTAR
    Lstar,
    /// IA32_CSTAR
    Cstar,
    /// IA32_FMASK
    Fmask,
    /// IA32_TSC_AUX
    TscAux,
}

const USER_MSRS: [u32; 5] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0103,
];
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// What a VM exit leaves as the guest had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Segments, KERNEL_GS_BASE, system-call MSRs, TSC_AUX.
    Everything,
    /// TSC_AUX.
    TscAux,
}

/// Bases that hardware with a host area wants there after a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBases {
    /// FS base of the task.
    pub fs: u64,
    /// GS base of the kernel on this CPU.
    pub gs: u64,
}

struct State {
    loaded: bool,
    leaves: Leaves,
    segments: bindings::rhv_host_segments,
    guest_kernel_gs_base: u64,
    /// Guest values, in the order of [`USER_MSRS`].
    guest: [u64; 5],
    /// Bit per MSR that the guest can see now.
    wanted: u8,
    /// Bit per MSR that holds the guest's value now.
    in_hardware: u8,
    /// The host's values on the CPU where they were replaced.
    host: [u64; 5],
}

/// A vCPU's share of the registers above.
#[pin_data(PinnedDrop)]
pub struct HostSwitch {
    #[pin]
    notifier: Opaque<bindings::preempt_notifier>,
    /// Not 0, and never another vCPU's.
    number: u64,
    state: UnsafeCell<State>,
}

static NEXT_NUMBER: Atomic<u64> = Atomic::new(1);

// SAFETY: The state is plain data outside `Running`.
unsafe impl Send for HostSwitch {}
// SAFETY: `state` is touched by the task that holds the vCPU's mutex only, see the module's text.
unsafe impl Sync for HostSwitch {}

#[pinned_drop]
impl PinnedDrop for HostSwitch {
    fn drop(self: Pin<&mut Self>) {
        let state = self.state.get();
        // SAFETY: Nobody is in `KVM_RUN` any more, and plain data is all that it is.
        unsafe {
            (*state).guest = [0; 5];
            (*state).guest_kernel_gs_base = 0;
        }
        // Not to be left out: what the guest had here is not for the next owner of the memory.
        core::hint::black_box(state);
    }
}

impl HostSwitch {
    const OPS: &'static bindings::preempt_ops = &bindings::preempt_ops {
        sched_in: Some(Self::sched_in),
        sched_out: Some(Self::sched_out),
    };

    /// State as after reset.
    pub fn new(leaves: Leaves) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The slot is pinned memory for the structure.
            notifier <- Opaque::ffi_init(|slot: *mut bindings::preempt_notifier| unsafe {
                core::ptr::write_bytes(slot, 0, 1);
                // The host's `preempt_notifier_init` sets this pointer and nothing else.
                core::ptr::addr_of_mut!((*slot).ops).write(core::ptr::from_ref(Self::OPS).cast_mut());
            }),
            // 64 bits do not wrap.
            number: NEXT_NUMBER.fetch_add(1, Relaxed),
            state: UnsafeCell::new(State::new(leaves)),
        })
    }

    /// # Safety
    ///
    /// None; the type is the host's.
    unsafe extern "C" fn sched_in(_notifier: *mut bindings::preempt_notifier, _cpu: i32) {}

    /// # Safety
    ///
    /// `notifier` is the field of a live `Self`; the caller is the scheduler, with interrupts off,
    /// on the task that registered it.
    unsafe extern "C" fn sched_out(
        notifier: *mut bindings::preempt_notifier,
        _next: *mut kernel::bindings::task_struct,
    ) {
        let notifier: *mut Opaque<bindings::preempt_notifier> = notifier.cast();
        // SAFETY: The notifier is registered only while `Running` borrows the whole structure; the
        // scheduler calls with interrupts off, on the task itself.
        unsafe {
            let this = &*container_of!(notifier, Self, notifier);
            (*this.state.get()).put();
        }
    }

    /// The current task is inside `KVM_RUN` until the value is dropped.
    pub fn begin(self: Pin<&mut Self>) -> Running<'_> {
        let switch = self.into_ref().get_ref();
        // SAFETY: Initialised, not registered as the borrow is exclusive, and unregistered in
        // `drop` on the same task.
        unsafe { bindings::preempt_notifier_register(switch.notifier.get()) };
        Running {
            switch,
            _not_send: NotThreadSafe,
        }
    }
}

impl State {
    fn new(leaves: Leaves) -> Self {
        Self {
            loaded: false,
            leaves,
            segments: bindings::rhv_host_segments::default(),
            guest_kernel_gs_base: 0,
            guest: [0; 5],
            wanted: 0,
            in_hardware: 0,
            host: [0; 5],
        }
    }

    /// Replaces the host's values. Interrupts are off.
    fn load(&mut self) {
        if self.leaves == Leaves::Everything {
            // SAFETY: Interrupts are off; `put` restores what is saved and written here.
            unsafe {
                bindings::rhv_save_segments(&mut self.segments);
                msr::write(KERNEL_GS_BASE, self.guest_kernel_gs_base);
            }
        }
        self.loaded = true;
        // User space or another task ran here.
        request_cache_flush();
        if self.wanted == 0 {
            return;
        }
        let values = self.guest.iter().zip(self.host.iter_mut());
        for (bit, (&number, (&guest, host))) in USER_MSRS.iter().zip(values).enumerate() {
            if self.wanted & (1 << bit) == 0 {
                continue;
            }
            *host = msr::read(number);
            if *host != guest {
                // SAFETY: As above; the host uses it in user space only.
                unsafe { msr::write(number, guest) };
                self.in_hardware |= 1 << bit;
            }
        }
    }

    /// Puts the host's values back. Interrupts are off.
    fn put(&mut self) {
        if !self.loaded {
            return;
        }
        if self.leaves == Leaves::Everything {
            self.guest_kernel_gs_base = msr::read(KERNEL_GS_BASE);
            // SAFETY: These are the values that `load` found, on the same CPU: the task cannot have
            // moved without `sched_out`.
            unsafe { bindings::rhv_restore_segments(&self.segments) };
        } else {
            // SAFETY: Interrupts are off, on the CPU of the entries since `load`.
            unsafe { bindings::rhv_svm_put() };
        }
        self.loaded = false;
        if self.in_hardware == 0 {
            return;
        }
        for (bit, (&number, &host)) in USER_MSRS.iter().zip(self.host.iter()).enumerate() {
            if self.in_hardware & (1 << bit) != 0 {
                // SAFETY: As above.
                unsafe { msr::write(number, host) };
            }
        }
        self.in_hardware = 0;
    }
}

/// A task inside `KVM_RUN`.
pub struct Running<'a> {
    switch: &'a HostSwitch,
    _not_send: NotThreadSafe,
}

impl Running<'_> {
    /// Makes sure that the guest's values are in the CPU. Some when they had to be loaded: a
    /// host area must then get these bases (0 where there is none).
    #[inline]
    pub fn load(&self, _irqs: &IrqsOff) -> Option<HostBases> {
        // SAFETY: Interrupts are off, and this is the task inside `KVM_RUN`.
        let state = unsafe { &mut *self.switch.state.get() };
        if state.loaded {
            return None;
        }
        state.load();
        // SAFETY: Interrupts are off; the number is this vCPU's alone.
        unsafe { bindings::rhv_separate_predictions(self.switch.number) };
        Some(HostBases {
            fs: state.segments.fs_base,
            gs: state.segments.gs_base,
        })
    }
}

impl core::ops::Deref for Running<'_> {
    type Target = HostSwitch;

    fn deref(&self) -> &HostSwitch {
        self.switch
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let irqs = IrqsOff::new();
        // SAFETY: Interrupts are off, and this is the task inside `KVM_RUN`.
        unsafe { (*self.switch.state.get()).put() };
        drop(irqs);
        // SAFETY: Registered in `begin`, on this task.
        unsafe { bindings::preempt_notifier_unregister(self.switch.notifier.get()) };
    }
}

/// Values of the guest, for its own accesses and for the ioctls.
impl HostSwitch {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let _irqs = IrqsSaved::new();
        // SAFETY: Interrupts are off, so no `sched_out` comes between; callers hold the vCPU's
        // mutex, so no other task has the state.
        let state = unsafe { &mut *self.state.get() };
        // What is in the CPU is reloaded before the next entry.
        state.put();
        f(state)
    }

    /// IA32_KERNEL_GS_BASE of the guest.
    pub fn kernel_gs_base(&self) -> u64 {
        self.with(|state| state.guest_kernel_gs_base)
    }

    /// Sets IA32_KERNEL_GS_BASE of the guest; the value must be canonical.
    pub fn set_kernel_gs_base(&self, value: u64) {
        self.with(|state| state.guest_kernel_gs_base = value);
    }

    /// The guest's value of a user-space MSR.
    pub fn user_msr(&self, which: UserMsr) -> u64 {
        self.with(|state| state.guest.get(which as usize).copied().unwrap_or(0))
    }

    /// Sets the guest's value of a user-space MSR, which the CPU must accept.
    pub fn set_user_msr(&self, which: UserMsr, value: u64) {
        self.with(|state| {
            if let Some(slot) = state.guest.get_mut(which as usize) {
                *slot = value;
            }
        });
    }

    /// Says whether the guest can see the system-call MSRs (EFER.SCE) and TSC_AUX (RDTSCP).
    pub fn want(&self, syscall: bool, tsc_aux: bool) {
        let wanted = if syscall { 0b0_1111 } else { 0 } | if tsc_aux { 0b1_0000 } else { 0 };
        self.with(|state| {
            state.wanted = match state.leaves {
                Leaves::Everything => wanted,
                Leaves::TscAux => wanted & 0b1_0000,
            }
        });
    }
}

/// Keeps the host's preempt notifiers switched on.
pub struct NotifiersOn(());

impl NotifiersOn {
    /// Switches them on.
    pub fn new() -> Self {
        // SAFETY: May sleep, as module initialisation does; undone in `drop`.
        unsafe { bindings::preempt_notifier_inc() };
        Self(())
    }
}

impl Drop for NotifiersOn {
    fn drop(&mut self) {
        // SAFETY: Paired with `new`.
        unsafe { bindings::preempt_notifier_dec() };
    }
}

/// Host memory that the guest must not learn of has been looked at: with L1TF, the L1 data cache is
/// flushed before the next entry on this CPU, if the host's policy is to do that conditionally.
#[inline]
pub fn request_cache_flush() {
    // SAFETY: Sets a flag of the CPU; on another CPU, `State::load` sets it again.
    unsafe { bindings::rhv_request_l1d_flush() };
}

/// Host state for a host area, of the CPU that runs this.
pub fn host_state(_irqs: &IrqsOff) -> bindings::rhv_host_state {
    let mut state = bindings::rhv_host_state::default();
    // SAFETY: Interrupts are off, so all of it is of one CPU.
    unsafe { bindings::rhv_read_host_state(&mut state) };
    state
}

/// CR3 that the host has loaded now.
#[inline]
pub fn host_cr3(_irqs: &IrqsOff) -> u64 {
    // SAFETY: Interrupts are off.
    unsafe { bindings::rhv_read_cr3() }
}

/// CR4 that the host has loaded now.
#[inline]
pub fn host_cr4(_irqs: &IrqsOff) -> u64 {
    // SAFETY: Interrupts are off.
    unsafe { bindings::cr4_read_shadow() as u64 }
}

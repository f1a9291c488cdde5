// SPDX-License-Identifier: GPL-2.0

//! CPUs: interrupt-off sections, calls to other CPUs, hotplug and suspend.

use super::bindings;
use core::cell::Cell;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;

/// Index of a CPU, below [`max_cpus`].
pub type Cpu = u32;

/// The end of a section with interrupts off.
#[derive(Clone, Copy)]
enum End {
    /// They stay off.
    Nothing,
    /// They come on again.
    On,
    /// The same, and one waits that came while the task was in a guest.
    OnInGuestTime,
}

/// Interrupts are off on this CPU, and so the caller stays on it.
///
/// # Invariants
///
/// While the value lives, interrupts are off on the CPU that runs its thread, which is `cpu`.
pub struct IrqsOff {
    cpu: Cpu,
    /// What dropping the value does. (One word more, and the value would go over the stack.)
    end: Cell<End>,
    _pinned: NotThreadSafe,
}

impl IrqsOff {
    /// Turns interrupts off until the value is dropped. Interrupts must be on: sections do not
    /// nest.
    #[inline]
    pub fn new() -> Self {
        // SAFETY: No preconditions.
        unsafe { bindings::rhv_irq_disable() };
        // INVARIANT: They were just turned off.
        Self {
            cpu: current_cpu(),
            end: Cell::new(End::On),
            _pinned: NotThreadSafe,
        }
    }

    /// For callbacks that the host calls with interrupts off.
    ///
    /// # Safety
    ///
    /// Interrupts are off, and stay off for as long as the value lives.
    pub(super) unsafe fn assume() -> Self {
        // INVARIANT: The caller says so.
        Self {
            cpu: current_cpu(),
            end: Cell::new(End::Nothing),
            _pinned: NotThreadSafe,
        }
    }

    /// The CPU that this thread is on.
    #[inline]
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// A host interrupt has ended the guest's turn, and is taken when interrupts come on: should it be
    /// the tick, the time is the guest's.
    #[inline]
    pub fn interrupt_from_guest(&self) {
        if let End::On = self.end.get() {
            self.end.set(End::OnInGuestTime);
        }
    }
}

impl Drop for IrqsOff {
    #[inline]
    fn drop(&mut self) {
        match self.end.get() {
            End::Nothing => {}
            // SAFETY: `new` turned them off, on the same thread.
            End::On => unsafe { bindings::rhv_irq_enable() },
            // SAFETY: The same.
            End::OnInGuestTime => unsafe { bindings::rhv_irq_enable_in_guest_time() },
        }
    }
}

/// Interrupts are off until the value is dropped, when they are as they were before.
pub struct IrqsSaved {
    flags: usize,
    _pinned: NotThreadSafe,
}

impl IrqsSaved {
    /// Turns interrupts off, if they are on.
    #[inline]
    pub fn new() -> Self {
        Self {
            // SAFETY: No preconditions.
            flags: unsafe { bindings::rhv_irq_save() },
            _pinned: NotThreadSafe,
        }
    }
}

impl Drop for IrqsSaved {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `new` saved them, on the same thread.
        unsafe { bindings::rhv_irq_restore(self.flags) };
    }
}

/// NUMA node of a CPU.
pub fn node_of(cpu: Cpu) -> i32 {
    // SAFETY: No preconditions; a number out of range reads node 0's entry of a static table only
    // for CPUs that exist, and all our CPU numbers come from `IrqsOff::cpu` or `current_cpu`.
    unsafe { bindings::rhv_cpu_to_node(cpu as i32) }
}

/// The CPU that the thread is on now; it may be another one at the next statement.
#[inline]
pub fn current_cpu() -> Cpu {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_cpu() as Cpu }
}

/// NUMA node of the CPU that the thread is on now.
pub fn current_node() -> i32 {
    node_of(current_cpu())
}

/// One more than the highest CPU number.
pub fn max_cpus() -> usize {
    kernel::cpu::nr_cpu_ids() as usize
}

/// The CPUs that are online.
fn online() -> impl Iterator<Item = Cpu> {
    // SAFETY: No preconditions.
    (0..max_cpus() as Cpu).filter(|&cpu| unsafe { bindings::rhv_cpu_online(cpu as i32) })
}

/// A full memory barrier.
#[inline]
pub fn smp_mb() {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_smp_mb() };
}

/// Interrupts the CPUs whose bits are set, counted from `first` on, and waits until each has taken
/// the interrupt. The CPU that this runs on is none of them, as it is not in a guest. Tells how many
/// there were.
///
/// May be called under a spinlock that is never taken with interrupts off. Offline CPUs are
/// skipped.
pub fn kick(first: usize, bits: &[u64]) -> u32 {
    let count = bits.len().saturating_mul(64);
    let count = count.min(max_cpus().saturating_sub(first));
    // SAFETY: `bits` has at least `count` bits and outlives the call; `first + count` is no more
    // than there are CPUs.
    unsafe { bindings::rhv_kick_cpus(first as u32, bits.as_ptr().cast(), count as u32) }
}

/// Runs `f` on `cpu` with interrupts off there, and waits for it.
///
/// # Errors
///
/// `ENXIO` when the CPU is offline.
pub fn call_on<F: Fn(&IrqsOff) + Sync>(cpu: Cpu, f: F) -> Result {
    /// # Safety
    ///
    /// `data` points to an `F` that lives for the call.
    unsafe extern "C" fn trampoline<F: Fn(&IrqsOff)>(data: *mut kernel::ffi::c_void) {
        // SAFETY: By the contract of this function.
        let f = unsafe { &*data.cast::<F>() };
        // SAFETY: Function calls from other CPUs arrive with interrupts off, and
        // `smp_call_function_single` turns them off for a call to the own CPU.
        let irqs = unsafe { IrqsOff::assume() };
        f(&irqs);
    }
    // SAFETY: `f` outlives the call as `wait` is set; it is `Sync`, so may be used there.
    kernel::error::to_result(unsafe {
        bindings::smp_call_function_single(
            cpu as i32,
            Some(trampoline::<F>),
            core::ptr::from_ref(&f).cast_mut().cast(),
            1,
        )
    })
}

/// What a subsystem does when CPUs come and go.
pub trait CpuEvents {
    /// A CPU comes online; runs on it, with interrupts off.
    fn online(irqs: &IrqsOff) -> Result;
    /// A CPU goes offline, or the machine sleeps or goes down; runs on it, with interrupts off.
    /// May come more than once.
    fn offline(irqs: &IrqsOff);
}

/// Keeps [`CpuEvents`] called, for all online CPUs at once and then as they come and go, and
/// across suspend and resume. Dropping it calls [`CpuEvents::offline`] on each CPU, and so does the
/// machine's end: firmware, or the next kernel, must find the CPUs as it knows them.
pub struct CpuWatch<E: CpuEvents> {
    state: bindings::cpuhp_state,
    syscore: Pin<KBox<kernel::types::Opaque<bindings::syscore>>>,
    _events: core::marker::PhantomData<E>,
}

// SAFETY: The registrations may be undone from any thread.
unsafe impl<E: CpuEvents> Send for CpuWatch<E> {}
// SAFETY: No method takes `&self`.
unsafe impl<E: CpuEvents> Sync for CpuWatch<E> {}

impl<E: CpuEvents> CpuWatch<E> {
    const SYSCORE: &'static bindings::syscore_ops = &bindings::syscore_ops {
        suspend: Some(Self::suspend),
        resume: Some(Self::resume),
        shutdown: Some(Self::shutdown),
    };

    /// Starts watching. When a CPU refuses, those before it are taken back and the error returned.
    ///
    /// # Errors
    ///
    /// The CPU's; `EBUSY` when the machine is going down; `ENOMEM`.
    pub fn new(name: &'static CStr) -> Result<Self> {
        let syscore = KBox::pin(
            kernel::types::Opaque::<bindings::syscore>::zeroed(),
            GFP_KERNEL,
        )?;
        // SAFETY: The name is static; the callbacks have the types that the state wants.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                name.as_char_ptr(),
                true,
                Some(Self::startup),
                Some(Self::teardown),
                false,
            )
        };
        kernel::error::to_result(state.min(0))?;
        // SAFETY: The object is pinned in its box until `drop` has unregistered it.
        unsafe {
            let raw = syscore.get();
            (*raw).ops = Self::SYSCORE;
            bindings::register_syscore(raw);
        }
        let watch = Self {
            state: state as bindings::cpuhp_state,
            syscore,
            _events: core::marker::PhantomData,
        };
        // The host sets its state first and makes the calls then: who is too late for the call
        // sees the state.
        // SAFETY: No preconditions.
        if unsafe { bindings::rhv_going_down() } {
            return Err(EBUSY);
        }
        Ok(watch)
    }

    /// # Safety
    ///
    /// Called by the host's hotplug code alone.
    unsafe extern "C" fn startup(_cpu: u32) -> i32 {
        // The callback runs on the hotplug thread of the CPU, with interrupts on.
        match E::online(&IrqsOff::new()) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As `startup`.
    unsafe extern "C" fn teardown(_cpu: u32) -> i32 {
        E::offline(&IrqsOff::new());
        0
    }

    /// # Safety
    ///
    /// Called by the host with interrupts off, on the one CPU that is online.
    unsafe extern "C" fn suspend(_data: *mut kernel::ffi::c_void) -> i32 {
        // SAFETY: Syscore callbacks run with interrupts off on the one CPU that is online.
        E::offline(&unsafe { IrqsOff::assume() });
        0
    }

    /// # Safety
    ///
    /// As `suspend`.
    unsafe extern "C" fn resume(_data: *mut kernel::ffi::c_void) {
        // SAFETY: As in `suspend`.
        if let Err(error) = E::online(&unsafe { IrqsOff::assume() }) {
            pr_err!("no virtualization after resume: {:?}\n", error);
        }
    }

    /// # Safety
    ///
    /// Called by the host with interrupts on, when CPUs come and go no more.
    unsafe extern "C" fn shutdown(_data: *mut kernel::ffi::c_void) {
        let mut cpus = 0;
        for cpu in online() {
            // Guests that run exit for the call, and are not entered again.
            cpus += u32::from(call_on(cpu, E::offline).is_ok());
        }
        pr_info!("the machine goes down: no more guests on {} CPUs\n", cpus);
    }
}

impl<E: CpuEvents> Drop for CpuWatch<E> {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`, and undone here alone.
        unsafe {
            bindings::unregister_syscore(self.syscore.get());
            bindings::__cpuhp_remove_state(self.state, true);
        }
    }
}

/// True when the CPU implements FRED and the host uses it.
pub fn host_uses_fred() -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_has_fred() }
}

/// True for CPUs whose virtualization, if they have any, is AMD-V.
pub fn is_amd() -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_cpu_is_amd() }
}

/// True when the CPU implements VMX and neither firmware nor the host has switched it off.
pub fn host_has_vmx() -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_has_vmx() }
}

/// Width of a physical address in bits.
pub fn phys_bits() -> u32 {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_phys_bits() }
}

#[kunit_tests(rusthv_cpu)]
mod tests {
    use super::*;
    use kernel::sync::atomic::{ordering::Relaxed, Atomic};

    /// RFLAGS.IF
    const INTERRUPTS: usize = 1 << 9;

    fn interrupts_on() -> bool {
        IrqsSaved::new().flags & INTERRUPTS != 0
    }

    #[test]
    fn interrupts_go_off_and_on() {
        let before = interrupts_on();
        let off = IrqsOff::new();
        let inside = interrupts_on();
        drop(off);
        let after = interrupts_on();
        assert_eq!((before, inside, after), (true, false, true));
    }

    /// Unlike [`IrqsOff`], sections of [`IrqsSaved`] nest.
    #[test]
    fn saved_interrupts_stay_off() {
        let off = IrqsOff::new();
        drop(IrqsSaved::new());
        let inside = interrupts_on();
        drop(off);
        drop(IrqsSaved::new());
        let after = interrupts_on();
        assert_eq!((inside, after), (false, true));
    }

    #[test]
    fn call_on_reaches_every_cpu() -> Result {
        let mut cpus = 0;
        for cpu in online() {
            let ran_on = Atomic::new(-1);
            let with_interrupts = Atomic::new(true);
            call_on(cpu, |irqs| {
                ran_on.store(irqs.cpu() as i32, Relaxed);
                with_interrupts.store(interrupts_on(), Relaxed);
            })?;
            assert_eq!(ran_on.load(Relaxed), cpu as i32);
            assert!(!with_interrupts.load(Relaxed));
            cpus += 1;
        }
        assert!(cpus > 0);
        Ok(())
    }

    #[test]
    fn call_on_an_absent_cpu_fails() {
        let called = Atomic::new(false);
        let result = call_on(max_cpus() as Cpu, |_| called.store(true, Relaxed));
        assert_eq!(result.err(), Some(crate::host::errno::no_such_device()));
        assert!(!called.load(Relaxed));
    }

    static ONLINE: [Atomic<u32>; 64] = [const { Atomic::new(0) }; 64];
    static OFFLINE: [Atomic<u32>; 64] = [const { Atomic::new(0) }; 64];
    static REFUSES: Atomic<i32> = Atomic::new(-1);

    enum Probe {}

    impl CpuEvents for Probe {
        fn online(irqs: &IrqsOff) -> Result {
            if irqs.cpu() as i32 == REFUSES.load(Relaxed) {
                return Err(EBUSY);
            }
            if let (false, Some(count)) = (interrupts_on(), ONLINE.get(irqs.cpu() as usize)) {
                count.add(1, Relaxed);
            }
            Ok(())
        }

        fn offline(irqs: &IrqsOff) {
            if let (false, Some(count)) = (interrupts_on(), OFFLINE.get(irqs.cpu() as usize)) {
                count.add(1, Relaxed);
            }
        }
    }

    fn counts() -> [(u32, u32); 64] {
        core::array::from_fn(|cpu| match (ONLINE.get(cpu), OFFLINE.get(cpu)) {
            (Some(online), Some(offline)) => (online.load(Relaxed), offline.load(Relaxed)),
            _ => (0, 0),
        })
    }

    fn reset_counts() {
        for count in Iterator::chain(ONLINE.iter(), OFFLINE.iter()) {
            count.store(0, Relaxed);
        }
    }

    /// One call on each CPU, there and with interrupts off, and its counterpart.
    #[test]
    fn watch_calls_every_cpu_once() -> Result {
        reset_counts();
        REFUSES.store(-1, Relaxed);
        let watch = CpuWatch::<Probe>::new(c"virt/rusthv:kunit")?;
        let up = counts();
        drop(watch);
        let down = counts();
        for cpu in online().filter(|&cpu| cpu < 64) {
            assert_eq!(up.get(cpu as usize).copied(), Some((1, 0)));
            assert_eq!(down.get(cpu as usize).copied(), Some((1, 1)));
        }
        Ok(())
    }

    /// When the machine goes down, each CPU hears of it.
    #[test]
    fn watch_tells_every_cpu_of_the_end() -> Result {
        let mut calls = [(0, 0); 64];
        reset_counts();
        REFUSES.store(-1, Relaxed);
        let watch = CpuWatch::<Probe>::new(c"virt/rusthv:kunit")?;
        if let Some(shutdown) = CpuWatch::<Probe>::SYSCORE.shutdown {
            // SAFETY: As the host calls it, but for the CPUs that could come and go.
            unsafe { shutdown(core::ptr::null_mut()) };
            calls = counts();
        }
        drop(watch);
        for cpu in online().filter(|&cpu| cpu < 64) {
            assert_eq!(calls.get(cpu as usize).copied(), Some((1, 1)));
        }
        Ok(())
    }

    /// The last CPU refuses: the error comes back, and the CPUs before it are taken back.
    #[test]
    fn watch_unwinds_when_a_cpu_refuses() {
        reset_counts();
        let last = online().max().unwrap_or(0);
        REFUSES.store(last as i32, Relaxed);
        let error = CpuWatch::<Probe>::new(c"virt/rusthv:kunit").err();
        let calls = counts();
        assert_eq!(error, Some(EBUSY));
        for cpu in online().filter(|&cpu| cpu < 64) {
            let wanted = if cpu == last { (0, 0) } else { (1, 1) };
            assert_eq!(calls.get(cpu as usize).copied(), Some(wanted));
        }
    }
}

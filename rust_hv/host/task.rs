// SPDX-License-Identifier: GPL-2.0

//! The running task: signals and other work that comes before a guest.

use super::bindings;
use super::cpu::IrqsOff;
use kernel::prelude::*;

/// True when the task has to do something before it may enter a guest: a signal, a reschedule, a
/// notification. With interrupts off the answer holds until they come on.
#[inline]
pub fn work_pending(_irqs: &IrqsOff) -> bool {
    // SAFETY: Interrupts are off.
    unsafe { bindings::rhv_work_pending() }
}

/// Does that work, if there is any.
///
/// # Errors
///
/// `EINTR` when a signal has to be delivered in user space first.
pub fn do_work_if_pending() -> Result {
    // SAFETY: A look at the task's own flags.
    if !unsafe { bindings::rhv_work_pending() } {
        return Ok(());
    }
    // SAFETY: Called from an ioctl, with interrupts on and no locks but sleeping ones.
    kernel::error::to_result(unsafe { bindings::xfer_to_guest_mode_handle_work() })
}

/// True when the CPU raises #AC for locked accesses across cache lines, as the host has it do, in guests,
/// too.
#[inline]
pub fn detects_split_locks() -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_detects_split_locks() }
}

/// Has the host deal with such an access, by its policy: it warns, and lets this task make them for a
/// while; or the task gets SIGBUS. May sleep.
pub fn split_lock(rip: u64) {
    // SAFETY: Called from an ioctl, with interrupts on and no locks but sleeping ones. Which of the two it
    // was shows in the task's signals.
    unsafe { bindings::rhv_split_lock(rip as usize) };
}

/// Lets others run where the kernel is not preemptible.
#[inline]
pub fn cond_resched() {
    // SAFETY: The caller may sleep, as in all of `mmu` and `vm` outside spinlocks.
    unsafe { bindings::rhv_cond_resched() };
}

/// Sleeps for a tick.
pub fn sleep_a_tick() {
    // SAFETY: As `cond_resched`.
    unsafe { bindings::rhv_schedule_away() };
}

/// True when a signal is about to end the task.
pub fn is_dying() -> bool {
    // SAFETY: A look at the task's own flags.
    unsafe { bindings::rhv_fatal_signal_pending() }
}

/// True for a task that may reach the machine's ports and registers (`CAP_SYS_RAWIO`).
pub fn may_use_hardware() -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::rhv_may_use_hardware() }
}

/// True when the task may see how the host uses its memory.
pub fn is_admin() -> bool {
    // SAFETY: A look at the task's credentials.
    unsafe { bindings::rhv_is_admin() }
}

// SPDX-License-Identifier: GPL-2.0
//! Signals that end or pause the guest.
//!
//! A signal that arrives while the guest runs makes KVM_RUN return EINTR. One that arrives just
//! before would be lost; so the handler also sets `immediate_exit`, which KVM_RUN looks at first.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use vmm_sys_util::signal::register_signal_handler;

use crate::error::{Error, Result};

static PENDING: AtomicU32 = AtomicU32::new(0);
static IMMEDIATE_EXIT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    PENDING.fetch_or(1 << signal, Ordering::SeqCst);
    let flag = IMMEDIATE_EXIT.load(Ordering::SeqCst);
    if !flag.is_null() {
        // SAFETY: a non-null pointer is to the mapped `kvm_run` page; `Signals` clears it before
        // the page goes, and this thread is the only one.
        unsafe { flag.write_volatile(1) };
    }
}

/// Handlers for SIGINT, SIGTERM and SIGALRM, as long as it lives.
pub struct Signals(());

impl Signals {
    /// # Safety
    ///
    /// `immediate_exit` must stay valid for writes until the value is dropped. The program must
    /// have one thread.
    pub unsafe fn install(immediate_exit: *mut u8) -> Result<Self> {
        IMMEDIATE_EXIT.store(immediate_exit, Ordering::SeqCst);
        let signals = Self(());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGALRM] {
            register_signal_handler(signal, handler).map_err(|e| Error::Ioctl {
                what: "sigaction",
                errno: std::io::Error::from_raw_os_error(e.errno()),
            })?;
        }
        Ok(signals)
    }

    /// The signal that asks for the end, if one came since the last call.
    pub fn take_end(&self) -> Option<i32> {
        let pending = PENDING.swap(0, Ordering::SeqCst);
        [libc::SIGINT, libc::SIGTERM]
            .into_iter()
            .find(|s| pending & (1 << s) != 0)
    }

    /// SIGALRM after `delay`, and every `delay` again; `None` stops it.
    pub fn alarm(&self, delay: Option<Duration>) {
        let delay = delay.map_or(Duration::ZERO, |d| d.max(Duration::from_micros(1)));
        let time = libc::timeval {
            tv_sec: delay.as_secs() as libc::time_t,
            tv_usec: delay.subsec_micros() as libc::suseconds_t,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: both pointers are valid or null, as the call allows. It fails only for values
        // that `Duration` cannot hold.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.alarm(None);
        IMMEDIATE_EXIT.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

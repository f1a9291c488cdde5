// SPDX-License-Identifier: GPL-2.0

//! Guests that never end, for whoever wants to see what becomes of them.

use crate::device::{Device, Exit};
use crate::errno::Errno;
use crate::host;
use crate::machine::{layout, Machine};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

// One stays inside, one comes out all the time.
crate::guest!(spin_inside, code64, "2: inc rbx", "mov [0x20000], rbx", "jmp 2b");
crate::guest!(spin_outside, code64, "2: inc rbx", "mov [0x20000], rbx", "out 0x10, al", "jmp 2b");

/// How long the guests have until the last of them runs.
const START: Duration = Duration::from_secs(60);

/// Leaves a process behind that runs guests, two on each processor, with each of the devices.
/// Comes back when all of them run.
pub fn leave_running(devices: &[String]) -> Result<(), String> {
    let (reader, writer) = host::pipe().map_err(|errno| errno.to_string())?;
    // SAFETY: the program's only thread; the child never comes back.
    let pid = Errno::check(unsafe { libc::fork() }).map_err(|errno| errno.to_string())?;
    if pid == 0 {
        drop(reader);
        let mut pipe = File::from(writer);
        let message = spin(devices, &mut pipe).err().unwrap_or_default();
        let _ = pipe.write_all(message.as_bytes());
        // Whatever still runs ends, too.
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) };
    }
    drop(writer);
    let mut pipe = File::from(reader);
    let mut first = [0];
    match pipe.read(&mut first) {
        Ok(1) if first == *b"+" => Ok(()),
        _ => {
            let mut rest = Vec::new();
            let _ = pipe.read_to_end(&mut rest);
            Err(String::from_utf8_lossy(&[&first, &rest[..]].concat()).into_owned())
        }
    }
}

/// Says "+" through the pipe when all guests run. Comes back with the reason when one does not.
fn spin(devices: &[String], pipe: &mut File) -> Result<(), String> {
    let ended = Arc::new(AtomicBool::new(false));
    let mut machines = Vec::new();
    for path in devices {
        let say = |errno: Errno| format!("{path}: {errno}");
        let device = Device::open(path).map_err(say)?;
        for cpu in host::online_cpus() {
            for code in [spin_inside(), spin_outside()] {
                let machine = Arc::new(Machine::long(&device, code).map_err(say)?);
                machines.push(Arc::clone(&machine));
                let ended = Arc::clone(&ended);
                thread::spawn(move || {
                    let exit = host::pin(cpu).and_then(|()| run(&machine));
                    eprintln!("a guest on processor {cpu} has ended: {exit:x?}");
                    ended.store(true, Ordering::Release);
                });
            }
        }
    }
    let deadline = Instant::now() + START;
    while !machines.iter().all(|machine| machine.memory.read_u64(layout::DATA) > 1) {
        if Instant::now() > deadline {
            return Err("not all guests run".to_owned());
        }
        wait(&ended)?;
    }
    pipe.write_all(b"+").map_err(|error| error.to_string())?;
    loop {
        wait(&ended)?;
    }
}

fn wait(ended: &AtomicBool) -> Result<(), String> {
    thread::sleep(Duration::from_millis(5));
    if ended.load(Ordering::Acquire) {
        return Err("a guest has ended".to_owned());
    }
    Ok(())
}

/// Runs a machine for as long as it comes out for its port only.
fn run(machine: &Machine) -> Result<Exit, Errno> {
    loop {
        match machine.run() {
            Ok(Exit::Io { port: 0x10, .. }) | Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

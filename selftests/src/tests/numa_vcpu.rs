// SPDX-License-Identifier: GPL-2.0

//! What the processor keeps of a vCPU is on the NUMA node that it runs on, also after it was taken
//! to another one, and keeps all that was in it.

use crate::host;
use crate::numa::in_use;
use crate::prelude::*;
use crate::rusthv::*;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub const TEST: Test = Test::new(60, run).with_several_cpus();

guest!(
    numa_vcpu_steps,
    code64,
    // A sum that shows every turn that is lost or done twice, also of the flags.
    "2: add rbx, rcx",
    "lea rcx, [rcx + 1]",
    "adc r8, rbx",
    "out 0x10, al",
    "jmp 2b",
);
guest!(numa_vcpu_spins, code64, "2: inc rbx", "dec r12", "cmp byte ptr [0x20000], 0", "je 2b", "hlt");

/// A node and one of its processors.
type Spot = (u32, usize);

const PATIENCE: Duration = Duration::from_secs(20);

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.rusthv()?;
    let nodes = host::nodes_with_cpus();
    let [first, second, ..] = nodes[..] else {
        skip!("processors are on {} NUMA nodes: two are needed", nodes.len());
    };
    follows(t, &device, [first, second])?;
    follows(t, &device, [second, first])?;
    follows_inside(&device, first, second)?;
    let (home, away) = (1 << first.0, 1 << second.0);
    stays(&device, RUSTHV_NUMA_BIND, home, [first, second])?;
    stays(&device, RUSTHV_NUMA_INTERLEAVE, home | away, [first, second])
}

/// One `KVM_RUN`.
fn step(machine: &Machine) -> Outcome {
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{exit:x?}");
    Ok(())
}

/// Between two calls of `KVM_RUN`: the second one moves the state, which came with the first.
fn follows(t: &Context, device: &Device, spots: [Spot; 2]) -> Outcome {
    host::pin(spots[0].1)?;
    let machine = Machine::long(device, numa_vcpu_steps())?;
    let still = Machine::long(device, numa_vcpu_steps())?;
    let mut steps = 2;
    (0..steps).try_for_each(|_| step(&machine))?;
    check_eq!(machine.vcpu.stats()?.node_moves, 0, "at home");
    let turns = t.repetitions(40).max(2);
    for turn in 0..turns {
        let ((from, _), (to, cpu)) = (spots[turn as usize % 2], spots[(turn as usize + 1) % 2]);
        let before = in_use(device)?;
        host::pin(cpu)?;
        let registers = (machine.vcpu.regs()?, machine.vcpu.sregs()?);
        (0..2).try_for_each(|_| step(&machine))?;
        steps += 2;
        check_eq!(machine.vcpu.stats()?.node_moves, turn + 1, "turn {turn}");
        let mut expected = before;
        expected[from as usize] -= 1;
        expected[to as usize] += 1;
        check_eq!(in_use(device)?, expected, "turn {turn}, from node {from} to {to}");
        check!(machine.vcpu.regs()?.rcx == registers.0.rcx + 2, "turn {turn}");
        check_eq!(machine.vcpu.sregs()?, registers.1, "turn {turn}");
        // It is there, and stays.
        step(&machine)?;
        steps += 1;
        check_eq!(machine.vcpu.stats()?.node_moves, turn + 1, "turn {turn}, again");
    }
    (0..steps).try_for_each(|_| step(&still))?;
    check_eq!(machine.vcpu.regs()?, still.vcpu.regs()?, "after {steps} steps");
    Ok(())
}

/// Within one `KVM_RUN`, as its thread is taken to another node.
fn follows_inside(device: &Device, home: Spot, away: Spot) -> Outcome {
    host::pin(home.1)?;
    let machine = Machine::long(device, numa_vcpu_spins())?;
    machine.memory.write(layout::DATA, &[0]);
    let (told, number) = mpsc::channel();
    let guest = &machine;
    thread::scope(|scope| {
        let running = scope.spawn(move || {
            // SAFETY: no arguments.
            let _ = told.send(unsafe { libc::gettid() });
            guest.run()
        });
        let outcome = (|| -> Outcome {
            let Ok(number) = number.recv() else { fail!("the thread has ended") };
            // Into the guest first.
            thread::sleep(Duration::from_millis(20));
            for (turn, (_, cpu)) in [away, home, away].into_iter().enumerate() {
                host::pin_thread(number, cpu)?;
                let deadline = Instant::now() + PATIENCE;
                while guest.vcpu.stats()?.node_moves <= turn as u64 {
                    check!(Instant::now() < deadline, "not moved in {PATIENCE:?}, turn {turn}");
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        })();
        guest.memory.write(layout::DATA, &[1]);
        let exit = running.join();
        outcome?;
        check!(matches!(exit, Ok(Ok(Exit::Hlt))), "{exit:?}");
        Ok(())
    })?;
    let regs = machine.vcpu.regs()?;
    check_eq!(regs.rbx.wrapping_add(regs.r12), 0, "{regs:x?}");
    check!(regs.rbx > 1, "{regs:x?}");
    Ok(())
}

/// Where the VM's policy does not want it.
fn stays(device: &Device, policy: u32, nodes: u64, [home, away]: [Spot; 2]) -> Outcome {
    host::pin(home.1)?;
    let vm = device.vm()?;
    vm.set_numa_policy(policy, nodes)?;
    let machine = Machine::long_in(device, vm, numa_vcpu_steps())?;
    step(&machine)?;
    let before = in_use(device)?;
    host::pin(away.1)?;
    (0..4).try_for_each(|_| step(&machine))?;
    check_eq!(machine.vcpu.stats()?.node_moves, 0, "policy {policy}");
    check_eq!(in_use(device)?, before, "policy {policy}");
    Ok(())
}

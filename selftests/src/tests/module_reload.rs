// SPDX-License-Identifier: GPL-2.0

//! The module is unloaded and loaded again many times, with VMs in between; the device comes and goes with it.

use crate::module;
use crate::prelude::*;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(module_reload, code16, "out 0x10, al", "hlt");

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let path = t.module()?;
    drop(t.rusthv()?);
    for round in 0..t.repetitions(10) {
        check_eq!(module::unload(), Ok(()), "round {round}");
        check!(!module::is_loaded());
        check_err!(Device::open(t.path()).map(|_| ()), ENOENT);
        check_eq!(module::load(path), Ok(()), "round {round}");
        check_err!(module::load(path), EEXIST, "loaded twice");
        let machine = Machine::real(&t.device()?, module_reload())?;
        check!(matches!(machine.run()?, Exit::Io { .. }), "round {round}");
        // With KVM beside it, which must not mind.
        if let Ok(kvm) = t.reference() {
            check!(
                matches!(Machine::real(&kvm, module_reload())?.run()?, Exit::Io { .. }),
                "KVM, round {round}"
            );
        }
        check_eq!(machine.run()?, Exit::Hlt);
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! The Rust mirror of the extension header says what the C compiler says, and the table of ioctls has
//! all that the module has.

use rusthv_selftests::ioctl::{is_on, FileKind, IOCTLS};
use rusthv_selftests::rusthv::*;
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

macro_rules! layout {
    ($text:ident, $c:literal, $rust:ty, $($field:ident),+) => {
        writeln!($text, "_Static_assert(sizeof(struct {}) == {}, \"size\");", $c, size_of::<$rust>()).unwrap();
        $(writeln!(
            $text,
            "_Static_assert(offsetof(struct {}, {}) == {}, \"offset\");",
            $c, stringify!($field), offset_of!($rust, $field)
        ).unwrap();)+
    };
}

#[test]
fn mirror_matches_the_header() {
    let header = sources().join("uapi/rusthv.h");
    let mut text = format!("#include <stddef.h>\n#include \"{}\"\n", header.display());
    layout!(text, "rusthv_info", Info, present, missing, revision, phys_bits, reserved);
    layout!(
        text,
        "rusthv_node_stats",
        NodeStats,
        node,
        padding,
        frames_in_use,
        frames_pooled,
        pool_hits,
        pool_misses,
        pool_shrunk,
        reserved
    );
    layout!(text, "rusthv_numa_policy", NumaPolicy, policy, padding, nodes, reserved);
    layout!(text, "rusthv_wipe", Wipe, mode, padding, reserved);
    layout!(text, "rusthv_intercepts", Intercepts, what, first, count, exits, reserved);
    layout!(
        text,
        "rusthv_host_stats",
        HostStats,
        frames_in_use,
        frames_pooled,
        vms,
        vcpus,
        frames_wiped,
        reserved
    );
    layout!(
        text,
        "rusthv_vm_stats",
        VmStats,
        table_frames,
        mapped_4k,
        mapped_2m,
        flushes,
        flush_ipis,
        invept,
        unmap_notifications,
        fault_retries,
        id,
        mapped_1g,
        reserved
    );
    layout!(
        text,
        "rusthv_vcpu_stats",
        VcpuStats,
        exits,
        io,
        mmio,
        ept_faults,
        cpuid,
        hlt,
        msr,
        cr,
        interrupts,
        exceptions,
        other,
        user_exits,
        page_faults,
        invalidations,
        table_writes,
        node_moves,
        guest_ticks,
        reserved
    );
    layout!(
        text,
        "rusthv_paging_stats",
        PagingStats,
        mode,
        shadow_tables,
        mapped_4k,
        mapped_2m,
        root_hits,
        root_misses,
        evictions,
        loosened,
        compared,
        changed,
        reserved
    );
    layout!(text, "rusthv_owner", Owner, vm, gpa, pid, page_shift, flags, mode);
    layout!(text, "rusthv_frame", Frame, hpa, first, count, total, kind, node, owners, reserved);
    layout!(text, "rusthv_rights", Rights, slot, rights, reserved);
    layout!(text, "rusthv_unmap", Unmap, hpa, unmapped, reserved);
    layout!(
        text,
        "rusthv_gpa",
        GpaInfo,
        gpa,
        hva,
        hpa,
        slot,
        page_shift,
        flags,
        mode,
        kind,
        node,
        owners,
        reserved
    );
    layout!(text, "rusthv_walk_entry", WalkEntry, table, level, address, entry);
    layout!(text, "rusthv_walk", Walk, gva, access, result, gpa, hpa, error_code, count, entries, reserved);
    for (name, value) in [
        ("(RUSTHV_FEAT_EPT_1G | RUSTHV_FEAT_NPT_1G)", FEAT_1G),
        ("RUSTHV_CAP_INVERTED", u64::from(RUSTHV_CAP_INVERTED)),
        ("RUSTHV_CAP_EXTENSIONS", u64::from(RUSTHV_CAP_EXTENSIONS)),
        ("RUSTHV_EXTENSIONS_VERSION", RUSTHV_EXTENSIONS_VERSION as u64),
        ("RUSTHV_CAP_NUMA_POLICY", u64::from(RUSTHV_CAP_NUMA_POLICY)),
        ("RUSTHV_CAP_WIPE", u64::from(RUSTHV_CAP_WIPE)),
        ("RUSTHV_NUMA_LOCAL", u64::from(RUSTHV_NUMA_LOCAL)),
        ("RUSTHV_NUMA_BIND", u64::from(RUSTHV_NUMA_BIND)),
        ("RUSTHV_NUMA_INTERLEAVE", u64::from(RUSTHV_NUMA_INTERLEAVE)),
        ("RUSTHV_WIPE_NEVER", u64::from(RUSTHV_WIPE_NEVER)),
        ("RUSTHV_WIPE_ZEROS", u64::from(RUSTHV_WIPE_ZEROS)),
        ("RUSTHV_WIPE_RANDOM", u64::from(RUSTHV_WIPE_RANDOM)),
        ("RUSTHV_CAP_INTERCEPTS", u64::from(RUSTHV_CAP_INTERCEPTS)),
        ("RUSTHV_INTERCEPT_PORT", u64::from(RUSTHV_INTERCEPT_PORT)),
        ("RUSTHV_INTERCEPT_MSR_READ", u64::from(RUSTHV_INTERCEPT_MSR_READ)),
        ("RUSTHV_INTERCEPT_MSR_WRITE", u64::from(RUSTHV_INTERCEPT_MSR_WRITE)),
        ("RUSTHV_CAP_GUEST_TICKS", u64::from(RUSTHV_CAP_GUEST_TICKS)),
        ("RUSTHV_CAP_PAGING", u64::from(CAP_PAGING)),
        ("RUSTHV_PAGING_NESTED", u64::from(PAGING_NESTED)),
        ("RUSTHV_PAGING_SHADOW", u64::from(PAGING_SHADOW)),
        ("RUSTHV_PAGING_TRAP", u64::from(PAGING_TRAP)),
    ] {
        writeln!(text, "_Static_assert({name} == {value}ULL, \"{name}\");").unwrap();
    }
    check(&text);
}

/// Fails unless a C compiler takes it.
fn check(text: &str) {
    static CHECKS: AtomicU32 = AtomicU32::new(0);
    let number = CHECKS.fetch_add(1, Ordering::Relaxed);
    let name = format!("rusthv-uapi-{}-{number}.c", std::process::id());
    let source = std::env::temp_dir().join(name);
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(compiler).arg("-fsyntax-only").arg(&source).status().expect("a C compiler");
    std::fs::remove_file(&source).unwrap();
    assert!(status.success(), "the headers and what is here differ (see above)");
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../rust_hv")
}

fn read(path: &str) -> String {
    let path = sources().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn numbers_are_those_of_the_headers() {
    let header = sources().join("uapi/rusthv.h");
    let mut text = format!("#include <linux/kvm.h>\n#include \"{}\"\n", header.display());
    for one in IOCTLS {
        writeln!(text, "_Static_assert({0} == {1}UL, \"{0}\");", one.name, one.request).unwrap();
    }
    check(&text);
}

/// The names that `device/numbers.rs` defines.
fn names_of_the_module() -> Vec<String> {
    let text = read("device/numbers.rs");
    let lines = text.lines().map(str::trim);
    let definitions = lines.filter_map(|line| line.split_once(" = _IO").map(|(name, _)| name));
    let names: Vec<String> = definitions.map(str::to_owned).collect();
    assert!(names.len() > 20, "cannot read device/numbers.rs: {names:?}");
    names
}

#[test]
fn the_table_has_every_ioctl_of_the_module() {
    let names = names_of_the_module();
    for name in &names {
        assert!(IOCTLS.iter().any(|one| one.name == name), "{name} is not in ioctl::IOCTLS");
    }
    for one in IOCTLS {
        assert!(names.iter().any(|name| name == one.name), "{} is not in device/numbers.rs", one.name);
    }
    // On the kinds of file where the module has it: those whose dispatch names it at the start of an arm.
    for (on, file) in [
        (FileKind::Device, "device/mod.rs"),
        (FileKind::Vm, "device/vm.rs"),
        (FileKind::Vcpu, "device/vcpu.rs"),
    ] {
        let text = read(file);
        for name in &names {
            let arm = |line: &str| line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(' '));
            let there = text.lines().map(str::trim).any(|line| arm(line) && line.contains("=>"));
            let request = IOCTLS.iter().find(|one| one.name == name).map_or(0, |one| one.request);
            assert_eq!(is_on(request, on), there, "{name} on {on:?}");
        }
    }
}

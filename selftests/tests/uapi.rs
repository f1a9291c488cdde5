// SPDX-License-Identifier: GPL-2.0

//! The Rust mirror of the extension header says what the C compiler says.

use rusthv_selftests::rusthv::*;
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

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
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rust_hv/uapi/rusthv.h");
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
        ("RUSTHV_CAP_INVERTED", u64::from(RUSTHV_CAP_INVERTED)),
        ("RUSTHV_GET_FRAME", RUSTHV_GET_FRAME),
        ("RUSTHV_GET_GPA", RUSTHV_GET_GPA),
        ("RUSTHV_WALK", RUSTHV_WALK),
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
        ("RUSTHV_SET_NUMA_POLICY", RUSTHV_SET_NUMA_POLICY),
        ("RUSTHV_SET_WIPE", RUSTHV_SET_WIPE),
        ("RUSTHV_SET_INTERCEPTS", RUSTHV_SET_INTERCEPTS),
        ("RUSTHV_CAP_INTERCEPTS", u64::from(RUSTHV_CAP_INTERCEPTS)),
        ("RUSTHV_INTERCEPT_PORT", u64::from(RUSTHV_INTERCEPT_PORT)),
        ("RUSTHV_INTERCEPT_MSR_READ", u64::from(RUSTHV_INTERCEPT_MSR_READ)),
        ("RUSTHV_INTERCEPT_MSR_WRITE", u64::from(RUSTHV_INTERCEPT_MSR_WRITE)),
        ("RUSTHV_GET_INFO", RUSTHV_GET_INFO),
        ("RUSTHV_GET_HOST_STATS", RUSTHV_GET_HOST_STATS),
        ("RUSTHV_GET_NODE_STATS", RUSTHV_GET_NODE_STATS),
        ("RUSTHV_CAP_PAGING", u64::from(CAP_PAGING)),
        ("RUSTHV_PAGING_NESTED", u64::from(PAGING_NESTED)),
        ("RUSTHV_PAGING_SHADOW", u64::from(PAGING_SHADOW)),
        ("RUSTHV_PAGING_TRAP", u64::from(PAGING_TRAP)),
        ("RUSTHV_GET_PAGING_STATS", RUSTHV_GET_PAGING_STATS),
        ("RUSTHV_GET_VM_STATS", RUSTHV_GET_VM_STATS),
        ("RUSTHV_GET_VCPU_STATS", RUSTHV_GET_VCPU_STATS),
    ] {
        writeln!(text, "_Static_assert({name} == {value}ULL, \"{name}\");").unwrap();
    }
    let source = std::env::temp_dir().join(format!("rusthv-uapi-{}.c", std::process::id()));
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(compiler).arg("-fsyntax-only").arg(&source).status().expect("a C compiler");
    std::fs::remove_file(&source).unwrap();
    assert!(status.success(), "the header and the mirror differ (see above)");
}

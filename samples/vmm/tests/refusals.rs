// SPDX-License-Identifier: GPL-2.0
//! What the program refuses before any guest runs, by exit code and message. Needs no device.

use std::path::PathBuf;
use std::process::{Command, Output};

fn vmm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rusthv-vmm"))
        .args(args)
        .output()
        .expect("the program starts")
}

fn refuses(args: &[&str], code: i32, message: &str) {
    let output = vmm(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(message), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

fn file(name: &str, size: usize) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, vec![0xf4; size]).expect("the file can be written");
    path
}

#[test]
fn usage() {
    refuses(&[], 2, "Usage");
    refuses(&["flat", "x.bin"], 2, "--mode");
    refuses(&["firmware", "--memory", "99999"], 2, "99999");
}

#[test]
fn help_lists_the_exit_codes() {
    let output = vmm(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    for line in ["--device", "Exit status:", "  7 ", "130"] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[test]
fn images() {
    refuses(
        &["flat", "--mode", "16", "/nonexistent"],
        3,
        "/nonexistent: No such file",
    );
    refuses(&["flat", "--mode", "16", "/"], 3, "/: Is a directory");
    let empty = file("empty", 0);
    refuses(
        &["flat", "--mode", "32", empty.to_str().unwrap()],
        3,
        "empty",
    );
    let large = file("large", 61_441);
    refuses(
        &["flat", "--mode", "16", large.to_str().unwrap()],
        3,
        "61440 bytes",
    );
    let odd = file("odd", 1000);
    refuses(&["firmware", "--bios", odd.to_str().unwrap()], 3, "64 KiB");
}

#[test]
fn devices() {
    let image = file("halt", 1);
    let on = |device| {
        [
            "flat",
            "--mode",
            "16",
            image.to_str().unwrap(),
            "--device",
            device,
        ]
    };
    refuses(&on("/nonexistent"), 4, "is the module loaded?");
    refuses(&on("/dev/null"), 4, "does not speak the KVM ABI");
    // A directory cannot be opened for writing.
    refuses(&on("/"), 4, "/: Is a directory");
}

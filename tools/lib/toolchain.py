# SPDX-License-Identifier: GPL-2.0
"""Which compilers build the kernel and the module, and what make is told about them."""

import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import paths
import ui

BINDGEN_MINIMUM = (0, 71, 1)

# One LLVM for the kernel, the module and bindgen: KASAN together with Rust needs a
# clang build, and Rust code linked with C wants the same compiler family.
LLVM = "-19"


def _output(*command):
    try:
        return subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


@lru_cache
def rustc():
    """The distribution's compiler by its full path: in PATH, one from rustup may hide it."""
    path = os.environ.get("RUSTC") or "/usr/bin/rustc"
    if not Path(path).exists():
        raise ui.Failure(f"{path} is missing; run tools/setup, or set RUSTC=")
    return path


@lru_cache
def rust_lib_src():
    """The source of Rust's core library, which is built into the kernel."""
    given = os.environ.get("RUST_LIB_SRC")
    if given:
        return given
    sysroot = (_output(rustc(), "--print", "sysroot") or "").strip()
    candidates = [Path(sysroot) / "lib/rustlib/src/rust/library"]
    for package in ("rust-web-src", "rust-src"):
        for line in (_output("dpkg", "-L", package) or "").splitlines():
            if re.fullmatch(r"/usr/src/[^/]+/library", line):
                candidates.append(Path(line))
    for candidate in candidates:
        if (candidate / "core/src/lib.rs").exists():
            return str(candidate)
    raise ui.Failure("Rust's library source is missing; run tools/setup, or set RUST_LIB_SRC=")


def _bindgen_version(path):
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", _output(path, "--version") or "")
    return tuple(map(int, match.groups())) if match else (0,)


@lru_cache
def bindgen():
    given = os.environ.get("BINDGEN")
    if given:
        return given
    candidates = sorted((paths.cache() / "tools").glob("bindgen-*/bin/bindgen"), reverse=True)
    found = shutil.which("bindgen")
    if found:
        candidates.insert(0, Path(found))
    for candidate in candidates:
        if _bindgen_version(candidate) >= BINDGEN_MINIMUM:
            return str(candidate)
    raise ui.Failure("bindgen >= 0.71.1 is missing; run tools/setup, or set BINDGEN=")


def _beside(name):
    # rustdoc, rustfmt and clippy-driver of the same release as the compiler.
    path = Path(rustc()).parent / name
    return str(path) if path.exists() else name


def make_variables():
    """What every kbuild invocation gets, as NAME=value."""
    return [
        f"LLVM={LLVM}",
        f"RUSTC={rustc()}",
        f"RUSTDOC={_beside('rustdoc')}",
        f"RUSTFMT={_beside('rustfmt')}",
        f"CLIPPY_DRIVER={_beside('clippy-driver')}",
        f"RUST_LIB_SRC={rust_lib_src()}",
        f"BINDGEN={bindgen()}",
    ]


def environment():
    """The environment for kbuild: without what a calling make or cargo left there."""
    env = {k: v for k, v in os.environ.items()
           if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "RUSTFLAGS", "KBUILD_OUTPUT",
                        "LLVM", "CC", "LD", "ARCH", "CROSS_COMPILE", "KCFLAGS", "KDIR",
                        "KSRC", "KERNEL", "M", "MO", "O")}
    # bindgen has to parse with the library of the clang that compiles.
    env.setdefault("LIBCLANG_PATH", f"/usr/lib/llvm{LLVM}/lib")
    env["LC_ALL"] = "C"
    return env


@lru_cache
def versions():
    """What identifies the compilers; part of the key of a built kernel."""
    clang = f"clang{LLVM}"
    found = {
        "clang": _output(clang, "--version"),
        "lld": _output(f"ld.lld{LLVM}", "--version"),
        "rustc": _output(rustc(), "-vV"),
        "bindgen": _output(bindgen(), "--version"),
    }
    for name, text in found.items():
        if not text:
            raise ui.Failure(f"{name} does not run; run tools/setup")
    return {name: text.strip() for name, text in found.items()}

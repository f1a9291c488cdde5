# SPDX-License-Identifier: GPL-2.0
"""What goes into the test machine besides the kernel: the module, selftests, samples."""

import os
import subprocess
from pathlib import Path

import cargo
import paths
import toolchain
import ui


def samples():
    """Build the samples; returns (file, path in the machine) for each."""
    out = paths.BUILD / "samples"
    if not (paths.TOP / "samples/Makefile").exists():
        raise ui.Failure("there is no samples/Makefile")
    env = cargo.environment("samples")
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(paths.TOP / "samples"), f"OUT={out}",
         f"CARGO={cargo.program()}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, check=False)
    if done.returncode:
        raise ui.Failure("building the samples failed (messages above)")
    return [(path, f"samples/{path.relative_to(out)}")
            for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".o"]


def selftests():
    """Build the selftests; returns {program name: path}."""
    release = cargo.static("selftests", "selftests")
    found = {}
    for name in ("rusthv-selftests", "rusthv-fuzz", "rusthv-bench", "rusthv-spin"):
        path = release / name
        if not path.exists():
            raise ui.Failure(f"{path}: selftests made no such program")
        found[name] = path
    return found


def stripped(path, name):
    """A copy without debug information: each megabyte has to be loaded by the emulator."""
    out = paths.BUILD / "stripped" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    source = Path(path)
    if not out.exists() or out.stat().st_mtime <= source.stat().st_mtime:
        subprocess.run([f"llvm-strip{toolchain.LLVM}", "--strip-debug", str(source), "-o", str(out)],
                       check=True)
        os.utime(out)
    return out

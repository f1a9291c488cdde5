# SPDX-License-Identifier: GPL-2.0
"""Building rust_hv.ko against a kernel build tree."""

import os
import re
import subprocess
from pathlib import Path

import paths
import toolchain
import ui


def _kdir_variables(kdir):
    """How the kernel was compiled decides how its modules are: clang or gcc."""
    config = (Path(kdir) / ".config")
    variables = toolchain.make_variables()
    if config.exists() and "CONFIG_CC_IS_GCC=y" in config.read_text():
        variables = [v for v in variables if not v.startswith("LLVM=")]
    return variables


def output(name):
    """Each kernel has its own objects, so that going from one to the other rebuilds nothing."""
    return paths.BUILD / "module" / name


# The host exports what a hypervisor needs "for KVM" only; using it is noted for each
# symbol, by modpost and again by the kernel. Documentation/dev-kernel.md has the story.
RESTRICTED = re.compile(r"uses symbol \(?(\w+)\)? from namespace module:.*does not import it")


def make(kdir, name, *arguments, quiet=False):
    """Run kbuild on the module; returns its exit status. Quiet means: unless it fails."""
    out = output(name)
    out.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("JOBS") or str(os.cpu_count() or 1)
    # MO= keeps kbuild's output out of the sources (kernel 6.13 and later).
    command = ["make", "-C", str(kdir), f"M={paths.TOP}", f"MO={out}", f"-j{jobs}",
               "--no-print-directory", *_kdir_variables(kdir), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=toolchain.environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace")
    restricted = 0
    kept = []
    try:
        for line in process.stdout:
            line = line.rstrip("\n")
            if RESTRICTED.search(line):
                restricted += 1
            elif quiet:
                kept.append(line)
            else:
                ui.line("make", line)
    finally:
        process.wait()
    if process.returncode:
        for line in kept:
            ui.line("make", line)
    if restricted:
        ui.line("make", f"{restricted} symbols are exported for KVM only "
                        "(Documentation/dev-kernel.md)")
    return process.returncode


def build(kdir, name):
    if not (paths.TOP / "Kbuild").exists():
        raise ui.Failure("there is no Kbuild file: no module to build")
    if make(kdir, name, "modules"):
        raise ui.Failure("building the module failed (messages above)")
    out = output(name)
    found = [p for p in (out / "rust_hv.ko", out / "rust_hv/rust_hv.ko") if p.exists()]
    if not found:
        raise ui.Failure(f"kbuild was content, but made no rust_hv.ko in {out}")
    return found[0]

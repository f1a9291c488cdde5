# SPDX-License-Identifier: GPL-2.0
"""The dev kernels, base and debug: configured, built, checked, and kept in the cache."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import cache
import paths
import source
import toolchain
import ui

FRAGMENTS = {
    "base": ("tools/kernel/base.config",),
    "debug": ("tools/kernel/base.config", "tools/kernel/debug.config"),
}

# Changed when the way of building below changes the result.
RECIPE = 1

# What only linking the kernel needs, or only somebody debugging its build: most of
# the size of a build tree, and nothing that building a module looks at.
PRUNE = (".o", ".a", ".o.cmd", ".o.d", ".s", ".i")
PRUNE_NAMES = {"vmlinux", "vmlinux.unstripped", "vmlinux.bin", "vmlinux.bin.lz4", "vmlinux.map"}


def wanted(fragments):
    """The options of the fragments as {name: value}; a later one wins."""
    options = {}
    for fragment in fragments:
        for line in Path(fragment).read_text().splitlines():
            line = line.strip()
            if match := re.fullmatch(r"(CONFIG_\w+)=(.*)", line):
                options[match[1]] = match[2]
            elif match := re.fullmatch(r"# (CONFIG_\w+) is not set", line):
                options[match[1]] = "n"
            elif line and not line.startswith("#"):
                raise ui.Failure(f"{fragment}: not an option: {line}")
    return options


def landed(config, options):
    """The options that the final .config does not have as they were asked for."""
    have = {}
    for line in Path(config).read_text().splitlines():
        if match := re.fullmatch(r"(CONFIG_\w+)=(.*)", line):
            have[match[1]] = match[2]
    return [f"{name}={value} (it is {have.get(name, 'n')})"
            for name, value in options.items() if have.get(name, "n") != value]


def _make(src, out, log, *arguments):
    command = ["make", "-C", str(src), f"O={out}", *toolchain.make_variables(), *arguments]
    env = toolchain.environment()
    # The same input gives the same kernel, whoever builds it and when.
    env.update(KBUILD_BUILD_USER="rusthv", KBUILD_BUILD_HOST="dev",
               KBUILD_BUILD_TIMESTAMP="2026-01-01", KBUILD_BUILD_VERSION="1")
    with open(log, "a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file,
                              stderr=subprocess.STDOUT, env=env, check=False)
    if done.returncode:
        lines = Path(log).read_text(errors="replace").splitlines()
        errors = [l for l in lines if re.search(r"\berror\b|\*\*\*", l, re.IGNORECASE)][:20]
        raise ui.Failure(f"building the kernel failed (log: {log}):\n"
                         + "\n".join(errors or lines[-20:]))


def configure(src, out, fragments, log):
    out.mkdir(parents=True, exist_ok=True)
    _make(src, out, log, "tinyconfig")
    with open(out / ".config", "a") as config:
        for fragment in fragments:
            config.write(Path(fragment).read_text())
    _make(src, out, log, "olddefconfig")
    _make(src, out, log, "rustavailable")
    lost = landed(out / ".config", wanted(fragments))
    if lost:
        raise ui.Failure("Kconfig dropped what the fragments ask for:\n  " + "\n  ".join(lost))


def compile_all(src, out, log):
    jobs = os.environ.get("JOBS") or str(os.cpu_count() or 1)
    _make(src, out, log, f"-j{jobs}", "bzImage", "modules")


def _prune(out):
    for directory, _, names in os.walk(out):
        for name in names:
            path = os.path.join(directory, name)
            # The host programs of kbuild are kept, whatever they are called.
            if os.path.relpath(directory, out).split(os.sep)[0] in ("scripts", "tools"):
                if not name.endswith((".o", ".o.cmd", ".o.d", ".a")):
                    continue
            if name.endswith(PRUNE) or name in PRUNE_NAMES or name.startswith(".tmp_"):
                os.unlink(path)


def _log_for(name):
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    log = paths.LOGS / f"kernel-{name}.log"
    log.unlink(missing_ok=True)
    return log


def _own_source(name, src, fragments):
    """KSRC=: the user's tree may change at any time, so make decides what to rebuild."""
    src = Path(src).resolve()
    if not (src / "rust/kernel/lib.rs").exists():
        raise ui.Failure(f"KSRC={src}: not a kernel source tree with Rust")
    mark = hashlib.sha256(str(src).encode()).hexdigest()[:12]
    out = paths.cache() / "kernel" / f"own-{name}-{mark}"
    with cache.lock(out.with_suffix(".lock"), f"the {name} kernel of {src}"):
        log = _log_for(name)
        stamp = out / ".rusthv-options"
        options = json.dumps(wanted(fragments), sort_keys=True)
        with ui.step(f"Building the {name} kernel from {src}"):
            # What the user changed in .config stays as long as the fragments do.
            if not (stamp.exists() and stamp.read_text() == options):
                configure(src, out, fragments, log)
                stamp.write_text(options)
            compile_all(src, out, log)
    return out


def tree(name, kdir=None, ksrc=None, update=False):
    """The build tree of a kernel: KDIR as it is, else built from KSRC or Debian's source."""
    kdir = kdir or os.environ.get("KDIR")
    if kdir:
        kdir = Path(kdir).resolve()
        if not (kdir / "Module.symvers").exists():
            raise ui.Failure(f"KDIR={kdir}: not the build tree of a kernel with modules")
        return kdir
    if name not in FRAGMENTS:
        raise ui.Failure(f"KERNEL={name}: there are {' and '.join(FRAGMENTS)}")
    fragments = [paths.TOP / f for f in FRAGMENTS[name]]
    ksrc = ksrc or os.environ.get("KSRC")
    if ksrc:
        return _own_source(name, ksrc, fragments)

    src, identity = source.tree(update)
    key = {
        "recipe": RECIPE,
        "source": identity,
        "config": wanted(fragments),
        "tools": toolchain.versions(),
        "library": toolchain.rust_lib_src(),
        "arch": platform.machine(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    base = paths.cache() / "kernel"
    entry = base / f"{name}-{digest}"
    manifest = base / f"{name}-{digest}.manifest"
    with cache.lock(base / f"{name}-{digest}.lock", f"the {name} kernel"):
        if entry.exists():
            wrong = cache.manifest_check(entry, manifest)
            if wrong is None:
                return entry
            ui.line("step", f"The {name} kernel in the cache is damaged ({wrong}): building it again")
            shutil.rmtree(entry)
        # Left over from a build that was cut short; we hold the lock, so nobody's.
        scratch = base / f"{name}-{digest}.new"
        shutil.rmtree(scratch, ignore_errors=True)
        log = _log_for(name)
        version = identity.split()[1]
        try:
            with ui.step(f"Configuring the {name} kernel {version}"):
                configure(src, scratch, fragments, log)
            with ui.step(f"Building the {name} kernel {version} (once; log: "
                         f"{os.path.relpath(log, paths.TOP)})"):
                compile_all(src, scratch, log)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        _prune(scratch)
        # The one text that names the directory it was made in.
        makefile = scratch / "Makefile"
        makefile.write_text(makefile.read_text().replace(str(scratch), str(entry)))
        manifest.unlink(missing_ok=True)
        cache.manifest_write(scratch, manifest, key)
        scratch.rename(entry)
    return entry


def label(name, kdir=None):
    """What the objects built for this kernel are kept under."""
    if kdir or os.environ.get("KDIR"):
        return "own"
    return f"own-{name}" if os.environ.get("KSRC") else name


def image(kdir):
    path = Path(kdir) / "arch/x86/boot/bzImage"
    if not path.exists():
        raise ui.Failure(f"{path}: no kernel image in this build tree")
    return path


def source_of(kdir):
    """The source tree that a build tree was made from."""
    link = Path(kdir) / "source"
    return link.resolve() if link.exists() else Path(kdir)

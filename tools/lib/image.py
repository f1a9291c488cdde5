# SPDX-License-Identifier: GPL-2.0
"""The test machine's initramfs, and the boot disc for emulators that need one."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import cpio
import paths
import ui

# The modules that are always there: KVM runs beside rusthv in every test. In the
# order in which they have to be loaded.
KVM_MODULES = (
    "virt/lib/irqbypass.ko",
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-intel.ko",
    "arch/x86/kvm/kvm-amd.ko",
)

# A swap device of compressed memory, for the tests that want one.
SWAP_MODULES = (
    "lib/lz4/lz4_compress.ko",
    "mm/zsmalloc.ko",
    "drivers/block/zram/zram.ko",
)


_compiling = threading.Lock()


def _hold_vm():
    source = paths.TOP / "tools/image/hold-vm.c"
    program = paths.BUILD / "hold-vm"
    with _compiling:
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            _run([os.environ.get("HOSTCC") or "cc", "-static", "-O2", "-Wall", "-Werror", source,
                  "-o", program])
    return program


def initramfs(target, kdir, command, kind, files=()):
    """Write the initramfs: busybox, the kernel's modules, /command, and (source, path) files.

    `kind` is the machine that it is for.
    """
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise ui.Failure("/bin/busybox is missing; run tools/setup")
    archive = cpio.Archive()
    archive.directory("dev")
    # Before devtmpfs is mounted the kernel wants a console for init.
    archive.char_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", (paths.TOP / "tools/image/init").read_bytes(), 0o755)
    archive.file("command", command.encode(), 0o755)
    for module in KVM_MODULES + SWAP_MODULES:
        source = Path(kdir) / module
        if source.exists():
            archive.file("modules/" + source.name, source.read_bytes())
    files = list(files)
    if kind == "qemu":
        files.append((_hold_vm(), "hold-vm"))
    for source, path in files:
        source = Path(source)
        if not source.is_file():
            raise ui.Failure(f"{source}: no such file (to be put into the test machine)")
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        archive.file(path, source.read_bytes(), mode)
    Path(target).write_bytes(archive.finish())


# ISOLINUX loads the kernel with a tenth of the instructions that GRUB takes, which
# is seconds where they are emulated.
ISOLINUX = ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32")


def iso(target, kernel, ramfs, cmdline, work):
    """Write a bootable disc with a boot loader, the kernel and its initramfs."""
    work = Path(work)
    root = work / "iso"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        for source in ISOLINUX:
            shutil.copy(source, root)
    except FileNotFoundError as error:
        raise ui.Failure(f"{error.filename} is missing; run tools/setup") from None
    (root / "isolinux.cfg").write_text(
        "DEFAULT linux\nPROMPT 0\nLABEL linux\n"
        f" LINUX kernel\n INITRD initramfs\n APPEND {cmdline}\n"
    )
    for source, name in ((kernel, "kernel"), (ramfs, "initramfs")):
        try:
            os.link(source, root / name)
        except OSError:
            shutil.copyfile(source, root / name)
    _run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-b", "isolinux.bin", "-c", "boot.cat",
         "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o", target, root]
    )
    shutil.rmtree(root, ignore_errors=True)


def _run(command):
    command = [str(c) for c in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ui.Failure(f"{command[0]} is missing; run tools/setup") from None
    if done.returncode:
        raise ui.Failure(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

# SPDX-License-Identifier: GPL-2.0
"""The test machine: one kernel, one initramfs, one emulator, from power-on to power-off.

There are three, and all give the same two serial ports: the first is the kernel's
console, the second is written by programs only.

  bochs  implements VT-x in software, so it works on any computer
  qemu   its TCG implements AMD-V in software, so it works on any computer, too; about
         ten times as fast as Bochs, and several CPUs run in parallel
  host   QEMU with the host's KVM, where the host lets guests use VT-x or AMD-V
"""

import ctypes
import errno
import fcntl
import functools
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import image
import ui

HOST, TEST = "host", "test"

# What Bochs' BIOS says when it starts, in the emulator's log.
BIOS_STARTS = "Starting rombios32"
# Seconds from the end of the command to the end of the machine; a debug kernel in Bochs takes its time.
POWER_OFF_LIMIT = 120

CONSOLE = "console=ttyS0,115200"
# Quiet until init says otherwise: each line on the console costs the emulated CPU
# a busy wait for the port.
# An idle CPU halts: Bochs does not always see the write that should end an MWAIT.
CMDLINE = f"{CONSOLE} quiet panic=-1 oops=panic rdinit=/init idle=halt"
# While it boots, the kernel patches its own code many times, and TCG with several
# threads may go on executing what was there in between (image/hold-vm.c): one CPU
# boots, and init brings the others. And its timer ticks in real time: on a computer that
# is busy too few ticks come while the kernel looks whether there are any, and it panics.
CMDLINE_TCG = "maxcpus=1 noreplace-smp no_timer_check"

# In QEMU's TCG (7.2; `cpu_clear_ignne()`) every FXRSTOR and XRSTOR, of any CPU, takes a bit out of the
# *first* CPU's word of flags, without a lock and not in one step. When that one changes flags
# itself in that moment (VMRUN, a VM exit, STGI, CLGI), its change can get lost: with a second CPU, guests
# ended with the host's state in their VMCB. So there is one CPU more than was asked for, and programs stay
# off the first one: init takes this word from its environment.
CMDLINE_SPARE = "program_cpus=1-{last}"

# `sync=none` in Bochs makes its TSC count instructions, and this is how many make
# one emulated second.
BOCHS_IPS = 100_000_000


# How much of a machine's memory Bochs keeps in its own, in MiB: it takes no larger number. What is
# touched beyond that is swapped out to a file.
BOCHS_MEMORY = 2048

# A CPU with page-modification logging, and kernel parameters. Bochs has it in a newer model than the one for
# all else, which says of itself what Bochs does not do: AVX-512, the compact form of XSAVE's area, and a TSC
# of 3.5 GHz.
LOGGING_CPU = {"bochs": ("corei7_skylake_x",
                         "clearcpuid=avx512f,xsaves,xsavec tsc_early_khz=100000")}

# The emulators that stand in for hardware, in the order in which tests run in them.
EMULATORS = ("qemu", "bochs")

VENDOR = {"bochs": "VT-x", "qemu": "AMD-V"}

# Where KVM_GET_SUPPORTED_CPUID says that a guest may have virtualization itself:
# (leaf, bit of ECX), set only where nesting is on.
NESTED = {"VT-x": (1, 5), "AMD-V": (0x8000_0001, 2)}


@functools.cache
def host_nests():
    """What a KVM guest of this host can use itself: ("VT-x" or "AMD-V", ""), or (None, why not)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError as error:
        return None, str(error)
    if "vmx" not in flags and "svm" not in flags:
        return None, "this CPU shows neither VT-x nor AMD-V"
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return None, f"/dev/kvm: {error.strerror}"
    try:
        entries = 256
        buffer = bytearray(8 + 40 * entries)
        struct.pack_into("II", buffer, 0, entries, 0)
        fcntl.ioctl(kvm, 0xC008AE05, buffer)
    except OSError as error:
        return None, f"KVM_GET_SUPPORTED_CPUID: {error.strerror}"
    finally:
        os.close(kvm)
    vendor = nested_vendor(buffer)
    return (vendor, "") if vendor else (None, "KVM here gives its guests neither (nested=0)")


def nested_vendor(buffer):
    """Which of them a struct kvm_cpuid2 has, or None."""
    count = struct.unpack_from("I", buffer, 0)[0]
    for i in range(count):
        function, _, _, _, _, ecx, _ = struct.unpack_from("7I", buffer, 8 + 40 * i)
        for vendor, (leaf, bit) in NESTED.items():
            if function == leaf and ecx & 1 << bit:
                return vendor
    return None


def choose(wanted=None):
    """The machines to run tests in: [(name, reason)], in that order."""
    wanted = wanted or os.environ.get("MACHINE") or "auto"
    if wanted != "auto":
        names = wanted.replace(",", " ").split()
        for name in names:
            if name not in ("bochs", "qemu", "host"):
                raise ui.Failure(f"MACHINE={wanted}: bochs, qemu or host")
        if "host" in names and not host_nests()[0]:
            raise ui.Failure(f"MACHINE={wanted}: {host_nests()[1]}")
        return [(name, "as asked") for name in dict.fromkeys(names)]
    vendor, why_not = host_nests()
    if vendor and not shutil.which("qemu-system-x86_64"):
        vendor, why_not = None, f"the host nests {vendor}, but qemu-system-x86_64 is not installed"
    if vendor:
        # What the host has is tested on it; the other vendor's in an emulator.
        others = [name for name in EMULATORS if VENDOR[name] != vendor]
        return [("host", f"this host lets its guests use {vendor}"),
                *((name, f"for {VENDOR[name]}") for name in others)]
    return [(name, why_not) for name in EMULATORS]


@functools.cache
def bochs_debugger():
    """The option that has Bochs run in its debugger, where it does not do that by itself."""
    try:
        said = subprocess.run(["bochs", "--help"], stdin=subprocess.DEVNULL, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout
    except FileNotFoundError:
        return []
    return ["-debugger"] if "-debugger " in said else []


def vtx_first(machine):
    """For sorting what choose() gives: hardware, then VT-x, then AMD-V."""
    return ("host", "bochs", "qemu").index(machine[0])


def choose_one(wanted=None):
    """The machine for what needs only one: (name, reason). VT-x goes first."""
    return min(choose(wanted), key=vtx_first)


def title(kind):
    return {"bochs": "Bochs with VT-x", "qemu": "QEMU TCG with AMD-V",
            "host": f"QEMU/KVM with nested {host_nests()[0]}"}[kind]


_running = set()
_stopping = False


def kill_all():
    """Switch every machine off, and let none start; for the way out after Ctrl-C."""
    global _stopping
    _stopping = True
    for process in list(_running):
        process.kill()


def _die_with_parent():
    # However the tool ends, no emulator is left behind spinning.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Tail:
    """Follows a file that grows, and cuts it into lines."""

    def __init__(self, path):
        self.path = path
        self._file = None
        self._partial = b""

    def lines(self, final=False):
        if self._file is None:
            try:
                self._file = open(self.path, "rb")
            except FileNotFoundError:
                return
        data = self._partial + self._file.read()
        *whole, self._partial = data.split(b"\n")
        if final and self._partial:
            whole.append(self._partial)
            self._partial = b""
        for raw in whole:
            yield raw.rstrip(b"\r").decode("utf-8", "replace")


class Result:
    def __init__(self):
        self.exit_code = None  # of /command; None when the machine never got there
        self.ready_after = None  # seconds from power-on to the end of boot
        self.seconds = None
        self.stopped = None  # why the machine was killed, if it was
        self.firmware_again = False  # Bochs only: firmware had the CPU a second time


def all_cpus(kind, cpus, counting=False):
    """How many a machine really has when it is to have `cpus` for programs (CMDLINE_SPARE)."""
    return cpus + 1 if kind == "qemu" and cpus > 1 and not counting else cpus


class Machine:
    def __init__(self, work, kernel, initramfs, machine, *, cpus=1, memory=1024, append="",
                 counting=False, nodes=1, cpu=None):
        """`machine` is (name, reason), as choose() gives them. `cpu` is another model of CPU
        than the one with virtualization, as the emulator's options name it.

        With `counting`, the TSC of an emulated CPU counts instructions. In Bochs it
        always does; QEMU needs to be told, and can have only one CPU then.
        """
        self.work = Path(work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.kernel, self.initramfs = kernel, initramfs
        self.cpus, self.memory, self.nodes = cpus, memory, nodes
        self.kind, self.reason = machine
        self.all_cpus = all_cpus(self.kind, cpus, counting)
        # Bochs has only one node; the kernel divides it, and the CPUs as well.
        fake = f"numa=fake={nodes}" if nodes > 1 and self.kind == "bochs" else ""
        words = [CMDLINE, CMDLINE_TCG if self.kind == "qemu" else "",
                 CMDLINE_SPARE.format(last=cpus) if self.all_cpus != cpus else "", fake, append]
        self.cmdline = " ".join(word for word in words if word)
        self.counting = counting
        self.cpu = cpu
        self.console = self.work / "console.log"
        self.output = self.work / "output.log"
        self.emulator_log = self.work / "bochs.log"
        self._process = None
        self._hurry = None

    def hurry(self, seconds):
        """Switch it off when it is not done that soon (called from on_line)."""
        self._hurry = min(self._hurry or float("inf"), time.monotonic() + seconds)

    def describe(self):
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        return f"{title(self.kind)}, {cpus}, {self.memory} MiB: {self.reason}"

    def run(self, on_line, limit, idle_limit=None):
        """Power on; call on_line(channel, text) for each line; return when it is off.

        `limit` bounds the whole run in seconds, `idle_limit` the silence on the
        second port once the machine is up. on_line may return a string: the machine
        is then switched off, with that as the reason.
        """
        result = Result()
        for path in (self.console, self.output, self.emulator_log):
            path.unlink(missing_ok=True)
        command, needs_terminal = self._command()
        start = time.monotonic()
        terminal = self._start(command, needs_terminal)
        tails = ((HOST, Tail(self.console)), (TEST, Tail(self.output)))
        emulator = Tail(self.emulator_log)
        bios_starts = 0
        try:
            heard = start
            exited_at = None
            while result.stopped is None:
                over = self._process.poll() is not None
                for channel, tail in tails:
                    for text in tail.lines(final=over):
                        if channel == TEST:
                            heard = time.monotonic()
                            if text.startswith("@ready"):
                                result.ready_after = heard - start
                            elif text.startswith("@exit "):
                                result.exit_code = int(text.split()[1])
                                exited_at = heard
                        stop = on_line(channel, text)
                        if stop:
                            result.stopped = stop
                bios_starts += sum(BIOS_STARTS in text for text in emulator.lines())
                if bios_starts > 1:
                    # The end, as for QEMU (-no-reboot).
                    result.firmware_again = over = True
                if over:
                    break
                now = time.monotonic()
                if now - start > limit:
                    result.stopped = f"not finished after {ui.duration(limit)}"
                elif self._hurry and now > self._hurry:
                    result.stopped = "the host kernel is stuck"
                elif exited_at and now - exited_at > POWER_OFF_LIMIT:
                    result.stopped = f"did not power off within {POWER_OFF_LIMIT} s"
                elif idle_limit and result.ready_after and now - heard > idle_limit:
                    result.stopped = f"nothing heard for {ui.duration(idle_limit)}"
                self._wait(terminal)
        finally:
            self._kill()
            if terminal is not None:
                os.close(terminal)
        result.seconds = time.monotonic() - start
        return result

    def last_words(self, lines=40):
        """The end of the console, and what the emulator itself had to say."""
        said = []
        for path in (self.console, self.work / "emulator.log"):
            if path.exists():
                said += path.read_text(errors="replace").splitlines()[-lines:]
        return said

    def cpu_seconds(self):
        """CPU time the emulator has used: unlike wall time, the same on a busy host."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except (AttributeError, OSError):
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # The emulators

    def _command(self):
        if self.kind == "bochs":
            return self._bochs(), True
        return self._qemu(), False

    def _qemu(self):
        if self.kind == "host":
            accel = ["-accel", "kvm", "-cpu", self.cpu or "host"]
        else:
            threads = "single" if self.counting else "multi"
            accel = ["-accel", f"tcg,thread={threads}", "-cpu", self.cpu or "max,+svm,+npt"]
            if self.counting:
                # One nanosecond of its clock for each instruction; when the CPU is idle
                # the clock goes on to the next timer at once.
                accel += ["-icount", "shift=0,sleep=off"]
        # A cache for each: the scheduler patches its code when some share one and others do not.
        topology = f"{self.all_cpus},sockets={self.all_cpus}"
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35", *accel, "-smp", topology, "-m", str(self.memory),
            *self._qemu_nodes(),
            "-no-reboot", "-kernel", str(self.kernel), "-initrd", str(self.initramfs),
            "-append", self.cmdline,
            "-serial", f"file:{self.console}", "-serial", f"file:{self.output}",
        ]

    def _qemu_nodes(self):
        """Memory and CPUs dealt out to NUMA nodes."""
        if self.nodes < 2:
            return []
        options = []
        for node in range(self.nodes):
            size = self.memory // self.nodes
            cpus = [f"cpus={cpu}" for cpu in range(node, self.all_cpus, self.nodes)]
            options += ["-object", f"memory-backend-ram,id=node{node},size={size}M",
                        "-numa", ",".join(["node", f"nodeid={node}", f"memdev=node{node}", *cpus])]
        return options

    def _bochs(self):
        disc = self.work / "boot.iso"
        image.iso(disc, self.kernel, self.initramfs, self.cmdline, self.work)
        share = Path("/usr/share")
        vga = next(
            (p for p in (share / "vgabios/vgabios.bin", share / "bochs/VGABIOS-lgpl-latest")
             if p.exists()), None)
        bios = share / "bochs/BIOS-bochs-latest"
        if vga is None or not bios.exists():
            raise ui.Failure("Bochs' BIOS files are missing; run tools/setup")
        config = self.work / "bochsrc"
        # quantum: how long one CPU runs before the next has its turn.
        config.write_text(f"""\
# Written by tools/lib/machine.py
display_library: term
config_interface: textconfig
romimage: file={bios}
vgaromimage: file={vga}
memory: guest={self.memory}, host={min(self.memory, BOCHS_MEMORY)}
cpu: model={self.cpu or "corei7_haswell_4770"}, count={self.cpus}, ips={BOCHS_IPS}, quantum=16, \
ignore_bad_msrs=1, reset_on_triple_fault=0
clock: sync=none, time0=utc
ata0: enabled=1
ata0-master: type=cdrom, path={disc}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={self.console}
com2: enabled=1, mode=file, dev={self.output}
log: {self.emulator_log}
debugger_log: /dev/null
panic: action=fatal
error: action=report
info: action=ignore, biosdev=report
debug: action=ignore
""")
        # Debian builds Bochs with its debugger, which waits for a command first. Since 3.0
        # it is used on demand only: what runs several CPUs without it is faster, but exits
        # from guests with a wrong RIP now and then (Documentation/testing.md).
        script = self.work / "bochs.start"
        script.write_text("c\n")
        debugger = bochs_debugger() if self.cpus > 1 else []
        return ["bochs", *debugger, "-q", "-f", str(config), "-rc", str(script)]

    # Processes

    def _start(self, command, needs_terminal):
        if _stopping:
            raise ui.Failure("interrupted")
        log = open(self.work / "emulator.log", "wb")
        master = slave = None
        if needs_terminal:
            master, slave = pty.openpty()
            fcntl.ioctl(slave, 0x5414, struct.pack("4H", 50, 132, 0, 0))  # TIOCSWINSZ
        try:
            self._process = subprocess.Popen(
                command,
                stdin=slave if slave is not None else subprocess.DEVNULL,
                stdout=slave if slave is not None else log,
                stderr=log if slave is None else slave,
                cwd=self.work,
                env={**os.environ, "TERM": "vt100"},
                # Ctrl-C is for us: we then end the emulator ourselves.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except FileNotFoundError:
            if master is not None:
                os.close(master)
            raise ui.Failure(f"{command[0]} is missing; run tools/setup") from None
        finally:
            log.close()
            if slave is not None:
                os.close(slave)
        _running.add(self._process)
        return master

    def _wait(self, terminal, seconds=0.05):
        if terminal is None:
            time.sleep(seconds)
            return
        # What Bochs draws on its terminal is thrown away, but has to be read: a
        # full terminal buffer would stop it.
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                try:
                    if not os.read(terminal, 65536):
                        time.sleep(left)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    time.sleep(left)

    def _kill(self):
        # A stuck Bochs ignores SIGTERM, so it is not asked first.
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            _running.discard(self._process)

# SPDX-License-Identifier: GPL-2.0
"""One run of the test machine with tests in it, and what came of each.

The second serial port carries sections (image/functions.sh): '@section NAME', the
output of a command, '@end NAME CODE'. The first one is the host kernel's console.
"""

import re
from pathlib import Path

import image
import kernel
import klog
import machine
import module
import paths
import tap
import ui
from tap import FAILED, PASSED, SKIPPED

SECTION_IN_LOG = re.compile(r"^rusthv machine: section (.+)$")


class Section:
    """Takes a section's lines; `done` is called when it ended, or with None when it did not."""

    def __init__(self, name, command):
        self.name, self.command = name, command
        self.results = None

    def line(self, text):
        pass

    def host_line(self, text):
        pass

    def done(self, code):
        raise NotImplementedError


class Check(Section):
    """A section that is itself one test: it passes when its command succeeds."""

    def __init__(self, name, command, layer, shown=""):
        super().__init__(name, command)
        self.layer, self.shown = layer, shown
        self._said = []

    def line(self, text):
        self._said.append(text)

    def host_line(self, text):
        self._said.append(f"host  | {text}")

    def done(self, code):
        verdict = PASSED if code == 0 else FAILED
        if code is None:
            remark = "the machine stopped before it ended"
        elif code:
            remark = f"status {code}"
        else:
            remark = self.shown
        self.results.add(self.layer, self.name, verdict, remark, self._said)


class Tap(Section):
    """A section that prints TAP. With `expected`, exactly those results have to come."""

    def __init__(self, name, command, layer, expected=None):
        super().__init__(name, command)
        self.layer = layer
        self.expected = list(expected) if expected is not None else None
        self.seen = []
        self._said = []
        self._pending = None
        self._reader = tap.Reader(self._on_result)

    def line(self, text):
        known = len(self._reader.leaves)
        self._said.append(text)
        self._reader.feed(text)
        if len(self._reader.leaves) > known and self._said and self._said[-1] == text:
            self._said.pop()

    def host_line(self, text):
        self._said.append(f"host  | {text}")

    def _on_result(self, leaf):
        self._flush()
        self._pending = leaf, self._said
        self._said = []

    def _flush(self):
        if self._pending is None:
            return
        leaf, said = self._pending
        self._pending = None
        self.seen.append(leaf.name)
        self.results.add(self.layer, leaf.name, leaf.verdict, leaf.remark, leaf.details + said)

    def unfinished(self):
        """The expected names that have not come, in order."""
        return [n for n in self.expected or () if n not in set(self.seen)]

    def done(self, code):
        problems = self._reader.finish()
        self._flush()
        if code is None:
            return  # the session says what becomes of the rest
        failed = any(l.verdict == FAILED for l in self._reader.leaves)
        for problem in problems:
            self.results.add(self.layer, "TAP", FAILED, problem, self._said)
        if not self.seen:
            self.results.add(self.layer, "all", FAILED, f"no test ran (status {code})", self._said)
        elif bool(code) != failed:
            self.results.add(self.layer, "status", FAILED,
                             f"status {code} does not fit the results", self._said)
        for name in self.unfinished():
            self.results.add(self.layer, name, FAILED, "it is in the list, but did not run")
        if self.expected is not None:
            for name in sorted(set(self.seen) - set(self.expected)):
                self.results.add(self.layer, name, FAILED, "it ran, but is not in the list")


class KUnit(Section):
    """Loads the module; the results are in the kernel's log, as KTAP."""

    def __init__(self, name, command, expected, selected):
        super().__init__(name, command)
        self.expected, self.selected = set(expected), set(selected)
        self._reader = tap.Reader()
        self._said = []

    def line(self, text):
        self._said.append(text)

    def host_line(self, text):
        if not module.RESTRICTED.search(text):
            self._said.append(text)
            self._reader.feed(klog.strip(text))

    def done(self, code):
        problems = self._reader.finish()
        if code is None:
            self._stopped()
            return
        if code != 0:
            self.results.add("module", "load", FAILED, f"status {code}", self._said)
            return
        self.results.add("module", "load", PASSED)
        for problem in problems:
            self.results.add("kunit", "KTAP", FAILED, problem, self._said)
        for name in sorted(self.selected - self._report()):
            self.results.add("kunit", name, FAILED, "it is in the sources, but did not run",
                             self._said)

    def _report(self):
        """Reports the results that have come; the names of all of them."""
        for leaf in self._reader.leaves:
            if leaf.name in self.selected or leaf.name not in self.expected:
                self.results.add("kunit", leaf.name, leaf.verdict, leaf.remark, leaf.details)
        return {leaf.name for leaf in self._reader.leaves}


    def _stopped(self):
        """The machine fell silent, or died, while the module was being loaded."""
        seen = self._report()
        suite = self._reader.running
        if suite:
            count = sum(name.startswith(f"{suite}.") for name in seen)
            self.results.add("kunit", suite, FAILED,
                             f"the machine stopped while it ran, after {count} of its tests",
                             self._said)
        left = self.selected - seen
        if left:
            self.results.add("kunit", "the rest", FAILED, f"{len(left)} tests did not run")
        where = f"in {suite}" if suite else "outside of the KUnit tests"
        self.results.add("module", "load", FAILED, f"the machine stopped {where}",
                         [] if suite else self._said)


class Ending(Section):
    """Guests run on while the machine goes off, or reboots. The last section of a session."""

    KERNEL = {"power_off": "reboot: Power down", "reboot": "reboot: machine restart"}
    MODULE = re.compile(r"rust_hv: the machine goes down: no more guests on (\d+) CPUs")

    def __init__(self, name, command, layer, cpus):
        super().__init__(name, command)
        self.layer, self.cpus = layer, cpus
        self._code = None
        self._said = []

    def line(self, text):
        self._said.append(text)

    def host_line(self, text):
        self._said.append(klog.strip(text))

    def done(self, code):
        self._code = code

    def ended(self, result, kind):
        """The machine is off: what is to be said of it."""
        told = next((m for m in map(self.MODULE.search, self._said) if m), None)
        if self._code != 0:
            why = "no guests" if self._code is None else f"no guests: status {self._code}"
        elif result.stopped:
            why = result.stopped
        elif self.KERNEL[self.name] not in self._said:
            why = f"the kernel did not say {self.KERNEL[self.name]!r}"
        elif told is None or int(told[1]) != self.cpus:
            why = f"the module did not hand back {self.cpus} CPUs"
        elif self.name == "reboot" and kind == "bochs" and not result.firmware_again:
            why = "firmware did not get the CPU"
        else:
            self.results.add(self.layer, self.name, PASSED)
            return
        self.results.add(self.layer, self.name, FAILED, why, self._said)


class Session:
    def __init__(self, name, kdir, results, logs, machine, *, files=(), cpus=2, memory=1024,
                 limit=1200, idle_limit=300, append="", nodes=1, cpu=None, verbose=False):
        self.name, self.kdir, self.results = name, kdir, results
        self.files = list(files)
        self.cpus, self.memory, self.limit, self.idle_limit = cpus, memory, limit, idle_limit
        self.machine, self.append, self.verbose = machine, append, verbose
        self.nodes, self.cpu = nodes, cpu
        self.work = Path(logs) / f"machine-{name}"
        self.sections = []
        self.begun = set()
        self.result = None

    def add(self, section):
        section.results = self.results
        self.sections.append(section)
        return section

    def _script(self):
        lines = [". /functions.sh", "status=0"]
        for section in self.sections:
            lines.append(f"section '{section.name}' {section.command} || status=1")
            if isinstance(section, KUnit):
                # Without the module nothing after this means anything.
                lines.append("[ $status = 0 ] || exit 1")
        lines.append("exit $status")
        return "\n".join(lines) + "\n"

    def run(self):
        """Boot, run the sections, report. Returns True when the machine got to its end."""
        self.work.mkdir(parents=True, exist_ok=True)
        ramfs = self.work / "initramfs"
        functions = paths.TOP / "tools/image/functions.sh"
        image.initramfs(ramfs, self.kdir, self._script(), self.machine[0],
                        [(functions, "functions.sh"), *self.files])
        box = machine.Machine(self.work, kernel.image(self.kdir), ramfs, self.machine,
                              cpus=self.cpus, memory=self.memory, append=self.append,
                              nodes=self.nodes, cpu=self.cpu)
        ui.line("step", f"Machine {self.name}: {box.describe()}")
        pending = {section.name: section for section in self.sections}
        # What the console says belongs to the section that the console itself last named.
        current = {machine.TEST: None, machine.HOST: None}
        scanner = klog.Scanner()
        trouble = []
        ending = next((s for s in self.sections if isinstance(s, Ending)), None)

        codes = {}

        def close(name):
            # Both streams have to be past the end: the console's lines may come later
            # than the '@end' on the other port, until the next section's mark is there.
            section = pending.pop(name)
            section.done(codes[name])

        def on_line(channel, text):
            if channel == machine.HOST:
                if scanner.feed(text) and klog.STUCK.search(text):
                    # The tests may get over it; if not, the rest of the limit is wasted.
                    box.hurry(max(90, (self.idle_limit or 900) / 2))
                said = klog.strip(text)
                mark = SECTION_IN_LOG.match(said)
                if mark or said.startswith("rusthv machine: command ended"):
                    current[machine.HOST] = mark[1] if mark else None
                    for name in [n for n in codes if n in pending and n != current[machine.HOST]]:
                        close(name)
                elif current[machine.HOST] in pending:
                    pending[current[machine.HOST]].host_line(text)
                elif ending and ending.name in self.begun and current[machine.HOST] is None:
                    ending.host_line(text)
                if self.verbose:
                    ui.line("host", text)
                return None
            if text.startswith("@section "):
                current[machine.TEST] = text[len("@section "):]
                self.begun.add(current[machine.TEST])
            elif text.startswith("@end "):
                name, code = text[len("@end "):].rsplit(" ", 1)
                codes[name] = int(code)
                current[machine.TEST] = None
                if name in pending and current[machine.HOST] != name:
                    close(name)
            elif text.startswith("@trouble "):
                trouble.append(text[len("@trouble "):])
            elif text.startswith("@"):
                pass
            elif current[machine.TEST] in pending:
                if text:
                    pending[current[machine.TEST]].line(text)
                if self.verbose:
                    ui.line("test", text)
            return None

        self.result = box.run(on_line, self.limit, self.idle_limit)
        for name in [n for n in codes if n in pending]:
            close(name)
        complete = self.result.exit_code is not None and not self.result.stopped
        for name, section in pending.items():
            # One that was not begun has no say: why it was not is reported elsewhere.
            if name in self.begun:
                section.done(None)
        if ending and ending.name in self.begun:
            ending.ended(self.result, self.machine[0])
        if not complete:
            why = self.result.stopped or "it ended by itself (the console log says why)"
            self.results.add("machine", self.name, FAILED, why, box.last_words())
        for text in trouble:
            self.results.add("machine", f"{self.name} trouble", FAILED, text)
        self._host_log(scanner)
        if self.result.ready_after is not None:
            ui.line("step", f"Machine {self.name}: booted in "
                            f"{ui.duration(self.result.ready_after)}, "
                            f"{ui.duration(self.result.seconds)} in all")
        for leftover in ("boot.iso", "initramfs"):
            (self.work / leftover).unlink(missing_ok=True)
        return complete

    def _host_log(self, scanner):
        if not scanner.booted:
            self.results.add("host log", self.name, FAILED, "the machine did not finish booting")
        elif scanner.complaints:
            details = [line for report in scanner.complaints for line in report]
            self.results.add("host log", self.name, FAILED,
                             f"{len(scanner.complaints)} complaints: {scanner.first_lines()[0]}",
                             details)
        else:
            self.results.add("host log", self.name, PASSED, "no complaint after boot")

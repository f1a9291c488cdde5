# SPDX-License-Identifier: GPL-2.0
"""Counting: one line per test as it ends, a log for each, and the sum at the end."""

import re
import threading
import time
from pathlib import Path

import paths
import ui
from tap import FAILED, PASSED, SKIPPED


class Part:
    """The share of a machine, or of the host, in the results: counted by itself, too."""

    def __init__(self, results, prefix, title):
        self._results, self._prefix, self.title = results, prefix, title
        self.counts = {PASSED: 0, FAILED: 0, SKIPPED: 0}
        self.reported = set()

    def add(self, layer, name, verdict, remark="", details=()):
        self.counts[verdict] += 1
        self.reported.add(name)
        self._results.add(f"{self._prefix} {layer}".strip(), name, verdict, remark, details)


def summary(counts):
    return (f"{counts[PASSED]} passed, {counts[FAILED]} failed, {counts[SKIPPED]} skipped")


class Results:
    def __init__(self, logs):
        self._lock = threading.Lock()
        self._logs = Path(logs)
        self._parts = []
        self.counts = {PASSED: 0, FAILED: 0, SKIPPED: 0}
        self.failures = []
        self.skips = []
        self.start = time.monotonic()

    def part(self, prefix, title):
        self._parts.append(Part(self, prefix, title))
        return self._parts[-1]

    def add(self, layer, name, verdict, remark="", details=()):
        with self._lock:
            self.counts[verdict] += 1
            words = {PASSED: "pass", FAILED: "FAIL", SKIPPED: "skip"}
            remark = f" ({remark})" if remark else ""
            if verdict == FAILED:
                self.failures.append(f"{layer}: {name}{remark}")
            elif verdict == SKIPPED:
                self.skips.append(f"{layer}: {name}{remark}")
            ui.line(words[verdict], f"{layer}: {name}{remark}")
            details = list(details)
            if verdict == FAILED:
                for line in details[:40]:
                    ui.line("", f"  {line}")
                if len(details) > 40:
                    ui.line("", f"  … {len(details) - 40} more lines in the log")
            log = self._logs / layer / (re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:120] + ".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("\n".join([f"{verdict}{remark}", *details]) + "\n")

    def total(self):
        return sum(self.counts.values())

    def finish(self):
        """Print the summary; returns the exit code."""
        if self.failures:
            ui.line("step", "What failed:")
            for failure in self.failures:
                ui.line("FAIL", failure)
        ui.line("step", f"Tests took {ui.duration(time.monotonic() - self.start)}; "
                        f"a log for each is in {self._logs.relative_to(paths.TOP)}")
        for part in self._parts:
            if any(part.counts.values()):
                ui.line("step", f"{part.title}: {summary(part.counts)}")
        print(summary(self.counts), flush=True)
        return 1 if self.counts[FAILED] or not self.counts[PASSED] else 0

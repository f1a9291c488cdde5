# SPDX-License-Identifier: GPL-2.0
"""Cargo packages: built for the test machine, and tested on the host."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import paths
import toolchain
import ui
from tap import FAILED, PASSED, SKIPPED

TARGET = "x86_64-unknown-linux-gnu"

# A host test that takes longer than this hangs, and so does a package's whole run: seconds.
# tools/nextest.toml has the first for nextest.
TEST_LIMIT = 180
ALL_LIMIT = 900


_running = set()
_stopping = False


def kill_all():
    """End every test that runs, and let none start; for the way out after Ctrl-C."""
    global _stopping
    _stopping = True
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def program():
    found = os.environ.get("CARGO") or shutil.which("cargo")
    if not found:
        raise ui.Failure("cargo is missing; run tools/setup")
    return found


def environment(name, **more):
    env = toolchain.environment()
    # A target directory for each package: none waits for the other's lock.
    env["CARGO_TARGET_DIR"] = str(paths.BUILD / f"cargo-{name}")
    env["CARGO_TERM_COLOR"] = "never"
    for variable in ("RUSTC", "RUSTDOC", "RUSTFMT", "CLIPPY_DRIVER"):
        # These mean the kernel's compiler here; cargo comes with its own.
        env.pop(variable, None)
    # For what a crate has of C++.
    env.setdefault("CXX", f"clang++{toolchain.LLVM}")
    env.update(more)
    return env


def static(name, package):
    """Build a package's programs without shared libraries; returns their directory."""
    manifest = paths.TOP / package / "Cargo.toml"
    if not manifest.exists():
        raise ui.Failure(f"{package}: there is no Cargo.toml")
    # The target is named so that the flags are not used for build scripts.
    done = subprocess.run(
        [program(), "build", "--release", "--locked", "--quiet", "--target", TARGET,
         "--manifest-path", str(manifest)],
        env=environment(name, RUSTFLAGS="-C target-feature=+crt-static"), check=False)
    if done.returncode:
        raise ui.Failure(f"building {package} failed (messages above)")
    return paths.BUILD / f"cargo-{name}" / TARGET / "release"


def run_bounded(command, limit):
    """Run a program for at most so many seconds; its status, and the lines that it printed.

    It ends with the tool, however that ends.
    """
    if _stopping:
        raise ui.Failure("interrupted")
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True)
    _running.add(process)
    timer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    try:
        with process.stdout as stdout:
            said = stdout.read().splitlines()
        return process.wait(), said
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _running.discard(process)


class HostTests:
    """The tests of one package that need no machine."""

    def __init__(self, layer, name, package):
        self.layer, self.name = layer, name
        self.manifest = paths.TOP / package / "Cargo.toml"
        if not self.manifest.exists():
            raise ui.Failure(f"{package}: there is no Cargo.toml")
        self.nextest = self._has_nextest()
        self._tests = None

    @staticmethod
    def _has_nextest():
        return subprocess.run([program(), "nextest", "--version"], capture_output=True,
                              check=False).returncode == 0

    def _run(self, *arguments, **options):
        return subprocess.run(
            [program(), *arguments], env=environment(self.name), stdin=subprocess.DEVNULL,
            text=True, errors="replace", check=False, **options)

    def _common(self):
        return ["--manifest-path", str(self.manifest), "--locked"]

    def tests(self):
        """Names of all tests; [] is for the caller to judge."""
        if self._tests is None:
            self._tests = self._nextest_list() if self.nextest else self._plain_list()
        return self._tests

    def _nextest_list(self):
        done = self._run("nextest", "list", *self._common(), "--message-format", "json",
                         capture_output=True)
        if done.returncode:
            raise ui.Failure(f"{self.layer}: the tests do not build:\n{done.stderr[-4000:]}")
        names = []
        for suite in json.loads(done.stdout)["rust-suites"].values():
            for test in suite["testcases"]:
                names.append(f"{suite['binary-id']} {test}")
        return names + self._doc_list()

    def _binaries(self):
        """The test programs by the names that nextest has for them. Builds them."""
        done = self._run("test", *self._common(), "--no-run", "--message-format", "json",
                         capture_output=True)
        if done.returncode:
            raise ui.Failure(f"{self.layer}: the tests do not build:\n{done.stderr[-4000:]}")
        package = re.search(r'^name *= *"(.+)"', self.manifest.read_text(), re.MULTILINE)[1]
        found = {}
        for line in done.stdout.splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if not message.get("executable") or not message["profile"]["test"]:
                continue
            kind, name = message["target"]["kind"][0], message["target"]["name"]
            suffix = {"lib": "", "test": f"::{name}"}.get(kind, f"::{kind}/{name}")
            found[package + suffix] = message["executable"]
        return found

    def _listed(self, binary, *more):
        done = subprocess.run([binary, "--list", "--format", "terse", *more],
                              cwd=self.manifest.parent, env=environment(self.name),
                              capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise ui.Failure(f"{binary} --list ended with {done.returncode}")
        return re.findall(r"^(.+): test$", done.stdout, re.MULTILINE)

    def _plain_list(self):
        names = [f"{label} {test}" for label, binary in self._binaries().items()
                 for test in self._listed(binary)]
        return names + self._doc_list()

    def _doc_list(self):
        """Documentation tests are no programs; only cargo knows them."""
        if 'lib.rs' not in self.manifest.read_text() and \
                not (self.manifest.parent / "src/lib.rs").exists():
            return []
        done = self._run("test", "--doc", *self._common(), "--", "--list", "--format", "terse",
                         capture_output=True)
        if done.returncode:
            raise ui.Failure(f"{self.layer}: documentation tests do not build:\n{done.stderr[-4000:]}")
        return [f"doc {name}" for name in re.findall(r"^(.+): test$", done.stdout, re.MULTILINE)]

    def run(self, results, selected):
        """Run the selected names and report each; what does not come is a failure."""
        pending = dict.fromkeys(selected)
        docs = [n for n in selected if n.startswith("doc ")]
        normal = [n for n in selected if n not in docs]
        everything = len(selected) == len(self.tests())

        def report(name, verdict, remark="", details=()):
            if name in pending:
                del pending[name]
                results.add(self.layer, name, verdict, remark, details)
            elif verdict == FAILED:
                results.add(self.layer, name, verdict, remark, details)

        if normal:
            if self.nextest:
                self._run_nextest(normal, everything, report)
            else:
                self._run_plain(normal, report)
        if docs:
            self._run_docs(docs, report)
        for name in list(pending):
            report(name, FAILED, "did not run, or did not say how it ended")

    def _stream(self, command, on_line, limit):
        if _stopping:
            raise ui.Failure("interrupted")
        # Tests expect to be where their package is, as under cargo.
        process = subprocess.Popen(
            command, env=environment(self.name), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            cwd=self.manifest.parent, start_new_session=True)
        _running.add(process)
        fired = threading.Event()

        def kill():
            fired.set()
            # The whole group: tests are children of cargo's child.
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, kill)
        timer.start()
        try:
            for line in process.stdout:
                on_line(line.rstrip("\n"))
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                kill()
                process.wait()
            _running.discard(process)
        return process.returncode, fired.is_set()

    def _run_nextest(self, names, everything, report):
        arguments = ["nextest", "run", *self._common(), "--no-fail-fast",
                     "--config-file", str(paths.TOP / "tools/nextest.toml"),
                     "--status-level", "all", "--final-status-level", "none",
                     "--failure-output", "immediate", "--success-output", "never"]
        if not everything:
            terms = []
            for name in names:
                binary, test = name.split(" ", 1)
                terms.append(f"(binary_id(={binary}) & test(={test}))")
            arguments += ["-E", " | ".join(terms)]
        line_of = re.compile(r"^\s*(PASS|FAIL|TIMEOUT|SIG\w+|ABORT|LEAK|SLOW|SKIP|LEAK-FAIL)"
                             r" \[\s*>?\s*([\d.]+)s\s*\](?: +\(\s*\d+/\d+\))? (\S+) (.+)$")
        said = []
        failed = {}

        def on_line(line):
            said.append(line)
            match = line_of.match(line)
            if not match or match[1] in ("SLOW", "SKIP"):
                return
            name = f"{match[3]} {match[4]}"
            if match[1] in ("PASS", "LEAK"):
                report(name, PASSED, f"{float(match[2]) * 1000:.0f} ms")
            else:
                # Its output follows; it is reported when all of that is here.
                failed[name] = (match[1].lower(), len(said))

        code, late = self._stream([program(), *arguments], on_line, ALL_LIMIT)
        for name, (word, at) in failed.items():
            report(name, FAILED, word, said[at:at + 60])
        ignored = self._ignored(names)
        for name in ignored:
            report(name, SKIPPED, "marked #[ignore]")
        if late:
            report("all", FAILED, f"not finished after {ALL_LIMIT} s", said[-40:])
        elif code and not failed:
            report("all", FAILED, f"cargo nextest ended with {code}", said[-40:])

    def _ignored(self, names):
        done = self._run("nextest", "list", *self._common(), "--message-format", "json",
                         capture_output=True)
        ignored = set()
        if done.returncode == 0:
            for suite in json.loads(done.stdout)["rust-suites"].values():
                for test, info in suite["testcases"].items():
                    if info.get("ignored"):
                        ignored.add(f"{suite['binary-id']} {test}")
        return [n for n in names if n in ignored]

    def _run_plain(self, names, report):
        """Without nextest: what it does, each test in a process with a limit of its own."""
        binaries = self._binaries()
        ignored = {f"{label} {test}" for label, binary in binaries.items()
                   for test in self._listed(binary, "--ignored")}

        def one(name):
            label, test = name.split(" ", 1)
            said = []
            start = time.monotonic()
            code, late = self._stream([binaries[label], "--exact", test], said.append,
                                      TEST_LIMIT)
            took = time.monotonic() - start
            if late:
                return FAILED, f"not finished after {TEST_LIMIT} s", said[-60:]
            if code or not any("test result: ok. 1 passed" in line for line in said):
                return FAILED, f"ended with {code}", said[-60:]
            return PASSED, f"{took * 1000:.0f} ms", ()

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            todo = {pool.submit(one, name): name for name in names if name not in ignored}
            for future in concurrent.futures.as_completed(todo):
                report(todo[future], *future.result())
        for name in names:
            if name in ignored:
                report(name, SKIPPED, "marked #[ignore]")

    def _run_docs(self, names, report):
        said = []

        def on_line(line):
            said.append(line)
            match = re.match(r"^test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)(?:, (.*))?$",
                             line)
            if not match:
                return
            name = f"doc {match[1]}"
            if match[2] == "ok":
                report(name, PASSED)
            elif match[2] == "ignored":
                report(name, SKIPPED, match[3] or "marked #[ignore]")
            else:
                report(name, FAILED, "failed", [f"see {self.layer}.log"])

        code, late = self._stream([program(), "test", "--doc", *self._common()], on_line,
                                  ALL_LIMIT)
        (paths.LOGS / f"{self.layer}.log").write_text("\n".join(said) + "\n")
        if late:
            report("all", FAILED, f"not finished after {ALL_LIMIT} s", said[-40:])
        elif code:
            report("cargo test", FAILED, f"ended with {code}", said[-60:])

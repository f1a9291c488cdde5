# SPDX-License-Identifier: GPL-2.0
"""libFuzzer at work on the model: built, run for a time, and what it leaves behind.

The programs are rust_hv/model/fuzz. libFuzzer itself is compiled with them, from the source in
the crate libfuzzer-sys; the stable compiler counts branches if its LLVM is told to. What earlier
runs have found worth keeping is where the next one begins, in .build/fuzz/<name>/corpus.
"""

import os
import random
import re
import subprocess
import time
from pathlib import Path

import cargo
import paths
import ui
from tap import FAILED, PASSED

PACKAGE = "rust_hv/model/fuzz"
# The fuzzers, and the longest input of each, in bytes: src/bin says what is in it.
LONGEST = {"fuzz_tables": 1 + 4 * 80, "fuzz_shadow": 1 + 4 * 120, "fuzz_emulate": 16 + 4,
           "fuzz_decode": 24}

# What cargo-fuzz passes, but for the sanitizers, which only a nightly compiler has: no
# part of the model is unsafe.
COVERAGE = ("--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
            " -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
            " -Cllvm-args=-sanitizer-coverage-pc-table"
            " -Cllvm-args=-sanitizer-coverage-trace-compares")

# Seconds that one input may take. The slowest known takes a tenth of one.
INPUT_LIMIT = 30
# Inputs that each run begins with, besides those of earlier ones.
BEGINNINGS = 16


def build():
    """Builds the fuzzers; returns their directory."""
    manifest = paths.TOP / PACKAGE / "Cargo.toml"
    # The target is named so that build scripts are not counted.
    done = subprocess.run(
        [cargo.program(), "build", "--release", "--locked", "--quiet", "--target", cargo.TARGET,
         "--manifest-path", str(manifest)],
        env=cargo.environment("model-fuzz", RUSTFLAGS=COVERAGE), stdin=subprocess.DEVNULL,
        check=False)
    if done.returncode:
        raise ui.Failure(f"building {PACKAGE} failed (messages above)")
    return paths.BUILD / "cargo-model-fuzz" / cargo.TARGET / "release"


def fresh_seed():
    # libFuzzer takes 32 bits.
    return int(os.environ.get("FUZZ_SEED") or int(time.time() * 1000)) & 0xffff_ffff


def begin(corpus, longest, seed):
    """Inputs at random, or libFuzzer would grow its own from a single byte."""
    corpus.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    for number in range(BEGINNINGS):
        (corpus / f"begin-{number}").write_bytes(noise.randbytes(noise.randint(1, longest)))


def summary(said):
    """How much libFuzzer says that it did; None if it does not say."""
    runs = branches = None
    for line in said:
        if match := re.match(r"Done (\d+) runs", line):
            runs = match[1]
        if match := re.match(r"#\d+\s+\w+\s+cov: (\d+)", line):
            branches = match[1]
    return f"{runs} inputs, {branches} branches" if runs and branches else None


class Fuzzers:
    """The fuzzers as tests, each of which runs for so many seconds."""

    layer = "model-fuzz"

    def __init__(self, seconds, seed=None, kept=None):
        self.seconds = seconds
        self.seed = fresh_seed() if seed is None else seed
        self.kept = Path(kept or paths.BUILD / "fuzz")
        self._directory = None

    def tests(self):
        return list(LONGEST)

    def build(self):
        self._directory = build()

    def run(self, results, selected):
        for name in selected:
            self._one(results, name)

    def _one(self, results, name):
        kept = self.kept / name
        corpus = kept / "corpus"
        begin(corpus, LONGEST[name], self.seed)
        program = self._directory / name.replace("_", "-")
        before = crashes(kept)
        code, said = cargo.run_bounded(
            [str(program), f"-seed={self.seed}", f"-max_len={LONGEST[name]}", "-len_control=0",
             f"-max_total_time={self.seconds}", f"-timeout={INPUT_LIMIT}",
             f"-artifact_prefix={kept}/", str(corpus)],
            self.seconds + 10 * INPUT_LIMIT)
        done = summary(said)
        if code == 0 and done:
            results.add(self.layer, name, PASSED, f"seed {self.seed}: {done}")
            return
        said = [line for line in said if not re.match(r"#\d|\s*(NEW|REDUCE)|WARNING: Failed to", line)]
        for path in sorted(crashes(kept) - before):
            said.append(f"again: {program} {path}")
        results.add(self.layer, name, FAILED, f"status {code}, seed {self.seed}", said)


def crashes(kept):
    """Inputs that a fuzzer has not survived; they stay until they are deleted."""
    return {path for path in kept.iterdir() if path.is_file()}

# SPDX-License-Identifier: GPL-2.0
"""The fuzzer as a section of a test machine's run."""

import os
import re
import time

import session
from tap import FAILED

# Seconds that one round may take: it ends itself after 0.6 s, and has a VM to make and
# to give up.
ROUND_LIMIT, DEBUG_ROUND_LIMIT = 30, 300

# What a machine needs to be spared. Bochs keeps the host's interrupts from a guest that
# was entered with interrupts off until it exits or writes IF, so that one which spins
# takes the emulated CPU with it (Documentation/testing.md).
OPTIONS = {"bochs": " --no-masked-spin"}

# Seconds that a machine takes for one of its clock while it fuzzes. VM entries and exits
# cost Bochs much more time than its clock shows.
PACE = {"bochs": 6}

ROUND = re.compile(r"rusthv-fuzz: (round \d+: seed \d+)$")


class Fuzz(session.Check):
    """Names the round that a machine did not survive."""

    def __init__(self, command, shown):
        super().__init__("fuzz", command, "fuzz", shown)
        self._round = None

    def line(self, text):
        if match := ROUND.match(text):
            self._round = match[1]
        super().line(text)

    def done(self, code):
        if code == 0:
            super().done(code)
            return
        where = self._round or f"no round ({self.shown})"
        remark = f"the machine stopped in {where}" if code is None else f"status {code}, {self.shown}"
        self.results.add(self.layer, self.name, FAILED, remark, self._said)


def section(kind, debug, seconds, *, rounds=None, seed=None):
    """A run of the fuzzer: about so many seconds, or so many rounds."""
    # The machine's own clock starts at the same time in each boot.
    if seed is None:
        seed = int(os.environ.get("FUZZ_SEED") or int(time.time()) * 1000)
    amount = f"--rounds {rounds}" if rounds else f"--seconds {max(1, seconds // PACE.get(kind, 1))}"
    limit = DEBUG_ROUND_LIMIT if debug else ROUND_LIMIT
    return Fuzz(f"/rusthv-fuzz --device /dev/rusthv --seed {seed} {amount} --limit {limit}"
                f"{OPTIONS.get(kind, '')}", f"seed {seed}")

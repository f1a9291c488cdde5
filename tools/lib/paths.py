# SPDX-License-Identifier: GPL-2.0
"""Where things are."""

import os
from pathlib import Path

# The clone.
TOP = Path(__file__).resolve().parents[2]

# Everything that is built for this clone; `make clean` removes it.
BUILD = TOP / ".build"

LOGS = BUILD / "logs"


def cache():
    """What clones share: sources, kernels, tools. Never inside a clone."""
    base = os.environ.get("RUSTHV_CACHE")
    if base:
        return Path(base).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base).absolute() / "rusthv"

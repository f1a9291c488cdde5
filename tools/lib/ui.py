# SPDX-License-Identifier: GPL-2.0
"""What the tools print: steps with their duration, and lines that say who spoke."""

import contextlib
import signal
import sys
import threading
import time

_lock = threading.Lock()


class Failure(Exception):
    """Something the user has to know about; printed without a traceback."""


def line(who, text):
    """Print one line with its origin in front: step, host, guest, test …"""
    with _lock:
        sys.stdout.write(f"{who:<5} | {text}\n")
        sys.stdout.flush()


def duration(seconds):
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


@contextlib.contextmanager
def step(text):
    """Announce a step, and say how long it took when it is over."""
    line("step", text)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        line("step", f"{text}: FAILED after {duration(time.monotonic() - start)}")
        raise
    line("step", f"{text}: {duration(time.monotonic() - start)}")


def main(function):
    """Run a tool: failures become one line and exit code 1, Ctrl-C becomes 130."""
    # A polite kill cleans up just as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = function()
    except Failure as failure:
        sys.stdout.flush()
        print(f"error: {failure}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 1
    sys.exit(code or 0)

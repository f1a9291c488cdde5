# SPDX-License-Identifier: GPL-2.0
"""What in the host kernel's log means that the host is not well."""

import re

# Init writes this when boot is over. What came before (a firmware warning in Bochs)
# is not ours.
BOOTED = "rusthv machine: boot ended"

TIMESTAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? ?")

COMPLAINT = re.compile(
    r"WARNING:|BUG:|BUG at |\bOops\b|Kernel panic|general protection fault|unable to handle"
    r"|INFO: task |blocked for more than|INFO: rcu|rcu: INFO|detected stall|self-detected stall"
    r"|soft lockup|hard LOCKUP|possible (circular|recursive|irq|deadlock|unsafe)"
    r"|inconsistent lock state|suspicious RCU|bad unlock balance|held lock|lock held when"
    r"|INFO: trying to register non-static key|INFO: lockdep|lockdep is turned off|MAX_LOCK"
    r"|sleeping function called|scheduling while atomic|corruption|KASAN:|UBSAN:|KCSAN:"
    r"|new suspected memory leaks|refcount_t:|rust_kernel: panicked|panicked at|Bad page"
    r"|Bad rss-counter|unchecked MSR|invalid opcode:|stack guard page|page_owner tracks"
    r"|nobody cared|Call Trace:|kmemleak: (Memory pool empty|.*disabled)"
)

# Of those, the ones after which usually nothing else comes.
STUCK = re.compile(r"soft lockup|hard LOCKUP|detected stall|Kernel panic")

# A test that makes an allocation fail on purpose may get the place of it logged, with
# the trace that leads there. That an allocation failed is no illness of the host.
INJECTED = re.compile(r"FAULT_INJECTION: forcing a failure|page allocation failure:"
                      r"|vmalloc error: ")

# A test that wants the OOM killer says so before and after. At other times it is a complaint.
OOM_EXPECTED = re.compile(r"rusthv-selftests: the OOM killer is (not )?expected")


def strip(line):
    return TIMESTAMP.sub("", line)


class Scanner:
    """Reads the console after boot and remembers each complaint with its context."""

    CONTEXT = 60

    def __init__(self):
        self.booted = False
        self.complaints = []
        self._open = None
        self._injected = False
        self._oom_expected = False

    def feed(self, line):
        """Returns True when this line is a complaint."""
        text = strip(line)
        if not self.booted:
            self.booted = BOOTED in text
            # Dying before init is a complaint whatever else happens. KASAN's reports kill nobody,
            # and before init no module of ours is there.
            if not re.search(r"Kernel panic|BUG: (?!KASAN)|\bOops\b", text):
                return False
        oom = OOM_EXPECTED.search(text)
        if oom:
            self._oom_expected = not oom[1]
        if INJECTED.search(text) or self._oom_expected and "invoked oom-killer:" in text:
            self._injected = True
        if self._injected and text.startswith("Call Trace:"):
            self._injected = False
            return False
        if self._open is not None and text.startswith("Call Trace:"):
            self._open.append(line)  # of the report that we are in
            return False
        if COMPLAINT.search(text):
            report = [line]
            self.complaints.append(report)
            self._open = report
            return True
        if self._open is not None:
            self._open.append(line)
            if len(self._open) >= self.CONTEXT:
                self._open = None
        return False

    def first_lines(self):
        return [strip(report[0]) for report in self.complaints]

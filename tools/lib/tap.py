# SPDX-License-Identifier: GPL-2.0
"""A reader for TAP (version 13 and 14) and for the KTAP that KUnit writes.

Lines go in one at a time. What comes out are leaves: a subtest that has results of
its own is not counted again under its parent's line.
"""

import re

RESULT = re.compile(r"^(?P<not>not )?ok\b(?: +(?P<number>\d+))?(?: +-)?(?: +(?P<name>.*?))?"
                    r"(?: +# *(?P<directive>.*))?$")
PLAN = re.compile(r"^1\.\.(?P<count>\d+)(?: +# *(?P<directive>.*))?$")
SUBTEST = re.compile(r"^# Subtest:? *(?P<name>.*)$")

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Leaf:
    def __init__(self, name, verdict, remark):
        self.name, self.verdict, self.remark = name, verdict, remark
        self.details = []


class _Level:
    def __init__(self, indent):
        self.indent = indent
        self.plan = None
        self.seen = 0
        self.names = []
        self.name = None
        self.children = 0  # results below the next result line


class Reader:
    """Feed it lines; it calls on_leaf(leaf) once the leaf's details are known.

    on_result(leaf) is called at once, for showing progress.
    """

    def __init__(self, on_result=lambda leaf: None):
        self._levels = [_Level(0)]
        self._on_result = on_result
        self._yaml = None
        self._last = None
        self.leaves = []
        self.problems = []
        self.bailed_out = None
        self.started = False
        # The subtest that has begun and not ended.
        self.running = None

    def feed(self, line):
        stripped = line.lstrip(" ")
        indent = len(line) - len(stripped)
        if self._yaml is not None:
            if stripped.rstrip() == "..." and indent <= self._yaml:
                self._yaml = None
            elif self._last is not None:
                self._last.details.append(line)
            return
        if stripped.rstrip() == "---" and self._last is not None:
            self._yaml = indent
            return
        if match := RESULT.match(stripped):
            self._result(indent, match)
        elif match := PLAN.match(stripped):
            self.started = True
            level = self._level(indent)
            if level.plan is not None:
                self.problems.append(f"a second plan: {stripped}")
            level.plan = int(match["count"])
            if (match["directive"] or "").upper().startswith("SKIP") and level.plan == 0:
                level.plan_reason = match["directive"]
        elif match := SUBTEST.match(stripped):
            self._level(indent).name = self.running = match["name"]
        elif stripped.startswith(("TAP version", "KTAP version")):
            self.started = True
            self._level(indent)
        elif stripped.startswith("Bail out!"):
            self.bailed_out = stripped[len("Bail out!"):].strip() or "no reason given"
        elif stripped.startswith("#") and self._last is not None:
            self._last.details.append(line)

    def _level(self, indent):
        while self._levels[-1].indent > indent:
            self._close(self._levels.pop())
        if self._levels[-1].indent < indent:
            self._levels.append(_Level(indent))
        return self._levels[-1]

    def _close(self, level):
        """A level is over: did it bring what it announced?"""
        where = level.name or "the list"
        if level.plan is not None and level.plan != level.seen:
            self.problems.append(f"{where}: {level.plan} results announced, {level.seen} came")
        if level.indent and level.seen:
            self._levels[-1].children += level.seen
            # The suite's own line will follow, and give the name where there was none.
            self._levels[-1].names = level.names

    def _result(self, indent, match):
        self.started = True
        level = self._level(indent)
        level.seen += 1
        if match["number"] and int(match["number"]) != level.seen:
            self.problems.append(f"result {match['number']} came as number {level.seen}")
        name = (match["name"] or "").strip() or f"test {level.seen}"
        directive = (match["directive"] or "").strip()
        if name == self.running:
            self.running = None
        if level.children:
            # A parent: its children have been counted; but one that fails though all
            # of them passed is a failure of its own.
            failed_below = any(l.verdict == FAILED for l in level.names)
            level.children = 0
            level.names = []
            if not match["not"] or failed_below:
                self._last = None
                return
        word = directive.split(" ", 1)
        skip = word[0].upper().rstrip(":") in ("SKIP", "SKIPPED")
        todo = word[0].upper() == "TODO"
        if skip and not match["not"]:
            verdict = SKIPPED
            remark = word[1] if len(word) > 1 else "no reason given"
        elif match["not"] and not todo:
            verdict, remark = FAILED, directive
        else:
            verdict, remark = PASSED, directive
        prefix = f"{level.name}." if level.name and indent else ""
        leaf = Leaf(prefix + name, verdict, remark)
        self.leaves.append(leaf)
        level.names.append(leaf)
        self._last = leaf
        self._on_result(leaf)

    def finish(self):
        """No more lines. Returns what was wrong with the stream itself."""
        while len(self._levels) > 1:
            self._close(self._levels.pop())
        top = self._levels[0]
        if top.plan is not None and top.plan != top.seen:
            self.problems.append(f"{top.plan} results announced, {top.seen} came")
        if self.bailed_out:
            self.problems.append(f"bailed out: {self.bailed_out}")
        return self.problems

# SPDX-License-Identifier: GPL-2.0
"""What `make compare` measures: rows of the mini-kernel's runs, as a table and as a plot."""

import html
import math
import re

# How memory is virtualized: (key, what it is called, colour), in the order of table and plot.
TECHNIQUES = (
    ("kvm-nested", "KVM, nested", "#9ecae1"),
    ("nested", "rusthv, nested", "#2171b5"),
    ("kvm-shadow", "KVM, shadow", "#fdae6b"),
    ("shadow", "rusthv, shadow", "#d94801"),
    ("trap", "rusthv, trap", "#7a0177"),
)
NAMES = {key: name for key, name, _ in TECHNIQUES}
ORDER = [key for key, _, _ in TECHNIQUES]

# Levels of the tables of each form of the guest's kernel.
GUEST_LEVELS = {"long": 4, "pae": 3, "legacy": 2}
# Without nested tables, a guest of two levels runs on tables of three: entries of four bytes do
# not reach all of the host's memory.
SHADOW_LEVELS = {"long": 4, "pae": 3, "legacy": 3}

REASONS = ("nested", "pf", "invlpg", "cr", "twrites")
# KVM counts neither of these.
NOT_OF_KVM = ("cr", "hits", "misses")

COMPLAINT = re.compile(r"# (\S+), (\S+), (\d+) vCPUs: (.*)")


def references(technique, form, nested_levels=4):
    """Entries of tables that the CPU reads at most for one TLB miss.

    With nested tables, each level of the guest's tables costs a walk of the nested ones to
    find the table and one reading of it, and the address in the end another walk.
    """
    if technique.endswith("nested"):
        return (GUEST_LEVELS[form] + 1) * (nested_levels + 1) - 1
    return SHADOW_LEVELS[form]


class Reader:
    """Makes rows of what `rusthv-vmm minikernel` prints in one boot."""

    def __init__(self, kvm, nested_levels=4):
        """`kvm` is the technique that KVM was loaded for."""
        self.rows = []
        self._kvm, self._nested_levels = kvm, nested_levels
        self._columns = None

    def feed(self, line):
        """Takes a line; returns the row in it, if there is one."""
        words = line.split()
        if words[:2] == ["device", "paging"]:
            self._columns = words
        elif self._columns and len(words) == len(self._columns):
            row = self._row(dict(zip(self._columns, words)))
            self.rows.append(row)
            return row
        elif self.rows:
            self._complaint(line)
        return None

    def _row(self, words):
        of_kvm = words["paging"] == "-"
        technique = self._kvm if of_kvm else words["paging"]
        row = {"technique": technique, "kernel": words["kernel"], "workload": words["workload"],
               "vcpus": int(words["vcpus"]), "checksum": words["checksum"],
               "instructions": int(words["cycles"]), "exits": int(words["vmexits"]),
               "guest": None if words["guest"] == "-" else int(words["guest"])}
        for name in (*REASONS, "frames", "hits", "misses"):
            unknown = of_kvm and name in NOT_OF_KVM
            row[name] = None if unknown else int(words[name])
        row["references"] = references(technique, row["kernel"], self._nested_levels)
        row["failure"] = None
        return row

    def _complaint(self, line):
        """A complaint comes after the rows of its workload."""
        found = COMPLAINT.match(line)
        if not found:
            return
        technique = self._kvm if found[2] == "-" else found[2]
        last = self.rows[-1]
        for row in self.rows:
            if (row["technique"], row["kernel"], row["workload"], row["vcpus"]) == (
                    technique, last["kernel"], last["workload"], int(found[3])):
                row["failure"] = found[4]


def disagreements(rows):
    """Workloads whose result is not the same everywhere, with any number of vCPUs, as
    (kernel, workload)."""
    sums = {}
    for row in rows:
        if row["failure"] is None:
            sums.setdefault((row["kernel"], row["workload"]), set()).add(row["checksum"])
    return [key for key, values in sums.items() if len(values) > 1]


def broken(rows):
    """Runs that failed on rusthv alone: what fails on KVM with nested tables as well is
    something that the machine cannot do."""
    machine = {_run(row) for row in rows
               if row["technique"] == "kvm-nested" and row["failure"] is not None}
    return [f"{row['kernel']} {row['workload']} ({row['technique']})" for row in rows
            if row["failure"] is not None and not row["technique"].startswith("kvm-")
            and _run(row) not in machine]


def _run(row):
    """What was to be done, whatever virtualizes its memory."""
    return row["kernel"], row["workload"], row["vcpus"]


def grouped(rows):
    """{(kernel, workload, vCPUs): {technique: row}} of what went well: as the rows come, but those
    of one number of vCPUs after the other."""
    groups = {}
    for row in sorted(rows, key=lambda row: row["vcpus"]):
        if row["failure"] is None:
            groups.setdefault(_run(row), {})[row["technique"]] = row
    return groups


def host(row, group):
    """Instructions that are not the guest's. KVM does not count those: one vCPU executes the same
    as with rusthv's nested tables, where it is disturbed least; of several nobody knows how often
    they wait for each other."""
    nested = group.get("nested")
    guest = row["guest"]
    if guest is None and nested and row["vcpus"] == 1:
        guest = nested["guest"]
    return None if guest is None else row["instructions"] - guest


def _cell(value):
    return "-" if value is None else str(value)


def table(rows):
    """Lines: one table, a row for each workload and technique."""
    names = ["kernel", "workload", "memory", "vCPUs", "instructions", "host's", "x nested", "exits",
             "nested", "#PF", "INVLPG", "CR", "writes", "other", "frames", "hits", "misses", "refs"]
    lines = [names]
    for (form, workload, vcpus), group in grouped(rows).items():
        for technique in ORDER:
            row = group.get(technique)
            if row is None:
                continue
            base = group.get("nested")
            ratio = f"{row['instructions'] / base['instructions']:.2f}" if base else "-"
            lines.append([
                form, workload, NAMES[technique], str(vcpus), str(row["instructions"]),
                _cell(host(row, group)), ratio,
                str(row["exits"]), *(_cell(row[name]) for name in REASONS), _cell(other(row)),
                _cell(row["frames"]), _cell(row["hits"]), _cell(row["misses"]),
                f"<={row['references']}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return ["  ".join(
        cell.ljust(width) if i < 3 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines]


def other(row):
    """Exits for none of the reasons; of KVM not known, as it does not count all of these."""
    if row["cr"] is None:
        return None
    return row["exits"] - sum(row[name] for name in REASONS)


def notes(rows):
    """What was left out, and why."""
    left_out = {}
    for row in rows:
        if row["failure"] is not None:
            reason = row["failure"].split(",")[0].split(" at ")[0]
            key = row["technique"], row["kernel"], row["vcpus"], reason
            left_out.setdefault(key, []).append(row["workload"])
    return [f"{NAMES[technique]}, {form}, {vcpus} vCPUs: without {', '.join(workloads)} ({reason})"
            for (technique, form, vcpus, reason), workloads in left_out.items()]


# The plot

BAR, GAP, TOP, LEFT, PANEL, SPACE = 7, 8, 62, 84, 250, 26


def svg(rows, title, unit):
    """A panel per form of the kernel and number of vCPUs, a group of bars per workload; the scale
    is logarithmic."""
    groups = grouped(rows)
    panels = list(dict.fromkeys((form, vcpus) for form, _, vcpus in groups))
    several = any(vcpus > 1 for _, vcpus in panels)
    workloads = list(dict.fromkeys(workload for _, workload, _ in groups))
    values = [row["instructions"] for group in groups.values() for row in group.values()]
    low, high = math.floor(math.log10(min(values))), math.log10(max(values) * 1.1)
    step = len(TECHNIQUES) * BAR + GAP
    bottom = TOP + len(workloads) * step
    width = LEFT + len(panels) * (PANEL + SPACE)
    height = bottom + 34

    def x(value):
        return (math.log10(value) - low) / (high - low) * PANEL

    out = [
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>",
        "<!-- SPDX-License-Identifier: GPL-2.0 -->",
        f"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" "
        f"width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">",
        f"<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>",
        f"<text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{html.escape(title)}</text>",
    ]
    for i, (_, name, colour) in enumerate(TECHNIQUES):
        at = LEFT + i * 125
        out.append(f"<rect x=\"{at}\" y=\"25\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"
                   f"<text x=\"{at + 14}\" y=\"34\">{name}</text>")
    for j, workload in enumerate(workloads):
        middle = TOP + j * step + step // 2
        out.append(f"<text x=\"{LEFT - 6}\" y=\"{middle}\" text-anchor=\"end\">{workload}</text>")
    for i, (form, vcpus) in enumerate(panels):
        left = LEFT + i * (PANEL + SPACE)
        name = f"{form}, vCPUs: {vcpus}" if several else form
        out.append(f"<text x=\"{left}\" y=\"{TOP - 8}\" font-weight=\"bold\">{name}</text>")
        for power in range(low, math.floor(high) + 1):
            at = left + x(10 ** power)
            out.append(f"<path d=\"M{at:.1f} {TOP}V{bottom}\" stroke=\"#ddd\"/>"
                       f"<text x=\"{at:.1f}\" y=\"{bottom + 14}\" text-anchor=\"middle\">"
                       f"10<tspan dy=\"-4\" font-size=\"8\">{power}</tspan></text>")
        for j, workload in enumerate(workloads):
            group = groups.get((form, workload, vcpus), {})
            for k, (technique, name, colour) in enumerate(TECHNIQUES):
                if technique in group:
                    value = group[technique]["instructions"]
                    top = TOP + j * step + GAP // 2 + k * BAR
                    out.append(f"<rect x=\"{left}\" y=\"{top}\" width=\"{x(value):.1f}\" "
                               f"height=\"{BAR - 1}\" fill=\"{colour}\">"
                               f"<title>{name}: {value}</title></rect>")
    out += [f"<text x=\"{LEFT}\" y=\"{height - 4}\">{unit}, the guest's and the host's"
            "</text>", "</svg>"]
    return "\n".join(out) + "\n"

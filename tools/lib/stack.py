# SPDX-License-Identifier: GPL-2.0
"""How much of the kernel's stack of 16 KiB each function of the module takes.

The compiler says that of C (CONFIG_FRAME_WARN), not of Rust, where a large value that is moved
may stand on the stack several times over.
"""

import re
import subprocess

import toolchain

# What the kernel has for CONFIG_FRAME_WARN.
LIMIT = 2048

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
FRAME = re.compile(r"\bsubq?\s+\$0x([0-9a-f]+), %rsp(\s+#.*)?$")
# KUnit's run alone on the stack of a thread of their own.
TESTS = re.compile(r"kunit_rust_wrapper|5tests")


def frames(lines):
    """(bytes, function) of each function in a disassembly that has a frame, but for tests."""
    name = ""
    for line in lines:
        line = line.rstrip()
        begins = FUNCTION.match(line)
        if begins:
            name = begins[1]
        found = FRAME.search(line)
        if found and not TESTS.search(name):
            yield int(found[1], 16), name


def too_large(path):
    """Of a file with code: the functions above the limit, as [(bytes, function)]."""
    done = subprocess.run(
        [f"llvm-objdump{toolchain.LLVM}", "-d", "--no-show-raw-insn", str(path)],
        capture_output=True, text=True, check=True)
    all_frames = list(frames(done.stdout.splitlines()))
    if not all_frames:
        raise ValueError(f"{path} has no function with a frame")
    return sorted((frame for frame in all_frames if frame[0] > LIMIT), reverse=True)

# SPDX-License-Identifier: GPL-2.0
"""Frames are read from a disassembly."""

import unittest

import stack

TEXT = """
00000000000000a0 <small>:
      a0:      \tpushq\t%rbp
      a1:      \tsubq\t$0x40, %rsp
      a5:      \taddq\t$0x2c60, %rsp

00000000000000b0 <_RNvCs_4vcpu3new>:
      b0:      \tsubq\t$0x2c08, %rsp           # imm = 0x2C08
      b7:      \tsubq\t$0x10, %rax

00000000000000c0 <_RNvCs_5tests26kunit_rust_wrapper_numbers>:
      c0:      \tsubq\t$0x4000, %rsp
"""


class Frames(unittest.TestCase):
    def test_they_are_what_is_taken_off_the_stack_pointer(self):
        self.assertEqual(list(stack.frames(TEXT.splitlines())),
                         [(0x40, "small"), (0x2c08, "_RNvCs_4vcpu3new")])


if __name__ == "__main__":
    unittest.main()

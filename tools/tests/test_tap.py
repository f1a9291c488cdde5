# SPDX-License-Identifier: GPL-2.0
"""The TAP reader counts leaves once, and notices streams that are not whole."""

import unittest

import tap


def read(text):
    reader = tap.Reader()
    for line in text.splitlines():
        reader.feed(line)
    problems = reader.finish()
    return [(l.name, l.verdict) for l in reader.leaves], problems, reader


class Flat(unittest.TestCase):
    def test_results(self):
        leaves, problems, reader = read(
            "TAP version 14\n1..3\nok 1 a # 12 ms\nnot ok 2 b # timeout\n"
            "  ---\n  details: |\n    not ok 9 this is text\n  ...\n"
            "ok 3 c # SKIP no such CPU\n")
        self.assertEqual(leaves, [("a", "passed"), ("b", "failed"), ("c", "skipped")])
        self.assertEqual(problems, [])
        self.assertEqual(reader.leaves[2].remark, "no such CPU")
        self.assertEqual(reader.leaves[0].remark, "12 ms")
        self.assertIn("    not ok 9 this is text", reader.leaves[1].details)

    def test_plan_at_the_end(self):
        self.assertEqual(read("ok 1 a\nok 2 b\n1..2\n")[1], [])

    def test_too_few(self):
        self.assertIn("3 results announced, 1 came", read("1..3\nok 1 a\n")[1])

    def test_wrong_number(self):
        self.assertTrue(read("1..2\nok 1 a\nok 3 b\n")[1])

    def test_bail_out(self):
        self.assertIn("bailed out: no device", read("1..1\nBail out! no device\n")[1])

    def test_todo_is_no_failure(self):
        self.assertEqual(read("1..1\nnot ok 1 a # TODO later\n")[0], [("a", "passed")])

    def test_failed_skip_is_a_failure(self):
        self.assertEqual(read("1..1\nnot ok 1 a # SKIP but not really\n")[0], [("a", "failed")])

    def test_other_lines(self):
        leaves, problems, _ = read("1..1\nokay then\nsomething\nok 1 - a name with # in it\n")
        self.assertEqual((leaves, problems), ([("a name with", "passed")], []))


class Nested(unittest.TestCase):
    KUNIT = ("    KTAP version 1\n    # Subtest: rust_hv_frames\n    # module: rust_hv\n"
             "    1..2\n    ok 1 zeroed\n    {}ok 2 freed\n"
             "# rust_hv_frames: pass:2 fail:0 skip:0 total:2\n{}ok 1 rust_hv_frames\n")

    def test_leaves_only(self):
        leaves, problems, _ = read(self.KUNIT.format("", ""))
        self.assertEqual(leaves, [("rust_hv_frames.zeroed", "passed"),
                                  ("rust_hv_frames.freed", "passed")])
        self.assertEqual(problems, [])

    def test_failure_counts_once(self):
        leaves, _, _ = read(self.KUNIT.format("not ", "not "))
        self.assertEqual([v for _, v in leaves], ["passed", "failed"])

    def test_suite_that_fails_by_itself(self):
        leaves, _, _ = read(self.KUNIT.format("", "not "))
        self.assertEqual([v for _, v in leaves], ["passed", "passed", "failed"])

    def test_lost_result(self):
        text = self.KUNIT.format("", "").replace("    ok 2 freed\n", "")
        self.assertTrue(read(text)[1])

    def test_two_suites(self):
        second = self.KUNIT.replace("rust_hv_frames", "rust_hv_pools").replace("ok 1 rust", "ok 2 rust")
        leaves, problems, _ = read(self.KUNIT.format("", "") + second.format("", ""))
        self.assertEqual(len(leaves), 4)
        self.assertEqual(leaves[3], ("rust_hv_pools.freed", "passed"))
        self.assertEqual(problems, [])


if __name__ == "__main__":
    unittest.main()

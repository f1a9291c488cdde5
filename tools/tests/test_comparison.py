# SPDX-License-Identifier: GPL-2.0
"""Rows of the comparison come from the mini-kernel's table, and failures are not figures."""

import unittest
import xml.etree.ElementTree

import comparison

COLUMNS = ("device paging kernel workload vcpus checksum ms cycles guest faults exits yields vmexits "
           "nested pf invlpg cr twrites frames hits misses")


def line(paging, workload="fork", checksum="2a", cycles=1000, vmexits=20, guest="-", vcpus=1):
    device = "/dev/kvm" if paging == "-" else "/dev/rusthv"
    return (f"{device} {paging} long {workload} {vcpus} {checksum} 1.5 {cycles} {guest} 9 3 0 "
            f"{vmexits} 1 2 3 4 5 6 7 8")


def read(*lines, kvm="kvm-nested"):
    reader = comparison.Reader(kvm)
    for text in (COLUMNS, *lines):
        reader.feed(text)
    return reader.rows


class Rows(unittest.TestCase):
    def test_columns(self):
        rows = read(line("nested"), line("-"))
        self.assertEqual([row["technique"] for row in rows], ["nested", "kvm-nested"])
        self.assertEqual((rows[0]["instructions"], rows[0]["frames"], rows[0]["hits"]), (1000, 6, 7))
        self.assertEqual(comparison.other(rows[0]), 5)
        # What KVM does not count is not zero.
        self.assertIsNone(rows[1]["hits"])
        self.assertIsNone(comparison.other(rows[1]))

    def test_a_line_that_is_no_row(self):
        self.assertEqual(read("insmod: something else"), [])

    def test_failures_belong_to_their_run(self):
        rows = read(line("-"), line("shadow"), "# /dev/kvm, -, 1 vCPUs: it stopped, at 8",
                    kvm="kvm-shadow")
        self.assertEqual([row["failure"] for row in rows], ["it stopped, at 8", None])
        self.assertEqual(list(comparison.grouped(rows)[("long", "fork", 1)]), ["shadow"])
        self.assertEqual(comparison.notes(rows), ["KVM, shadow, long, 1 vCPUs: without fork (it stopped)"])

    def test_failures_are_of_one_number_of_vcpus(self):
        rows = read(line("trap"), line("trap", vcpus=4), "# /dev/rusthv, trap, 4 vCPUs: why")
        self.assertEqual([row["failure"] for row in rows], [None, "why"])

    def test_what_is_the_hosts(self):
        rows = read(line("-", cycles=900), line("nested", cycles=800, guest=500),
                    line("shadow", cycles=2000, guest=510), line("-", cycles=900, vcpus=4),
                    line("nested", cycles=800, guest=600, vcpus=4))
        groups = comparison.grouped(rows)
        self.assertEqual(list(groups), [("long", "fork", 1), ("long", "fork", 4)])
        hosts = [[comparison.host(row, group) for row in group.values()] for group in groups.values()]
        # Of KVM's vCPUs it is known for one that is alone.
        self.assertEqual(hosts, [[400, 300, 1490], [None, 200]])

    def test_failures_are_of_the_last_workload(self):
        rows = read(line("trap", "churn"), line("trap"), "# /dev/rusthv, trap, 1 vCPUs: why")
        self.assertEqual([row["failure"] for row in rows], [None, "why"])

    def test_disagreements(self):
        rows = read(line("nested"), line("trap", checksum="2b"), line("nested", "churn"),
                    line("trap", "churn"))
        self.assertEqual(comparison.disagreements(rows), [("long", "fork")])


    def test_what_the_machine_cannot_do_is_not_broken(self):
        nested, trap = (f"# {device}, 1 vCPUs: why"
                        for device in ("/dev/kvm, -", "/dev/rusthv, trap"))
        self.assertEqual(comparison.broken(read(line("-"), line("trap"), nested, trap)), [])
        self.assertEqual(comparison.broken(read(line("-"), line("trap"), trap)),
                         ["long fork (trap)"])
        self.assertEqual(comparison.broken(read(line("-"), line("trap"), nested)), [])


class References(unittest.TestCase):
    def test_they_are_those_of_two_dimensions(self):
        self.assertEqual(comparison.references("nested", "long"), 24)
        self.assertEqual(comparison.references("kvm-nested", "legacy"), 14)
        self.assertEqual(comparison.references("nested", "long", 5), 29)

    def test_shadow_tables_are_walked_alone(self):
        self.assertEqual(comparison.references("trap", "long"), 4)
        self.assertEqual(comparison.references("kvm-shadow", "legacy"), 3)


class Shown(unittest.TestCase):
    def test_table(self):
        lines = comparison.table(read(line("trap", cycles=2500), line("-", cycles=500), line("nested")))
        self.assertEqual(len(lines), 4)
        # In an order of their own, and in relation to nested tables.
        self.assertEqual([text.split()[5:8] for text in lines[2:]],
                         [["1000", "-", "1.00"], ["2500", "-", "2.50"]])
        self.assertIn("0.50", lines[1])

    def test_plot(self):
        text = comparison.svg(read(line("nested"), line("shadow", cycles=10 ** 7)), "A <title>", "cycles")
        root = xml.etree.ElementTree.fromstring(text.encode())
        titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
        self.assertEqual(titles, ["rusthv, nested: 1000", "rusthv, shadow: 10000000"])


if __name__ == "__main__":
    unittest.main()

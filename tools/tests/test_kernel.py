# SPDX-License-Identifier: GPL-2.0
"""The cache of kernels: built once, by key, and never used when damaged."""

import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import cache
import kernel
import paths
import ui

FILES = {
    "Makefile": "objects in {out}\n",
    "Module.symvers": "symbols\n",
    "arch/x86/boot/bzImage": "image\n",
    "mm/slub.o": "object\n",
    "vmlinux": "linked\n",
    "scripts/mod/modpost": "program\n",
}


class Cache(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = Path(scratch.name)
        self.builds = 0
        self.versions = {"clang": "19"}
        self.broken = False
        environment = {k: v for k, v in os.environ.items() if k not in ("KDIR", "KSRC")}
        environment["RUSTHV_CACHE"] = str(self.root / "cache")
        for patch in (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(kernel.source, "tree", lambda update: (self.root, "source 7.2 0")),
            mock.patch.object(kernel.toolchain, "versions", lambda: self.versions),
            mock.patch.object(kernel.toolchain, "rust_lib_src", lambda: "library"),
            mock.patch.object(kernel, "configure", self.configure),
            mock.patch.object(kernel, "compile_all", self.compile),
            mock.patch.object(kernel, "_log_for", lambda name: paths.LOGS / "none"),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def configure(self, _src, out, _fragments, _log):
        out.mkdir(parents=True)

    def compile(self, _src, out, _log):
        self.builds += 1
        for name, text in FILES.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text.format(out=out))
            if self.broken:
                raise ui.Failure("compiler error")

    def tree(self, name="base"):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            path = kernel.tree(name)
        self.said = said.getvalue()
        return path

    def test_built_once(self):
        first = self.tree()
        self.assertEqual(self.tree(), first)
        self.assertEqual(self.builds, 1)
        self.assertEqual((first / "Makefile").read_text(), f"objects in {first}\n")

    def test_pruned(self):
        tree = self.tree()
        self.assertFalse((tree / "mm/slub.o").exists())
        self.assertFalse((tree / "vmlinux").exists())
        self.assertTrue((tree / "scripts/mod/modpost").exists())

    def test_key(self):
        first = self.tree()
        self.versions = {"clang": "20"}
        self.assertNotEqual(self.tree(), first)
        self.assertNotEqual(self.tree("debug"), self.tree("base"))
        self.assertEqual(self.builds, 3)

    def test_damage_is_noticed(self):
        def change(tree):
            (tree / "Module.symvers").write_text("SYMBOLS\n")

        def cut(tree):
            (tree / "arch/x86/boot/bzImage").write_text("im")

        def lose(tree):
            (tree / "scripts/mod/modpost").unlink()

        def lose_manifest(tree):
            next(tree.parent.glob("*.manifest")).unlink()

        def garble_manifest(tree):
            next(tree.parent.glob("*.manifest")).write_text("{")

        for count, damage in enumerate((change, cut, lose, lose_manifest, garble_manifest), 1):
            with self.subTest(damage.__name__):
                tree = self.tree()
                self.assertEqual(self.builds, count)
                damage(tree)
                self.assertEqual(self.tree(), tree)
                self.assertEqual(self.builds, count + 1)
                self.assertIn("damaged", self.said)
                self.assertIsNone(cache.manifest_check(tree, f"{tree}.manifest"))

    def test_failed_build_leaves_nothing(self):
        self.broken = True
        with self.assertRaises(ui.Failure):
            self.tree()
        kept = [p for p in (self.root / "cache/kernel").iterdir() if p.suffix != ".lock"]
        self.assertEqual(kept, [])
        self.broken = False
        self.assertTrue((self.tree() / "Module.symvers").exists())


class Options(unittest.TestCase):
    def check(self, fragment, config):
        with tempfile.TemporaryDirectory() as scratch:
            wanted, final = Path(scratch) / "wanted", Path(scratch) / "final"
            wanted.write_text(fragment)
            final.write_text(config)
            return kernel.landed(final, kernel.wanted([wanted]))

    def test_all_there(self):
        self.assertEqual(self.check("CONFIG_A=y\n# CONFIG_B is not set\n# a comment\n",
                                    "CONFIG_A=y\nCONFIG_C=m\n"), [])

    def test_dropped(self):
        self.assertEqual(len(self.check("CONFIG_A=y\n", "# CONFIG_A is not set\n")), 1)
        self.assertEqual(len(self.check("CONFIG_A=m\n", "CONFIG_A=y\n")), 1)
        self.assertEqual(len(self.check("# CONFIG_B is not set\n", "CONFIG_B=y\n")), 1)

    def test_typing_error(self):
        with self.assertRaises(ui.Failure):
            self.check("CONFIG_A\n", "CONFIG_A=y\n")


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: GPL-2.0
"""Directories that are built once and shared by all clones.

An entry appears under its name by one rename, whole or not at all. A manifest of
checksums lies beside it: an entry that does not match it is not used.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path

import ui


@contextlib.contextmanager
def lock(path, what):
    """One process at a time; says so when it has to wait."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ui.line("step", f"Waiting: another process works on {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(path, text):
    """Replace a file as a whole."""
    path = Path(path)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
    os.chmod(new.name, 0o644)
    os.replace(new.name, path)


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(root):
    for directory, _, names in os.walk(root):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield os.path.relpath(path, root), path


def manifest_write(root, manifest, key):
    files = {name: [os.path.getsize(path), _digest(path)] for name, path in _files(root)}
    write(manifest, json.dumps({"key": key, "files": files}) + "\n")


def manifest_check(root, manifest):
    """What is wrong with the entry, or None."""
    try:
        expected = json.loads(Path(manifest).read_text())["files"]
    except FileNotFoundError:
        return "no manifest"
    except (ValueError, KeyError, OSError) as error:
        return f"unreadable manifest: {error}"
    for name, (size, digest) in expected.items():
        path = os.path.join(root, name)
        try:
            if os.path.getsize(path) != size:
                return f"{name} has the wrong size"
            if _digest(path) != digest:
                return f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None

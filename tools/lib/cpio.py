# SPDX-License-Identifier: GPL-2.0
"""A writer for the `newc` archives that the kernel unpacks as its initramfs.

Written here rather than left to cpio(1) because device nodes can then be put in
without being root, and because the archive is the same, byte for byte, each time.
"""

import stat


class Archive:
    def __init__(self):
        self._data = bytearray()
        self._inode = 0
        self._paths = set()

    def _entry(self, path, mode, data=b"", rdev=(0, 0)):
        name = path.encode() + b"\0"
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name), 0)
        self._data += b"070701" + b"".join(b"%08X" % f for f in fields) + name
        self._pad()
        self._data += data
        self._pad()

    def _pad(self):
        self._data += bytes(-len(self._data) % 4)

    def _parents(self, path):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self.directory("/".join(parts[:depth]))

    def directory(self, path):
        path = path.strip("/")
        if path and path not in self._paths:
            self._parents(path)
            self._paths.add(path)
            self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o644):
        path = path.strip("/")
        if path in self._paths:
            raise ValueError(f"{path} is in the archive already")
        self._parents(path)
        self._paths.add(path)
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path, target):
        path = path.strip("/")
        self._parents(path)
        self._paths.add(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def char_device(self, path, major, minor):
        path = path.strip("/")
        self._parents(path)
        self._paths.add(path)
        self._entry(path, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def finish(self):
        name = b"TRAILER!!!"
        self._entry(name.decode(), 0)
        self._data += bytes(-len(self._data) % 512)
        return bytes(self._data)

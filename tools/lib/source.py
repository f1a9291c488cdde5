# SPDX-License-Identifier: GPL-2.0
"""The kernel source: Debian's package of it, from the mirror that apt itself uses.

The chain of trust is apt's: the archive keyring signs InRelease, which names the
checksum of the package index, which names the checksum of the package.
"""

import hashlib
import json
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import cache
import paths
import ui

PACKAGE = "linux-source-7.2"
SUITES = ("trixie-backports", "forky", "sid")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _run(*command, **options):
    try:
        return subprocess.run([str(c) for c in command], check=True, capture_output=True,
                              text=True, **options).stdout
    except FileNotFoundError:
        raise ui.Failure(f"{command[0]} is missing; run tools/setup") from None
    except subprocess.CalledProcessError as error:
        raise ui.Failure(f"{' '.join(map(str, command))} failed:\n"
                         f"{error.stdout}{error.stderr}") from None


def mirror():
    """The Debian archive among what apt is configured with."""
    found = _run("apt-get", "indextargets", "--format",
                 "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)")
    for line in found.splitlines():
        created_by, origin, label, component, uri = line.split("|")
        if (created_by, origin, label, component) == ("Packages", "Debian", "Debian", "main"):
            return uri if uri.endswith("/") else uri + "/"
    raise ui.Failure("apt knows no Debian archive here (is `apt-get update` due?); "
                     "set KSRC= to a kernel source tree of your own")


def _download(uri, target, sha256=None):
    # apt's own downloader, so that its proxies and credentials apply.
    command = ["/usr/lib/apt/apt-helper", "download-file", uri, target]
    if sha256:
        command.append(f"SHA256:{sha256}")
    _run(*command)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _index(uri, suite, work):
    """The package index of a suite, verified; None when the mirror lacks the suite."""
    inrelease = work / f"{suite}.InRelease"
    try:
        _download(f"{uri}dists/{suite}/InRelease", inrelease)
    except ui.Failure:
        return None
    plain = work / f"{suite}.Release"
    _run("gpgv", "--quiet", "--keyring", KEYRING, "--output", plain, inrelease)
    name = "main/binary-amd64/Packages.xz"
    match = re.search(rf"^ ([0-9a-f]{{64}}) +(\d+) {re.escape(name)}$",
                      plain.read_text(), re.MULTILINE)
    if not match:
        raise ui.Failure(f"{suite}: its Release file does not list {name}")
    packed = work / f"{suite}.Packages.xz"
    # By its checksum, so that an index and a Release file of different hours on the
    # mirror cannot be mixed up.
    _download(f"{uri}dists/{suite}/main/binary-amd64/by-hash/SHA256/{match[1]}", packed, match[1])
    return lzma.decompress(packed.read_bytes()).decode()


def _newer(a, b):
    return subprocess.run(["dpkg", "--compare-versions", a, "gt", b], check=False).returncode == 0


def _newest(uri, work):
    best = None
    for suite in SUITES:
        text = _index(uri, suite, work)
        for stanza in (text or "").split("\n\n"):
            if not stanza.startswith(f"Package: {PACKAGE}\n"):
                continue
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
            if best is None or _newer(fields["Version"], best["version"]):
                best = {"version": fields["Version"], "sha256": fields["SHA256"],
                        "filename": fields["Filename"], "suite": suite,
                        "size": int(fields["Size"])}
    if best is None:
        raise ui.Failure(f"no {PACKAGE} in {', '.join(SUITES)} on {uri}; "
                         "set KSRC= to a kernel source tree of your own")
    return best


def _unpack(package, target):
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=target.parent) as scratch:
        scratch = Path(scratch)
        # The package holds one file that matters: the source as a tarball.
        deb = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        name = None
        with tarfile.open(fileobj=deb.stdout, mode="r|") as archive:
            for member in archive:
                if member.name.startswith("./usr/src/linux-source-") and ".tar." in member.name:
                    name = scratch / Path(member.name).name
                    with open(name, "wb") as out:
                        shutil.copyfileobj(archive.extractfile(member), out, 1 << 20)
        if deb.wait() or name is None:
            raise ui.Failure(f"{package}: no kernel source in it")
        tree = scratch / "tree"
        tree.mkdir()
        _run("tar", "-xf", name, "-C", tree, "--strip-components=1")
        if not (tree / "rust/kernel/lib.rs").exists():
            raise ui.Failure(f"{package}: what is in it is not a kernel with Rust")
        tree.rename(target)


def tree(update=False):
    """Path and identity of the unpacked source; downloaded and unpacked once.

    The newest package is looked for once, when there is none yet: after that builds
    need no network, and stay on the same source until `update` is asked for.
    """
    base = paths.cache() / "source"
    base.mkdir(parents=True, exist_ok=True)
    with cache.lock(base / "lock", "the kernel source"):
        current = base / "current.json"
        known = None
        if current.exists() and not update:
            try:
                known = json.loads(current.read_text())
            except ValueError:
                known = None
        if known is None:
            with ui.step(f"Looking for the newest {PACKAGE}"), \
                    tempfile.TemporaryDirectory(prefix="index-", dir=base) as work:
                uri = mirror()
                known = _newest(uri, Path(work))
            ui.line("step", f"Found version {known['version']} in {known['suite']}")
        target = base / f"linux-{known['version']}"
        stamp = base / f"linux-{known['version']}.ok"
        # The stamp is made last: a tree without it is one whose unpacking was cut short.
        if not (stamp.exists() and (target / "Makefile").exists()):
            stamp.unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            package = base / f"{PACKAGE}_{known['version']}.deb"
            if not (package.exists() and _sha256(package) == known["sha256"]):
                package.unlink(missing_ok=True)
                with ui.step(f"Downloading the kernel source ({known['size'] >> 20} MiB)"):
                    _download(mirror() + known["filename"], package, known["sha256"])
                if _sha256(package) != known["sha256"]:
                    package.unlink()
                    raise ui.Failure("the downloaded kernel source has the wrong checksum")
            with ui.step("Unpacking the kernel source"):
                _unpack(package, target)
            stamp.write_text(known["sha256"] + "\n")
        cache.write(current, json.dumps(known, indent=1) + "\n")
        return target, f"{PACKAGE} {known['version']} {known['sha256']}"

"""Puts what a function has changed into the image that is being built, by the image's own Python.

``apply_layer.py FOLDER``: the parts of a tar archive lie there under their numbers, ``removed.json`` names
what is gone. Standard library alone, and nothing of this package: any Python 3 of an image will do.
"""

import contextlib
import io
import json
import os
import shutil
import stat
import sys
import tarfile

ROOT = "/"
XATTR = "SCHILY.xattr."
PIECE = 1 << 20


class Parts(io.RawIOBase):
    """The parts of an archive, one after the other."""

    def __init__(self, folder):
        # type: (str) -> None
        super().__init__()
        names = sorted((x for x in os.listdir(folder) if x.isdigit()), key=int)
        self.paths = [os.path.join(folder, name) for name in names]
        self.file = None  # type: io.BufferedReader | None

    def readable(self):
        # type: () -> bool
        return True

    def read(self, size=-1):
        # type: (int) -> bytes
        while True:
            if self.file is None:
                if not self.paths:
                    return b""
                self.file = open(self.paths.pop(0), "rb")  # noqa: SIM115 - closed at its end
            data = self.file.read(size)
            if data:
                return data
            self.file.close()
            self.file = None

    def close(self):
        # type: () -> None
        if self.file is not None:
            self.file.close()
        super().close()


def clear(path):
    # type: (str) -> None
    """Remove what is there; what is not is no error."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def fill(path, archive, member):
    # type: (str, tarfile.TarFile, tarfile.TarInfo) -> None
    """Write a file's contents; what is nothing but zeros takes no room."""
    source = archive.extractfile(member)
    assert source is not None
    with open(path, "wb") as target:
        while True:
            data = source.read(PIECE)
            if not data:
                break
            if data.count(0) == len(data):
                target.seek(len(data), os.SEEK_CUR)
            else:
                target.write(data)
        target.truncate(member.size)


def place(archive, member, root):
    # type: (tarfile.TarFile, tarfile.TarInfo, str) -> None
    """Put one entry of the archive in place."""
    path = os.path.join(root, member.name)
    if not (member.isdir() and os.path.isdir(path) and not os.path.islink(path)):
        clear(path)
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path))
    if member.islnk():
        os.link(os.path.join(root, member.linkname), path)
        return
    if member.isdir():
        if not os.path.isdir(path):
            os.mkdir(path)
    elif member.issym():
        os.symlink(member.linkname, path)
    elif member.isfifo():
        os.mkfifo(path)
    else:
        fill(path, archive, member)
    os.lchown(path, member.uid, member.gid)
    if member.issym():
        return
    os.chmod(path, stat.S_IMODE(member.mode))
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR):
            try:
                os.setxattr(path, key[len(XATTR) :], value.encode("utf-8", "surrogateescape"))
            except OSError as error:
                # Where a builder's file system has none of this kind.
                sys.stderr.write("%s: %s cannot be set: %s\n" % (path, key[len(XATTR) :], error))
    if not member.isdir():
        os.utime(path, (member.mtime, member.mtime))


def apply(folder, root=ROOT):
    # type: (str, str) -> None
    """Make a file system what the function has made of it."""
    with open(os.path.join(folder, "removed.json")) as file:
        for name in json.load(file):
            clear(os.path.join(root, name))
    folders = []
    if not os.path.exists(os.path.join(folder, "0")):
        return
    with Parts(folder) as parts, tarfile.open(fileobj=parts, mode="r|", bufsize=PIECE) as archive:
        while True:
            member = archive.next()
            if member is None:
                break
            place(archive, member, root)
            # It would be kept until the end: there may be millions.
            archive.members = []  # type: ignore[attr-defined]
            if member.isdir():
                folders.append((member.name, member.mtime))
    for name, mtime in reversed(folders):
        os.utime(os.path.join(root, name), (mtime, mtime))


if __name__ == "__main__":
    apply(sys.argv[1])

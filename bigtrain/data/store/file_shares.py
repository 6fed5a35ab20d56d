"""Which ranks look at which files at a start, so that a missing one is found on each host, and each is looked at once.

::

    folder on a disk of this host    ──► its own copy: the ranks of this host share all files
    folder on a shared file system   ──► one copy: all ranks of the job share all files

A file system of a type that is not known counts as shared: too many looks at one are a storm on its servers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

OF_ONE_HOST = frozenset({
    "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "rootfs",
    "squashfs", "tmpfs", "xfs", "zfs",
})  # fmt: skip
"""Types of file systems that one host has alone, as /proc/self/mountinfo names them."""


def _mountinfo() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:  # not Linux: nothing is known, so every folder counts as shared
        return ""


@dataclass(frozen=True)
class FileShares:
    """Which files a rank looks at. Alone it looks at all."""

    of_job: tuple[int, int] = (0, 1)
    """This rank's number among all ranks, and how many these are."""
    of_host: tuple[int, int] = (0, 1)
    """The same among the ranks of this host."""
    mountinfo: str = field(default_factory=_mountinfo)
    """The text of /proc/self/mountinfo."""

    def of(self, folder: Path) -> tuple[int, int]:
        """The part of a folder's files that this rank looks at, from 0, and the number of parts."""
        try:
            device = os.stat(folder).st_dev  # noqa: PTH116
        except OSError:  # only this host lacks it: another rank has opened it
            return self.of_host
        return self.of_host if file_system_type(folder, device, self.mountinfo) in OF_ONE_HOST else self.of_job


def file_system_type(folder: Path, device: int, mountinfo: str) -> str | None:
    """The type of the file system of a folder, such as `ext4` or `nfs4`; None where it is not known.

    Args:
        folder: an absolute path, or one from the current directory. Its links are resolved.
        device: `st_dev` of the folder.
        mountinfo: the text of /proc/self/mountinfo. The last mount at a point covers those before it.
    """
    mounts = [mount for line in mountinfo.splitlines() if (mount := _mount(line)) is not None]
    number = f"{os.major(device)}:{os.minor(device)}"
    if known := [kind for of_device, _, kind in mounts if of_device == number]:
        return known[-1]
    # A subvolume of btrfs has a device number that no mount has.
    path = os.path.realpath(folder)
    around = [(len(point), place) for place, (_, point, _) in enumerate(mounts) if _is_below(path, point)]
    return mounts[max(around)[1]][2] if around else None


def _mount(line: str) -> tuple[str, str, str] | None:
    """The device, the mount point and the type in a line of mountinfo; None where it is no such line."""
    left, _, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if len(before) < 6 or not after[0]:
        return None
    point = before[4]
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return before[2], point, after[0]


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")

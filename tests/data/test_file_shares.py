"""Which ranks look at which files: those of a host at its own copy, those of the job at a folder that they share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bigtrain.data import FileShares
from bigtrain.data.store.file_shares import file_system_type

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:45 / /data rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
31 30 259:2 / /data/scratch rw - xfs /dev/nvme0n1 rw
32 22 0:50 / /lustre rw - lustre 10.0.0.1@o2ib:/fs rw
33 22 0:51 / /my\040disk rw - fuse.juicefs JuiceFS:vol rw
34 22 0:52 /@home /home rw - btrfs /dev/sdb rw,subvol=/@home
35 22 0:53 / /over rw - tmpfs tmpfs rw
36 35 0:54 / /over rw - ceph mon:/ rw
no such line
37 22 broken
"""


@pytest.mark.parametrize(
    ("folder", "device", "kind"),
    [
        ("/var/data", (8, 1), "ext4"),
        ("/data/web", (0, 45), "nfs4"),
        ("/data/scratch/web", (259, 2), "xfs"),
        ("/linked/to/nfs", (0, 45), "nfs4"),
        ("/lustre/web", (0, 50), "lustre"),
        # Without a mount of this device number the path says it, as for a subvolume.
        ("/home/me/web", (0, 99), "btrfs"),
        ("/homework", (0, 99), "ext4"),
        ("/my disk/web", (0, 99), "fuse.juicefs"),
        ("/data/scratch", (0, 99), "xfs"),
        ("/over/web", (0, 99), "ceph"),
    ],
)
def test_the_type_of_a_file_system_is_that_of_its_last_mount(folder: str, device: tuple[int, int], kind: str) -> None:
    assert file_system_type(Path(folder), os.makedev(*device), MOUNTS) == kind


def test_without_a_list_of_mounts_nothing_is_known_of_a_folder() -> None:
    assert file_system_type(Path("/data"), 1, "") is None


@pytest.mark.parametrize(
    ("kind", "looks"), [("ext4", 2), ("overlay", 2), ("nfs4", 1), ("lustre", 1), ("fuse.s3fs", 1), ("newfs", 1)]
)
def test_each_file_is_looked_at_once_on_a_host_or_in_the_job(tmp_path: Path, kind: str, looks: int) -> None:
    """Two hosts of three ranks and thirty files: on their own disks each host looks at all, else all ranks together."""
    device = tmp_path.stat().st_dev
    mountinfo = f"1 0 {os.major(device)}:{os.minor(device)} / / rw - {kind} x rw\n"
    seen: list[int] = []
    for rank in range(6):
        part, of = FileShares((rank, 6), (rank % 3, 3), mountinfo).of(tmp_path)
        seen += range(part, 30, of)
    assert sorted(seen) == sorted([*range(30)] * looks)


def test_a_folder_that_only_this_host_lacks_is_missed_by_its_own_ranks(tmp_path: Path) -> None:
    """Another rank has opened it, so it is not on a file system that both see."""
    assert FileShares((4, 6), (1, 3), "").of(tmp_path / "lost") == (1, 3)

"""What is free is that of the machine and of every control group around this process, and memory
file systems are no disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanreplay import limits

GIB = 2**30


def machine(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * 2**20} kB"}


def test_without_groups_the_machine_alone_counts(tmp_path: Path) -> None:
    assert limits.free_memory(machine(tmp_path, MEMINFO)) == 8 * GIB


def test_a_container_of_version_2_limits_and_what_its_cache_holds_is_free(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/pods/this"
    root = machine(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/pods/this",
            f"{group}/memory.max": 4 * GIB,
            f"{group}/memory.current": 3 * GIB,
            f"{group}/memory.stat": f"anon 5\ninactive_file {2 * GIB}",
        },
    )
    assert limits.free_memory(root) == 3 * GIB


def test_a_group_around_that_of_the_process_limits_too(tmp_path: Path) -> None:
    groups = "sys/fs/cgroup/pods"
    root = machine(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/pods/this",
            f"{groups}/this/memory.max": "max",
            f"{groups}/this/memory.current": GIB,
            f"{groups}/this/memory.stat": "anon 5",
            f"{groups}/memory.max": 2 * GIB,
            f"{groups}/memory.current": GIB,
            f"{groups}/memory.stat": "anon 5",
        },
    )
    assert limits.free_memory(root) == GIB


def test_a_container_of_version_1_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    root = machine(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "3:cpu:/\n4:memory:/of/the/host",
            f"{group}/memory.limit_in_bytes": 2 * GIB,
            f"{group}/memory.usage_in_bytes": GIB,
            f"{group}/memory.stat": f"cache 1\ntotal_inactive_file {GIB // 2}",
        },
    )
    assert limits.free_memory(root) == 3 * GIB // 2


MOUNTS = """\
22 1 0:21 / /proc rw - proc proc rw
36 1 254:0 / / rw,relatime - ext4 /dev/vda rw
37 36 0:25 / /tmp rw - tmpfs tmpfs rw
38 36 0:26 / /data\\040of\\040mine rw shared:1 - nfs4 server:/data rw
39 37 8:1 / /tmp/scratch rw - xfs /dev/sdb rw"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/somebody", True),
        ("/tmp/runs", False),
        ("/tmp/scratch/runs", True),
        ("/data of mine/runs", False),
        ("/tmporary", True),
    ],
)
def test_memory_and_networks_are_no_disks_of_this_machine(
    tmp_path: Path, folder: str, expected: bool
) -> None:
    root = machine(tmp_path, {"proc/self/mountinfo": MOUNTS})
    assert limits.is_local_disk(Path(folder), root) is expected


def test_this_machine_tells() -> None:
    assert 0 < limits.free_memory() < 2**60
    assert limits.free_disk(Path("/")) > 0

"""How much memory reading and replaying a capture may take, and what memory and disk are free.

A hostile file of a few KB can ask for terabytes, so the reader, the program checks and the replay
ask here before they take memory. The limit holds for the process, and through the environment for
those that it starts: NANREPLAY_MAX_MEMORY, which `--max-memory` sets. The default is three
quarters of the machine's memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import mmap
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanreplay.errors import MemoryLimitError

VARIABLE = "NANREPLAY_MAX_MEMORY"
HOLDS_PROCESSES = sys.platform.startswith("linux")
"""Whether the system refuses a process more memory than its limit; only Linux limits its data."""
_OWN_BYTES = 4 * 2**30
"""What TensorFlow's libraries, threads and compiler take beside the tensors of a program."""


def parse_size(text: str) -> int | None:
    """Bytes of a text such as `512MiB` or `2 GB`; None when it is no size above 0."""
    import bitmath  # here and below, where sizes are read or shown: not in each `nanreplay --help`

    text = text.strip()
    if text[-1:].isdigit():  # 8 without a unit is hardly meant as 8 bytes
        return None
    try:
        size = bitmath.parse_string(text, system=bitmath.SI, strict=False)
    except ValueError:
        return None
    return int(size.bytes) if size.bytes >= 1 else None


def max_memory() -> int:
    """Bytes that a tensor, and all of a replay, may take.

    Raises:
        MemoryLimitError: NANREPLAY_MAX_MEMORY is set, and is no size.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return _machine_bytes() * 3 // 4
    size = parse_size(text)
    if size is None:
        raise MemoryLimitError(f"{VARIABLE}={text!r} is no size. Expected a text such as '8GiB'.")
    return size


def check_size(what: str, size_bytes: int) -> None:
    """Refuse what is larger than the limit, before memory is taken for it.

    Args:
        what: Completes "... would take 80 GB".
        size_bytes: How large it would be.

    Raises:
        MemoryLimitError: It is larger.
    """
    limit = max_memory()
    if size_bytes > limit:
        wanted, allowed = readable_size(size_bytes), readable_size(limit)
        raise MemoryLimitError(
            f"{what} would take {wanted}; {allowed} may be taken.",
            hint=f"--max-memory {_limit_above(size_bytes)} allows it, if the machine can",
        )


def readable_size(size_bytes: int) -> str:
    """A size in its binary unit, the one kind of unit that is shown: `3.4 MiB`, `12 bytes`."""
    if size_bytes < 1024:
        return f"{size_bytes} bytes"
    import bitmath

    size = bitmath.Byte(size_bytes).best_prefix(system=bitmath.NIST)
    return str(size.format("{value:.1f} {unit}"))


def size_option(size_bytes: int) -> str:
    """A size as an option takes it, rounded up to whole units: `8MiB`."""
    import bitmath

    return f"{math.ceil(bitmath.Byte(size_bytes).to_MiB().value)}MiB"


def _limit_above(size_bytes: int) -> str:
    gibibytes = size_bytes // 2**30 + 1
    return f"{gibibytes}GiB" if gibibytes < 2**20 else "more"


@contextlib.contextmanager
def limited_process() -> Iterator[None]:
    """Let the operating system refuse this process memory beyond the limit.

    Programs that run as a whole allocate where nobody can look first. What the process holds
    already, and what TensorFlow itself takes, comes on top of the limit. Only Linux limits the
    data of a process; elsewhere nothing happens.
    """
    if not HOLDS_PROCESSES:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _taken_bytes() + max_memory() + _OWN_BYTES
    fits = [wanted, *(limit for limit in before if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(fits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _taken_bytes() -> int:
    """Data that this process holds already, as RLIMIT_DATA counts it."""
    return _status_bytes("VmData")


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_bytes() -> int | None:
    """The most memory that this process had in use at one time; None where no system tells it."""
    if sys.platform.startswith("linux"):
        return _status_bytes("VmHWM") or None
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def _machine_bytes() -> int:
    """Memory of the machine, or of the container that it runs in."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for group in control_groups():
        sizes.append(group.limit)
    return min(sizes, default=16 * 2**30)


# What is free, of memory and of disk.


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """What a container, or a group of processes around this one, may take of memory."""

    limit: int
    """Bytes."""
    used: int
    """Bytes; the part of the cache of files that the kernel would give up is left out."""


_FILES_OF_VERSION = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Files of the limit and of the use, and the line of `memory.stat` for cached files, by version."""


def control_groups(root: Path = Path("/")) -> list[ControlGroup]:
    """The control groups that limit the memory of this process, those around its own too.

    Args:
        root: Where `proc` and `sys` are.
    """
    groups = []
    for version, mount, path in _own_groups(root):
        # Within a container the path may be that of the host, which is not there: its root is.
        folder = mount / path.lstrip("/")
        folders = [folder, *folder.parents]
        for each in folders[: folders.index(mount) + 1]:
            group = _control_group(each, version)
            if group is not None:
                groups.append(group)
    return groups


def _own_groups(root: Path) -> Iterator[tuple[int, Path, str]]:
    """(version, where its groups are, path of this process's) of each hierarchy for memory."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield 2, mount / "unified" if (mount / "unified").is_dir() else mount, path
        elif "memory" in controllers.split(","):
            yield 1, mount / "memory", path


def _control_group(folder: Path, version: int) -> ControlGroup | None:
    """A control group; None where it is not there, or has no limit."""
    limit_file, usage_file, cached = _FILES_OF_VERSION[version]
    try:
        limit = int((folder / limit_file).read_text(encoding="ascii"))  # "max" without a limit
        used = int((folder / usage_file).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    given_up = int(stat[stat.index(cached) + 1]) if cached in stat else 0
    return ControlGroup(limit, max(0, used - given_up))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the machine, and of its control groups.

    Where the system does not tell, half of the machine's memory.

    Args:
        root: Where `proc` and `sys` are.
    """
    free = []
    for group in control_groups(root):
        free.append(max(0, group.limit - group.used))
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = (root / "proc/meminfo").read_text(encoding="ascii").split()
        free.append(int(words[words.index("MemAvailable:") + 1]) * 1024)
    return min(free, default=_machine_bytes() // 2)


def free_disk(folder: Path) -> int:
    """Bytes that this process may still write to a folder; 0 where that cannot be told."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


_MEMORY_OR_REMOTE = re.compile(
    r"tmpfs|ramfs|devtmpfs|nfs\d?|cifs|smb\w*|9p|ceph|lustre|gpfs|glusterfs|afs|beegfs|fuse\..*"
)
"""Types of file systems that take memory in place of disk, or that a network lies before."""


def is_local_disk(folder: Path, root: Path = Path("/")) -> bool:
    """Whether a folder is on a disk of this machine: not in memory, nor behind a network.

    Args:
        folder: The folder.
        root: Where `proc` is.
    """
    try:
        lines = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: a temporary folder is on a disk there
        return True
    wanted, best, kind = folder.resolve(), Path("/"), ""
    for line in lines:
        # "36 35 98:0 /of/device /mount/point options ... - type source options"
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        is_around = point == wanted or point in wanted.parents
        if is_around and len(point.parts) >= len(best.parts):  # the last one is on top
            best, kind = point, after.split()[0]
    return _MEMORY_OR_REMOTE.fullmatch(kind) is None


def give_back_freed() -> None:
    """Return memory that was freed to the system, where the C library keeps it (glibc does)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


_MADV_DONTNEED = 4
"""Linux's number for advice by which a process gives pages up that it does not need any more."""


def give_up_pages(address: int, size_bytes: int) -> None:
    """Return the memory of a buffer to the system; what it holds is lost. Linux only.

    Args:
        address: Where the buffer begins.
        size_bytes: Its size; pages that are not all within it stay.
    """
    if not HOLDS_PROCESSES:
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_DONTNEED)


_COLLECT_EVERY = 50_000
"""Objects more than before at which Python looks for unreachable cycles; usually 700."""


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Let Python look for unreachable cycles less often inside a `with` statement.

    A step that runs op by op makes hundreds of thousands of small objects that stay, and hardly a
    cycle: looking again and again takes a tenth of the time.
    """
    before = gc.get_threshold()
    if before[0]:  # 0 is how a program switches it off
        gc.set_threshold(max(before[0], _COLLECT_EVERY), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Let Python look for no unreachable cycles inside a `with` statement.

    For a moment in which very many objects are made that all stay.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

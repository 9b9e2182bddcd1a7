"""How much memory reading and replaying a capture may take.

A hostile file of a few KB can ask for terabytes, so the reader, the program checks and the replay
ask here before they take memory. The limit holds for the process, and through the environment for
those that it starts: NANREPLAY_MAX_MEMORY, which `--max-memory` sets. The default is three
quarters of the machine's memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from nanreplay.errors import MemoryLimitError

VARIABLE = "NANREPLAY_MAX_MEMORY"
_SIZE = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?)B\s*$", re.IGNORECASE)
_OWN_BYTES = 4 * 2**30
"""What TensorFlow's libraries, threads and compiler take beside the tensors of a program."""


def parse_size(text: str) -> int | None:
    """Bytes of a text such as `512MiB` or `2 GB`; None when it is no size above 0."""
    match = _SIZE.match(text)
    if match is None or float(match[1]) <= 0:
        return None
    base = 1024 if match[3] else 1000
    exponent = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * base**exponent)


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
            hint=f"--max-memory {_limit_above(size_bytes)} lets it, if the machine can",
        )


def readable_size(size_bytes: int) -> str:
    """A size as people write it for `--max-memory`: `80 GB`."""
    number = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if number < 1e6 else f"{number:.1e} {unit}"


def _limit_above(size_bytes: int) -> str:
    gigabytes = size_bytes // 10**9 + 1
    return f"{gigabytes}GB" if gigabytes < 10**6 else "more"


@contextlib.contextmanager
def limited_process() -> Iterator[None]:
    """Let the operating system refuse this process memory beyond the limit.

    Programs that run as a whole allocate where nobody can look first. What the process holds
    already, and what TensorFlow itself takes, comes on top of the limit. Only Linux limits the
    data of a process; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
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
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    for line in status.splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


@cache
def _machine_bytes() -> int:
    """Memory of the machine, or of the container that it runs in (cgroup v2, then v1)."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            sizes.append(int(Path(file).read_text(encoding="ascii")))
    return min(sizes, default=16 * 2**30)

"""Reads mutated captures in a process of its own: python fuzzing.py FIRST COUNT FOLDER. One line
of JSON a case.

HDF5 is native code: what crashes or never returns there must not take the tests with it.
`run_cases` watches the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CASE_LIMIT_S = 30.0
START_LIMIT_S = 240.0
SAMPLE = "log_of_zero.h5"


def read_everything(path: Path) -> None:
    """What `nanreplay info` and the interfaces of `Capture` read: all tables and all tensors."""
    from nanreplay import Capture
    from nanreplay.report.inventory import inventory, inventory_lines

    with Capture(path) as capture:
        facts = inventory(capture)
        json.dumps(facts, ensure_ascii=False, allow_nan=False)
        "\n".join(inventory_lines(facts))
        capture.contents()
        capture.variables()
        capture.timeline()
        for name in capture.programs:
            capture.ops(name)
        for name in capture.timeline_record().matrices:
            capture.matrix(name)


def watch_files(allowed: Path) -> list[str]:
    """Note every file that this process opens for writing, and every one outside of `allowed` and
    of Python's own."""
    touched: list[str] = []
    libraries = (
        sys.prefix,
        sys.base_prefix,
        str(ROOT / "nanreplay"),
        str(Path(__file__).parent),
        "/proc/",
        "/dev/null",
        "/usr/",
        "/etc/localtime",
        "/sys/",
    )

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and isinstance(arguments[0], str)
            and not arguments[0].startswith((str(allowed), *libraries))
        ):
            touched.append(arguments[0])
        elif event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.remove",
            "os.rename",
            "socket.connect",
            "os.fork",
        ):
            touched.append(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)
    return touched


def serve(first: int, count: int, folder: Path) -> None:
    """Read `count` cases; tells of each when it is done."""
    from mutations import mutate

    from nanreplay.errors import NanreplayError

    elsewhere = folder / "elsewhere"  # a pipe without a writer: who opens it never comes back
    if not elsewhere.exists():
        os.mkfifo(elsewhere)
    captures = [(folder / "small.h5").read_bytes(), (ROOT / "sample_runs" / SAMPLE).read_bytes()]
    path = folder / f"case-{os.getpid()}.h5"
    with contextlib.suppress(NanreplayError):
        path.write_bytes(captures[0])
        read_everything(path)  # loads what is loaded late
    touched = watch_files(folder)
    print(json.dumps({"ready": True}), flush=True)
    for seed in range(first, first + count):
        kind, data = mutate(seed, captures, str(elsewhere))
        path.write_bytes(data)
        print(json.dumps({"seed": seed, "kind": kind, **_outcome(path, data, touched)}), flush=True)
    path.unlink()


def _outcome(path: Path, data: bytes, touched: list[str]) -> dict[str, Any]:
    from nanreplay.errors import NanreplayError

    touched.clear()
    problem, refused = None, False
    try:
        read_everything(path)
    except NanreplayError as error:
        refused = True
        if "\n" in str(error) or len(str(error)) > 1000:
            problem = f"a message of several lines or too long: {str(error)[:200]!r}"
    except BaseException:
        problem = traceback.format_exc(limit=-3)
    if touched:
        problem = f"touched {touched}"
    if path.read_bytes() != data:
        problem = "the capture was changed"
    return {"refused": refused, "problem": problem}


def run_cases(first: int, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Read cases in child processes; a case that kills its process, or does not end in time, is a
    problem like any other."""
    seed = first
    while seed < first + count:
        child = subprocess.Popen(
            [sys.executable, __file__, str(seed), str(first + count - seed), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
        )  # fmt: skip
        assert child.stdout is not None
        try:
            ready = _line(child, START_LIMIT_S)
            assert ready is not None, (
                f"the child did not start: {child.stderr.read().decode() if child.stderr else ''}"
            )
            while seed < first + count:
                found = _line(child, CASE_LIMIT_S)
                seed += 1
                if found is None:
                    child.kill()
                    child.wait()
                    yield {
                        "seed": seed - 1,
                        "kind": "?",
                        "refused": False,
                        "problem": f"it hung or died (exit code {child.returncode})",
                    }
                    break
                yield found
        finally:
            child.kill()
            child.communicate()


def _line(child: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any] | None:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], limit_s)
    text = child.stdout.readline() if ready else b""
    found: dict[str, Any] | None = json.loads(text) if text.endswith(b"\n") else None
    return found


def _environment() -> dict[str, str]:
    paths = (
        str(ROOT),
        str(Path(__file__).parent),
        str(ROOT / "tests"),
        os.environ.get("PYTHONPATH", ""),
    )
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NANREPLAY_MAX_MEMORY": "1GiB",
    }


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""Whether another machine gives another answer: captures explained under other kernels.

Kernels of another instruction set, another library, another number of threads or another version of
TensorFlow add in another order, as another processor does: a replay is then some units in the last
place off. Each setting runs in a process of its own; the first, as the machine is, is what the
others are held against. Verdict, step, op, rows and cause must be the same.

Usage: python benchmarks/other_machine.py [--settings WORDS,...] [--python PATH ...] [CAPTURE...]

The sample runs unless given. `--python` is the interpreter of an environment with another
TensorFlow, and makes a row of its own. Exits with 1 when an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "as it is": {},
    "without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "oneDNN with SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "one thread": {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"},
}
ANSWER = ("verdict", "step", "op", "rows", "cause")
"""What must be the same."""


def explained(captures: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What `explain` says of each capture, in this process."""
    from nanreplay.errors import NanreplayError
    from nanreplay.report.explain import explain

    for capture in captures:
        try:
            report = explain(capture, fixes="none")
        except NanreplayError as error:
            yield {"capture": capture, "verdict": f"{type(error).__name__}: {error}"}
            continue
        origin = report.findings.origin
        ulps = [run.max_ulp for run in report.verdict.evidence if run.mode == "recorded"]
        yield {
            "capture": capture,
            "verdict": report.verdict.kind,
            "bit_exact": report.verdict.bit_exact,
            "max_ulp": max((ulp for ulp in ulps if ulp is not None), default=None),
            "step": origin and origin.step,
            "op": origin and [origin.op_type, origin.op_name],
            "rows": origin and origin.rows and list(origin.rows),
            "cause": report.causes[0].kind if report.causes else None,
            "reason": report.verdict.reason,
        }


def answers(
    setting: str, captures: Sequence[str], python: str = sys.executable
) -> dict[str, dict[str, Any]]:
    """What a process says, by capture.

    Args:
        setting: One of `SETTINGS`.
        captures: The files.
        python: The interpreter.

    Raises:
        RuntimeError: It ended early.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    common = {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [python, __file__, "--here", *captures],
        env={**os.environ, **common, **SETTINGS[setting]},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(found) != len(captures):
        raise RuntimeError(
            f"{setting}, {python}: {len(found)} of {len(captures)} answers\n{done.stderr}"
        )
    return {answer["capture"]: answer for answer in found}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What of an answer is another, in words; "" where nothing is."""
    return ", ".join(
        f"{name} {one.get(name)} is {other.get(name)}"
        for name in ANSWER
        if one.get(name) != other.get(name)
    )


def row(setting: str, found: Mapping[str, Any], differing: Sequence[str]) -> str:
    """A line of the table."""
    exact = sum(answer.get("bit_exact") is True for answer in found.values())
    near = [answer.get("max_ulp") or 0 for answer in found.values()]
    median, largest = sorted(near)[len(near) // 2], max(near)
    worst = "finite against non-finite" if largest >= 2**62 else f"{largest} ulp"
    others = "; ".join(differing) or "none"
    return f"| {setting} | {exact} of {len(found)} | {median} ulp | {worst} | {others} |"


def version_of(python: str) -> str:
    """The name of the row of an interpreter: the version of its TensorFlow."""
    command = "from importlib.metadata import version; print(version('tensorflow'))"
    asked = [python, "-c", command]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return f"TensorFlow {done.stdout.strip()}"


def compare(settings: Sequence[str], pythons: Sequence[str], captures: Sequence[str]) -> int:
    """Print the table; 1 when an answer differs."""
    print("| kernels | bit for bit | median | largest difference | other answers |")
    print("|---|---:|---:|---:|---|")
    usual: dict[str, dict[str, Any]] = {}
    is_other = False
    runs = [(setting, setting, sys.executable) for setting in settings]
    runs += [(version_of(python), "as it is", python) for python in pythons]
    for name, setting, python in runs:
        found = answers(setting, captures, python)
        usual = usual or found
        words = {each: differences(usual[each], found[each]) for each in captures}
        differing = [f"{Path(each).stem}: {what}" for each, what in words.items() if what]
        is_other |= bool(differing)
        print(row(name, found, differing), flush=True)
    return int(is_other)


def main() -> int:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(description="Explain captures under other kernels.")
    parser.add_argument("captures", nargs="*", metavar="CAPTURE")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="which, by comma")
    parser.add_argument("--python", action="append", default=[], help="another interpreter")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    captures = options.captures or sorted(map(str, (ROOT / "sample_runs").glob("*.h5")))
    if options.here:
        for answer in explained(captures):
            print(json.dumps(answer), flush=True)
        return 0
    settings = options.settings.split(",")
    unknown = [setting for setting in settings if setting not in SETTINGS]
    if unknown:
        parser.error(f"no such setting: {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    return compare(settings, options.python, captures)


if __name__ == "__main__":
    sys.exit(main())

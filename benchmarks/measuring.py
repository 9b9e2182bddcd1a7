"""What benchmarks share: the facts of the machine, processes of their own, tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONPATH": os.pathsep.join(
        [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    ),
}


def machine() -> dict[str, str]:
    """Versions, processor, cores, load and date."""
    lines = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    processor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    versions = {
        name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy", "h5py")
    }
    return {
        **versions,
        "python": platform.python_version(),
        "processor": processor,
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f} before the start",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def run(
    arguments: Sequence[str | os.PathLike[str]], *, timeout_s: float = 1800
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run Python with `arguments`; wall time in seconds and the finished process."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    return time.perf_counter() - began, done


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The object that a worker printed on its last line, or `{"error": ...}`."""
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    return {"error": error_line(done.stderr) or f"exit {done.returncode}"}


def error_line(stderr: str) -> str:
    """The exception of a traceback in one line; what XLA refuses, when that is why."""
    raised = re.findall(
        r"^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt)\b.*)$", stderr, re.MULTILINE
    )
    refused = re.search(r"unsupported operations .*? on (\w+): (\w+)", stderr)
    return " ".join(
        [*raised[-1:], *([f"{refused[2]} has no kernel for {refused[1]}"] if refused else [])]
    )[:200]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(name: str, text: str, facts: Any) -> None:
    """Print `text`, and write it and `facts` to `benchmarks/results`."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def machine_line(facts: dict[str, str]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("tensorflow", "keras", "python"))
    machine = f"{facts['processor']}, {facts['cores']} cores (load {facts['load']})"
    return f"{facts['date']}, {versions}, {machine}."

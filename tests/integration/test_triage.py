"""`nanreplay triage` on real captures: processes of this machine, and a Dask cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
import warm_python
from conftest import ROOT, environment

from nanreplay.triage.failure_groups import TriageResult
from nanreplay.triage.triage_engine import WorkerOptions, triage

pytestmark = pytest.mark.xdist_group("triage")  # one worker makes what they share

SAMPLES = ROOT / "sample_runs"
WITHOUT_TENSORFLOW = """
import sys
from nanreplay.commands import run_command_line
code = run_command_line(["triage", *sys.argv[1:]])
assert "tensorflow" not in sys.modules, "only workers load TensorFlow"
sys.exit(code)
"""


@dataclass(frozen=True)
class RealRun:
    """A folder of captures and what triage said of it."""

    folder: Path
    process: subprocess.CompletedProcess[str]

    @property
    def document(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.process.stdout)
        return value


def triaged(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=warm_python.HANGS_S,
        env=environment(),
    )


def noted(source: Path, target: Path) -> Path:
    """A copy that holds other bytes, so that it is bisected by itself."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        file.attrs["note"] = target.name
    return target


@pytest.fixture(
    scope="module",
    params=["1", pytest.param("2", marks=pytest.mark.slow)],  # each imports TensorFlow
    ids=["one worker", "two workers"],
)
def real_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    folder = tmp_path_factory.mktemp("triage")
    (folder / "runs").mkdir()
    shutil.copy(SAMPLES / "log_of_zero.h5", folder / "runs" / "monday.h5")
    noted(SAMPLES / "log_of_zero.h5", folder / "runs" / "tuesday.h5")
    shutil.copy(SAMPLES / "nan_in_one_sample.h5", folder / "runs")
    content = (SAMPLES / "log_of_zero.h5").read_bytes()
    (folder / "runs" / "cut.h5").write_bytes(content[: len(content) // 2])
    outputs = ("--html", folder / "out.html", "--md", folder / "out.md")
    process = triaged(
        folder / "runs", "--workers", request.param, "--cache", folder / "cache", "--json", *outputs
    )
    return RealRun(folder, process)


def test_real_captures_are_grouped(real_run: RealRun) -> None:
    assert (real_run.process.returncode, real_run.process.stderr) == (1, "")
    value = real_run.document
    assert value["counts"] == {"nonfinite": 3, "finite": 0, "undecided": 0, "unreadable": 1}
    log_of_zero, data = value["groups"]
    assert log_of_zero["cause"] == "log_of_zero"
    assert log_of_zero["lines"] == [14]
    assert {Path(path).name for path in log_of_zero["captures"]} == {"monday.h5", "tuesday.h5"}
    assert Path(log_of_zero["cheapest"]["path"]).name == "monday.h5"
    assert "`Log` of 0.0 at [18, 0]" in log_of_zero["sentence"]
    assert (data["cause"], data["op_type"]) == ("data_nan", None)
    (cut,) = [each for each in value["captures"] if each["status"] == "unreadable"]
    assert "is cut off" in cut["sentence"]
    assert log_of_zero["sentence"].partition(" · ")[0] in (real_run.folder / "out.md").read_text()
    assert log_of_zero["fingerprint"] in (real_run.folder / "out.html").read_text()


def test_a_second_run_reads_what_the_first_one_found(real_run: RealRun) -> None:
    again = triaged(real_run.folder / "runs", "--cache", real_run.folder / "cache", "--json")
    assert again.returncode == 1
    value = json.loads(again.stdout)
    cached = [each.pop("cached") for each in value["captures"]]
    assert sorted(cached) == [False, True, True, True]
    before = real_run.document
    for each in before["captures"]:
        del each["cached"]
    assert value == before


@dataclass(frozen=True)
class DaskCluster:
    """A scheduler with two workers, in processes of their own."""

    scheduler: str
    worker_pids: list[int]


START_CLUSTER = """
import json, os, sys
from distributed import Client, LocalCluster

if __name__ == "__main__":
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1")
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        pids = list(client.run(os.getpid).values())
        print(json.dumps([cluster.scheduler_address, pids]), flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def dask_cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    script = tmp_path / "start_cluster.py"
    script.write_text(START_CLUSTER, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        scheduler, pids = json.loads(process.stdout.readline())
        yield DaskCluster(scheduler, pids)
        process.stdin.close()
        process.wait(warm_python.HANGS_S)


def groups_of(result: TriageResult) -> dict[str, Counter[str]]:
    """How many copies of which sample run each group has."""
    return {
        group.key.fingerprint: Counter(
            Path(each.answer.path).name.partition("-")[0] for each in group.captures
        )
        for group in result.groups
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_dask_cluster_loses_nothing_with_a_worker(
    dask_cluster: DaskCluster, tmp_path: Path
) -> None:
    samples = sorted(SAMPLES.glob("*.h5"))
    for number in range(200):
        sample = samples[number % len(samples)]
        noted(sample, tmp_path / f"{sample.stem}-{number}.h5")
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if done >= 30 and not killed:
            killed.append(dask_cluster.worker_pids[0])
            os.kill(killed[0], signal.SIGKILL)

    options = WorkerOptions(scheduler=dask_cluster.scheduler)
    result = triage([str(tmp_path)], options=options, progress=kill_one)
    assert killed
    assert len(result.captures) == 200
    assert [each.answer.sentence for each in result.of_status("undecided")] == []

    here = triage([str(SAMPLES)])
    assert result.code == here.code == 1
    copies = Counter(samples[number % len(samples)].stem for number in range(200))
    expected = {
        fingerprint: Counter(
            {name.removesuffix(".h5"): copies[name.removesuffix(".h5")] for name in names}
        )
        for fingerprint, names in groups_of(here).items()
    }
    assert groups_of(result) == expected

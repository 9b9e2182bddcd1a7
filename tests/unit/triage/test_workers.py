"""A worker that dies or hangs costs the capture that it had, and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from triage_work import TASK_BEGAN, TASK_MAY_END, Line, begin_and_wait, work_or_die

from nanreplay import __version__
from nanreplay.commands import run_command_line
from nanreplay.errors import ClusterError
from nanreplay.triage import dask_workers, local_workers
from nanreplay.triage.capture_answer import CaptureAnswer
from nanreplay.triage.local_workers import answers_here, default_workers, memory_of_worker


def cluster_of(n_workers: int) -> Any:
    """A Dask cluster in this process; skips the test where Dask is not installed."""
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    return distributed.LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        processes=False,
        dashboard_address=":0",
        protocol="tcp",
        host="127.0.0.1",
    )


def test_a_worker_that_dies_or_hangs_costs_its_capture_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = ["a", "killed", "b", "hangs", "crashed", "c", "left", "prints", "d"]
    answers = answers_here(
        names, trust=False, workers=2, timeout_s=2.5, max_memory="3GiB", work=work_or_die
    )
    found = {answer.path: answer for answer in answers}
    assert sorted(found) == sorted(names)
    for name in ("a", "b", "c", "prints", "d"):
        assert (found[name].status, found[name].sentence) == ("finite", "finite in 3GiB"), name
    expected = {
        "killed": "killed: the process that bisected it was ended by SIGKILL. Maybe memory ran "
        "out; see --max-memory.",
        "crashed": "crashed: the process that bisected it was ended by SIGABRT.",
        "left": "left: the process that bisected it ended with exit code 3.",
        "hangs": "hangs: took longer than 2.5 s and was stopped; see --timeout.",
    }
    for name, sentence in expected.items():
        assert (found[name].status, found[name].sentence) == ("undecided", sentence)
    assert capfd.readouterr() == ("", ""), "workers do not write to the terminal"


ASK = """
import sys
from triage_work import tell_and_hang
from nanreplay.triage.local_workers import answers_here

if __name__ == "__main__":
    options = dict(trust=False, workers=1, timeout_s=600, work=tell_and_hang)
    list(answers_here([sys.argv[1]], **options))
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_workers_end_with_the_process_that_asked(tmp_path: Path) -> None:
    fifo, script = tmp_path / "fifo", tmp_path / "ask.py"
    os.mkfifo(fifo)
    script.write_text(ASK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asking = subprocess.Popen([sys.executable, script, fifo], env=environment)
    with asking, fifo.open() as told:
        assert told.readline() == "at work\n"
        asking.kill()
        assert told.read() == "", "it ends when the worker has closed it, as it ends"


class PoolOfDeadWorkers:
    """A pool whose processes were all killed while none had a capture."""

    def __init__(self, **_: Any) -> None:
        pass

    def schedule(self, *_: Any, **__: Any) -> Future[CaptureAnswer]:
        future: Future[CaptureAnswer] = Future()
        future.set_exception(BrokenProcessPool("All workers expired"))
        return future

    def stop(self) -> None:
        pass

    def join(self) -> None:
        pass


@pytest.mark.parametrize("n_dead", [1, 5])
def test_captures_that_no_worker_began_are_given_to_others(
    n_dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = local_workers.ProcessPool, [PoolOfDeadWorkers] * n_dead

    def next_pool(**options: Any) -> Any:
        return left.pop()(**options) if left else real(**options)

    monkeypatch.setattr(local_workers, "ProcessPool", next_pool)
    answers = answers_here(
        ["a", "b"], trust=False, workers=1, timeout_s=60, max_memory="3GiB", work=work_or_die
    )
    status = "finite" if n_dead == 1 else "undecided"
    assert {answer.path: answer.status for answer in answers} == {"a": status, "b": status}


def test_workers_share_the_memory_that_nobody_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANREPLAY_MAX_MEMORY", "3GiB")
    assert memory_of_worker(2) == "3GiB"
    assert default_workers(100) == 1
    assert default_workers(1) == 1
    monkeypatch.delenv("NANREPLAY_MAX_MEMORY")
    monkeypatch.setattr("nanreplay.limits._machine_bytes", lambda: 16 * 2**30)
    assert memory_of_worker(3) == f"{4 * 2**30} B"


def test_a_scheduler_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], made_up: object
) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    code = run_command_line(
        ["triage", str(made_up), "--no-cache", "--scheduler", "tcp://127.0.0.1:9"]
    )
    out, error = capfd.readouterr()
    assert (code, out) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("nanreplay: tcp://127.0.0.1:9: no Dask scheduler answers there (")


def test_a_host_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], made_up: object
) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    address = "tcp://no-such-host.invalid:8786"
    assert run_command_line(["triage", str(made_up), "--no-cache", "--scheduler", address]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"nanreplay: {address}: no Dask scheduler answers there (")


@pytest.mark.parametrize("address", ["", "nonsense://here", "127.0.0.1:notaport", "tcp://here"])
def test_an_address_that_is_none_is_one_line(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    made_up: object,
) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is missing")
    # as it goes, a client of such an address prints a traceback
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: pytest.fail("a client was made"))
    assert run_command_line(["triage", str(made_up), "--no-cache", "--scheduler", address]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"nanreplay: {address}: no Dask scheduler answers there (")


def test_a_scheduler_that_takes_the_connection_and_says_nothing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], made_up: object
) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.25)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        code = run_command_line(["triage", str(made_up), "--no-cache", "--scheduler", address])
        out, error = capfd.readouterr()
    assert (code, out) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith(f"nanreplay: {address}: no Dask scheduler answers there (")


@pytest.mark.parametrize(
    ("n_workers", "version", "said"),
    [
        (0, None, "the Dask cluster has no workers."),
        (1, "0.0.1", f"needs nanreplay {__version__}, and has nanreplay 0.0.1."),
    ],
)
def test_a_cluster_that_cannot_do_the_work_is_one_line(
    n_workers: int,
    version: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    made_up: object,
) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 240.0)  # of a loaded machine
    if n_workers == 0:
        monkeypatch.setattr(dask_workers, "FIRST_WORKER_S", 0.5)
    if version is not None:
        monkeypatch.setattr(dask_workers, "_nanreplay_version", lambda: version)
    with cluster_of(n_workers) as cluster:
        address = cluster.scheduler_address
        capfd.readouterr()
        code = run_command_line(["triage", str(made_up), "--no-cache", "--scheduler", address])
        out, error = capfd.readouterr()
    assert (code, out) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith(f"nanreplay: {address}: ")
    assert line.endswith(said)


def test_a_cluster_that_loses_all_workers_is_said_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 240.0)  # of a loaded machine
    monkeypatch.setattr(dask_workers, "NO_WORKER_S", 0.5)
    monkeypatch.setattr(dask_workers, "answers_in_child", begin_and_wait)
    TASK_BEGAN.clear()
    TASK_MAY_END.clear()

    def lose_all() -> None:
        TASK_BEGAN.wait()
        cluster.scale(0)

    with cluster_of(1) as cluster:
        threading.Thread(target=lose_all, daemon=True).start()
        address = cluster.scheduler_address
        options = {"trust": False, "timeout_s": 60.0, "max_memory": None}
        answers = list(dask_workers.answers_of_cluster(["a"], scheduler=address, **options))
        TASK_MAY_END.set()
    assert [(each.status, each.sentence) for each in answers] == [
        ("undecided", "a: the Dask cluster has had no worker for 0.5 s.")
    ]


@pytest.mark.parametrize("falls_silent_before", ["_threads", "_in_time"])
def test_a_scheduler_that_falls_silent_is_said_and_not_waited_for(
    falls_silent_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 240.0)  # of a loaded machine
    monkeypatch.setattr(dask_workers, "answers_in_child", begin_and_wait)
    TASK_BEGAN.clear()
    TASK_MAY_END.clear()
    asked = getattr(dask_workers, falls_silent_before)

    def ask_in_vain(*arguments: Any) -> Any:
        if falls_silent_before == "_in_time":
            TASK_BEGAN.wait()
        line.fall_silent()
        monkeypatch.setattr(dask_workers, "ANSWER_S", 0.5)
        return asked(*arguments)

    monkeypatch.setattr(dask_workers, falls_silent_before, ask_in_vain)
    with cluster_of(1) as cluster, contextlib.closing(Line(cluster.scheduler_address)) as line:
        options = {"trust": False, "timeout_s": 60.0, "max_memory": None}
        try:
            answers = dask_workers.answers_of_cluster(["a"], scheduler=line.address, **options)
            said = [each.sentence for each in answers]
        except ClusterError as error:
            said = [str(error)]
        TASK_MAY_END.set()
    if falls_silent_before == "_threads":
        assert said == [f"{line.address}: the Dask cluster has not answered for 0.5 s."]
    else:
        assert said == ["a: the Dask scheduler has not answered for 0.5 s."]

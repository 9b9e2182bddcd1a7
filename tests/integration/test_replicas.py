"""Several replicas: recorded on several devices, replayed on one, bit for bit, and the report names
the replica."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import warm_python
from conftest import ROOT, environment
from replica_trainings import BAD_STEP, ROWS
from trainings import BATCH, data, mlp, replayed, with_all_variables
from warm_python import WarmProcess

from nanreplay import AttachError, Capture, NonFiniteError, Recorder
from nanreplay.capture.arrays import write_array
from nanreplay.commands import run_command_line
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain, explain_run
from nanreplay.report.report_json import to_json
from nanreplay.triage.capture_answer import answer_of
from nanreplay.triage.failure_groups import TriagedCapture, grouped

pytestmark = pytest.mark.xdist_group("replicas")  # one worker makes the captures


def trained(folder: Path, replicas: int, *more: str) -> Path:
    script = ROOT / "tests" / "integration" / "replica_trainings.py"
    arguments = [script, folder, str(replicas), *more]
    warm_python.run(arguments, check=True, env=environment())
    return folder


REPLICAS = 3
"""The fewest whose gradients have an order in which they are added up."""
LAST = REPLICAS - 1
"""The one that gets the bad row."""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("several"), REPLICAS)


@cache
def told(path: Path) -> Report:
    return explain(path, fixes="none")


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_the_recorder_does_not_change_the_training_of_replicas(
    tmp_path: Path, replicas: int
) -> None:
    with_recorder, without = json.loads(
        (trained(tmp_path, replicas, "healthy") / "digests.json").read_text()
    )
    assert with_recorder == without


@pytest.mark.parametrize("name", ["fit", "loop"])
def test_replicas_replay_on_one_device_bit_for_bit(several: Path, name: str) -> None:
    assert_replays(several / f"{name}.h5")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sparse", "scaled"])
def test_replicas_of_sparse_gradients_or_a_scaled_loss_replay_bit_for_bit(
    tmp_path: Path, name: str
) -> None:
    path = trained(tmp_path, REPLICAS, name) / f"{name}.h5"
    assert_replays(path)
    with Capture(path) as capture:
        assert not capture.incident.notes  # what the replicas exchanged is in the capture


def assert_replays(path: Path) -> None:
    results = replayed(path)
    assert [result.step for result in results] == list(range(BAD_STEP + 1))
    assert all(result.bit_exact for result in results)
    assert not results[-1].finite
    nonfinite = results[-1].nonfinite
    assert nonfinite is not None
    assert nonfinite.name != "loss of replica 0"  # that one is finite


@pytest.mark.parametrize("name", ["fit", "loop"])
def test_the_report_names_the_replica_and_the_row_of_its_batch(several: Path, name: str) -> None:
    report = told(several / f"{name}.h5")
    origin = report.findings.origin
    assert origin is not None
    facts = (origin.op_type, origin.layer, origin.replica, origin.worker)
    assert facts == ("Log", "logarithm", LAST, None)
    assert report.sentence.startswith(
        f"step {BAD_STEP} · replica {LAST} · forward · layer `logarithm`"
    )
    # `fit` is given whole batches; a loop may give each replica what it likes.
    is_fit = name == "fit"
    row, in_part = (LAST * ROWS + 1, (1,)) if is_fit else (1, None)
    assert (origin.rows, origin.replica_rows) == ((row,), in_part)
    of = "the batch, row 1 of the replica's part" if is_fit else "its part of the batch"
    assert f"(sample {row} of {of})" in report.sentence
    assert to_json(report)["origin"]["rows"] == [row]
    assert report.verdict.bit_exact


def of_gpus(graph: bytes, exchange: str) -> bytes:
    """The same program as several GPUs trace it: with ops of NCCL, or of a later version."""
    parsed = tf.compat.v1.GraphDef.FromString(graph)
    numbers: dict[str, int] = {}
    for node in parsed.node:
        node.device = node.device.replace("CPU", "GPU")
    for node in [node for node in parsed.node if node.op == "CollectiveReduceV2"]:
        data, kind, device = node.input[0], node.attr["T"].type, node.device
        merge, name = node.attr["merge_op"].s, node.name
        assert node.attr["final_op"].s == b"Id"
        numbers[device] = numbers.get(device, -1) + 1
        node.CopyFrom(tf.compat.v1.NodeDef(name=name, op=exchange, device=device, input=[data]))
        node.attr["T"].type = kind
        if exchange == "NcclAllReduce":
            node.attr["reduction"].s = {b"Add": b"sum"}[merge]
            node.attr["num_devices"].i = REPLICAS
            node.attr["shared_name"].s = f"c{numbers[device]}".encode()
            continue
        node.attr["reduction"].s = merge
        node.input.extend([f"{name}/communicator", f"{name}/replicas"])
        replicas = parsed.node.add(name=f"{name}/replicas", op="Const")
        replicas.attr["dtype"].type = tf.int32.as_datatype_enum
        replicas.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([list(range(REPLICAS))]))
        keys = [f"{name}/replicas/key", f"{name}/replicas/rank", f"{name}/replicas/size"]
        parsed.node.add(
            name=f"{name}/communicator", op="CollectiveInitializeCommunicator", input=keys
        )
        for key, value in zip(keys, (1, 0, REPLICAS), strict=True):
            constant = parsed.node.add(name=key, op="Const")
            constant.attr["dtype"].type = tf.int32.as_datatype_enum
            constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    assert numbers
    return parsed.SerializeToString()


@pytest.mark.parametrize(
    "exchange", ["NcclAllReduce", pytest.param("CollectiveReduceV3", marks=pytest.mark.slow)]
)
def test_what_gpus_exchange_replays_on_one_cpu(
    several: Path, tmp_path: Path, exchange: str
) -> None:
    shutil.copy(several / "fit.h5", tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        for program in file["program"].values():
            graph = np.frombuffer(of_gpus(program["graph"][()].tobytes(), exchange), np.uint8)
            del program["graph"]
            write_array(program, "graph", graph)
    assert all(result.bit_exact for result in replayed(tmp_path / "run.h5"))
    report = explain(tmp_path / "run.h5", fixes=["epsilon"])
    origin = report.findings.origin
    assert origin is not None
    assert (origin.step, origin.op_type, origin.layer) == (BAD_STEP, "Log", "logarithm")
    assert (origin.replica, origin.rows) == (LAST, (LAST * ROWS + 1,))
    assert report.causes[0].kind == "log_of_zero"
    assert [fix.prevents for fix in report.fixes] == [True]


@pytest.mark.slow
def test_a_batch_that_is_bad_itself_is_named_by_replica(tmp_path: Path) -> None:
    origin = told(trained(tmp_path, REPLICAS, "sparse") / "sparse.h5").findings.origin
    assert origin is not None
    assert (origin.where, origin.replica, origin.rows, origin.operands[0].name) == (
        "input",
        LAST,
        (LAST * ROWS + 1,),
        f"batch[replica_{LAST}/1]",
    )


def test_variables_batches_and_the_dump_name_replicas(several: Path) -> None:
    with Capture(several / "fit.h5") as capture:
        paths = {info.path for info in capture.variables_info}
        assert {
            "sequential/hidden/kernel",
            f"sequential/hidden/kernel/replica_{LAST}",
        } <= paths
        assert capture.batch(0).paths == tuple(
            f"replica_{replica}/{part}" for part in (0, 1) for replica in range(REPLICAS)
        )
        assert (capture.incident.reproduced, capture.incident.bit_exact) == (True, True)
        assert not capture.incident.notes


@pytest.mark.slow
def test_two_replicas(tmp_path: Path) -> None:
    folder = trained(trained(tmp_path, 2), 2, "sparse")
    for name in ("fit", "sparse", "loop"):
        assert all(result.bit_exact for result in replayed(folder / f"{name}.h5"))
        origin = told(folder / f"{name}.h5").findings.origin
        assert origin is not None
        assert origin.replica == 1


@pytest.mark.slow
def test_fixes_are_tried_on_the_replica_that_needs_them(several: Path) -> None:
    report = explain(several / "fit.h5", fixes=["clean_data=drop_rows", "epsilon", "clipnorm=1.0"])
    assert {fix.name: fix.prevents for fix in report.fixes} == {
        "clean_data": True, "epsilon": True, "clipnorm": False, "clean_data+epsilon+clipnorm": True,
    }  # fmt: skip
    assert report.fixes[0].edits[0]["rows"] == [LAST * ROWS + 1]  # of fit's batch


def test_the_size_of_a_batch_stays_open_where_keras_leaves_it_open(tmp_path: Path) -> None:
    def weights(*callbacks: Any) -> list[bytes]:
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.layers.Dense(8, "tanh"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(optimizer="adam", loss="mse")
        model.build((None, 2))
        with_all_variables(model)
        x, y = data(None, features=2)
        model.fit(
            tf.data.Dataset.from_tensor_slices((x, y)).batch(6),
            callbacks=list(callbacks),
            verbose=0,
            shuffle=False,
        )
        return [np.asarray(variable).tobytes() for variable in model.variables]

    assert weights(Recorder(tmp_path / "run.h5")) == weights()


def test_a_training_within_the_scope_of_its_strategy_is_run_again_at_the_dump(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.h5"
    x, y = data(3)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope(), pytest.raises(NonFiniteError):
        mlp().fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[Recorder(path)])
    with Capture(path) as capture:
        assert (capture.incident.trigger.what, capture.incident.step) == ("loss", 3)
        assert (capture.incident.reproduced, capture.incident.bit_exact) == (True, True)
        assert not capture.incident.notes


@pytest.mark.parametrize("name", ["ParameterServerStrategy", "TPUStrategy"])
def test_other_strategies_are_refused_at_attach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = mlp()
    monkeypatch.setattr(
        type(model),
        "distribute_strategy",
        property(lambda model: type(name, (), {"num_replicas_in_sync": 2})()),
    )
    with pytest.raises(AttachError, match=name):
        Recorder(tmp_path / "run.h5").set_model(model)


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}])
def test_replicas_run_eagerly_or_by_xla_are_refused_at_attach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
    model = mlp(**how)
    monkeypatch.setattr(type(model), "distribute_strategy", property(lambda model: strategy))
    with pytest.raises(AttachError, match=next(iter(how))):
        Recorder(tmp_path / "run.h5").set_model(model)


# Workers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers; the second one's batch is bad, and each leaves at its incident without waiting
    for the other."""
    folder, ports = tmp_path_factory.mktemp("workers"), ",".join(str(free_port()) for _ in range(2))
    script = ROOT / "tests" / "integration" / "worker_training.py"
    with contextlib.ExitStack() as running:
        both = [
            running.enter_context(
                contextlib.closing(
                    WarmProcess([script, folder, str(index), ports, "1"], env=environment())
                )
            )
            for index in range(2)
        ]
        assert [each.wait(warm_python.HANGS_S) for each in both] == [0, 0]
    return folder


def test_each_worker_writes_its_file_whatever_becomes_of_the_others(workers: Path) -> None:
    names = []
    for index in range(2):
        with Capture(workers / f"run.{index}.h5") as capture:
            assert (capture.metadata["worker"], capture.metadata["workers"]) == (str(index), "2")
            assert (
                capture.incident.step,
                capture.incident.reproduced,
                capture.incident.bit_exact,
            ) == (BAD_STEP, True, True)
            names.append(capture.incident.trigger.what)
    assert names == ["variable", "loss"]


def test_each_worker_replays_alone_bit_for_bit(workers: Path) -> None:
    for index in range(2):
        results = replayed(workers / f"run.{index}.h5")
        assert len(results) == BAD_STEP + 1
        assert all(result.bit_exact for result in results)


def test_a_worker_that_got_it_from_another_says_so(workers: Path) -> None:
    report = told(workers / "run.0.h5")
    assert report.findings.origin is None
    assert "It came from another worker" in report.sentence


def test_the_files_of_all_workers_are_one_run(workers: Path) -> None:
    report = explain_run(
        [workers / "run.0.h5", workers / "run.1.h5"], lambda path: told(Path(path))
    )
    origin = report.findings.origin
    assert origin is not None
    assert (origin.worker, origin.op_type, origin.layer, origin.rows) == (
        1,
        "Log",
        "logarithm",
        (1,),
    )
    assert report.sentence.startswith(f"step {BAD_STEP} · worker 1 · forward")
    assert to_json(report)["origin"]["worker"] == 1


def test_triage_puts_the_files_of_all_workers_into_one_group(workers: Path) -> None:
    answers = [answer_of(str(workers / f"run.{index}.h5"), trust=False) for index in range(2)]
    result = grouped(TriagedCapture(answer, 1) for answer in answers)
    (group,) = result.groups
    assert (len(group.captures), len(group.runs)) == (2, 1)
    assert (group.key.op_type, group.key.layer) == ("Log", "logarithm")
    assert "worker 1" in group.cheapest.answer.sentence


def test_info_and_bisect_take_the_files_of_all_workers(
    workers: Path, several: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [str(workers / f"run.{index}.h5") for index in range(2)]
    assert run_command_line(["info", *files]) == 0
    said = capfd.readouterr().out
    assert all(f"{index} of 2, counted from 0" in said for index in range(2))
    assert run_command_line(["bisect", files[0], files[0]]) == 2
    assert "is of worker 0" in capfd.readouterr().err
    assert run_command_line(["bisect", files[0], str(several / "fit.h5")]) == 2
    assert "not the capture of one of several workers" in capfd.readouterr().err


UNBUILT = """
import sys
import keras, tensorflow as tf
from nanreplay import Recorder
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.threading.set_inter_op_parallelism_threads(4)
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    dense, optimizer = keras.layers.Dense(2), keras.optimizers.Adam()
    dense.build((None, 3))

def replica_step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(dense(x)))
    optimizer.apply(tape.gradient(loss, dense.trainable_variables), dense.trainable_variables)

step = Recorder(sys.argv[1]).wrap(tf.function(lambda x: strategy.run(replica_step, args=(x,))))
try:
    step(tf.ones([4, 3]))
except tf.errors.InvalidArgumentError:  # TensorFlow's own: the optimizer has to be built before
    print("raised")
"""


@pytest.mark.slow
def test_a_step_that_raises_before_its_slots_have_values_leaves_a_whole_file(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", UNBUILT, str(tmp_path / "run.h5")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    assert done.stdout == "raised\n"
    assert "raised" in told(tmp_path / "run.h5").sentence

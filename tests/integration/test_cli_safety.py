"""The command line on captures of strangers: what reaches out, takes all memory or is damaged is
one line and exit code 2."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from fuzzing import read_everything
from mutations import mutate

from nanreplay import Capture, Replay
from nanreplay.capture import write_capture
from nanreplay.errors import FormatError, NanreplayError

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SAMPLE = Path(__file__).parents[2] / "sample_runs" / "log_of_zero.h5"


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A capture whose program makes a tensor of 149 GiB beside what it was traced for."""
    with Capture(SAMPLE) as capture:
        contents = capture.contents()
    with tf.Graph().as_default() as extra:
        tf.fill([200_000, 200_000], 1.0, name="huge")
    programs = []
    for program in contents.programs:
        graph = tf.compat.v1.GraphDef.FromString(program.graph)
        graph.MergeFrom(extra.as_graph_def())
        effects = (*program.signature.control_outputs, "huge")
        programs.append(
            replace(
                program,
                graph=graph.SerializeToString(),
                signature=replace(program.signature, control_outputs=effects),
            )
        )
    write_capture(tmp_path / "bomb.h5", replace(contents, programs=tuple(programs)))
    return tmp_path / "bomb.h5"


def test_a_program_that_takes_all_memory_is_refused_before_it_runs(
    command: Command, bomb: Path
) -> None:
    child = command("bisect", bomb, "--max-memory", "8GiB")
    assert child.returncode == 2
    assert child.stderr.count("\n") == 1
    assert (
        "Fill 'huge' is refused: its tensor would take 149.0 GiB; 8.0 GiB may be taken. "
        "(--max-memory 150GiB allows it" in child.stderr
    )


def test_a_limit_that_is_no_size_is_wrong_usage(command: Command) -> None:
    child = command("info", SAMPLE, "--max-memory", "lots")
    assert child.returncode == 2
    assert "'lots' is no size" in child.stderr


def test_a_file_may_be_named_by_url(command: Command) -> None:
    assert (
        command("info", f"file://{SAMPLE}", "--json").stdout
        == command("info", SAMPLE, "--json").stdout
    )
    child = command("info", "nosuch://bucket/run.h5")
    assert child.returncode == 2
    assert child.stderr.startswith("nanreplay: nosuch://bucket/run.h5: ")
    assert child.stderr.count("\n") == 1


def test_values_that_do_not_fit_their_variables_are_damage(tmp_path: Path) -> None:
    with Capture(SAMPLE) as capture:
        contents = capture.contents()
    step, state = next(iter(contents.keyframes.items()))
    index = next(index for index, value in state.items() if value.ndim == 2)
    write_capture(
        tmp_path / "x.h5", replace(contents, keyframes={step: {**state, index: state[index].T}})
    )
    with (
        Capture(tmp_path / "x.h5") as capture,
        Replay(capture) as replay,
        pytest.raises(FormatError, match="has the shape"),
    ):
        replay.run_window()


def test_a_batch_that_lacks_an_array_is_damage(tmp_path: Path) -> None:
    with Capture(SAMPLE) as capture:
        contents = capture.contents()
    batches = {
        step: replace(batch, leaves=batch.leaves[:1], paths=batch.paths[:1])
        for step, batch in contents.batches.items()
    }
    write_capture(tmp_path / "x.h5", replace(contents, batches=batches))
    with (
        Capture(tmp_path / "x.h5") as capture,
        Replay(capture) as replay,
        pytest.raises(FormatError, match="takes 2 arrays"),
    ):
        replay.run_window()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_captures_that_can_be_read_replay_or_say_why_not(tmp_path: Path) -> None:
    path, ran = tmp_path / "case.h5", 0
    for seed in range(700):
        _, data = mutate(seed, [SAMPLE.read_bytes()], str(tmp_path / "elsewhere"))
        path.write_bytes(data)
        try:
            read_everything(path)
            with Capture(path) as capture, Replay(capture) as replay:
                replay.run_window("recorded")
                replay.run_window("ops", first=capture.incident.step)
            ran += 1
        except NanreplayError:
            continue
    assert ran > 20


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A capture whose program reads a file."""
    with Capture(SAMPLE) as capture:
        contents = capture.contents()
    with tf.Graph().as_default() as extra:
        tf.io.read_file("/etc/hostname", name="reads")
    programs = []
    for program in contents.programs:
        graph = tf.compat.v1.GraphDef.FromString(program.graph)
        graph.MergeFrom(extra.as_graph_def())
        effects = (*program.signature.control_outputs, "reads")
        signature = replace(program.signature, control_outputs=effects)
        programs.append(replace(program, graph=graph.SerializeToString(), signature=signature))
    # One weight differs, so that the step is run to tell where the two part.
    keyframes = {step: dict(values) for step, values in contents.keyframes.items()}
    first = min(keyframes)
    keyframes[first] = {
        index: value + value.dtype.type(1) for index, value in keyframes[first].items()
    }
    path = tmp_path / "reader.h5"
    write_capture(path, replace(contents, programs=tuple(programs), keyframes=keyframes))
    return path


@pytest.mark.parametrize("is_first", [True, False])
def test_neither_side_of_a_comparison_is_trusted_unasked(
    command: Command, reader: Path, is_first: bool
) -> None:
    sides = (reader, SAMPLE) if is_first else (SAMPLE, reader)
    child = command("diff", *sides)
    assert child.returncode == 1, child.stderr
    assert "they part at step 0" in child.stdout
    assert "ReadFile 'reads' (files)" in child.stdout  # why it is not said which op parts

"""Telling two captures, two modes, or a capture and today's code apart."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanreplay import Capture, Replay
from nanreplay.capture import write_capture
from nanreplay.commands import run_command_line
from nanreplay.diagnose.mode_differences import float64_difference
from nanreplay.diff import diff_captures, diff_modes
from nanreplay.diff.diff_findings import Changed, Diff, sentence_of
from nanreplay.records import BatchRecord, CaptureContents

RUNS = Path(__file__).resolve().parents[2] / "sample_runs"
FLOWERS = RUNS / "log_of_zero.h5"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def changed(path: Path, change: Callable[[CaptureContents], CaptureContents]) -> Path:
    """A capture like the flowers', with something changed."""
    with Capture(FLOWERS) as capture:
        write_capture(path, change(capture.contents()))
    return path


def with_batch(
    contents: CaptureContents, step: int, change: Callable[[BatchRecord], BatchRecord]
) -> CaptureContents:
    return replace(contents, batches={**contents.batches, step: change(contents.batches[step])})


def moved(array: Any, index: tuple[int, ...]) -> Any:
    array = np.array(array)
    array[index] += 0.5
    return array


def test_a_copy_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copy(FLOWERS, tmp_path / "copy.h5")
    assert run_command_line(["diff", str(FLOWERS), str(copy)]) == 0
    assert (
        capsys.readouterr().out
        == f"{FLOWERS} and {copy}: same: steps 0 to 12 are equal bit for bit\n"
    )


def test_todays_fix_is_told_from_the_recorded_bug(tmp_path: Path, command: Command) -> None:
    shutil.copy(Path(__file__).with_name("today_models.py"), tmp_path / "train.py")
    child = command("diff", FLOWERS, "--model", "train:mended_flowers", "--json", cwd=tmp_path)
    assert child.returncode == 1, child.stderr
    found = json.loads(child.stdout)
    assert (found["format"], found["same"], found["step"]) == ("nanreplay-diff", False, 0)
    assert (
        found["op"]["op_type"],
        found["op"]["phase"],
        Path(found["op"]["source"]["file"]).name,
    ) == ("Log", "loss", "train.py")
    assert {"op_type": "AddV2", "layer_path": "", "phase": "loss", "left": 0, "right": 1} in found[
        "ops"
    ]
    assert found["settings"] == [
        {"name": "incident", "left": "step 12: loss is NaN", "right": "none"}
    ]
    assert (found["variables"], found["state"], found["batch"]) == ([], [], [])


def test_another_batch_parts_at_its_step_and_at_the_first_op_that_sees_it(tmp_path: Path) -> None:
    def change(batch: BatchRecord) -> BatchRecord:
        return replace(batch, leaves=(moved(batch.leaves[0], (7, 2)), *batch.leaves[1:]))

    found = diff_captures(
        FLOWERS, changed(tmp_path / "other.h5", lambda contents: with_batch(contents, 5, change))
    )
    assert (found.step, found.same) == (5, False)
    assert [(each.name, each.elements, each.index) for each in found.batch] == [
        ("batch[0]", 1, (7, 2))
    ]
    assert found.op is not None
    assert (found.op.op_type, found.op.layer_path) == ("MatMul", "hidden")
    assert found.op.difference is not None
    assert found.op.difference.index[0] == 7
    assert found.sentence.startswith(
        "they part at step 5, where `batch[0]` differs already: forward · layer `hidden` · "
        "`MatMul` gave "
    )


def test_captures_of_two_data_sets_part_by_the_shape_of_their_batches() -> None:
    form = Changed("batch[0]", "float32[32, 16]", "float32[64, 12]")
    apart = Diff("a.h5", "b.h5", False, "", settings=(form,), step=0)
    assert sentence_of(apart) == (
        "they part at step 0, where the batches have other shapes or types"
    )


def test_another_first_state_is_told_by_variable(tmp_path: Path) -> None:
    def change(contents: CaptureContents) -> CaptureContents:
        kernel = next(
            index
            for index, info in enumerate(contents.variables)
            if info.path == "sequential/species/kernel"
        )
        return replace(
            contents,
            keyframes={
                0: {**contents.keyframes[0], kernel: moved(contents.keyframes[0][kernel], (3, 1))}
            },
        )

    found = diff_captures(FLOWERS, changed(tmp_path / "other.h5", change))
    assert (found.step, found.same) == (0, False)
    assert [(each.name, each.elements, each.index) for each in found.state] == [
        ("sequential/species/kernel", 1, (3, 1))
    ]


def test_another_run_differs_in_settings_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["diff", str(FLOWERS), str(RUNS / "division_by_zero.h5")]) == 1
    text = capsys.readouterr().out
    for line in (
        "incident: step 12: loss is NaN against step 17: loss is inf",
        "learning rate: 0.01 against 0.001",
        "sequential/hidden/kernel: float32[4, 16] against none",
        "Softmax (forward, layer species): 1, 0",
    ):
        assert f"  {line}\n" in text


def test_versions_are_listed_and_do_not_count(tmp_path: Path) -> None:
    other = changed(
        tmp_path / "other.h5",
        lambda contents: replace(contents, metadata={**contents.metadata, "tensorflow": "2.18.0"}),
    )
    found = diff_captures(FLOWERS, other)
    assert found.same is True
    assert [(each.name, each.right) for each in found.environment] == [("tensorflow", "2.18.0")]


def test_a_loss_that_is_returned_under_a_key_is_told_by_it(tmp_path: Path) -> None:
    def with_key(contents: CaptureContents) -> CaptureContents:
        programs = []
        for program in contents.programs:
            signature = replace(program.signature, loss_keys=("d_loss",))
            programs.append(replace(program, signature=signature))
        return replace(contents, programs=tuple(programs))

    def with_another_loss(contents: CaptureContents) -> CaptureContents:
        place = contents.programs[0].signature.watch_layout.index("loss:0")
        return with_batch(
            with_key(contents),
            1,
            lambda batch: replace(batch, fingerprint=moved(batch.fingerprint, (place,))),
        )

    left = changed(tmp_path / "left.h5", with_key)
    found = diff_captures(left, changed(tmp_path / "right.h5", with_another_loss))
    assert [value.name for value in found.values] == ["d_loss"]


def test_steps_without_fingerprints_decide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def blind(contents: CaptureContents) -> CaptureContents:
        return replace(
            contents,
            batches={
                step: replace(batch, fingerprint=None) for step, batch in contents.batches.items()
            },
        )

    assert run_command_line(["diff", str(FLOWERS), str(changed(tmp_path / "other.h5", blind))]) == 3
    assert (
        "cannot decide: nothing that both sides hold differs, but not all of it could be compared."
        in capsys.readouterr().out
    )


def test_modes_that_compute_the_same_are_the_same() -> None:
    found = diff_modes(RUNS / "custom_eager_loop.h5", "recorded", "ops")
    assert (found.same, found.sentence) == (True, "same: step 79 is equal bit for bit")


@pytest.mark.slow
def test_modes_part_at_a_step_and_an_op() -> None:
    found = diff_modes(RUNS / "xla_label_out_of_range.h5", "recorded", "ops")
    assert (found.same, found.step) == (False, 0)
    assert found.op is not None
    found = diff_modes(RUNS / "float16_overflow.h5", "recorded", "float64")
    assert found.op is not None
    assert (found.op.op_type, found.op.layer_path) == ("Square", "energy")


def test_the_op_that_is_finite_in_float64_alone_is_found() -> None:
    with Capture(RUNS / "float16_overflow.h5") as capture, Replay(capture) as replay:
        found = float64_difference(replay, capture.incident.step)
    assert found is not None
    assert found.first_nonfinite is not None
    assert (found.first_nonfinite.op_type, found.first_nonfinite.layer_path) == ("Square", "energy")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--modes", "warp,ops"],
        ["--modes", "ops"],
        ["--map", "a=b", "x"],
        ["x", "--modes", "ops,graph"],
        ["nope.h5"],
    ],
)
def test_usage_errors_and_missing_files_are_one_line(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["diff", str(FLOWERS), *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)

"""Each format of logs is read by what it holds: values, steps, and what is missing in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from nanreplay.commands import run_command_line
from nanreplay.logs.log_answer import LogAnswer, answer
from nanreplay.logs.logged_run import ScalarSeries
from nanreplay.logs.run_reader import read_runs

FILES = Path(__file__).parent / "files"
CONSOLE = """\
Epoch 1/3
\r\x1b[1m1/4\x1b[0m \x1b[32m━━━━━\x1b[0m\x1b[37m━━━━\x1b[0m \x1b[1m0s\x1b[0m 96ms/step - loss: 0.41\
\x08\x08\x08\r\x1b[1m4/4\x1b[0m \x1b[32m━━━━━━━━━━━━━━━\x1b[0m\x1b[37m\x1b[0m 1s 9ms/step - \
accuracy: 0.5 - loss: 0.39 - val_loss: 0.37
Epoch 2/3
4/4 [==============================] - 0s 3ms/step - loss: 0.35 - val_loss: 0.36
Epoch 3/3
4/4 - 0s - 3ms/step - loss: nan - val_loss: nan
"""


def only_run(path: Path, pattern: str | None = None) -> LogAnswer:
    read = read_runs([str(path)], pattern=pattern)
    assert read.problems == ()
    assert len(read.runs) == 1
    return answer(read.runs[0])


def series(found: LogAnswer, tag: str) -> ScalarSeries:
    return next(each for each in found.run.series if each.tag == tag)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_mlflow(tmp_path: Path) -> None:
    found = only_run(FILES / "mlflow_run")
    assert found.first is not None
    assert (found.first.tag, found.first.step) == ("loss", 4)
    assert series(found, "train/accuracy").values.tolist() == [0.5] * 6


def test_weights_and_biases() -> None:
    found = only_run(FILES / "offline.wandb")
    assert found.first is not None
    assert (found.first.tag, found.first.step) == ("loss", 4)
    assert series(found, "loss").values[:4].tolist() == [1.0, 0.5, 0.25, 0.125]
    assert series(found, "optimizer/lr").role == "learning_rate"


def test_keras_output_in_all_its_styles(tmp_path: Path) -> None:
    found = only_run(write(tmp_path / "train.log", CONSOLE))
    loss = series(found, "loss")
    assert loss.steps.tolist() == [1, 4, 8, 12]
    assert loss.values[:3].tolist() == [0.41, 0.39, 0.35]
    assert math.isnan(loss.values[3])
    assert series(found, "val_loss").steps.tolist() == [4, 8, 12]
    assert found.first is not None
    assert found.first.step == 12


@pytest.mark.parametrize(
    ("lines", "steps", "losses"),
    [
        (["step 100 loss: 0.5", "step 200 loss: nan"], [100, 200], [0.5, math.nan]),
        (
            ["Training loss (for one batch) at step 0: 89.4", "... at step 200: loss inf"],
            [0, 200],
            [89.4, math.inf],
        ),
        (
            ["INFO 10:00 iter 1,000: loss 0.5, lr 0.001, time 12ms", "iter 2,000: loss 0.25"],
            [1000, 2000],
            [0.5, 0.25],
        ),
        (
            ["Epoch 1 [2/4] loss=0.5", "Epoch 1 [4/4] loss=0.4", "Epoch 2 [2/4] loss=nan"],
            [2, 4, 6],
            [0.5, 0.4, math.nan],
        ),
        (
            [
                "step 1: loss = tf.Tensor(0.5, shape=(), dtype=float32)",
                "step 2: loss = tensor(1e3)",
            ],
            [1, 2],
            [0.5, 1000.0],
        ),
        (["{'loss': 0.5, 'epoch': 0.5}", "{'loss': nan, 'epoch': 1.0}"], [0.5, 1], [0.5, math.nan]),
        (["loss: 0.5", "loss: 0.25"], [0, 1], [0.5, 0.25]),
    ],
)
def test_loops_that_print(
    lines: list[str], steps: list[float], losses: list[float], tmp_path: Path
) -> None:
    found = only_run(write(tmp_path / "out.txt", "\n".join(["Loading.", *lines]) + "\n"))
    loss = series(found, "loss")
    np.testing.assert_array_equal(loss.steps, steps)
    np.testing.assert_array_equal(loss.values, losses)


def test_a_pattern_of_ones_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "out.txt", "## 10 => 0.5\n## 20 => NaN\n")
    pattern = r"## (?P<step>\d+) => (?P<loss>\S+)"
    found = only_run(path, pattern)
    assert found.first is not None
    assert found.first.step == 20
    assert run_command_line(["logs", str(path), "--pattern", "(("]) == 2
    assert "is no regular expression" in capfd.readouterr().err


def test_what_an_epoch_did_not_get_to_is_no_nan(tmp_path: Path) -> None:
    """`CSVLogger` writes `NA` for the validation of an epoch that was ended."""
    text = "epoch,loss,val_loss\r\n0,0.5,0.6\r\n1,0.4,NA\r\n2,0.3,\r\n"
    found = only_run(write(tmp_path / "training.csv", text))
    assert found.status == "finite"
    assert series(found, "val_loss").steps.tolist() == [0]


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    found = only_run(write(tmp_path / "training.csv", "epoch,loss,mae\n0,0.5,0.6\n1,0.4"))
    assert series(found, "loss").steps.tolist() == [0]
    assert any("not complete" in note for note in found.notes)


@pytest.mark.parametrize(
    "document",
    [
        {"loss": [0.5, math.nan], "val_loss": [0.6, 0.7]},
        {"history": {"loss": [0.5, math.nan], "lr": [0.1, 0.1]}, "params": {"epochs": 2}},
        {"log_history": [{"loss": 0.5, "epoch": 0}, {"loss": "NaN", "epoch": 1}]},
        [{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": math.nan}],
        {"loss": {"0": 0.5, "1": math.nan}},
    ],
)
def test_json_of_several_shapes(document: object, tmp_path: Path) -> None:
    found = only_run(write(tmp_path / "history.json", json.dumps(document)))
    assert found.first is not None
    assert (found.first.tag, found.first.axis, found.first.step) == ("loss", "epoch", 1)


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "train": {"loss": 0.5}}) for step in range(3)]
    lines.append('{"step": 3, "train": {"loss": NaN}}')
    found = only_run(write(tmp_path / "metrics.jsonl", "\n".join([*lines, '{"step": 4, "tr'])))
    assert found.first is not None
    assert (found.first.tag, found.first.step) == ("train/loss", 3)
    assert any("no JSON" in note for note in found.notes)


def test_a_restart_that_goes_back_is_understood(tmp_path: Path) -> None:
    rows = [*((step, 0.5) for step in range(0, 60, 10)), (60, math.nan)]
    rows += [(step, 0.4) for step in range(40, 90, 10)]
    text = "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss in rows)
    found = only_run(write(tmp_path / "log.csv", text))
    assert found.status == "nonfinite"
    assert found.resumed_at == 40, "the attempt that failed was trained anew, and is finite since"
    assert found.first is not None
    assert found.first.step == 60
    frame = found.run.timeline()
    assert frame["step"].tolist() == list(range(0, 90, 10))
    assert frame["loss"].notna().all()


def test_runs_side_by_side_are_told_apart(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.csv", "epoch,loss\n0,0.5\n1,0.4\n")
    write(tmp_path / "b.csv", "epoch,loss\n0,0.5\n1,nan\n")
    assert run_command_line(["logs", str(tmp_path), "--json"]) == 1
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert [(Path(each["name"]).name, each["status"]) for each in runs] == [
        ("a.csv", "finite"),
        ("b.csv", "nonfinite"),
    ]


def test_a_capture_is_looked_at_as_logs_are(capfd: pytest.CaptureFixture[str]) -> None:
    sample = Path(__file__).parents[3] / "sample_runs" / "learning_rate_too_high.h5"
    assert run_command_line(["logs", str(sample)]) == 1
    out = capfd.readouterr().out
    assert "It looks like a divergence" in out
    assert "nanreplay bisect" in out


def weights_file(path: Path, **variables: list[float]) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in variables.items():
            file[f"layers/{name}/vars/0"] = np.array(values)


def test_a_mask_of_infinities_is_no_broken_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "training.csv", "epoch,loss\n0,0.5\n1,0.4\n")
    for epoch in (1, 2):
        path = tmp_path / "checkpoints" / f"model.{epoch:02d}.weights.h5"
        weights_file(path, dense=[1.0], head=[2.0], mask=[0.0, -math.inf])
    found = only_run(tmp_path)
    assert found.status == "finite"
    assert any("a constant, such as a mask" in note for note in found.notes)


def test_a_file_of_counters_alone_has_no_largest_weight(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        file["steps"] = 7
    assert run_command_line(["logs", str(tmp_path / "counts.h5")]) == 0
    assert "Its checkpoint is finite." in capfd.readouterr().out


def test_an_infinite_weight_of_a_lone_checkpoint_is_told(tmp_path: Path) -> None:
    weights_file(tmp_path / "a.weights.h5", dense=[1.0], head=[2.0], out=[math.inf])
    found = only_run(tmp_path)
    assert found.status == "nonfinite"
    assert found.weights.hit_layers == ("layers/out",)


def test_lines_that_differ_in_their_numbers_alone_are_read_alike(tmp_path: Path) -> None:
    """The first line of a form is taken apart, the others by what it told."""
    form = "10:{0:02d} step {1:,} of 9,000 | loss: {2} | lr 1.5e-3 | 12ms/step (eta 00:10)\n"
    lines = [form.format(at, 1000 + at, 0.5 + at if at != 3 else "nan") for at in range(5)]
    found = only_run(write(tmp_path / "out.log", "".join(lines)))
    loss = series(found, "loss")
    assert loss.steps.tolist() == [1000, 1001, 1002, 1003, 1004]
    np.testing.assert_array_equal(loss.values, [0.5, 1.5, 2.5, math.nan, 4.5])
    assert series(found, "lr").values.tolist() == [1.5e-3] * 5


def test_epochs_above_the_lines_of_their_steps(tmp_path: Path) -> None:
    """The usual loop prints a heading an epoch, and steps that begin anew."""
    lines = []
    for epoch in range(2):
        lines.append(f"\nStart of epoch {epoch}")
        for step in range(3):
            loss = "nan" if (epoch, step) == (1, 1) else "0.5"
            lines.append(f"Training loss (for 1 batch) at step {step}: {loss}")
            lines.append(f"Seen so far: {(step + 1) * 16} samples")
    found = only_run(write(tmp_path / "out.log", "\n".join(lines) + "\n"))
    assert series(found, "loss").steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.first is not None
    assert (found.first.step, found.first.epoch) == (4, 1)


def test_an_epoch_of_the_console_that_was_never_finite(tmp_path: Path) -> None:
    text = (
        "Epoch 1/2\n8/8 - 1s - 9ms/step - loss: nan\nEpoch 2/2\n8/8 - 0s - 9ms/step - loss: nan\n"
    )
    found = only_run(write(tmp_path / "out.log", text))
    assert found.found is not None
    assert found.found.kind == "from_start"
    assert found.found.doubt is not None, "the first value stands for eight steps"


def test_a_log_that_begins_late_does_not_tell_the_start(tmp_path: Path) -> None:
    text = "step,loss\n" + "".join(f"{step},nan\n" for step in range(5000, 5100, 10))
    found = only_run(write(tmp_path / "log.csv", text))
    assert found.found is not None
    assert found.found.kind == "cannot_tell"

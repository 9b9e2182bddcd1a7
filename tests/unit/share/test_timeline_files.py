"""The timeline of a capture as an event file, as CSV and Parquet, as their readers see it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from fastparquet import ParquetFile

from nanreplay import Capture
from nanreplay.commands import run_command_line

SAMPLE = ROOT / "sample_runs" / "log_of_zero.h5"


def test_tensorflow_reads_the_event_file(tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    assert run_command_line(["export", str(SAMPLE), "--tensorboard", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    found: dict[str, list[tuple[int, float]]] = {}
    text = b""
    for record in tf.data.TFRecordDataset(str(file)):  # it checks every checksum
        event = event_pb2.Event.FromString(record.numpy())
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            else:
                text = value.tensor.string_val[0]
    with Capture(SAMPLE) as capture:
        timeline = capture.timeline()
        matrix = capture.matrix("gradient_norm")
        incident = capture.incident.step
    steps, losses = zip(*found["loss"], strict=True)
    np.testing.assert_array_equal(steps, timeline["step"])
    np.testing.assert_array_equal(np.float32(losses), timeline["loss"].to_numpy(np.float32))
    assert found["incident"] == [(incident, 1.0)]
    assert text == b"loss is NaN"
    path = matrix.columns[0]
    first = float(matrix[path].iloc[0])
    assert found[f"gradient_norm/{path}"][0] == (0, pytest.approx(first))


def test_csv_and_parquet_hold_every_step_and_mark_one(tmp_path: Path) -> None:
    csv, parquet = tmp_path / "run.csv", tmp_path / "run.parquet"
    assert (
        run_command_line(["export", str(SAMPLE), "--csv", str(csv), "--parquet", str(parquet)]) == 0
    )
    with Capture(SAMPLE) as capture:
        timeline, incident = capture.timeline(), capture.incident.step
    with parquet.open("rb") as file:
        read = ParquetFile(file).to_pandas()
    for frame in (pd.read_csv(csv), read):
        assert frame["step"].tolist() == timeline["step"].tolist()
        np.testing.assert_allclose(frame["loss"], timeline["loss"])
        marked = frame[frame["incident"].fillna("") != ""]
        assert marked["step"].tolist() == [incident]
        assert marked["incident"].tolist() == ["loss is NaN"]
        assert any(name.startswith("gradient_norm/") for name in frame.columns)
    assert f"{incident},nan," in csv.read_text(encoding="utf-8"), "a NaN is no empty cell"


def test_what_is_exported_is_understood_by_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_command_line(["export", str(SAMPLE), "--csv", str(tmp_path / "run.csv")])
    capfd.readouterr()
    assert run_command_line(["logs", str(tmp_path / "run.csv"), "--json"]) == 1
    first = json.loads(capfd.readouterr().out)["runs"][0]["first"]
    assert (first["tag"], first["at"]) == ("loss", 12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say what to write"),
        (["--pytest", "x"], "--pytest needs --model"),
        (["--model", "x:y", "--csv", "x"], "--model is for --pytest"),
        (["--csv", "missing/run.csv"], "does not exist"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["export", str(SAMPLE), *arguments]) == 2
    assert said in capfd.readouterr().err


def test_a_file_that_exists_is_kept_without_force(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.csv"
    path.write_text("mine", encoding="utf-8")
    assert run_command_line(["export", str(SAMPLE), "--csv", str(path)]) == 2
    assert path.read_text(encoding="utf-8") == "mine"
    assert "--force" in capfd.readouterr().err
    assert run_command_line(["export", str(SAMPLE), "--csv", str(path), "--force"]) == 0
    assert path.read_text(encoding="utf-8").startswith("step,loss")

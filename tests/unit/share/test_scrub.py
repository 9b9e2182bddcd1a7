"""Texts lose what names a folder, and nothing else."""

from __future__ import annotations

import pytest

from nanreplay.export.redaction import base_name, without_messages, without_paths, without_sources
from nanreplay.records import Frame, Incident, Trigger


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/ada/runs/7/train.py:12", "see train.py:12"),
        ("--xla_dump_to=/scratch/ada/dump/x", "--xla_dump_to=x"),
        (r"C:\Users\ada\train.py", "train.py"),
        ("gs://bucket-of-ada/data/x.tfrecord", "x.tfrecord"),
        ("~/secret/run.h5", "run.h5"),
        ("encoder/dense/kernel", "encoder/dense/kernel"),
        ("loss is 1/2", "loss is 1/2"),
        ("ab,bc->ac", "ab,bc->ac"),
    ],
)
def test_folders_go_and_names_stay(text: str, found: str) -> None:
    assert without_paths(text) == found


def test_frames_keep_the_file_the_line_and_the_function() -> None:
    assert without_sources([Frame("/home/ada/train.py", 3, "loss", "secret = 1")]) == [
        Frame("train.py", 3, "loss", None)
    ]
    assert base_name(r"D:\ada\train.py") == "train.py"


def test_what_an_exception_said_goes_with_the_notes() -> None:
    incident = without_messages(
        Incident(4, Trigger("exception", "ValueError", "bad value in /home/ada/x"), ("a note",))
    )
    assert incident.trigger == Trigger("exception", "ValueError", "(left out)")
    assert incident.notes == ()
    assert without_messages(Incident(4, Trigger("loss", "loss", "nan"))).trigger.value == "nan"

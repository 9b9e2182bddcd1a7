"""Logs and checkpoints that are cut, damaged or hostile: one clear line each, never a traceback."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import pytest

from nanreplay.commands import run_command_line
from nanreplay.logs.checkpoint_files import read_checkpoint
from nanreplay.logs.wire_format import fields_of

Make = Callable[[Path], Path]


def masked(data: bytes) -> int:
    value = google_crc32c.value(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record(event: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(event))
    crc, data_crc = struct.pack("<I", masked(length)), struct.pack("<I", masked(event))
    return length + crc + event + data_crc


def scalar_event(step: int, tag: str, value: float) -> bytes:
    """An `Event` of the first summary version."""
    inner = b"\x0a" + bytes([len(tag)]) + tag.encode() + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + bytes([len(inner)]) + inner
    body = b"\x09" + struct.pack("<d", 1.7e9 + step)
    if step:
        digits = b""
        while step >= 0x80:
            digits += bytes([step & 0x7F | 0x80])
            step >>= 7
        body += b"\x10" + digits + bytes([step])
    return body + b"\x2a" + bytes([len(summary)]) + summary


def events(path: Path, values: list[float]) -> bytes:
    head = record(b"\x09" + struct.pack("<d", 1.7e9) + b"\x1a\x0dbrain.Event:2")
    data = head + b"".join(
        record(scalar_event(step, "loss", value)) for step, value in enumerate(values)
    )
    path.write_bytes(data)
    return data


def hdf5_bytes(**datasets: object) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, value in datasets.items():
            file[f"layers/{name}/vars/0"] = value
    return stream.getvalue()


def cut_in_its_first_record(folder: Path) -> Path:
    path = folder / "events.out.tfevents.1.host"
    path.write_bytes(events(path, [1.0])[:9])
    return path


def empty_event_file(folder: Path) -> Path:
    path = folder / "events.out.tfevents.1.host"
    path.touch()
    return path


def only_a_version(folder: Path) -> Path:
    path = folder / "events.out.tfevents.1.host"
    events(path, [])
    return path


def empty_folder(folder: Path) -> Path:
    return folder


def no_such_file(folder: Path) -> Path:
    return folder / "nothing"


def table_without_data(folder: Path) -> Path:
    path = folder / "ckpt-1.index"
    path.write_bytes(bundle_index())
    return path


def data_without_table(folder: Path) -> Path:
    path = folder / "ckpt-1.data-00000-of-00001"
    path.write_bytes(bytes(32))
    return path


def cut_table(folder: Path) -> Path:
    path = folder / "ckpt-1.index"
    path.write_bytes(bundle_index()[:-10])
    (folder / "ckpt-1.data-00000-of-00001").write_bytes(bytes(32))
    return path


def cut_hdf5(folder: Path) -> Path:
    path = folder / "a.weights.h5"
    path.write_bytes(hdf5_bytes(dense=np.ones((64, 64)))[:-2000])
    return path


def bomb(folder: Path) -> Path:
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2**26))
    return path


def no_weights(folder: Path) -> Path:
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.h5", b"x")
        archive.writestr("config.json", "{}")
    return path


def no_archive(folder: Path) -> Path:
    path = folder / "a.keras"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    return path


def a_pickle(folder: Path) -> Path:
    path = folder / "model.pkl"
    path.write_bytes(pickle.dumps({"loss": [1.0]}))
    return path


def link_outside(folder: Path) -> Path:
    (folder / "other").mkdir()
    with h5py.File(folder / "other" / "secret.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(4)
    path = folder / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense"] = h5py.ExternalLink("other/secret.h5", "/layers/dense")
    return path


def data_outside(folder: Path) -> Path:
    (folder / "secret").write_bytes(bytes(64))
    path = folder / "a.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", (8,), "f8", external=[(str(folder / "secret"), 0, 64)])
    return path


def huge_shape(folder: Path) -> Path:
    path = folder / "a.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", (2**20, 2**20), "f4", chunks=(1024, 1024))
    return path


def pattern_of_braces(folder: Path) -> Path:
    path = folder / "history.json"
    path.write_text("[" * 100_000, encoding="utf-8")
    return path


def header_alone(folder: Path) -> Path:
    path = folder / "training.csv"
    path.write_text("epoch,loss\n", encoding="utf-8")
    return path


def text_without_values(folder: Path) -> Path:
    path = folder / "train.log"
    path.write_text("Loading data.\nDone.\n", encoding="utf-8")
    return path


def bundle_index(shape: int = 8, size: int = 32, shards: int = 1) -> bytes:
    """The table of a checkpoint with one variable."""
    header = b"\x08" + bytes([shards])
    dimension = b"\x08" + bytes([shape])
    inner = b"\x12" + bytes([len(dimension)]) + dimension
    entry = b"\x08\x01\x12" + bytes([len(inner)]) + inner + b"\x28" + bytes([size])
    return table([(b"", header), (b"dense/kernel", entry)])


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    def block(items: list[tuple[bytes, bytes]]) -> bytes:
        data = b"".join(bytes([0, len(key), len(value)]) + key + value for key, value in items)
        data += struct.pack("<II", 0, 1)
        return data + b"\0" + struct.pack("<I", masked(data + b"\0"))

    data = block(entries)
    meta = block([])
    handle = bytes([0, len(data) - 5])
    index = block([(b"z", handle)])
    footer = bytes([len(data), len(meta) - 5, len(data) + len(meta), len(index) - 5])
    assert max(footer) < 0x80, "the numbers of the test's table take one byte"
    return data + meta + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HOSTILE: dict[Make, str] = {
    cut_in_its_first_record: "ends within its first record",
    empty_event_file: "is empty",
    only_a_version: "no value was logged to it yet",
    empty_folder: "holds no logs and no checkpoints",
    no_such_file: "no such file or folder",
    table_without_data: "its data is missing",
    data_without_table: "ckpt-1.index is not there",
    cut_table: "is no table of a checkpoint, or is damaged",
    cut_hdf5: "is cut off: ",
    bomb: "would unpack",
    no_weights: "no Keras model",
    no_archive: "a damaged archive",
    a_pickle: "is a pickle",
    link_outside: "is a link to somewhere else",
    data_outside: "takes its numbers from another file",
    huge_shape: "is larger than what is stored of it",
    pattern_of_braces: "is no whole JSON document",
    header_alone: "has a header and no rows yet",
    text_without_values: "has no line that tells a loss or a metric",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_bad_file_is_one_clear_line(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    code = run_command_line(["logs", str(path)])
    error = capfd.readouterr().err
    assert re.fullmatch(r"nanreplay: [^\n]+\n", error), error
    assert HOSTILE[make] in error
    assert code == 2


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_bad_file_does_not_keep_the_others_from_being_read(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    (tmp_path / "good").mkdir()
    events(tmp_path / "good" / "events.out.tfevents.2.host", [1.0, 0.5, float("nan")])
    assert run_command_line(["logs", str(tmp_path)]) == 1
    assert "`loss` becomes NaN at step 2" in capfd.readouterr().out


def test_what_is_written_so_far_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(events(path, [1.0, 0.5, 0.25])[:-3])
    assert run_command_line(["logs", str(path)]) == 0
    out = capfd.readouterr().out
    assert "up to step 1" in out
    assert "its last record is not complete" in out


def test_damage_in_the_middle_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    data = bytearray(events(path, [1.0, 0.5, 0.25, 0.2]))
    data[-60] ^= 0xFF
    path.write_bytes(data)
    assert run_command_line(["logs", str(path)]) == 0
    assert "damaged at byte" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("shape", "size", "said"),
    [(8, 16, "its shape asks for 32"), (16, 64, "ends before dense/kernel")],
)
def test_sizes_that_do_not_fit_are_refused(
    shape: int, size: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "ckpt-1.index").write_bytes(bundle_index(shape, size))
    (tmp_path / "ckpt-1.data-00000-of-00001").write_bytes(bytes(32))
    checkpoint = read_checkpoint(tmp_path / "ckpt-1.index", "bundle")
    assert said in (checkpoint.error or "")
    assert not checkpoint.is_finite


def test_a_link_that_leads_back_is_entered_once(tmp_path: Path) -> None:
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.array([1.0, np.nan])
        file["layers/dense/again"] = file["layers"]
    checkpoint = read_checkpoint(path, "hdf5")
    assert [(each.name, each.nan) for each in checkpoint.variables] == [("layers/dense/0", 1)]


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 20)) for seed in range(60)]
)
def test_flipped_bytes_never_end_in_a_traceback(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    path = tmp_path / "events.out.tfevents.1.host"
    whole = events(path, [1.0] * 20), bundle_index(), scalar_event(300, "loss", 1.0)
    for name, data in zip((path.name, "ckpt-1.index", "event"), whole, strict=True):
        damaged = bytearray(data)
        for at in random.integers(0, len(damaged), 3):
            damaged[at] = random.integers(0, 256)
        (tmp_path / name).write_bytes(damaged)
    (tmp_path / "ckpt-1.data-00000-of-00001").write_bytes(bytes(32))
    assert run_command_line(["logs", str(path)]) in (0, 1, 2)
    read_checkpoint(tmp_path / "ckpt-1.index", "bundle")
    with contextlib.suppress(ValueError):  # what is no message is said to be none
        list(fields_of((tmp_path / "event").read_bytes()))


def test_names_do_not_reach_the_terminal_as_commands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.json"
    path.write_text(
        r'{"loss \u001b[2J$x_\ud800<script>": [0.5, 0.4], "loss": [0.5, 0.4]}', encoding="utf-8"
    )
    page = tmp_path / "page.html"
    assert run_command_line(["logs", str(path), "--html", str(page)]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "loss ?[2J$x_?<script>" in out
    assert "<script>" not in page.read_text(encoding="utf-8")


def test_a_url_is_read_as_a_folder_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/logs-of-a-run/training.csv", b"epoch,loss\n0,0.5\n1,nan\n")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(3)
    weights = (tmp_path / "a.h5").read_bytes()
    memory.pipe("/logs-of-a-run/checkpoints/model.01.weights.h5", weights)
    try:
        assert run_command_line(["logs", "memory://logs-of-a-run"]) == 1
        out = capfd.readouterr().out
        assert "`loss` becomes NaN at epoch 1" in out
        assert "`memory://logs-of-a-run/checkpoints/model.01.weights.h5`" in out
        assert run_command_line(["logs", "memory://nothing-there"]) == 2
        assert "no such file or folder" in capfd.readouterr().err
    finally:
        memory.rm("/logs-of-a-run", recursive=True)

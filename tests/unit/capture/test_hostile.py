"""Captures made to harm: nothing out of the file is followed, no memory is taken for nothing, no
text reaches a terminal's controls."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sample_contents import same_bits, sample_contents

from nanreplay import Capture, limits
from nanreplay.capture import write_capture
from nanreplay.capture.arrays import read_json, write_array, write_json
from nanreplay.errors import FormatError, MemoryLimitError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_capture(tmp_path / "run.h5", sample_contents())
    return tmp_path / "run.h5"


def edited(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON table, with the right checksum."""
    with h5py.File(path, "r+") as file:
        value = change(read_json(file[name]))
        del file[name]
        parent, _, leaf = name.rpartition("/")
        write_json(file[parent or "/"], leaf, value)


def refused(path: Path, match: str) -> None:
    with pytest.raises(FormatError, match=match), Capture(path) as capture:
        capture.contents()


def array_of_a_keyframe(path: Path) -> str:
    with Capture(path) as capture:
        step = capture.keyframe_steps[0]
        return f"keyframes/{step}/{min(capture.keyframe(step))}"


LINKS = [
    h5py.ExternalLink("/etc/passwd", "/it"),
    h5py.ExternalLink("other.h5", "/it"),
    h5py.SoftLink("/metadata"),
    h5py.SoftLink("/nowhere"),
]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["incident", "metadata", "timeline", "keyframes"])
def test_links_to_elsewhere_are_not_followed(name: str, link: Any, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = link
    refused(path, "is a link to somewhere else")


def test_numbers_in_another_file_are_not_read(path: Path) -> None:
    name = array_of_a_keyframe(path)
    layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "it", shape=(4,))
    makers: list[Callable[[Any], Any]] = [
        lambda file: file.create_dataset(
            name, shape=(4,), dtype="u1", external=[("/etc/passwd", 0, 4)]
        ),
        lambda file: file.create_virtual_dataset(name, layout),
    ]
    for make in makers:
        with h5py.File(path, "r+") as file:
            del file[name]
            make(file)
        refused(path, "takes its numbers from another file")


def test_filters_that_captures_do_not_use_are_not_run(path: Path) -> None:
    name = array_of_a_keyframe(path)
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=np.arange(100.0), chunks=(100,), compression="lzf")
    refused(path, "packed in a way that captures are not")


def test_a_chunk_that_is_larger_than_what_is_stored_is_not_unpacked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = array_of_a_keyframe(path)
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(
            name,
            data=np.zeros(3),
            maxshape=(None,),
            chunks=(2**20,),
            compression="gzip",
            compression_opts=9,
        )
        assert file[name].id.get_storage_size() < 2**20
    monkeypatch.setenv(limits.VARIABLE, "1MiB")
    with Capture(path) as capture, pytest.raises(MemoryLimitError, match=r"would take 8\.0 MiB"):
        capture.contents()


def test_a_tensor_that_takes_more_memory_than_allowed_is_refused_with_what_allows_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = array_of_a_keyframe(path)
    with h5py.File(path, "r+") as file:
        del file[name]
        write_array(
            file[name.rpartition("/")[0]], name.rpartition("/")[2], np.zeros(2_000_000, np.float32)
        )
    monkeypatch.setenv(limits.VARIABLE, "1MiB")
    with (
        Capture(path) as capture,
        pytest.raises(
            MemoryLimitError, match=rf"{path}: /{name} would take 7\.6 MiB; 1\.0 MiB may be taken"
        ) as raised,
    ):
        capture.contents()
    assert "--max-memory 1GiB" in str(raised.value.hint)


def test_texts_of_variable_length_are_not_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "nanreplay-capture"
    refused(path, "attribute 'format' of / is no text")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_json_deeper_than_any_stack_is_damage(opening: bytes, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["metadata"]
        file["metadata"] = np.frombuffer(zlib.compress(opening * 500_000), np.uint8)
    refused(path, "the metadata cannot be read")


BAD_TABLES: list[tuple[str, Callable[[Any], Any]]] = [
    ("incident", lambda value: {**value, "step": 10**400}),
    ("incident", lambda value: {**value, "step": -1}),
    ("incident", lambda value: {**value, "step": True}),
    ("incident", lambda value: {**value, "notes": [["a"]]}),
    ("incident", lambda value: {**value, "trigger": {**value["trigger"], "value": [1]}}),
    ("incident", lambda value: {**value, "trigger": {**value["trigger"], "what": "else"}}),
    ("incident", lambda value: [value]),
    ("variables", lambda value: [{**value[0], "shape": [-1]}, *value[1:]]),
    ("variables", lambda value: [{**value[0], "dtype": "\ud800"}, *value[1:]]),
    ("variables", lambda value: [{**value[0], "dtype": "O"}, *value[1:]]),
    ("variables", lambda value: [{**value[0], "path": None}, *value[1:]]),
    ("contents", lambda value: [*value, 7]),
    ("program/p0/signature", lambda value: {**value, "learning_rate": 10**6}),
    ("program/p0/signature", lambda value: {**value, "outputs": [None]}),
    ("program/p0/ops", lambda value: {**value, "stack": ["0"] * len(value["stack"])}),
    ("sources/stacks", lambda value: [["x"]]),
    ("sources/frames", lambda value: [["file.py", "1", "call", None]]),
]


@pytest.mark.parametrize(("name", "change"), BAD_TABLES)
def test_a_field_of_another_type_is_noticed_though_the_checksum_is_right(
    name: str, change: Callable[[Any], Any], path: Path
) -> None:
    edited(path, name, change)
    refused(path, "cannot be read")


def test_columns_of_different_lengths_are_noticed_by_those_who_read_columns_alone(
    path: Path,
) -> None:
    with h5py.File(path, "r+") as file:
        del file["timeline/columns/loss"]
        write_array(file["timeline/columns"], "loss", np.zeros((2, 2)))
    with Capture(path) as capture, pytest.raises(FormatError, match="loss is no column of numbers"):
        capture.timeline_columns()


def test_keys_that_a_later_version_adds_are_ignored(path: Path) -> None:
    for name in ("incident", "program/p0/signature"):
        edited(path, name, lambda value: {**value, "later": {"x": 1}})
    edited(path, "variables", lambda value: [{**row, "later": 1} for row in value])
    with Capture(path) as capture:
        assert same_bits(capture.contents(), sample_contents())


def test_texts_cannot_steer_the_terminal(path: Path) -> None:
    edited(
        path, "incident", lambda value: {**value, "notes": ["\x1b]0;owned\x07 \x1b[2Jä\tb\ud800"]}
    )
    edited(path, "metadata", lambda value: {**value, "script": "\x1b[31mtrain.py"})
    with Capture(path) as capture:
        assert capture.incident.notes == ("?]0;owned? ?[2Jä\tb?",)
        assert capture.metadata["script"] == "?[31mtrain.py"

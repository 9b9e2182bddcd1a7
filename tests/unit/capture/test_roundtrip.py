"""What is written is read back bit for bit, whatever the arrays are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_contents import PROGRAM, same_bits, sample_contents

from nanreplay import Capture
from nanreplay.capture import write_capture
from nanreplay.capture.arrays import read_array, read_json, write_array, write_json
from nanreplay.capture.format import EXTENSION_DTYPES
from nanreplay.capture.writer import lazy_contents
from nanreplay.errors import MissingPartError
from nanreplay.records import BatchRecord, Timeline

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="<"),
    hnp.unsigned_integer_dtypes(endianness="<"),
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="<"),
    hnp.complex_number_dtypes(endianness="<"),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def raw_arrays(draw: st.DrawFn) -> Any:
    """Arrays with any bit pattern: NaN payloads, negative zero, subnormals."""
    name = draw(
        st.one_of(
            NUMBERS.map(np.dtype),
            st.sampled_from(EXTENSION_DTYPES).map(lambda each: np.dtype(getattr(ml_dtypes, each))),
        )
    )
    shape = draw(SHAPES)
    size = int(np.prod(shape)) * name.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if name.kind == "b" or name.name in (
        "int4",
        "uint4",
    ):  # types of which not every byte is a value
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, name).reshape(shape)


STRINGS = hnp.arrays(object, SHAPES, elements=st.binary(max_size=20))
ARRAYS = st.one_of(raw_arrays(), STRINGS)
quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(array=ARRAYS)
@quick
def test_any_array_comes_back_with_its_type_shape_and_bits(array: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "array.h5", "w") as file:
        write_array(file, "it", array)
        assert same_bits(read_array(file["it"]), array)


STATES = st.dictionaries(st.integers(0, 9), ARRAYS, max_size=3)
STEPS = st.sets(st.integers(0, 10**9), max_size=3)


@given(leaves=st.lists(ARRAYS, max_size=3), state=STATES, steps=STEPS)
@quick
def test_a_whole_capture_comes_back(
    leaves: list[Any], state: dict[int, Any], steps: set[int], tmp_path: Path
) -> None:
    paths = tuple(f"input/{index}" for index in range(len(leaves)))
    batches = {step: BatchRecord("p0", tuple(leaves), paths, None, state) for step in steps}
    contents = sample_contents(
        keyframes=dict.fromkeys(steps, state),
        batches=batches,
        weights={},
        gradients={step: {} for step in steps},
    )
    write_capture(tmp_path / "run.h5", contents)
    with Capture(tmp_path / "run.h5") as capture:
        assert same_bits(capture.contents(), contents)


def test_large_arrays_are_packed_and_come_back(tmp_path: Path) -> None:
    state = {
        0: np.random.default_rng(0).normal(size=(300, 40)).astype("float32"),
        1: np.zeros(100_000, ml_dtypes.bfloat16),
    }
    contents = sample_contents(keyframes={3: state})
    write_capture(tmp_path / "run.h5", contents)
    with Capture(tmp_path / "run.h5") as capture:
        assert same_bits(capture.keyframe(3), state)
        assert capture.size_bytes < 100_000


def test_python_strings_are_read_as_bytes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "array.h5", "w") as file:
        write_array(file, "it", np.array(["a", "ö\0o"]))
        assert read_array(file["it"]).tolist() == [b"a", "ö\0o".encode()]


def test_bytes_in_another_order_are_turned_round(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "array.h5", "w") as file:
        write_array(file, "it", np.array(1.5, ">f4"))
        assert same_bits(read_array(file["it"]), np.float32(1.5))


def test_a_type_without_a_place_in_the_format_is_refused(tmp_path: Path) -> None:
    with (
        h5py.File(tmp_path / "array.h5", "w") as file,
        pytest.raises(TypeError, match="Expected numbers or strings"),
    ):
        write_array(file, "it", np.array(["2020-01-01"], "datetime64[D]"))


def test_a_capture_without_steps_programs_or_timeline_comes_back(tmp_path: Path) -> None:
    empty = Timeline({"step": np.zeros(0, np.int64)}, {}, ())
    contents = sample_contents(
        programs=(),
        keyframes={},
        batches={},
        weights={},
        gradients={},
        frames=(),
        stacks=(),
        timeline=empty,
    )
    write_capture(tmp_path / "run.h5", contents)
    with Capture(tmp_path / "run.h5") as capture:
        assert same_bits(capture.contents(), contents)
        assert capture.steps == ()


def test_programs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_capture(
        tmp_path / "run.h5",
        sample_contents(programs=tuple(replace(PROGRAM, id=f"p{index}") for index in range(12))),
    )
    with Capture(tmp_path / "run.h5") as capture:
        assert capture.programs == tuple(f"p{index}" for index in range(12))


def test_a_state_that_a_step_left_is_written_once(tmp_path: Path) -> None:
    """Variables that something changed in between, and those not in the file, have data of their
    own."""
    state = sample_contents().keyframes[3]
    changed = {**state, 1: np.ones(2, np.float32)}  # as the overrides of step 4 say
    contents = sample_contents(weights={3: state}, states={4: changed})
    write_capture(tmp_path / "run.h5", contents)
    with Capture(tmp_path / "run.h5") as capture:
        assert same_bits(capture.contents(), contents)
        assert capture.state_steps == (4,)
        assert capture.weights(3).keys() == {0, 1}
        again = lazy_contents(capture)
        assert same_bits(dict(again.states), {4: changed})
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["weights/3/0"] == file["states/4/0"]
        assert file["weights/3/1"] != file["states/4/1"]


def test_a_file_of_before_there_were_states_is_read(tmp_path: Path) -> None:
    write_capture(tmp_path / "run.h5", sample_contents())
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        names = set(read_json(file["contents"])) - {"states"}
        del file["states"], file["contents"]
        write_json(file, "contents", sorted(names))
    with Capture(tmp_path / "run.h5") as capture:
        assert capture.state_steps == ()
        assert same_bits(capture.contents(), sample_contents())


def test_tables_are_data_frames(tmp_path: Path) -> None:
    write_capture(tmp_path / "run.h5", sample_contents())
    with Capture(tmp_path / "run.h5") as capture:
        assert capture.variables()["path"].tolist() == ["dense/kernel", "dense/bias"]
        assert capture.ops()["type"].tolist() == ["MatMul"]
        assert capture.timeline()["step"].tolist() == [3, 4]
        assert capture.matrix("gradient_norm")["dense/bias"].tolist() == [1.0, 1.0]
        assert capture.timeline_columns(last=1)["step"].tolist() == [4]


def test_a_step_that_is_not_held_says_which_are(tmp_path: Path) -> None:
    write_capture(tmp_path / "run.h5", sample_contents())
    with Capture(tmp_path / "run.h5") as capture:
        with pytest.raises(MissingPartError, match=r"no batches of step 9, only of step 3, 4"):
            capture.batch(9)
        assert capture.weights(3) == {}


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write_capture(path, sample_contents())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_capture(
            path, sample_contents(keyframes={3: {0: np.array(["2020-01-01"], "datetime64[D]")}})
        )
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"]

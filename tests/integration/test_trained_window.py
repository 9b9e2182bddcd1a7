"""The window as it was trained: one round of graph optimizers where it gives the recorded bits,
else all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from nanreplay import Capture, NonFiniteError, Recorder, Replay
from nanreplay.diagnose import judge, trained_window
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.replay import replay_programs


@pytest.fixture(scope="module")
def capture_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that takes a logarithm of 0 in its third step."""
    path = tmp_path_factory.mktemp("window") / "run.h5"
    keras.utils.set_random_seed(1)
    x, feature = keras.Input((4,)), keras.Input((1,))
    hidden = keras.layers.Dense(8, activation="relu")(x)
    model = keras.Model([x, feature], keras.layers.Dense(1)(hidden * keras.ops.log(feature)))
    model.compile("sgd", "mse", jit_compile=False)
    random = np.random.default_rng(1)
    features = np.full((12, 1), 2.0, "float32")
    features[9] = 0.0
    with pytest.raises(NonFiniteError):
        model.fit(
            [random.random((12, 4), "float32"), features],
            random.random((12, 1), "float32"),
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[Recorder(path)],
        )
    return path


def test_one_round_counts_where_it_gives_the_recorded_bits(capture_path: Path) -> None:
    with Capture(capture_path) as capture, Replay(capture) as replay:
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        assert replay.program(capture.incident.step).optimizes_once
        of_one_round = replay.state_after(capture.incident.step - 1)
        replay.program(capture.incident.step).compile_anew(optimizes_once=False)
        of_all = replay.state_after(capture.incident.step - 1)
        for index, value in of_all.items():
            np.testing.assert_array_equal(of_one_round[index], value)


@pytest.mark.parametrize("why", ["other bits", "other machine"])
def test_all_optimizers_run_where_one_round_may_not_count(
    capture_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = calls = 0
    call = CompiledProgram.__call__

    def counted_call(self: CompiledProgram, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(self, *args)

    monkeypatch.setattr(CompiledProgram, "__call__", counted_call)
    with Capture(capture_path) as capture, Replay(capture) as replay:

        @contextlib.contextmanager
        def with_other_bits() -> Iterator[None]:
            nonlocal rounds
            rounds += 1
            yield
            kernel = replay._live.variables[0]
            kernel.assign(kernel * 1.001)

        monkeypatch.setattr(replay_programs, "optimized_once", with_other_bits)
        if why == "other machine":
            monkeypatch.setattr(trained_window, "is_same_machine", lambda replay: False)
        verdict = judge(replay)
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)
        assert bool(rounds) == (why == "other bits")
        n_steps = len(replay.window(None, None))
        assert n_steps > 2
        # The attempt ends at the first step with other bits.
        assert calls == n_steps if why == "other machine" else n_steps < calls < n_steps + 3
        assert not replay.program(capture.incident.step).optimizes_once

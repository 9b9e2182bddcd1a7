"""A model with a state of 1.3 GiB, recorded with the defaults.

Its file replays, is bisected, and is no larger than it needs to be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import Command
from trainings import replayed

from nanreplay import Capture, NonFiniteError, Recorder
from nanreplay.recorder import room

LAYERS, WIDTH, ROWS, STEPS = 8, 3824, 4, 12
STATE_BYTES = 3 * 4 * LAYERS * WIDTH * (WIDTH + 3)


def large_model() -> Any:
    keras.utils.set_random_seed(1)
    layers = []
    for _ in range(LAYERS):
        layers += [keras.layers.Dense(WIDTH, activation="tanh"), keras.layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers])
    model.compile("adam", "mse", jit_compile=False)
    return model


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("is_short", [False, True], ids=["memory", "disk"])
def test_a_state_of_1300_mib_is_recorded_by_default_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_command: Command, is_short: bool
) -> None:
    if is_short:  # half of what is free does not hold a keyframe
        monkeypatch.setattr(room.limits, "free_memory", lambda: STATE_BYTES)
    path, model = tmp_path / "run.h5", large_model()
    x = np.random.default_rng(0).normal(size=(ROWS * STEPS, WIDTH)).astype("float32")
    x[ROWS * (STEPS - 2), 0] = np.nan
    with pytest.raises(NonFiniteError) as raised:
        model.fit(x, x, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[Recorder(path)])
    assert raised.value.step == STEPS - 2
    del model
    assert path.stat().st_size <= 1.8 * STATE_BYTES
    with Capture(path) as capture:
        assert capture.keyframe_steps[0] == 0
        assert len(capture.steps) == STEPS - 1
        full = [step for step in capture.steps if capture.gradients(step)]
        assert full == ([] if is_short else [STEPS - 2])
        assert capture.incident.notes, "what is left out is named"
    results = replayed(path)
    assert all(result.bit_exact for result in results)
    assert [result.finite for result in results] == [True] * (STEPS - 2) + [False]
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"]
    if not is_short:
        answer = json.loads(cold_command("bisect", path, "--json", "--no-fixes").stdout)
        assert (answer["verdict"]["kind"], answer["origin"]["step"]) == ("reproduced", STEPS - 2)
        assert answer["memory"]["peak_bytes"] <= 2.5 * answer["memory"]["state_bytes"] + 2**30

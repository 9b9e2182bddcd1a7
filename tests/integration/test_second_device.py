"""A training on a second device, read late as on a GPU: same bits, copies on the host, a file that
replays where there is one device.

The second device is a part of the CPU; what only a GPU can show is told in docs/systems.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from trainings import replayed

from nanreplay import Capture

BAD_STEP = 9
TRAINING = """
import hashlib, json, sys
import keras, numpy as np, tensorflow as tf
from nanreplay import NonFiniteError, Recorder
from nanreplay.recorder import pace
path, jit, bad_step = sys.argv[1], sys.argv[2] == "xla", int(sys.argv[3])
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
pace.LAGS["CPU"] = 4  # as of a GPU
x = np.random.default_rng(0).normal(size=(4 * (bad_step + 2), 3)).astype("float32")
y = x.sum(axis=1, keepdims=True)

class Places(keras.callbacks.Callback):
    held = set()
    def on_train_batch_end(self, batch, logs=None):
        recording = recorder._recording
        recording.late._thread().submit(lambda: None).result()  # after what was asked of it so far
        for values in recording.ring.keyframes.values():
            self.held |= {value.device for value in values.values()}

def fit(x, *callbacks):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    with tf.device("CPU:1"):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(5, "tanh"), layers.Dropout(0.2),
                                  layers.Dense(1)])
        model.compile("adam", "mse", jit_compile=jit)
        model.optimizer.build(model.trainable_variables)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))
    variables = [*model.variables, *model.optimizer.variables]
    bits = hashlib.sha256(b"".join(np.asarray(value).tobytes() for value in variables))
    return bits.hexdigest(), sorted({variable.value.device[-5:] for variable in variables})

bare, places = fit(x)
recorder = Recorder(path, keyframe_every=3, window=4)
recorded, _ = fit(x, Places(), recorder)
recorder.close()
x[4 * bad_step + 2, 1] = np.nan
step = None
try:
    fit(x, Recorder(path, keyframe_every=3, window=4))
except NonFiniteError as error:
    step = error.step
print(json.dumps({"same": bare == recorded, "places": places, "step": step,
                  "held": sorted(place[-5:] for place in Places.held)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("compilation", ["graph", "xla"])
def test_a_training_on_another_device_is_read_late_and_replays(
    compilation: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    command = [sys.executable, "-c", TRAINING, str(path), compilation, str(BAD_STEP)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"], "recording changes no bit, XLA's taking over of buffers included"
    assert "CPU:1" in found["places"]
    assert found["held"] == ["CPU:0"], "keyframes are moved to the host"
    assert found["step"] == BAD_STEP
    with Capture(path) as capture:
        assert (capture.incident.step, capture.incident.bit_exact) == (BAD_STEP, True)
        assert capture.state_steps == (BAD_STEP,) or BAD_STEP in capture.keyframe_steps
    results = replayed(path)
    assert all(result.bit_exact for result in results)
    assert [result.step for result in results if not result.finite] == [BAD_STEP]

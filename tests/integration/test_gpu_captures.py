"""Captures as a GPU makes them replay on a CPU, and the answer speaks of the user's ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_stand_in
import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, NonFiniteError, Recorder
from nanreplay.program.safety import all_nodes, parse_graph
from nanreplay.records import OpInfo
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain

ROWS, STEPS, BAD_STEP, BAD_ROW = 4, 4, 2, 1


def train(path: Path, build: Callable[[], Any], x: np.ndarray, y: np.ndarray) -> list[float]:
    """Fit a model until its loss is NaN; returns the loss of each step."""
    keras.utils.set_random_seed(3)
    model = build()
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss="mse", jit_compile=False)
    with pytest.raises(NonFiniteError):
        model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[Recorder(path)])
    with Capture(path) as capture:
        return [float(loss) for loss in capture.timeline()["loss"]]


def ops_of(path: Path) -> set[str]:
    with Capture(path) as capture:
        return {node.op for _, node in all_nodes(parse_graph(capture.program("p0").graph))}


def infos_of(path: Path, op_type: str) -> list[OpInfo]:
    with Capture(path) as capture:
        return [info for info in capture.program("p0").ops if info.type == op_type]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(ROWS * STEPS, *shape)).astype("float32")


def check(report: Report, op_type: str, layer: str) -> Any:
    """The report says where it went wrong, and that fixes were tried."""
    origin = report.findings.origin
    assert origin is not None
    assert report.verdict.kind in ("reproduced", "precision_only")
    assert (origin.step, origin.phase, origin.layer) == (BAD_STEP, "forward", layer)
    assert (origin.op_type, origin.rows) == (op_type, (BAD_ROW,))
    assert any(fix.prevents for fix in report.fixes)
    ran = {entry.mode: entry.finite for entry in report.verdict.evidence}
    assert {"recorded", "ops", "float64"} <= set(ran)
    assert not ran["recorded"]
    assert not ran["ops"]
    return origin


# Recurrent layers.


def lstm() -> Any:
    layers, constant = keras.layers, keras.initializers.Constant
    memory = layers.LSTM(
        4, kernel_initializer=constant(2.0), recurrent_initializer=constant(-3e38),
        return_sequences=True, name="memory",
    )  # fmt: skip
    return keras.Sequential(
        [layers.Input((5, 3)), memory, layers.Flatten(), layers.Dense(1, name="out")]
    )


@pytest.mark.slow  # what replays the op is tested in test_cudnn_rnn.py, a capture of a GPU below
def test_an_lstm_of_cudnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = numbers(5, 3), numbers(1)
    # What the gates get of the state is -inf from the first time step on, and of this input inf.
    x[BAD_STEP * ROWS + BAD_ROW, :3] = [[1.0] * 3, [3e38] * 3, [1.0] * 3]
    plain = train(tmp_path / "plain.h5", lstm, x, y)
    with monkeypatch.context() as patched:
        gpu_stand_in.install(patched)
        losses = train(tmp_path / "run.h5", lstm, x, y)
    np.testing.assert_allclose(losses[:BAD_STEP], plain[:BAD_STEP], rtol=1e-5)
    assert {"CudnnRNNV3", "CudnnRNNBackpropV3"} <= ops_of(tmp_path / "run.h5")
    report = explain(tmp_path / "run.h5", fixes=["clip_data"])
    origin = check(report, "CudnnRNNV3", "memory")
    row, time_step, _ = origin.outputs[0].indices[0]
    assert (row, time_step) == (BAD_ROW, 1)
    assert report.causes[0].kind == "data_outlier"
    assert any("CudnnRNNV3" in note and "no GPU" in note for note in report.findings.notes)


class Logarithm(keras.layers.Layer):
    """Bad at zero."""

    def call(self, x: Any) -> Any:
        return tf.math.log(tf.abs(x))


def bidirectional_gru() -> Any:
    layers = keras.layers
    values = layers.Input((5, 3))
    hidden = Logarithm(name="logarithm")(values)
    hidden = layers.Masking()(hidden)
    hidden = layers.Bidirectional(layers.GRU(4, return_sequences=True), name="both")(hidden)
    hidden = layers.GRU(2, name="last")(hidden)
    return keras.Model(values, layers.Dense(1, name="out")(hidden))


@pytest.mark.slow
def test_a_bidirectional_gru_of_cudnn_with_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = numbers(5, 3), numbers(1)
    x[::2, 3:] = 1.0  # whose logarithm is masked: every other sample is three time steps long
    x[BAD_STEP * ROWS + BAD_ROW, 1, 2] = 0.0
    plain = train(tmp_path / "plain.h5", bidirectional_gru, x, y)
    with monkeypatch.context() as patched:
        gpu_stand_in.install(patched)
        losses = train(tmp_path / "run.h5", bidirectional_gru, x, y)
    np.testing.assert_allclose(losses[:BAD_STEP], plain[:BAD_STEP], rtol=1e-5)
    assert len(infos_of(tmp_path / "run.h5", "CudnnRNNV3")) == 3
    report = explain(tmp_path / "run.h5", fixes=["epsilon"])
    origin = check(report, "Log", "logarithm")
    assert origin.outputs[0].indices[0] == (BAD_ROW, 1, 2)
    assert report.causes[0].kind == "log_of_zero"


# Images with channels first, in half precision.


class Normalized(keras.layers.Layer):
    """Batch normalization of TensorFlow's own, of images with channels first."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[1],), initializer="ones", dtype="float32")
        self.offset = self.add_weight(shape=(shape[1],), initializer="zeros", dtype="float32")

    def call(self, x: Any) -> Any:
        scale, offset = (tf.cast(v.value, tf.float32) for v in (self.scale, self.offset))
        return tf.compat.v1.nn.fused_batch_norm(x, scale, offset, data_format="NCHW")[0]


class Pooled(keras.layers.Layer):
    """The largest of each 2 x 2 of images with channels first."""

    def call(self, x: Any) -> Any:
        return tf.nn.max_pool2d(x, 2, 2, "VALID", data_format="NCHW")


class Convolved(keras.layers.Layer):
    """A convolution of images with channels first, with a bias."""

    def build(self, shape: Any) -> None:
        wide = keras.initializers.RandomNormal(stddev=1.0)
        self.kernel = self.add_weight(shape=(3, 3, shape[1], 4), initializer=wide)
        self.bias = self.add_weight(shape=(4,), initializer="zeros")

    def call(self, x: Any) -> Any:
        kernel, bias = (tf.cast(v.value, x.dtype) for v in (self.kernel, self.bias))
        x = tf.nn.conv2d(x, kernel, 1, "SAME", data_format="NCHW")
        return tf.nn.bias_add(x, bias, data_format="NCHW")


def cnn() -> Any:
    layers, policy = keras.layers, "mixed_float16"
    return keras.Sequential(
        [
            layers.Input((2, 6, 6)),
            Convolved(name="convolved", dtype=policy),
            Normalized(name="normalized", dtype=policy),
            Pooled(name="pooled", dtype=policy),
            layers.Flatten(dtype=policy),
            layers.Dense(1, name="out", dtype="float32"),
        ]
    )


def test_a_cnn_with_channels_first_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = numbers(2, 6, 6), numbers(1)
    x[BAD_STEP * ROWS + BAD_ROW, :, 3, 4] = 6e4  # within half precision; the sums are not
    gpu_stand_in.install(monkeypatch)
    train(tmp_path / "run.h5", cnn, x, y)
    monkeypatch.undo()
    with Capture(tmp_path / "run.h5") as capture:
        nodes = [node for _, node in all_nodes(parse_graph(capture.program("p0").graph))]
    layouts = {node.op for node in nodes if node.attr["data_format"].s == b"NCHW"}
    assert {"Conv2D", "BiasAdd", "FusedBatchNormV3", "MaxPool", "MaxPoolGrad"} <= layouts
    report = explain(tmp_path / "run.h5")
    origin = check(report, "Conv2D", "convolved")
    row, channel, height, width = origin.outputs[0].indices[0]
    assert (row, origin.outputs[0].shape) == (BAD_ROW, (ROWS, 4, 6, 6))
    assert abs(height - 3) <= 1
    assert abs(width - 4) <= 1
    assert channel < 4
    assert report.causes[0].kind == "fp16_overflow"

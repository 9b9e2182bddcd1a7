"""The recipe of a verified fix is written into the code of a training as it stands, which then
trains on: its losses are finite, and at the failing step they are what the replay said."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from nanreplay import Recorder
from nanreplay.findings import FixResult
from nanreplay.report.explain import explain

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
PROGRAM = """
import keras, numpy as np, tensorflow as tf

POLICY = "PRECISION"
WIDE = keras.initializers.RandomNormal(stddev=1e20)

def prepared(batch, step):
    return batch

class Made(keras.layers.Layer):
    def call(self, x):
        LINE

class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.layers_ = LAYERS
        self.made = [Made(), Made()]

    def call(self, inputs):
        x = tf.concat(inputs, axis=-1) if len(inputs) > 1 else inputs[0]
        for number, layer in enumerate(self.layers_):
            x = self.made[number % 2](layer(x))
        return x

def train(recorder=None):
    keras.utils.set_random_seed(4)
    keras.mixed_precision.set_global_policy(POLICY)
    random, model, optimizer = np.random.default_rng(0), Model(), OPTIMIZER
    model([keras.Input((3,)), keras.Input((3,))])
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(batch):
        inputs, y = batch
        with tf.GradientTape() as tape:
            output = tf.cast(model(inputs), "float32")
            loss = LOSS
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    recorded, losses = step, []
    if recorder is not None:
        recorded = recorder.wrap(step, model=model, optimizer=optimizer)
    for number in range(8):
        x, z = (random.uniform(0.2, 1.0, (4, 3)).astype("float32") for _ in range(2))
        y = x[:, :1] * 2
        if number == 4:
            FAULT
        batch = prepared([[x, z], y], number)
        losses.append(float(recorded(tf.nest.map_structure(tf.constant, batch))))
        if recorder is not None and recorder.stopped:
            break
    keras.mixed_precision.set_global_policy("float32")
    return losses
"""
USUAL = {
    "LINE": "return x",
    "LAYERS": "[keras.layers.Dense(4), keras.layers.Dense(1)]",
    "OPTIMIZER": "keras.optimizers.SGD(learning_rate=0.01)",
    "LOSS": "tf.reduce_mean(tf.square(output - y))",
    "FAULT": "pass",
    "PRECISION": "float32",
}
BIASLESS = "[keras.layers.Dense(4, use_bias=False), keras.layers.Dense(2, use_bias=False)]"
ZERO_ROW = "x[2] = z[2] = 0.0"


def made(line: str, fault: str = ZERO_ROW, **parts: str) -> dict[str, str]:
    return {"LAYERS": BIASLESS, "LINE": line, "FAULT": fault, **parts}


CASES: dict[str, tuple[str, dict[str, str]]] = {
    "epsilon under a root": (
        "epsilon",
        made("return x * tf.math.rsqrt(tf.reduce_sum(x * x, axis=-1, keepdims=True))"),
    ),
    "epsilon under one of two roots": (
        "epsilon",
        made(
            "return x / tf.sqrt(1.0 + x * x) / "
            "tf.stop_gradient(tf.sqrt(tf.reduce_sum(x * x, axis=-1, keepdims=True)))"
        ),
    ),
    "a bound for a logarithm": (
        "epsilon",
        made(
            "return tf.math.log(x + 4.0)", "x[2] = -30.0", OPTIMIZER="keras.optimizers.Adam(1e-4)"
        ),
    ),
    "a bound for a logarithm of one more": (
        "epsilon",
        made("return tf.math.log1p(x)", "x[2] = -30.0", OPTIMIZER="keras.optimizers.SGD(1e-4)"),
    ),
    "an epsilon in a norm": (
        "epsilon=1e-3",
        made("return x / tf.norm(x, axis=-1, keepdims=True)"),
    ),
    "an epsilon in a standard deviation": (
        "epsilon=1e-3",
        made("return x + tf.math.reduce_std(x, axis=-1, keepdims=True)"),
    ),
    "a diagonal": (
        "epsilon=1e-3",
        made(
            "return tf.linalg.cholesky(tf.matmul(x[:, :, None], x[:, None, :]) + "
            "0.1 * tf.linalg.diag(x * x))[:, :, 0]"
        ),
    ),
    "double where": ("double_where", made("return x / tf.reduce_sum(x, axis=-1, keepdims=True)")),
    "double where for a pole at -1": (
        "double_where",
        made("return tf.math.log1p(x / 2.0)", "x[2] = -30.0"),
    ),
    "double where for two operands": (
        "double_where",
        made("return tf.atan2(x[:, ::-1], x) * 2.0"),
    ),
    "one of two quotients that is 0": (
        "stable_op",
        made("return x / (1.0 + x * x) / tf.reduce_sum(x, axis=-1, keepdims=True)"),
    ),
    "a quotient that is 0": (
        "stable_op",
        made("return x / tf.reduce_sum(x, axis=-1, keepdims=True)"),
    ),
    "a softmax by hand": (
        "stable_op",
        made(
            "e = tf.exp(x); return x / 500.0 + e / tf.reduce_sum(e, axis=-1, keepdims=True)",
            "x[2] = 500.0",
        ),
    ),
    "softplus by hand": ("stable_op", made("return tf.math.log(1.0 + tf.exp(x))", "x[2] = 500.0")),
    "softplus by hand, of one more": (
        "stable_op",
        made("return tf.math.log1p(tf.exp(x))", "x[2] = 500.0"),
    ),
    "log-sum-exp by hand": (
        "stable_op",
        made(
            "return (x - tf.math.log(tf.reduce_sum(tf.exp(x), axis=-1, keepdims=True))) / 500.0",
            "x[2] = 500.0",
        ),
    ),
    "log-sum-exp by hand of what rounds to 0": (
        "stable_op",
        made(
            "z = -tf.abs(x); "
            "return (z - tf.math.log(tf.reduce_sum(tf.exp(z), -1, keepdims=True))) / 500.0",
            "x[2] = 5000.0",
        ),
    ),
    "a softmax by hand that rounds to 0": (
        "stable_op",
        made(
            "e = tf.exp(-tf.abs(x)); return x / 500.0 + e / tf.reduce_sum(e, -1, keepdims=True)",
            "x[2] = 5000.0",
        ),
    ),
    "log-softmax": (
        "stable_op",
        {
            "LAYERS": "[keras.layers.Dense(3), keras.layers.Dense(2)]",
            "LOSS": "-tf.reduce_mean(tf.math.log(tf.nn.softmax(output)))",
            "FAULT": "x[2] = 500.0",
        },
    ),
    "a finite mask": (
        "finite_mask",
        made("return x * tf.nn.softmax(tf.where(x == 0.0, -np.inf, x))"),
    ),
    "a finite factor": (
        "finite_mask",
        made("return x * tf.nn.softmax(x + (1.0 - tf.cast(x != 0.0, x.dtype)) * -np.inf)"),
    ),
    "one array clipped": (
        "clip_data",
        made("return tf.exp(x) - 1.0", "z[1, 1] = 900.0; x[1, 0] = 1.05"),
    ),
    "what is to be learned clipped": (
        "clip_data",
        {"LOSS": "tf.reduce_mean(tf.math.cosh(output - y))", "FAULT": "y[1] = -250.0"},
    ),
    "numbers for NaN": ("clean_data=nan_to_num", {"FAULT": "z[1, 1] = np.nan"}),
    "rows left out": ("clean_data=drop_rows", {"FAULT": "z[1, 1] = np.nan"}),
    "float32": (
        "float32",
        {"LINE": "return x * (tf.ones_like(x) * 4e4 + 4e4) / 4e4", "PRECISION": "mixed_float16"},
    ),
    "a leaky relu": (
        "leaky_relu",
        made(
            'return x / tf.reduce_sum(keras.layers.Activation("relu")(x), axis=-1, keepdims=True)',
            "x[2], z[2] = -1.0, -1.0",
            LAYERS="[keras.layers.Dense(4, kernel_initializer='ones'), "
            "keras.layers.Dense(2, kernel_initializer='ones')]",
        ),
    ),
    "other initial weights": (
        "init=glorot",
        {
            "LAYERS": "[keras.layers.Dense(4, kernel_initializer=WIDE), "
            "keras.layers.Dense(1, kernel_initializer=WIDE)]",
        },
    ),
    "16 bits in a layer and a cast": (
        "float32",
        {
            "LAYERS": "[keras.layers.Dense(4, dtype='mixed_float16'), keras.layers.Dense(1)]",
            "LINE": "return tf.cast(tf.cast(x, 'float16') * 6e4 * 6e4, 'float32') / 3.6e9",
        },
    ),
    "a lower rate": ("lr=1e-4", {"OPTIMIZER": "keras.optimizers.SGD(learning_rate=100.0)"}),
    "a gradient of a small norm": (
        "clipnorm",
        {"FAULT": "y[:] = 1e12"},
    ),
    "an optimizer's epsilon": (
        "epsilon",
        {
            "LAYERS": "[keras.layers.Dense(4, activation='relu', "
            "bias_initializer=keras.initializers.Constant(-9.0)), keras.layers.Dense(1)]",
            "OPTIMIZER": "keras.optimizers.Adam(learning_rate=0.01, epsilon=0.0)",
        },
    ),
}


def program(parts: dict[str, str]) -> str:
    text = PROGRAM
    for name, code in {**USUAL, **parts}.items():
        text = re.sub(rf"\b{name}\b", lambda match, code=code: code, text)
    return text


def trained(path: Path, recorder: Recorder | None = None) -> list[float]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses: list[float] = module.train(recorder)
    return losses


def with_argument(text: str, optimizer: str, argument: str, value: float) -> str:
    """A program with an argument of its optimizer set."""
    call = re.search(rf"{re.escape(optimizer)}\(([^)]*)\)", text)
    assert call is not None
    given = [one for one in call[1].split(", ") if not one.startswith(f"{argument}=")]
    arguments = ", ".join([*given, f"{argument}={value!r}"])
    return text.replace(call[0], f"{optimizer}({arguments})")


def applied(text: str, fix: FixResult) -> str:
    """A program with a recipe written into it by its words alone."""
    assert fix.edits
    for edit in fix.edits:
        if "line" in edit:
            lines = text.splitlines()
            assert lines[edit["line"] - 1].strip() == edit["old"]
            lines[edit["line"] - 1] = lines[edit["line"] - 1].replace(edit["old"], edit["new"])
            text = "\n".join(lines)
        elif "optimizer" in edit:
            value = edit.get("value", edit.get("learning_rate"))
            text = with_argument(text, edit["optimizer"], edit["argument"], value)
        elif "policy" in edit:
            text = text.replace('POLICY = "mixed_float16"', f'POLICY = "{edit["policy"]}"')
        elif "argument_of_layers" in edit:
            text = text.replace("dtype='mixed_float16'", f"dtype='{edit['value']}'")
        elif "activation" in edit:
            text = text.replace(f'"{edit["activation"]}"', f'"{edit["replaced_by"]}"')
        elif "argument" in edit:
            text = text.replace("kernel_initializer=WIDE", f'kernel_initializer="{edit["value"]}"')
    if any("array" in edit or "rows" in edit for edit in fix.edits):
        steps = [edit["step"] for edit in fix.edits if "step" in edit]
        code = "\n        ".join(str(fix.code).splitlines())
        condition = f"step == {steps[0]}" if steps else "True"
        begin = "def prepared(batch, step):\n"
        text = text.replace(begin, f"{begin}    if {condition}:\n        {code}\n")
    return text


SLOW = (
    "an epsilon in a standard deviation",
    "double where for two operands",
    "one of two quotients that is 0",
    "epsilon under one of two roots",
    "a bound for a logarithm of one more",
    "double where for a pole at -1",
    "what is to be learned clipped",
    "numbers for NaN",
    "a lower rate",
    "other initial weights",
    "an epsilon in a norm",
    "double where",
    "a softmax by hand",
    "a softmax by hand that rounds to 0",
    "log-sum-exp by hand",
    "softplus by hand, of one more",
    "rows left out",
    "a leaky relu",
    "a gradient of a small norm",
    "16 bits in a layer and a cast",
)
"""What other tests look at as well."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def test_a_recipe_that_is_written_into_the_code_keeps_the_training_alive(
    name: str, tmp_path: Path
) -> None:
    option, parts = CASES[name]
    path, run = tmp_path / "as_it_is.py", tmp_path / "run.h5"
    path.write_text(program(parts))
    with Recorder(run, on_nan="stop") as recorder:
        trained(path, recorder)
    assert run.exists()

    (fix,) = explain(run, fixes=[option]).fixes
    assert (fix.prevents, fix.outcome) == (True, "prevents"), fix
    if fix.places is not None and fix.loss_change is not None:
        # what a healthy step computes stays, or is said to change
        assert fix.loss_change < 0.05 or "losses of healthy steps change" in str(fix.note)
    fixed = tmp_path / "fixed.py"
    fixed.write_text(applied(path.read_text(), fix))
    losses = trained(fixed)

    assert len(losses) == 8
    assert np.isfinite(losses).all()
    if fix.name not in ("init", "float32") and fix.steps_checked is not None:
        np.testing.assert_allclose(losses[fix.steps_checked[1]], fix.final_loss, rtol=1e-3)

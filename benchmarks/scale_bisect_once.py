"""One training of `scale.py` for `bisect`: a model with Adam that takes a logarithm of 0.

It does so in its fourth step, in the middle of a transformer's blocks or behind an image model, and
is recorded with the recorder's defaults; then it runs eager steps.

Usage: python scale_bisect_once.py BLOCKS WIDTH WORDS FILE
       python scale_bisect_once.py NAME FILE   (NAME of keras.applications, such as ResNet50V2)
       python scale_bisect_once.py import
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

ROWS, LENGTH, BAD_STEP, EAGER_STEPS = 2, 32, 3, 5
PIXELS = 96


def build(blocks: int, width: int, words: int) -> Any:
    """Pre-norm blocks with attention over tokens, and one feature whose logarithm scales them."""
    import keras

    keras.utils.set_random_seed(1)
    tokens, feature = keras.Input((LENGTH,), dtype="int32"), keras.Input((1,))
    x = keras.layers.Embedding(words, width)(tokens)
    for block in range(blocks):
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(8, width // 8, dropout=0.1)(normed, normed)
        normed = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.Dense(width)(keras.layers.Dense(4 * width, activation="gelu")(normed))
        if block == blocks // 2:
            x = x * keras.layers.Reshape((1, 1))(keras.ops.log(feature))
    output = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(x))
    model = keras.Model([tokens, feature], output)
    model.compile("adam", "mse", jit_compile=False)
    return model


def build_application(name: str) -> Any:
    """An image model of Keras, whose features are scaled by the logarithm of another one."""
    import keras

    keras.utils.set_random_seed(1)
    shape = (PIXELS, PIXELS, 3)
    images, feature = keras.Input(shape), keras.Input((1,))
    body = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_shape=shape
    )
    output = keras.layers.Dense(1)(body(images) * keras.ops.log(feature))
    model = keras.Model([images, feature], output)
    model.compile("adam", "mse", jit_compile=False)
    return model


def record(model: Any, inputs: Any, file: str) -> dict[str, Any]:
    """Train into the NaN; returns parameters, ops, and the processor time of an eager step.

    Args:
        model: Takes the inputs and a feature of which it takes the logarithm.
        inputs: Tokens or images of all steps.
        file: The capture.
    """
    import numpy as np

    from nanreplay import Capture, Recorder

    rows, random = len(inputs), np.random.default_rng(2)
    feature, y = np.full((rows, 1), np.e, "float32"), random.normal(size=(rows, 1))
    feature[-1] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder = Recorder(file, on_nan="stop")
        model.fit(
            [inputs, feature], y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[recorder]
        )
    model.compile("adam", "mse", run_eagerly=True)
    times_s = []
    for _ in range(EAGER_STEPS):
        began_s = time.process_time()
        model.train_on_batch([inputs[:ROWS], feature[:ROWS]], y[:ROWS])
        times_s.append(time.process_time() - began_s)
    with Capture(file) as capture:
        ops = len(capture.program(capture.programs[0]).ops)
    return {
        "parameters": model.count_params(),
        "ops": ops,
        "eager_step_s": sorted(times_s)[EAGER_STEPS // 2],
    }


def main(*arguments: str) -> None:
    """Train as the arguments say, and print what was measured."""
    import numpy as np

    random, rows = np.random.default_rng(1), ROWS * (BAD_STEP + 1)
    if len(arguments) == 2:
        images = random.random((rows, PIXELS, PIXELS, 3), "float32")
        print(json.dumps(record(build_application(arguments[0]), images, arguments[1])))
        return
    blocks, width, words = map(int, arguments[:3])
    tokens = random.integers(0, words, (rows, LENGTH)).astype("int32")
    print(json.dumps(record(build(blocks, width, words), tokens, arguments[3])))


if __name__ == "__main__":
    if sys.argv[1] == "import":
        from nanreplay.terminal import load_tensorflow

        load_tensorflow()  # as the command does
    else:
        main(*sys.argv[1:])

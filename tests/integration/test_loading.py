"""Commands load TensorFlow without Keras, which a script of the user's still gets."""

from __future__ import annotations

import subprocess
import sys

LATER = """
import sys
from nanreplay.terminal import load_tensorflow
load_tensorflow()
assert "tensorflow" in sys.modules and "keras" not in sys.modules
assert all(type(finder).__name__ != "_KerasFinder" for finder in sys.meta_path)
import keras
from tensorflow.keras.layers import Dense
import tensorflow as tf
assert tf.keras.layers.Dense is Dense and issubclass(Dense, keras.layers.Layer)
print("loaded later")
"""


def test_keras_is_loaded_once_somebody_asks_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATER], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split("\n")[-2:] == ["loaded later", ""], done.stderr

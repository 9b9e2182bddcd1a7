"""Takes TensorFlow and Keras from every Python process that has this folder on its path."""

import sys

for name in ("tensorflow", "keras", "tf_keras"):
    sys.modules[name] = None  # type: ignore[assignment]

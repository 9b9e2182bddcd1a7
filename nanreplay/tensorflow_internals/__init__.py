"""The private names of TensorFlow and Keras that this package relies on.

No other package imports one. Everything else goes through the small functions here, each of
which says why no public name does. `tests/unit/program/test_tensorflow_internals.py` reads the
imports of this folder and names what an upgrade of TensorFlow moved.
"""

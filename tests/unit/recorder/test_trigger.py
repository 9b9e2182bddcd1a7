"""What the recorder says of an exception."""

from __future__ import annotations

import tensorflow as tf

from nanreplay.recorder.lifecycle import exception_trigger


def test_an_error_out_of_a_graph_is_told_by_its_reason() -> None:
    try:
        tf.function(tf.linalg.inv)(tf.zeros((2, 2)))
    except tf.errors.InvalidArgumentError as error:
        trigger = exception_trigger(error)
    assert (trigger.what, trigger.name, trigger.value) == (
        "exception",
        "InvalidArgumentError",
        "Input is not invertible.",
    )


def test_any_other_error_is_told_by_its_first_line() -> None:
    assert exception_trigger(ValueError("no\nmore")).value == "no"
    assert exception_trigger(ValueError()).value == ""

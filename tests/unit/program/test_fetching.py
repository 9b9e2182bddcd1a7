"""What a compiled function fetches is staged in the order in which it is fetched."""

from typing import Any

import tensorflow as tf

from nanreplay.program import fetching
from nanreplay.tensorflow_internals import tf_functions


def test_a_loop_waits_until_what_it_is_handed_is_staged() -> None:
    iterator = iter(tf.data.Dataset.range(9))

    @tf.function(autograph=False)
    def three_steps(source: Any) -> Any:
        def body(count: Any, element: Any) -> Any:
            return count + 1, source.get_next_as_optional()

        first = source.get_next_as_optional()
        return tf.while_loop(lambda count, element: count < 3, body, [tf.constant(0), first])[0]

    definition = tf_functions.function_definition(three_steps.get_concrete_function(iterator))
    (fetch,) = (node for node in definition.node_def if node.op == "IteratorGetNextAsOptional")
    (loop,) = (node for node in definition.node_def if node.op in ("While", "StatelessWhile"))
    fetching._stage_first(definition, f"{fetch.name}:optional:0", "area")
    (stage,) = (node for node in definition.node_def if node.op == "Stage")
    assert f"^{stage.name}" in loop.input
    assert list(stage.input) == [f"{fetch.name}:optional:0"]  # and waits for nothing else

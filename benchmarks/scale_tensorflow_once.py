"""What TensorFlow alone takes to make the recorded step of a capture of `scale.py` ready, as the
dump does: seconds of processor time.

Usage: python scale_tensorflow_once.py CAPTURE

The program of the file is imported with TensorFlow's public functions and called twice, as the step
that it is and for its losses and gradients alone. The first call optimizes the graph and makes its
kernels; what it takes more than the second one is TensorFlow's, whoever calls.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay import Capture


def first_call_s(graph: Any, feeds: Sequence[str], fetches: Sequence[str], given: Any) -> float:
    """Processor time of the first call of a part of a graph, less that of the second one."""
    whole = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(graph, name=""), signature=[]
    )
    imported = whole.graph
    function = whole.prune(
        [imported.get_tensor_by_name(name) for name in feeds],
        [imported.as_graph_element(name) for name in fetches],
    )
    taken = []
    for _ in range(2):
        began_s = time.process_time()
        function(*given)
        taken.append(time.process_time() - began_s)
    return taken[0] - taken[1]


def main(path: str) -> None:
    """Time both parts of the program that the last step ran, on variables of zeros."""
    with Capture(path) as capture:
        batch, infos = capture.batch(capture.steps[-1]), capture.variables_info
        record = capture.program(batch.program)
    signature = record.signature
    variables = [tf.Variable(tf.zeros(info.shape, info.dtype)) for info in infos]
    feeds = [spec.tensor for spec in (*signature.inputs, *signature.captures)]
    given = [tf.convert_to_tensor(batch.arrays[spec.leaf]) for spec in signature.inputs]
    for spec in signature.captures:
        if spec.variable is not None:
            given.append(variables[spec.variable].handle)
        else:
            given.append(tf.convert_to_tensor(record.constants[spec.constant or 0]))
    graph = tf.compat.v1.GraphDef.FromString(record.graph)
    step_parts = [*signature.outputs, *signature.control_outputs]
    derivatives = [*signature.losses, *signature.gradient_tensors]
    facts = {
        "step_s": first_call_s(graph, feeds, step_parts, given),
        "derivatives_s": first_call_s(graph, feeds, derivatives, given),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])

"""A stand-in for a GPU: functions whose trace holds ops that only a GPU runs are run all the same.

What is traced, recorded and written is what a GPU's training gives; only the numbers are computed
by the CPU, by what nanreplay puts in the place of such ops.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from nanreplay.program.graph_nodes import rename_mentions
from nanreplay.program.lowered_graph import lower_graph
from nanreplay.tensorflow_internals import tf_functions


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras find a GPU, and TensorFlow run what is traced for it."""
    # The package exports a function of the module's name, so that an import gives that.
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    original = context.Context.call_function
    known: dict[str, str] = {}
    being_made: list[str] = []

    def call(self: Any, name: Any, inputs: Any, n_outputs: int) -> Any:
        function = name.decode() if isinstance(name, bytes) else name
        if function not in known and not being_made:
            being_made.append(function)
            known[function] = _on_cpu(function)
            being_made.clear()
        return original(self, known.get(function, function).encode(), inputs, n_outputs)

    monkeypatch.setattr(context.Context, "call_function", call)


def _on_cpu(name: str) -> str:
    """The name of a function in the form that the CPU runs; its own where that is the same."""
    graph = tf.compat.v1.GraphDef()
    graph.library.function.extend(tf_functions.function_library(name))
    call = graph.node.add(name="call", op="StatefulPartitionedCall")
    call.attr["f"].func.name = name
    own = [function.signature.name for function in graph.library.function]
    if not lower_graph(graph):
        return name
    renamed = {function: f"{function}_on_cpu" for function in own}
    for function in graph.library.function:
        rename_mentions(function.node_def, renamed)
        if function.signature.name in renamed:
            function.signature.name = renamed[function.signature.name]
            tf_functions.register_function(function)
    return renamed[name]

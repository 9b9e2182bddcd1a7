"""Ops that a stable one stands for are found by what they compute, and what looks alike is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.records import OpInfo, ProgramRecord, Signature
from nanreplay.whatif.fixes.log_chains import FINDERS, Chain

X = np.array([[-2.0, 0.5, 1.0], [3.0, -1.0, 0.25]], np.float32)
Formula = Callable[[Any], Any]
log, exp, total = tf.math.log, tf.exp, tf.reduce_sum


def chains(formula: Formula) -> tuple[list[Chain], Any]:
    """The chains that end in the logarithm of a formula, and what the formula gives."""
    concrete = tf.function(formula).get_concrete_function(tf.TensorSpec(X.shape, tf.float32))
    definition = concrete.graph.as_graph_def()
    ops = [
        OpInfo("", node.name, node.op, "", "loss", "loss", -1, "", "") for node in definition.node
    ]
    signature = Signature("graph", (), ())
    record = ProgramRecord("p0", definition.SerializeToString(), signature, ops)
    editor = ProgramEditor(record)
    (key,) = [("", op.name) for op in ops if op.type in ("Log", "Log1p")]
    found = [find_chain(editor, key) for find_chain in FINDERS]
    return [chain for chain in found if chain is not None], concrete(tf.constant(X))


LOG_COSH = "x + tf.math.softplus(-2.0 * x) - tf.math.log(2.0)"


@pytest.mark.parametrize(
    ("function", "formula"),
    [
        ("tf.nn.log_softmax", lambda x: log(tf.nn.softmax(x))),
        ("tf.nn.log_softmax", lambda x: log(tf.identity(tf.nn.softmax(x)) + 1e-7)),
        ("tf.math.log_sigmoid", lambda x: log(tf.sigmoid(x))),
        ("tf.math.log_sigmoid(-x)", lambda x: log(1 - tf.sigmoid(x))),
        ("tf.math.softplus", lambda x: log(1 + exp(x))),
        ("tf.math.softplus", lambda x: log(exp(x) + 1)),
        ("tf.math.softplus", lambda x: tf.math.log1p(exp(x))),
        ("tf.reduce_logsumexp", lambda x: log(total(exp(x), axis=1))),
        ("tf.reduce_logsumexp", lambda x: log(total(exp(x), axis=[0, 1], keepdims=True))),
        ("-tf.math.softplus(x)", lambda x: log(1 / (1 + exp(x)))),
        ("tf.math.cumulative_logsumexp", lambda x: log(tf.cumsum(exp(x)))),
        ("tf.math.cumulative_logsumexp", lambda x: log(tf.cumsum(exp(x), 1, reverse=True))),
        (LOG_COSH, lambda x: log(tf.cosh(x))),
    ],
)
def test_what_stands_for_a_chain_computes_the_same(function: str, formula: Formula) -> None:
    (chain,), expected = chains(formula)
    assert chain.function == function
    np.testing.assert_allclose(chain.compute(tf.constant(X)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: log(tf.nn.softmax(x) + 0.5),
        lambda x: log(2 - tf.sigmoid(x)),
        lambda x: log(1 - tf.tanh(tf.sigmoid(x))),
        lambda x: log(2 + exp(x)),
        lambda x: log(1 + tf.abs(x)),
        lambda x: tf.math.log1p(tf.abs(x)),
        lambda x: log(total(tf.abs(x), axis=1)),
        lambda x: log(total(exp(x), axis=tf.rank(x) - 1)),
        lambda x: log(tf.cumsum(exp(x), exclusive=True)),
        lambda x: log(tf.cumsum(tf.abs(x))),
        lambda x: log(2 / (1 + exp(x))),
        lambda x: log(1 / (1 + tf.abs(x))),
        lambda x: log(1 / (3 + exp(x))),
        lambda x: log(x),
    ],
)
def test_what_looks_like_a_chain_is_none(formula: Formula) -> None:
    found, _ = chains(formula)
    assert found == []

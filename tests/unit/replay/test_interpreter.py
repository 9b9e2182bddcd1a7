"""What the interpreter tells of a run, and what one may do to a run from outside."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.errors import ReplayError, UnsupportedOpError
from nanreplay.replay.interpreter import Interpreter, InterpreterCancelled
from nanreplay.replay.provenance import OpEvent, ValueId

X = tf.TensorSpec([3], tf.float32, name="x")
VALUES = tf.constant([1.0, 2.0, 3.0])


class Traced:
    """A step traced for the interpreter, and the events of its last run."""

    def __init__(self, step: Callable[..., Any], *specs: Any) -> None:
        self.function = tf.function(step).get_concrete_function(*specs)
        self.interpreter = Interpreter(self.function.graph.as_graph_def())
        self.events: list[OpEvent] = []

    def run(self, *values: Any, observer: Any = None, **options: Any) -> list[Any]:
        self.events = []

        def observe(event: OpEvent) -> Any:
            self.events.append(event)
            return observer(event) if observer else None

        feeds = dict(
            zip(
                [t.name for t in self.function.inputs],
                [*values, *self.function.captured_inputs],
                strict=True,
            )
        )
        targets = [op.name for op in self.function.graph.control_outputs]
        fetches = [tensor.name for tensor in self.function.outputs]
        return self.interpreter.run(feeds, fetches, targets=targets, observer=observe, **options)

    def only(self, op_type: str) -> OpEvent:
        (event,) = self.all(op_type)
        return event

    def all(self, op_type: str) -> list[OpEvent]:
        return [event for event in self.events if event.type == op_type]


def looped(x: Any) -> Any:
    return tf.while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, tf.sin(a)), [tf.constant(0), x])[
        1
    ]


def test_inputs_are_named_after_the_op_that_made_them() -> None:
    traced = Traced(lambda x: tf.sin(tf.cos(x)), X)
    traced.run(VALUES)
    cos, sin = traced.only("Cos"), traced.only("Sin")
    assert cos.input_ids == (ValueId(-1, 0),)
    assert sin.input_ids == (ValueId(cos.serial, 0),)


def test_serials_count_the_ops_in_the_order_in_which_they_ran() -> None:
    traced = Traced(looped, X)
    traced.run(VALUES)
    assert [event.serial for event in traced.events] == list(range(len(traced.events)))


def test_values_keep_their_maker_through_calls_and_loops() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return x, tf.cos(x)

    traced = Traced(lambda x: tf.sin(inner(tf.exp(x))[0]), X)
    traced.run(VALUES)
    made_by = {event.serial: event.type for event in traced.events}
    source = traced.only("Sin").input_ids[0]
    assert made_by[source.serial] in ("Exp", "Identity")


def test_a_loop_tells_its_iterations() -> None:
    traced = Traced(looped, X)
    traced.run(VALUES)
    sines = traced.all("Sin")
    assert [event.calls[-1].iteration for event in sines] == [0, 1, 2]
    assert {event.calls[-1].op_type for event in sines} <= {"While", "StatelessWhile"}
    assert sines[0].function == sines[0].calls[-1].callee != ""
    assert sines[0].calls[-1].function == ""


def test_the_condition_runs_once_more_than_the_body() -> None:
    traced = Traced(looped, X)
    traced.run(VALUES)
    assert [event.calls[-1].iteration for event in traced.all("Less")] == [0, 1, 2, 3]


def test_a_branch_is_named_and_only_the_taken_one_runs() -> None:
    traced = Traced(lambda x: tf.cond(x[0] > 0.0, lambda: tf.sin(x), lambda: tf.cos(x)), X)
    traced.run(VALUES)
    assert traced.only("Sin").calls[0].iteration is None
    assert not traced.all("Cos")


def test_reading_a_variable_leads_to_the_value_assigned_in_this_run() -> None:
    v = tf.Variable([1.0, 1.0, 1.0])

    def step(x: Any) -> Any:
        first = v.read_value()
        v.assign(tf.exp(x))
        return first, tf.sin(v.read_value())

    traced = Traced(step, X)
    traced.run(VALUES)
    before, after = traced.all("ReadVariableOp")
    assert before.via == ()
    assert after.via == (ValueId(traced.only("Exp").serial, 0),)


def test_reading_after_an_update_in_place_leads_to_the_update() -> None:
    v = tf.Variable([1.0, 1.0, 1.0])

    def step(x: Any) -> Any:
        v.assign_add(x)
        return v.read_value(), tf.gather(v, [0])

    traced = Traced(step, X)
    traced.run(VALUES)
    update = ValueId(traced.only("AssignAddVariableOp").serial, 0)
    assert {event.via for event in traced.all("ReadVariableOp")} == {(update,)}
    assert traced.only("ResourceGather").via == (update,)


def test_a_list_element_leads_to_the_value_that_was_put_there() -> None:
    def step(x: Any) -> Any:
        array = tf.TensorArray(tf.float32, 2).write(0, tf.exp(x)).write(1, tf.cos(x))
        return array.read(1), array.stack()

    traced = Traced(step, X)
    traced.run(VALUES)
    exp, cos = (ValueId(traced.only(kind).serial, 0) for kind in ("Exp", "Cos"))
    assert traced.only("TensorListGetItem").via == (cos,)
    assert traced.only("TensorListStack").via == (exp, cos)


def test_gradients_of_a_loop_are_followed_through_their_accumulators() -> None:
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = looped(x)
        return tape.gradient(y, x)

    traced = Traced(step, X)
    traced.run(VALUES)
    pops = traced.all("TensorListPopBack")
    types = {event.serial: event.type for event in traced.events}
    assert pops
    assert all(
        pop.via and types.get(pop.via[0].serial, "fed") != "TensorListPushBack" for pop in pops
    )


def test_an_optional_leads_to_its_components() -> None:
    def step(x: Any) -> Any:
        optional = tf.raw_ops.OptionalFromValue(components=[tf.exp(x)])
        return tf.raw_ops.OptionalGetValue(
            optional=optional, output_types=[tf.float32], output_shapes=[[3]]
        )

    traced = Traced(step, X)
    traced.run(VALUES)
    assert traced.only("OptionalGetValue").via == (ValueId(traced.only("Exp").serial, 0),)


def test_the_observer_can_put_another_value_in_place() -> None:
    traced = Traced(lambda x: tf.exp(tf.sqrt(x)), X)
    zero = tf.zeros([3])
    (found,) = traced.run(VALUES, observer=lambda event: [zero] if event.type == "Sqrt" else None)
    np.testing.assert_array_equal(found, [1.0, 1.0, 1.0])


def test_any_tensor_can_be_fed_and_what_only_it_needed_does_not_run() -> None:
    function = tf.function(lambda x: tf.exp(tf.sqrt(x))).get_concrete_function(X)
    interpreter = Interpreter(function.graph.as_graph_def().SerializeToString())
    (found,) = interpreter.run({"Sqrt:0": tf.zeros([3])}, ["Exp:0"])
    np.testing.assert_array_equal(found, [1.0, 1.0, 1.0])


def test_a_kernel_that_raises_is_named() -> None:
    traced = Traced(lambda x: tf.linalg.inv(tf.zeros([2, 2])) + x[0], X)
    with pytest.raises(ReplayError, match="MatrixInverse") as caught:
        traced.run(VALUES)
    assert isinstance(caught.value.__cause__, tf.errors.InvalidArgumentError)


def test_on_error_sees_the_error_and_the_run_goes_on() -> None:
    traced = Traced(lambda x: tf.linalg.inv(tf.zeros([2, 2])) + x[0], X)
    seen: list[OpEvent] = []

    def go_on(event: OpEvent) -> list[Any]:
        seen.append(event)
        return [tf.ones([2, 2])]

    (found,) = traced.run(VALUES, on_error=go_on)
    np.testing.assert_array_equal(found, np.full([2, 2], 2.0))
    assert isinstance(seen[0].error, tf.errors.InvalidArgumentError)
    assert seen[0].outputs == ()


def test_a_run_can_be_cancelled_between_two_ops() -> None:
    traced = Traced(looped, X)
    asked = iter([False] * 5 + [True])
    with pytest.raises(InterpreterCancelled):
        traced.run(VALUES, cancelled=lambda: next(asked))
    assert len(traced.events) <= 5


def test_a_missing_feed_is_named() -> None:
    traced = Traced(lambda x: tf.exp(x), X)
    with pytest.raises(ReplayError, match="must feed a value for placeholder"):
        traced.interpreter.run({}, ["Exp:0"])


def test_python_functions_are_never_called() -> None:
    called: list[int] = []
    traced = Traced(
        lambda x: tf.exp(tf.py_function(lambda v: called.append(1) or v, [x], tf.float32)), X
    )
    with pytest.raises(UnsupportedOpError, match="EagerPyFunc"):
        traced.run(VALUES)
    (found,) = traced.run(VALUES, on_error=lambda event: [tf.zeros([3])])
    np.testing.assert_array_equal(found, [1.0, 1.0, 1.0])
    assert not called


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[int] = []
    held: list[weakref.ref[Any]] = []

    def observe(event: OpEvent) -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in held))
        held.extend(weakref.ref(output) for output in event.outputs if event.type == "Sin")

    def chain(x: Any) -> Any:
        for _ in range(10):
            x = tf.sin(x)
        return x

    traced = Traced(chain, X)
    feeds = {traced.function.inputs[0].name: VALUES}
    traced.interpreter.run(feeds, [t.name for t in traced.function.outputs], observer=observe)
    assert max(alive) <= 2


def test_two_programs_may_have_functions_of_one_name() -> None:
    def step(factor: float) -> Traced:
        return Traced(
            lambda x: (
                tf.data.Dataset.from_tensors(x)
                .map(lambda v: v * factor)
                .reduce(0.0, lambda a, v: a + v[0])
            ),
            X,
        )

    first, second = step(2.0), step(3.0)
    names = [f.signature.name for f in first.function.graph.as_graph_def().library.function]
    assert first.run(VALUES)[0] == 2.0
    assert second.run(VALUES)[0] == 3.0
    assert names


def test_xla_programs_draw_the_numbers_of_xla() -> None:
    def step(x: Any) -> Any:
        return x * tf.random.stateless_uniform([3], [1, 2]) + tf.random.stateless_normal(
            [3], [3, 4]
        )

    expected = tf.function(step, jit_compile=True)(VALUES)
    function = tf.function(step).get_concrete_function(X)
    interpreter = Interpreter(function.graph.as_graph_def(), compile_random=True)
    (found,) = interpreter.run({"x:0": VALUES}, [function.outputs[0].name])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("launch", ["XlaLaunch", "XlaLaunchV2"])
def test_a_launch_of_xla_is_seen_through(launch: str) -> None:
    called = tf.function(lambda x: tf.math.log(x) * 2.0).get_concrete_function(X)
    graph = tf.function(called).get_concrete_function(X).graph.as_graph_def()
    (call,) = [node for node in graph.node if "PartitionedCall" in node.op]
    name = call.attr["f"].func.name
    call.op = launch
    call.attr.clear()
    call.attr["function"].func.name = name
    if launch == "XlaLaunch":
        call.attr["Tconstants"].list.SetInParent()
    else:
        call.attr["constants"].list.SetInParent()
        call.attr["resources"].list.SetInParent()
    call.attr["Targs"].list.type.append(tf.float32.as_datatype_enum)
    call.attr["Tresults"].list.type.append(tf.float32.as_datatype_enum)
    seen: list[str] = []
    observed = Interpreter(graph).run(
        {"x:0": VALUES}, [f"{call.name}:0"], observer=lambda event: seen.append(event.type)
    )
    np.testing.assert_array_equal(observed[0], called(tf.constant(VALUES)))
    assert "Log" in seen


def test_control_flow_of_tensorflow_1_is_refused() -> None:
    with tf.Graph().as_default() as graph:
        tf.raw_ops.Switch(data=tf.constant(1.0), pred=tf.constant(True))
    with pytest.raises(UnsupportedOpError, match="TensorFlow 1"):
        Interpreter(graph.as_graph_def()).run({}, ["Switch:0"])


@pytest.mark.parametrize("name", ["nowhere:0", "Const:7"])
def test_a_fetch_that_does_not_exist_is_named(name: str) -> None:
    with tf.Graph().as_default() as graph:
        tf.constant(1.0)
    with pytest.raises(ReplayError, match=name.split(":", maxsplit=1)[0]):
        Interpreter(graph.as_graph_def()).run({}, [name])

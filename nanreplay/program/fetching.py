"""The batch that a compiled function fetches by itself, and what another run would not repeat.

The function that trains is run as a variant of it: the same nodes, in the same order, and beside
them one that puts what was fetched into a staging area. What is read once more comes right out of
the iterator (of a random op, a table), which no optimizer of graphs rewrites or merges with others,
so that all that is computed stays as it was. The batch can be taken from there when the step
raises, too.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.graph_nodes import (
    data_inputs,
    functions_by_name,
    mentioned_functions,
    output_name,
    rename_mentions,
)
from nanreplay.program.nondeterministic_ops import takes_first_free
from nanreplay.program.staging import STAGING_DEVICE, FetchedBatches
from nanreplay.program.traced_program import LoopFetch, TracedProgram
from nanreplay.program.training_functions import FETCHES, FETCHES_OPTIONAL, TrainingFunction
from nanreplay.tensorflow_internals import tf_functions, tf_variables

# In a recorded program: feeding a loop that fetches in each iteration. What was fetched goes into
# it as one array, of which each iteration takes its part.

_FED = "nanreplay_fetched"


def fed_name(loop: LoopFetch, number: int) -> str:
    """Name of the placeholder, in the main graph, of what all iterations fetched.

    Args:
        loop: The loop.
        number: Number of the tensor among those that an iteration fetches.
    """
    return f"{loop.op.name}/{_FED}_{number}"


def feed_loop(graph: Any, loop: LoopFetch) -> None:
    """Put arrays in the place of what the body of a loop fetches, in a GraphDef.

    The loop hands the arrays on from iteration to iteration, and its body takes the part of its
    number. The number is the first thing that every While of TensorFlow 2 hands on.
    """
    node = next(node for node in graph.node if node.name == loop.op.name)
    functions = functions_by_name(graph)
    body = functions[node.attr["body"].func.name]
    cond = functions[node.attr["cond"].func.name]
    places = {}
    for number, tensor in enumerate(loop.fetched):
        _hand_on(graph, node, body, cond, fed_name(loop, number), number, tensor)
        places[output_name(tensor)] = _part_of_iteration(body, number, tensor)
    _without_sources(body, {op.name for op in loop.sources}, places)


def _hand_on(
    graph: Any, node: Any, body: Any, cond: Any, name: str, number: int, tensor: Any
) -> None:
    """Give the loop one array more, which its body returns as it is."""
    kind = tensor.dtype.as_datatype_enum
    shape = tf.TensorShape([None]).concatenate(tensor.shape).as_proto()
    placeholder = graph.node.add(name=name, op="Placeholder")
    placeholder.attr["dtype"].type = kind
    placeholder.attr["shape"].shape.CopyFrom(shape)
    n_data = len(data_inputs(node))  # control dependencies come after them
    node.input[:] = [*node.input[:n_data], name, *node.input[n_data:]]
    node.attr["T"].list.type.append(kind)
    if node.attr["output_shapes"].list.shape:
        node.attr["output_shapes"].list.shape.add().CopyFrom(shape)
    for function in (body, cond):
        function.signature.input_arg.add(name=f"{_FED}_{number}", type=kind)
    body.signature.output_arg.add(name=f"{_FED}_{number}_out", type=kind)
    body.ret[f"{_FED}_{number}_out"] = f"{_FED}_{number}"


def _part_of_iteration(body: Any, number: int, tensor: Any) -> str:
    """Add nodes that take the part of an iteration; returns the name of what they give."""
    axis = body.node_def.add(name=f"{_FED}_{number}/axis", op="Const")
    axis.attr["dtype"].type = tf.int32.as_datatype_enum
    axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0, tf.int32))
    counter = body.signature.input_arg[0].name
    inputs = [f"{_FED}_{number}", counter, f"{axis.name}:output:0"]
    part = body.node_def.add(name=f"{_FED}_{number}/part", op="GatherV2", input=inputs)
    part.attr["Tparams"].type = tensor.dtype.as_datatype_enum
    part.attr["Tindices"].type = part.attr["Taxis"].type = tf.int32.as_datatype_enum
    part.attr["batch_dims"].i = 0
    return f"{part.name}:output:0"


def _without_sources(body: Any, removed: set[str], places: Mapping[str, str]) -> None:
    """Leave the ops that fetch out of the body of a loop.

    Args:
        body: Its FunctionDef.
        removed: Names of the ops.
        places: Names of the tensors that they gave to those that take their places.
    """
    kept = []
    for node in body.node_def:
        if node.name not in removed:
            kept.append(node)
    gone = {f"^{name}" for name in removed}  # as inputs name an op that only has to run before
    for node in kept:
        node.input[:] = [places.get(name, name) for name in node.input if name not in gone]
    del body.node_def[:]
    body.node_def.extend(kept)
    for name, value in list(body.ret.items()):
        body.ret[name] = places.get(value, value)
    for name, node in list(body.control_ret.items()):
        if node in removed:
            del body.control_ret[name]
            body.signature.control_output.remove(name)


_serials = itertools.count()
_PREFIX = "nanreplay"
"""Begins the names of added nodes, and parts those of changed functions from their numbers."""

# In training: the variant of the function, in which nodes are added that tell.


class InstrumentedFunction:
    """A variant of a ConcreteFunction that tells what it fetches and draws.

    Args:
        training: The function.
        program: Its program. What the program returns is returned too, where it is a function that
            `training` calls, and then what another run would not repeat.
    """

    def __init__(self, training: TrainingFunction, program: TracedProgram) -> None:
        self.kinds: list[Any] = []
        """DTypes of the components of what is fetched."""
        self.batches: FetchedBatches | None = None
        definition = tf_functions.function_definition(training.function)
        self.n_original = len(definition.signature.output_arg)
        name = f"{definition.signature.name}_{_PREFIX}_{next(_serials)}"
        self._registered = [name]
        if training.fetching:
            self.batches = FetchedBatches(f"nanreplay{name}_batches")
            self._tell_fetched(definition, training, program, self.batches)
        self.n_returned = 0
        """How many outputs of the program come after those of the function."""
        self.has_mean = False
        """Whether what the mean of the losses has added up, and of how much, comes after these."""
        if program.graph is training.graph:
            for tensor in program.outside:
                _return(definition, _without_forwarding(definition, tensor), tensor.dtype)
        elif training.innermost[1] is not None and training.innermost[1].graph is training.graph:
            self._return_inner(definition, training, program)
        definition.signature.name = name
        tf_functions.register_function(definition)
        n_outputs = len(definition.signature.output_arg)
        self.run = tf_functions.RegisteredFunction(training.function, name, n_outputs)
        """Runs it on flat inputs.

        Gives what the function returns, outputs of the program, and what another run would not
        repeat.
        """
        weakref.finalize(self, _forget, tuple(self._registered)).atexit = False

    def _return_inner(
        self, definition: Any, training: TrainingFunction, program: TracedProgram
    ) -> None:
        """Return what the program returns, where the program is a function that this one calls.

        What another run would not repeat comes after it.
        """
        _, caller = training.innermost
        assert caller is not None
        node = next(node for node in definition.node_def if node.name == caller.op.name)
        self.n_returned = len(program.outputs)
        for number, tensor in enumerate(program.outputs):
            _return(definition, f"{node.name}:output:{number}", tensor.dtype)
        self._return_mean(definition, training, program, node.name)
        if not program.outside:
            return
        old = node.attr["f"].func.name
        library = tf_functions.function_library(old)
        inner = next(function for function in library if function.signature.name == old)
        for number, tensor in enumerate(program.outside, len(program.outputs)):
            _return(inner, _without_forwarding(inner, tensor), tensor.dtype)
            node.attr["Tout"].list.type.append(tensor.dtype.as_datatype_enum)
            _return(definition, f"{node.name}:output:{number}", tensor.dtype)
        inner.signature.name = node.attr["f"].func.name = f"{old}_{_PREFIX}_{next(_serials)}"
        tf_functions.register_function(inner)
        self._registered.append(inner.signature.name)

    def _return_mean(
        self, definition: Any, training: TrainingFunction, program: TracedProgram, call: str
    ) -> None:
        """Read, after the step, what the mean of the losses has added up.

        Here that takes a microsecond, in Python ten.
        """
        _, caller = training.innermost
        inside = program.mean_placeholders()
        if inside is None or caller is None:
            return
        positions = {}
        for position, tensor in enumerate(program.graph.inputs):
            positions[id(tensor)] = position
        handles = []
        for inner in inside:
            handles.append(caller.op.inputs[caller.first + positions[id(inner)]])
        # A placeholder does not know its variable's type; what the function captured for it does.
        captured = {}
        for outer, inner in training.graph.captures:
            captured[id(inner)] = outer
        known_types = []
        for handle in handles:
            kind = tf_variables.variable_type(captured.get(id(handle)))
            if kind is None:
                return
            known_types.append(kind)
        arguments = {}
        for number, tensor in enumerate(training.graph.inputs):
            arguments[id(tensor)] = number
        for handle, (kind, _) in zip(handles, known_types, strict=True):
            dtype = tf.dtypes.as_dtype(kind)
            name = f"{_PREFIX}_mean_{next(_serials)}"
            # An argument of a function may have another name than its placeholder in the graph.
            argument = definition.signature.input_arg[arguments[id(handle)]].name
            inputs = [argument, f"^{call}"]
            read = definition.node_def.add(name=name, op="ReadVariableOp", input=inputs)
            read.attr["dtype"].type = dtype.as_datatype_enum
            _return(definition, f"{name}:value:0", dtype)
        self.has_mean = True

    def _tell_fetched(
        self,
        definition: Any,
        training: TrainingFunction,
        program: TracedProgram,
        batches: FetchedBatches,
    ) -> None:
        """Put what is fetched into the staging area, in whichever function it is fetched."""
        own = []
        for graph, op in training.fetching:
            if graph is training.graph and op.type in FETCHES:
                own += op.outputs
        fetched = program.fetched or program.taken or own
        if fetched:
            self._stage_fetched(definition, fetched, batches.name)
            return
        library: dict[str, Any] = {}
        for name in training.graphs:
            for function in tf_functions.function_library(name):
                library[function.signature.name] = function
        if program.loop is not None:
            body = program.loop.op.node_def.attr["body"].func.name
            self._stage_fetched(library[body], program.loop.fetched, batches.name)
            self._rename(definition, library, {body})
            return
        op = training.fetching[0][1]
        kinds = []
        for kind in op.get_attr("output_types"):
            kinds.append(tf.dtypes.as_dtype(kind))
        self.kinds = kinds
        touched = set()
        for name, function in {"": definition, **library}.items():
            if self._stage_everything(function, training, batches):
                touched.add(name)
        self._rename(definition, library, touched)

    def _stage_fetched(self, function: Any, fetched: Sequence[Any], area: str) -> None:
        self.kinds = [tensor.dtype for tensor in fetched]
        names = list(map(output_name, fetched))
        _stage_tensors(function, names, self.kinds, area)

    def _stage_everything(
        self, function: Any, training: TrainingFunction, batches: FetchedBatches
    ) -> bool:
        """Stage what a function fetches and what the program returned to it; False for nothing."""
        nodes = list(function.node_def)  # some are added
        optionals = []
        for node in nodes:
            if node.op in FETCHES_OPTIONAL:
                optionals.append(node)
        elements = [node for node in nodes if node.op in FETCHES]
        returns = []
        for node in nodes:
            if _holds_outputs(node, training):
                returns.append(node)
        for node in optionals:
            _stage_first(function, f"{node.name}:optional:0", batches.name)
        for node in elements:
            names = []
            for number in range(len(self.kinds)):
                names.append(f"{node.name}:components:{number}")
            _stage_tensors(function, names, self.kinds, batches.name)
        for node in returns:
            batches.returned = f"{batches.name}_returned"
            _stage(function, f"{node.name}:optional:0", batches.returned)
        return bool(optionals or elements or returns)

    def _rename(self, definition: Any, library: dict[str, Any], touched: set[str]) -> None:
        """Give new names to the functions that were changed, and to those that call them.

        A function calls another by its name, so that the name of its caller changes with it, and so
        on outwards, until nothing more is added.
        """
        mentions = {}
        for name, function in library.items():
            mentions[name] = set(mentioned_functions(function.node_def))
        changed = touched - {""}
        has_grown = True
        while has_grown:
            n_before = len(changed)
            for name, mentioned in mentions.items():
                if mentioned & changed:
                    changed.add(name)
            has_grown = len(changed) > n_before
        names = {}
        for name in changed:
            names[name] = f"{name}_{_PREFIX}_{next(_serials)}"
        for old, new in names.items():
            function = library[old]
            rename_mentions(function.node_def, names)
            function.signature.name = new
            tf_functions.register_function(function)
            self._registered.append(new)
        rename_mentions(definition.node_def, names)


def _holds_outputs(node: Any, training: TrainingFunction) -> bool:
    """Whether a node makes an Optional of what the function returned that is the program."""
    caller = training.innermost[1]
    return (
        node.op == "OptionalFromValue"
        and caller is not None
        and any(name.startswith(f"{caller.op.name}:") for name in node.input)
    )


def _stage_tensors(function: Any, names: Sequence[str], kinds: Sequence[Any], area: str) -> None:
    """Add nodes that put tensors into a staging area, together."""
    name = f"{_PREFIX}_optional_{next(_serials)}"
    optional = function.node_def.add(name=name, op="OptionalFromValue", input=names)
    optional.attr["Toutput_types"].list.type.extend(kind.as_datatype_enum for kind in kinds)
    _stage(function, f"{name}:optional:0", area)


def _stage_first(function: Any, tensor: str, area: str) -> None:
    """Stage a tensor before anything in the function uses it.

    A loop that is handed the first element fetches the next one by itself. Without this order the
    next one may be staged before the first, on a busy machine.
    """
    users = []
    for node in function.node_def:
        if tensor in node.input:
            users.append(node)
    stage = _stage(function, tensor, area)
    for node in users:
        node.input.append(f"^{stage}")


def _stage(function: Any, tensor: str, area: str) -> str:
    """Add a node that puts a scalar variant into a staging area, as an effect of the function.

    Returns:
        Its name.
    """
    name = f"{_PREFIX}_stage_{next(_serials)}"
    stage = function.node_def.add(name=name, op="Stage", device=STAGING_DEVICE, input=[tensor])
    stage.attr["dtypes"].list.type.append(tf.variant.as_datatype_enum)
    stage.attr["shared_name"].s = area.encode()
    function.signature.control_output.append(name)
    function.control_ret[name] = name
    return name


def _return(function: Any, tensor: str, kind: Any) -> None:
    """Add an output to a FunctionDef."""
    name = f"{_PREFIX}_returned_{len(function.signature.output_arg)}"
    function.signature.output_arg.add(name=name, type=kind.as_datatype_enum)
    function.ret[name] = tensor


def _without_forwarding(function: Any, tensor: Any) -> str:
    """The name of what is returned of a tensor, so that no sum comes out otherwise for it.

    AddN starts with the first input whose buffer nobody else holds, so that one more reference
    changes the order of its sum. A copy is returned, and the sums wait until it was made.
    """
    sums = set()
    for op in tensor.consumers():
        if takes_first_free(op.type, len(op.inputs)):
            sums.add(op.name)
    source = output_name(tensor)
    if not sums:
        return source
    name = f"{_PREFIX}_copy_{next(_serials)}"
    copy = function.node_def.add(name=name, op="DeepCopy", input=[source])
    copy.attr["T"].type = tensor.dtype.as_datatype_enum
    for node in function.node_def:
        if node.name in sums:
            node.input.append(f"^{name}")
    return f"{name}:y:0"


def _forget(names: Sequence[str]) -> None:
    """Unregister functions; a process would keep them until its end."""
    for name in names:
        tf_functions.unregister_function(name)

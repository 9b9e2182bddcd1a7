"""Fixes of the model: activation, precision, masks, initial weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from nanreplay.diagnose.failure_graph import FailureGraph
from nanreplay.diagnose.rules.precision import adders_of_zero
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.records import Signature, VariableInfo
from nanreplay.whatif.edits import BadValueError, CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import line_edit
from nanreplay.whatif.fixes.batch_arrays import in_code, own_path
from nanreplay.whatif.fixes.update_fixes import positive_number

_HALF = ("float16", "bfloat16", "half")
_LEAKY_OPS = {"Relu": "LeakyRelu", "ReluGrad": "LeakyReluGrad"}
_INITIALIZERS = {"glorot": "glorot_uniform", "he": "he_normal", "orthogonal": "orthogonal"}
_WIDER = 2.0
"""How many times wider than an initializer draws it a kernel counts as drawn in another way.

No kernel that Glorot's rule draws is 1.8 times as wide as the rule has it, however small it is.
"""
_NAMED_HALF = re.compile(r"\b(?:bfloat16|float16)\b|(?<=[.\"'])half\b")
"""Names of types; `half` may as well be a function of the user's."""
_MOST_NAMED = 6
"""How many layers or kernels are named; the data names all."""
Part: TypeAlias = tuple[str, Mapping[str, Any]]
"""A line of a recipe, and the same as data."""


def leaky_relu(failure: Failure, value: str | None) -> Fix:
    """Let relu pass a part of what is negative."""
    slope = positive_number(value, 0.2)

    def edit(editor: ProgramEditor) -> None:
        # All are listed before the first one changes its type.
        for key in [*editor.ops({"Relu"}), *editor.ops({"ReluGrad"})]:
            node = editor.node(key)
            node.op = _LEAKY_OPS[node.op]
            node.attr["alpha"].f = slope

    if not any(info.type == "Relu" for info in failure.infos.values()):
        raise CannotTryError("The step holds no relu.")
    code = f"keras.layers.LeakyReLU(negative_slope={slope:g})  # in place of every relu"
    edits = [{"activation": "relu", "replaced_by": "leaky_relu", "negative_slope": slope}]
    return Fix("leaky_relu", {"negative_slope": slope}, Edit(programs=(edit,)), code, edits=edits)


def _lost_constant(failure: Failure) -> str | None:
    """What a constant was rounded to in 16 bits, where the step fails because of it."""
    scene, suspect = failure.bisection.scene, failure.bisection.suspect
    kind = failure.causes[0].kind if failure.causes else None
    if scene is None or suspect is None or suspect.fact is None:
        return None
    graph, values = FailureGraph(scene), suspect.fact.input_ids
    if kind == "fp16_underflow" and any(any(adders_of_zero(graph, value)) for value in values):
        return "0"
    if kind == "fp16_overflow":
        makers = chain.from_iterable(map(graph.infinities, values))
        if any(maker.type == "Const" for maker in makers):
            return "an infinity"
    return None


def float32(failure: Failure, value: str | None) -> Fix:
    """Compute in float32 what was computed in 16 bits."""
    signature, origin = failure.window.replay.signature(failure.step), failure.origin
    dtypes = [spec.dtype for spec in signature.inputs] + signature.policy.split(", ")
    if origin is not None:
        for output in origin.outputs:
            dtypes.append(output.dtype)
    lost = _lost_constant(failure)
    if lost is not None:
        raise CannotTryError(
            f"The recorded step holds the constant as {lost}, which it was rounded to when the "
            "step was traced: what it is in float32 is not known."
        )
    own = []
    for key, info in failure.editor.infos.items():
        if not info.forward and failure.editor.holds(key) and _is_half(failure.editor.node(key)):
            own.append(key)
    if not own and not any(half in dtype for dtype in dtypes for half in _HALF):
        raise CannotTryError("The step computes nothing in 16 bits.")
    parts = [*_wide_policy(failure, signature.policy, own), *_wide_casts(failure, own)]
    parts += _wide_inputs(failure, signature)
    if not parts:
        parts = [("# Compute in float32 what is computed in 16 bits", {})]
    code = "\n".join(line for line, _ in parts)
    edits = [edit for _, edit in parts if edit]
    return Fix("float32", {}, Edit(widen_half=True), code, edits=edits)


def _is_half(node: Any) -> bool:
    types = set()
    for attr in node.attr.values():
        if attr.WhichOneof("value") == "type":
            types.add(attr.type)
    return bool(types & {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum})


def _wide_policy(failure: Failure, policy: str, half_ops: Sequence[OpKey]) -> Iterator[Part]:
    """The policy, and the layers that a policy of their own would leave as they are."""
    if not any(half in policy for half in _HALF):
        return
    yield 'keras.mixed_precision.set_global_policy("float32")', {"policy": "float32"}
    paths = [failure.editor.infos[key].layer_path for key in half_ops]
    layers = list(dict.fromkeys(filter(None, paths)))
    if layers:
        named = ", ".join(f"`{layer}`" for layer in layers[:_MOST_NAMED])
        more = f" and {len(layers) - _MOST_NAMED} more" if len(layers) > _MOST_NAMED else ""
        words_for_it = f'# and dtype="float32" where a dtype is given to the layers {named}{more}'
        yield words_for_it, {"layers": layers, "argument_of_layers": "dtype", "value": "float32"}


def _wide_casts(failure: Failure, half_ops: Sequence[OpKey]) -> Iterator[Part]:
    """The user's lines that name a type of 16 bits, naming float32."""
    seen: set[tuple[str, int]] = set()
    for key in half_ops:
        source = failure.source(key)
        if source is None or not source.code or (source.file, source.line) in seen:
            continue
        seen.add((source.file, source.line))
        new = _NAMED_HALF.sub("float32", source.code.strip())
        for edit in line_edit(source, new):
            if edit["new"] != edit["old"]:
                yield f"{new}  # line {source.line}", edit


def _wide_inputs(failure: Failure, signature: Signature) -> Iterator[Part]:
    """Arrays of the batch that have 16 bits."""
    for spec in signature.inputs:
        if any(half in spec.dtype for half in _HALF):
            array = in_code(failure, own_path(failure, spec.path))
            edit = {"array": own_path(failure, spec.path), "dtype": "float32"}
            yield f'{array} = tf.cast({array}, "float32")', edit


def init(failure: Failure, value: str | None) -> Fix:
    """Draw the kernels anew as Glorot or He do, with the recorded shapes."""
    scheme = value or "glorot"
    if scheme not in ("glorot", "he"):
        raise BadValueError(f"Expected glorot or he. Received: {scheme}")
    if not failure.window.reaches_start:
        why = failure.window.why_not_earlier
        raise CannotTryError(f"{why}, so no other initial weights can be tried.")
    kernels = {}
    for index, info in enumerate(failure.window.replay.variables):
        if info.role == "trainable" and len(info.shape) >= 2:
            kernels[index] = info
    if not kernels:
        raise CannotTryError("The model has no kernel to draw anew.")

    wide = dict(_wide_kernels(failure, kernels, scheme))
    if not wide:
        raise CannotTryError(
            f"No kernel is drawn wider than `{_INITIALIZERS[scheme]}` draws it, so another draw of "
            "the same would be no change of the code."
        )

    def drawn_kernels(state: Mapping[int, Any]) -> Mapping[int, Any]:
        random = np.random.default_rng(0)
        drawn = {}
        for index, info in wide.items():
            if index in state:
                kernel = _drawn(random, info.shape, _scheme_of(info, scheme))
                drawn[index] = tf.cast(kernel, info.dtype)
        return drawn

    parts = list(_initializers(list(wide.values()), scheme))
    code, edits = "\n".join(line for line, _ in parts), [edit for _, edit in parts]
    return Fix("init", {"scheme": scheme}, Edit(state=(drawn_kernels,)), code, edits=edits)


def _wide_kernels(
    failure: Failure, kernels: Mapping[int, VariableInfo], scheme: str
) -> Iterator[tuple[int, VariableInfo]]:
    """Kernels that begin wider than an initializer draws them; an embedding has no fan-in."""
    state = failure.window.first_state()
    for index, info in kernels.items():
        if index not in state or "embedding" in info.path.lower():
            continue
        with np.errstate(all="ignore"):
            squares = np.square(np.asarray(state[index]).astype(np.float64))
            spread = float(np.sqrt(np.mean(squares)))
        if not spread <= _WIDER * _usual_spread(info.shape, _scheme_of(info, scheme)):
            yield index, info


def _usual_spread(shape: tuple[int, ...], scheme: str) -> float:
    """Standard deviation of a kernel as an initializer draws it."""
    if scheme == "orthogonal":
        return 1 / math.sqrt(max(math.prod(shape[:-1]), shape[-1]))
    fan_in, fan_out = _fans(shape)
    return math.sqrt(2 / fan_in if scheme == "he" else 2 / (fan_in + fan_out))


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """The last two axes are input and output, those before them the receptive field."""
    receptive_field = math.prod(shape[:-2])
    return receptive_field * shape[-2], receptive_field * shape[-1]


def _scheme_of(info: VariableInfo, scheme: str) -> str:
    """Keras draws recurrent kernels in a way of their own."""
    return "orthogonal" if _own_name(info) == "recurrent_kernel" else scheme


def _own_name(info: VariableInfo) -> str:
    return info.path.rpartition("/")[2].partition(":")[0]


def _initializers(wide: Sequence[VariableInfo], scheme: str) -> Iterator[Part]:
    """The arguments of the layers that draw some kernels."""
    by_name: dict[str, list[str]] = {}
    for info in wide:
        by_name.setdefault(_own_name(info), []).append(info.path)
    for name, paths in by_name.items():
        drawn_as = "orthogonal" if name == "recurrent_kernel" else scheme
        value = _INITIALIZERS[drawn_as]
        named = ", ".join(f"`{path}`" for path in paths[:_MOST_NAMED])
        if len(paths) > _MOST_NAMED:
            named += f" and {len(paths) - _MOST_NAMED} more"
        edit: dict[str, Any] = {"variables": paths, "value": value}
        if name == "kernel" or name.endswith("_kernel"):
            argument = f"{name.removesuffix('_kernel')}_initializer"
            yield f'{argument}="{value}"  # of {named}', {**edit, "argument": argument}
        else:
            yield f'# Draw {named} with keras.initializers.get("{value}")', edit


def _drawn(random: np.random.Generator, shape: tuple[int, ...], scheme: str) -> Any:
    """A kernel drawn as Keras's initializers do.

    "glorot" is uniform with the variance of Glorot & Bengio (2010), "he" is normal with that of He
    et al. (2015), "orthogonal" is what Keras makes of recurrent kernels.

    Args:
        random: Where numbers come from.
        shape: Of the kernel.
        scheme: "glorot", "he" or "orthogonal".
    """
    if scheme == "orthogonal":
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(random.normal(size=(max(rows, columns), min(rows, columns))))
        q *= np.sign(np.diag(r))
        return (q if rows >= columns else q.T).reshape(shape)
    fan_in, fan_out = _fans(shape)
    if scheme == "he":
        return random.normal(scale=math.sqrt(2 / fan_in), size=shape)
    limit = math.sqrt(6 / (fan_in + fan_out))
    return random.uniform(-limit, limit, size=shape)
